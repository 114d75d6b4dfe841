"""Embeddings made comparable: centred, decorrelated, scaled to unit length.

A classifier's embeddings tell its labels apart and little else: all clips of one label lie close
together. Dividing by the archive's own covariance gives the small differences between two clips of
one label the same say as the large ones between labels, so that only a copy remains alike.

Axes in array names: N clips, D the model's hidden size.
"""

import tempfile
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from indexer.table.read import rows_in_batches

_BATCH_ROWS: Final = 16 * 1024
"""Embeddings in memory at once: 150 MB where D is 768, of which two thirds are float64."""

Vectors = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]


def whitened(embeddings: ds.Dataset, clip_ids: pa.Array) -> Vectors:
    """Whitens all embeddings by their own mean and covariance.

    They are read twice, in pieces. The answer lies in a temporary file that is mapped to memory and
    goes with it: 3 GB for a million clips of 768 numbers.

    Args:
        embeddings: `clip_id` and `embedding` of all clips.
        clip_ids: the wanted clips.

    Returns:
        units_ND: float32, one row for each of `clip_ids`, in their order, of length 1; of length 0
            where there is no embedding, or nothing tells it from the mean.

    Raises:
        StorageError: the rows cannot be read.
    """
    if not len(clip_ids):
        return np.zeros((0, 1), np.float32)
    mean_D, whitening_DD = _whitening(embeddings)
    with tempfile.TemporaryFile() as file:
        shape = (len(clip_ids), len(mean_D))
        units_ND = np.memmap(file, np.float32, "w+", shape=shape)
    for ids, vectors_ND in _vectors(embeddings):
        rows_N = pc.index_in(ids, value_set=clip_ids)
        known_N = rows_N.is_valid().to_numpy(zero_copy_only=False)
        white_ND = (vectors_ND[known_N] - mean_D) @ whitening_DD
        norms_N1 = np.linalg.norm(white_ND, axis=1, keepdims=True)
        units_ND[rows_N.drop_null().to_numpy()] = white_ND / np.where(norms_N1 > 0, norms_N1, 1.0)
    return units_ND.view(np.ndarray)


def _whitening(embeddings: ds.Dataset) -> tuple[Matrix, Matrix]:
    """The mean, and the matrix that makes the covariance of what differs from it the identity.

    The covariance is shrunk towards a multiple of the identity, by the square of the dimensions
    for each clip: where clips are no more than dimensions nothing is whitened, where they are ten
    times as many, 1 % of the mean variance is added to each.
    """
    mean_D = _mean(embeddings)
    count, scatter_DD = 0, np.zeros((len(mean_D), len(mean_D)))
    for _, vectors_ND in _vectors(embeddings):
        centred_ND = vectors_ND - mean_D
        count += len(centred_ND)
        scatter_DD += centred_ND.T @ centred_ND
    covariance_DD = scatter_DD / max(count, 1)
    variance = float(np.trace(covariance_DD)) / len(mean_D)
    shrinkage = min((len(mean_D) / max(count, 1)) ** 2, 1.0)
    variances_D, axes_DD = np.linalg.eigh(covariance_DD)
    scales_D = (1 - shrinkage) * np.maximum(variances_D, 0.0) + shrinkage * variance
    return mean_D, axes_DD / np.sqrt(np.where(scales_D > 0, scales_D, 1.0))


def _mean(embeddings: ds.Dataset) -> Matrix:
    count, total_D = 0, np.zeros(1)
    for _, vectors_ND in _vectors(embeddings):
        count += len(vectors_ND)
        total_D = total_D + vectors_ND.sum(axis=0)
    return total_D / max(count, 1)


def _vectors(embeddings: ds.Dataset) -> Iterator[tuple[pa.Array, Matrix]]:
    for batch in rows_in_batches(embeddings, ["clip_id", "embedding"], _BATCH_ROWS):
        if batch.num_rows:
            flat = batch["embedding"].flatten().to_numpy(zero_copy_only=False)
            yield batch["clip_id"], flat.astype(np.float64).reshape(batch.num_rows, -1)
