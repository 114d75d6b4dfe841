"""The model stage: decoded units in, scored units out."""

from typing import Literal

import numpy as np
import pyarrow as pa

from indexer.metrics import ModelEffort
from indexer.model.classify import Classifier
from indexer.model.fusion import fuse_views
from indexer.records import ClipScores
from indexer.runtime import blocks


def score_units(
    decoded: pa.Table, classifier: Classifier, fusion: Literal["probabilities", "logits"]
) -> pa.Table:
    """Scores all clips of `DECODED_SCHEMA` rows in full batches, unit borders or not."""
    frames = blocks.frames_of(decoded, classifier.clip_shape_THWC)
    clips = decoded.column("clips").to_pylist()
    views = sum(map(len, frames))
    before = _effort(classifier)
    if views == 0:
        return blocks.with_scores(decoded, [None] * len(clips), ModelEffort())
    all_scores = fuse_views(classifier.classify(*frames), views // sum(clips), fusion)
    ends = np.cumsum(clips)
    scores = [
        ClipScores(all_scores.logits_NK[end - n : end], all_scores.embeddings_ND[end - n : end])
        if n
        else None
        for n, end in zip(clips, ends, strict=True)
    ]
    return blocks.with_scores(decoded, scores, _effort(classifier) - before)


def _effort(classifier: Classifier) -> ModelEffort:
    return ModelEffort(
        busy_seconds=classifier.busy_seconds,
        wait_seconds=classifier.wait_seconds,
        compile_seconds=classifier.compile_seconds,
        recomputed_batches=classifier.recomputed_batches,
        problems=classifier.problems,
    )
