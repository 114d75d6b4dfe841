"""The decode stage: listed videos in, preprocessed units out."""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa

from indexer.errors import VideoError
from indexer.records import DecodedClips, VideoFailure
from indexer.runtime import blocks
from indexer.video.decode import decode_clips
from indexer.video.fetch import open_video
from indexer.video.plan import DecodePlan


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
