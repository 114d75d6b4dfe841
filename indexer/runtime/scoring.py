"""The model stage: decoded units in, scored units out."""

import time

import numpy as np
import pyarrow as pa

from indexer.model.classify import Classifier
from indexer.records import ClipScores
from indexer.runtime import blocks


def score_units(decoded: pa.Table, classifier: Classifier) -> pa.Table:
    """Scores all clips of `DECODED_SCHEMA` rows in full batches, unit borders or not."""
    frames = blocks.frames_of(decoded, classifier.clip_shape_THWC)
    clips = [len(frames_NTHWC) for frames_NTHWC in frames]
    total = sum(clips)
    if total == 0:
        return blocks.with_scores(decoded, [None] * len(clips), [0.0] * len(clips))
    started = time.perf_counter()
    # One unit is the common case of a long video, and needs no copy.
    joined_NTHWC = max(frames, key=len) if max(clips) == total else np.concatenate(frames)
    all_scores = classifier.classify(joined_NTHWC)
    seconds_per_clip = (time.perf_counter() - started) / total
    ends = np.cumsum(clips)
    scores = [
        ClipScores(all_scores.logits_NK[end - n : end], all_scores.embeddings_ND[end - n : end])
        if n
        else None
        for n, end in zip(clips, ends, strict=True)
    ]
    return blocks.with_scores(decoded, scores, [n * seconds_per_clip for n in clips])
