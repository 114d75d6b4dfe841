"""One score for a clip that was looked at several times: other stretches, other crops.

Axes in array names: N clips, V views of a clip, K labels, D hidden size.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from indexer.records import ClipScores


def fuse_views(
    scores: ClipScores, views: int, fusion: Literal["probabilities", "logits"]
) -> ClipScores:
    """Fuses the scores of a clip's views; embeddings are averaged.

    Args:
        scores: a row for each view, clip by clip.
        views: of each clip.
        fusion: `probabilities` averages the views' softmax, and gives its logarithm for logits, so
            that their softmax is the average; `logits` averages the logits, which are then those of
            the averaged embedding.
    """
    if views == 1:
        return scores
    logits_NVK = _by_clip(scores.logits_NK, views)
    embeddings_NVD = _by_clip(scores.embeddings_ND, views)
    if fusion == "probabilities":
        highest_NV1 = logits_NVK.max(axis=2, keepdims=True)
        with np.errstate(invalid="ignore"):  # scores that are not finite are a bad outcome later on
            exponents_NVK = np.exp(logits_NVK - highest_NV1)
        probabilities_NVK = exponents_NVK / exponents_NVK.sum(axis=2, keepdims=True)
        smallest = np.finfo(np.float32).tiny  # of a probability, so that its logarithm is finite
        logits_NK = np.log(np.maximum(probabilities_NVK.mean(axis=1), smallest))
    else:
        logits_NK = logits_NVK.mean(axis=1)
    return ClipScores(
        logits_NK=logits_NK.astype(np.float32),
        embeddings_ND=embeddings_NVD.mean(axis=1).astype(np.float32),
    )


def _by_clip(rows: npt.NDArray[np.float32], views: int) -> npt.NDArray[np.float64]:
    return rows.astype(np.float64).reshape(-1, views, rows.shape[1])
