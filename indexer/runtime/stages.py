"""The stages as plain functions from Arrow rows to Arrow rows; `workers` puts them on Ray."""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from indexer.errors import VideoError
from indexer.metrics import Counts
from indexer.model.classify import Classifier
from indexer.records import ClipScores, DecodedClips, UnitOutcome, VideoFailure
from indexer.runtime import blocks
from indexer.table.paths import IndexPaths
from indexer.table.rows import RowContext, checked, unit_tables
from indexer.table.write import DataFile, write_tables
from indexer.video.decode import decode_clips
from indexer.video.fetch import open_video
from indexer.video.plan import DecodePlan


@dataclass(frozen=True, slots=True)
class UnitReceipt:
    """What the driver needs to know of a written unit.

    Attributes:
        video_id: of its video.
        unit_index: ordinal within the video.
        units: number of units of the video.
        failed: whether its outcome is a failure.
    """

    video_id: str
    unit_index: int
    units: int
    failed: bool


@dataclass(frozen=True, slots=True)
class WriteReceipt:
    """Data files that wait for their commit, with what they hold.

    Attributes:
        files: the data files, under the table roots.
        units: one receipt per unit in them.
        counts: sums over these units.
    """

    files: tuple[DataFile, ...]
    units: tuple[UnitReceipt, ...]
    counts: Counts


def decode_videos(table: pa.Table, plan: DecodePlan) -> Iterator[pa.Table]:
    """Decodes the videos of `TODO_SCHEMA` rows, one row of `DECODED_SCHEMA` per unit."""
    worker = f"{socket.gethostname()}:{os.getpid()}"
    for todo in blocks.todos(table):
        for item, fetch_seconds, decode_seconds in _decode_video(todo, plan):
            yield blocks.decoded_row(
                todo.ref,
                todo.attempt,
                item,
                fetch_seconds=fetch_seconds,
                decode_seconds=decode_seconds,
                worker=worker,
            )


def _decode_video(
    todo: blocks.Todo, plan: DecodePlan
) -> Iterator[tuple[DecodedClips | VideoFailure, float, float]]:
    """Units of one video with their fetch seconds (wall) and decode seconds (CPU)."""
    fetch_started = time.perf_counter()
    try:
        file = open_video(todo.ref, plan.decode)
    except VideoError as error:
        fetch_seconds = time.perf_counter() - fetch_started
        for failure in _spread(VideoFailure(error.code, str(error)), todo):
            yield failure, fetch_seconds, 0.0
        return
    fetch_seconds = time.perf_counter() - fetch_started
    with file:
        decode_started = time.thread_time()
        items = decode_clips(file, plan, video_id=todo.ref.video_id, skip_units=todo.done_units)
        for item in items:
            seconds = time.thread_time() - decode_started
            for part in _spread(item, todo) if isinstance(item, VideoFailure) else (item,):
                yield part, fetch_seconds, seconds
                fetch_seconds = seconds = 0.0
            decode_started = time.thread_time()


def _spread(failure: VideoFailure, todo: blocks.Todo) -> Iterator[VideoFailure]:
    """Gives each unit that an earlier run left undone an outcome of its own.

    A video that cannot even be opened does not know that it has several units; the index may.
    """
    if failure.units >= todo.units:
        yield failure
        return
    for unit_index in sorted(set(range(todo.units)) - todo.done_units):
        yield replace(failure, unit_index=unit_index, units=todo.units)


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


def write_units(
    scored: pa.Table, *, paths: IndexPaths, context: RowContext, task: str
) -> WriteReceipt:
    """Writes the rows of all units of a block as data files that no commit names yet."""
    units = [checked(outcome) for outcome in blocks.outcomes(scored)]
    files = write_tables(
        unit_tables(units, context), paths, tag=context.tag, run_id=context.run_id, task=task
    )
    receipts = tuple(
        UnitReceipt(u.ref.video_id, u.unit_index, u.units, u.failure is not None) for u in units
    )
    counts = sum((_counts_of(unit) for unit in units), Counts())
    model_seconds = float(sum(scored.column("model_seconds").to_pylist()))
    return WriteReceipt(files, receipts, counts + Counts(model_seconds=model_seconds))


def _counts_of(unit: UnitOutcome) -> Counts:
    first = unit.unit_index == 0
    return Counts(
        units=1,
        clips=len(unit.spans),
        failures={unit.failure.code: 1} if unit.failure else {},
        fetch_seconds=unit.fetch_seconds,
        decode_seconds=unit.decode_seconds,
        video_seconds=unit.info.duration_seconds if first and unit.info else 0.0,
        read_bytes=unit.ref.size_bytes if first else 0,
    )
