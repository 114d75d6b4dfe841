"""The decode stage: listed videos in, preprocessed units out."""

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pyarrow as pa

from indexer.errors import VideoError
from indexer.metrics import FetchEffort
from indexer.records import DecodedClips, VideoFailure
from indexer.runtime import blocks
from indexer.uris import redact
from indexer.video.fetch import Opened, open_video, prefetched
from indexer.video.plan import DecodePlan
from indexer.video.sandbox import Sandbox
from indexer.video.survey import Survey

_LOGGER = logging.getLogger(__name__)


def decode_videos(
    table: pa.Table, plan: DecodePlan, sandbox: Sandbox, *, idle_since: float | None = None
) -> Iterator[pa.Table]:
    """Decodes the videos of `TODO_SCHEMA` rows, one row of `DECODED_SCHEMA` per unit.

    While one video is decoded, the next is fetched.

    Args:
        table: the videos.
        plan: what to take of each.
        sandbox: that decodes.
        idle_since: `time.perf_counter()` when this process had done its work before; by default
            now.
    """
    told = time.perf_counter() if idle_since is None else idle_since
    worker = f"{socket.gethostname()}:{os.getpid()}"
    todos = list(blocks.todos(table))
    with closing(prefetched((todo.ref for todo in todos), plan.decode)) as videos:
        for todo, opened in zip(todos, videos, strict=True):
            fetched, opening_seconds = FetchEffort(), opened.traffic.seconds
            started = time.perf_counter()
            for item, decode_seconds in _decode_video(todo, opened, sandbox):
                now = time.perf_counter()
                before, fetched = fetched, opened.traffic.effort()
                fetch = fetched - before
                # what was fetched on the way is no decoding; opening was in the background
                wall_seconds = now - started - (fetch.seconds - opening_seconds)
                if isinstance(item, VideoFailure):
                    _log_failure(todo, item)
                yield blocks.decoded_row(
                    todo.ref,
                    todo.attempt,
                    item,
                    fetch=fetch,
                    decode_seconds=decode_seconds,
                    decode_wall_seconds=wall_seconds,
                    decode_wait_seconds=now - told - wall_seconds,
                    worker=worker,
                )
                told = now
                opening_seconds, started = 0.0, time.perf_counter()


def _log_failure(todo: blocks.Todo, failure: VideoFailure) -> None:
    """One line in the worker's log, with fields of their own where the log is structured."""
    fields = {
        "video_id": todo.ref.video_id,
        "uri": redact(todo.ref.uri),
        "error_code": failure.code,
        "unit_index": failure.unit_index,
        "attempt": todo.attempt,
    }
    message = "video_id=%s error_code=%s attempt=%d: %s"
    _LOGGER.warning(
        message, todo.ref.video_id, failure.code, todo.attempt, failure.message, extra=fields
    )


def survey_videos(table: pa.Table, plan: DecodePlan, sandbox: Sandbox) -> list[Survey | None]:
    """The extent of each video of `TODO_SCHEMA` rows; None for one that cannot be read."""
    surveys: list[Survey | None] = []
    for todo in blocks.todos(table):
        try:
            with open_video(todo.ref, plan.decode) as video:
                survey = sandbox.survey(video, video_id=todo.ref.video_id)
        except VideoError:
            surveys.append(None)
        else:
            surveys.append(survey if isinstance(survey, Survey) else None)
    return surveys


def _decode_video(
    todo: blocks.Todo, opened: Opened, sandbox: Sandbox
) -> Iterator[tuple[DecodedClips | VideoFailure, float]]:
    """Units of one video with the CPU seconds of decoding them."""
    if isinstance(opened.video, VideoError):
        for failure in _spread(VideoFailure(opened.video.code, str(opened.video)), todo):
            yield failure, 0.0
        return
    with opened.video as video:
        items = sandbox.decode(video, video_id=todo.ref.video_id, skip_units=todo.done_units)
        for item, cpu_seconds in items:
            decode_seconds = cpu_seconds
            for part in _spread(item, todo) if isinstance(item, VideoFailure) else (item,):
                yield part, decode_seconds
                decode_seconds = 0.0


def _spread(failure: VideoFailure, todo: blocks.Todo) -> Iterator[VideoFailure]:
    """Gives each unit that is left to do an outcome of its own.

    A video that cannot even be opened does not know that it has several units; the index, or who
    shared it out, may.
    """
    if failure.units >= todo.units:
        yield failure
        return
    for unit_index in sorted(set(range(todo.units)) - todo.done_units):
        yield replace(failure, unit_index=unit_index, units=todo.units)
