"""The clips that look most like one: exact cosine similarity over all embeddings.

Axes in array names: N clips, D the model's hidden size.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from indexer.errors import QueryError
from indexer.table.read import ask, rows_in_batches

NEIGHBOURS: Final = pa.schema(
    [
        pa.field("similarity", pa.float64()),
        pa.field("clip_id", pa.string()),
        pa.field("video_id", pa.string()),
    ]
)

_BATCH_ROWS: Final = 16 * 1024
"""Embeddings in memory at once: 150 MB where D is 768, of which two thirds are float64."""

_DECIMALS: Final = 12
"""To which similarities are rounded: equal embeddings are equally similar, wherever they lie."""

_BEST_SQL: Final = """
    SELECT similarity, clip_id, video_id FROM found ORDER BY similarity DESC, clip_id LIMIT $1
"""
_BEST_OF_VIDEOS_SQL: Final = """
    SELECT similarity, clip_id, video_id FROM found
    QUALIFY row_number() OVER (PARTITION BY video_id ORDER BY similarity DESC, clip_id) = 1
    ORDER BY similarity DESC, clip_id LIMIT $1
"""


def nearest(
    embeddings: ds.Dataset,
    query_D: npt.ArrayLike,
    *,
    top: int,
    without: Iterable[str] = (),
    distinct_videos: bool = False,
) -> pa.Table:
    """The clips with the highest cosine similarity to a vector, computed in float64.

    Args:
        embeddings: `clip_id`, `video_id` and `embedding` of all clips.
        query_D: the vector.
        top: at most this many.
        without: clip ids that are left out.
        distinct_videos: only the best clip of each video.

    Returns:
        Columns `NEIGHBOURS`: the best first, of equal ones by clip id. Clips whose embedding has no
        direction, being all zeros, are left out.

    Raises:
        QueryError: the vector has no direction.
        StorageError: the rows cannot be read.
    """
    unit_D = np.asarray(query_D, np.float64)
    length = np.linalg.norm(unit_D)
    if not length > 0:
        message = "an embedding of zeros is like nothing"
        raise QueryError(message)
    unit_D = unit_D / length
    unwanted = pa.array(without, pa.string())
    best = NEIGHBOURS.empty_table()
    sql = _BEST_OF_VIDEOS_SQL if distinct_videos else _BEST_SQL
    for batch in rows_in_batches(embeddings, [*NEIGHBOURS.names[1:], "embedding"], _BATCH_ROWS):
        found = _scored(batch, unit_D, unwanted)
        if best.num_rows == top:
            found = found.filter(pc.field("similarity") >= best["similarity"][-1])
        if found.num_rows:
            best = ask(sql, NEIGHBOURS, top, found=pa.concat_tables([best, found]))
    return best


def _scored(batch: pa.RecordBatch, unit_D: npt.NDArray[np.float64], unwanted: pa.Array) -> pa.Table:
    batch = batch.filter(pc.invert(pc.is_in(batch["clip_id"], value_set=unwanted)))
    flat = batch["embedding"].flatten().to_numpy(zero_copy_only=False)
    vectors_ND = flat.astype(np.float64).reshape(-1, len(unit_D))
    norms_N = np.linalg.norm(vectors_ND, axis=1)
    has_direction_N = norms_N > 0
    norms_N[~has_direction_N] = 1.0
    similarities_N = np.round(vectors_ND @ unit_D / norms_N, _DECIMALS)
    columns = [pa.array(similarities_N), batch["clip_id"], batch["video_id"]]
    return pa.table(columns, NEIGHBOURS).filter(pa.array(has_direction_N))
