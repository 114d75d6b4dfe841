"""Arrow rows that travel between the stages: one row is one unit.

A row is never split by Ray, so a unit's clips, their scores and their outcome stay together from
the decoder to the commit, whatever Ray merges or slices.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from indexer.metrics import FetchEffort, ModelEffort
from indexer.records import (
    ClipScores,
    ClipSpan,
    DecodedClips,
    UnitOutcome,
    VideoFailure,
    VideoInfo,
    VideoRef,
)

_REF_FIELDS: Final = [
    ("video_id", pa.string()),
    ("uri", pa.large_string()),
    ("size_bytes", pa.int64()),
    ("content_key", pa.string()),
    ("extra", pa.large_string()),
]
TODO_SCHEMA: Final = pa.schema(
    [
        *_REF_FIELDS,
        ("attempt", pa.int32()),
        ("units", pa.int32()),
        ("done_units", pa.list_(pa.int32())),
    ]
)
"""What the decoders get: the manifest, and the fields of `Todo`."""

_INFO: Final = pa.struct(
    [
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("codec", pa.string()),
        ("fps", pa.float64()),
        ("rotation", pa.int32()),
        ("duration_seconds", pa.float64()),
        ("warnings", pa.list_(pa.string())),
    ]
)
_SPAN: Final = pa.struct(
    [
        ("clip_index", pa.int32()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("frame_pts_seconds", pa.list_(pa.float64())),
        ("frames_exact", pa.bool_()),
    ]
)
_EFFORT: Final = pa.struct(
    [
        ("busy_seconds", pa.float64()),
        ("wait_seconds", pa.float64()),
        ("compile_seconds", pa.float64()),
        ("recomputed_batches", pa.int64()),
        ("problems", pa.list_(pa.string())),
    ]
)
_FETCH: Final = pa.struct(
    [
        ("seconds", pa.float64()),
        ("requests", pa.int64()),
        ("fetched_bytes", pa.int64()),
        ("retries", pa.map_(pa.string(), pa.int64())),
    ]
)
_FAILURE: Final = pa.struct([("code", pa.string()), ("message", pa.string())])

_UNIT_FIELDS: Final = [
    *_REF_FIELDS,
    ("attempt", pa.int32()),
    ("unit_index", pa.int32()),
    ("units", pa.int32()),
    ("info", _INFO),
    ("failure", _FAILURE),
    ("spans", pa.list_(_SPAN)),
    ("fetch", _FETCH),
    ("decode_seconds", pa.float64()),
    ("codec_seconds", pa.float64()),
    ("decode_wall_seconds", pa.float64()),
    ("worker", pa.string()),
]
DECODED_SCHEMA: Final = pa.schema([*_UNIT_FIELDS, ("frames_NTHWC", pa.large_binary())])
SCORED_SCHEMA: Final = pa.schema(
    [
        *_UNIT_FIELDS,
        ("logits_NK", pa.large_binary()),
        ("embeddings_ND", pa.large_binary()),
        ("model_effort", _EFFORT),
    ]
)
"""What the writers get; the effort of a block is in its first row."""


def decoded_row(
    ref: VideoRef,
    attempt: int,
    item: DecodedClips | VideoFailure,
    *,
    fetch: FetchEffort,
    decode_seconds: float,
    decode_wall_seconds: float,
    worker: str,
) -> pa.Table:
    """One unit as a table of one row of `DECODED_SCHEMA`; frames are not copied."""
    decoded = item if isinstance(item, DecodedClips) else None
    failure = item if isinstance(item, VideoFailure) else None
    row: dict[str, Any] = asdict(ref) | {
        "attempt": attempt,
        "unit_index": item.unit_index,
        "units": item.units,
        "info": None if item.info is None else asdict(item.info),
        "failure": failure and {"code": failure.code, "message": failure.message},
        "spans": [asdict(span) for span in decoded.spans] if decoded else [],
        "fetch": asdict(fetch) | {"retries": list(fetch.retries.items())},
        "decode_seconds": decode_seconds,
        "codec_seconds": decoded.codec_seconds if decoded else 0.0,
        "decode_wall_seconds": decode_wall_seconds,
        "worker": worker,
    }
    table = pa.Table.from_pylist([row], schema=pa.schema(_UNIT_FIELDS))
    frames = pa.nulls(1, pa.large_binary()) if decoded is None else _binary(decoded.frames_NTHWC)
    return table.append_column("frames_NTHWC", frames)


def packed(rows: Iterable[pa.Table], clips: int) -> Iterator[pa.Table]:
    """Tables of several `DECODED_SCHEMA` rows each, with so many clips or a unit's more.

    Ray would join the rows as well, but leave each column in as many pieces as there were rows: and
    pickling a piece costs as much as pickling the whole.

    Args:
        rows: tables of any number of rows.
        clips: that make a table full.
    """
    waiting, waiting_clips = [], 0
    for row in rows:
        waiting.append(row)
        waiting_clips += sum(pc.list_value_length(row.column("spans")).to_pylist())
        if waiting_clips >= clips:
            yield _joined(waiting)
            waiting, waiting_clips = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(rows: list[pa.Table]) -> pa.Table:
    """One table, in one piece but for its frames, which are large, and are not copied."""
    table = pa.concat_tables(rows)
    small = table.drop_columns(["frames_NTHWC"]).combine_chunks()
    return small.append_column("frames_NTHWC", table.column("frames_NTHWC"))


def frames_of(table: pa.Table, clip_shape_THWC: tuple[int, ...]) -> list[npt.NDArray[np.uint8]]:
    """The clips of every row as uint8 NTHWC, without a copy; none where the unit failed."""
    return [
        np.frombuffer(cell, np.uint8).reshape(-1, *clip_shape_THWC)
        for chunk in table.column("frames_NTHWC").chunks
        for cell in _cells(chunk)
    ]


def _cells(array: pa.Array) -> Iterator[memoryview]:
    """The bytes of a large_binary array; reading the scalars instead would copy each."""
    _, offsets, content = array.buffers()
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    view = memoryview(content) if content is not None else memoryview(b"")
    for start, end in itertools.pairwise(ends.tolist()):
        yield view[start:end]


def with_scores(table: pa.Table, scores: list[ClipScores | None], effort: ModelEffort) -> pa.Table:
    """Puts the scores of every row in place of its frames."""
    told = asdict(effort) | {"problems": sorted(effort.problems)}
    efforts = [told, *[None] * (table.num_rows - 1)]
    logits = [None if s is None else s.logits_NK.astype(np.float32).tobytes() for s in scores]
    vectors = [None if s is None else s.embeddings_ND.astype(np.float32).tobytes() for s in scores]
    return (
        table.drop_columns(["frames_NTHWC"])
        .combine_chunks()
        .append_column("logits_NK", pa.array(logits, pa.large_binary()))
        .append_column("embeddings_ND", pa.array(vectors, pa.large_binary()))
        .append_column("model_effort", pa.array(efforts[: table.num_rows], _EFFORT))
    )


def effort_of(table: pa.Table) -> ModelEffort:
    """What scoring all rows of `SCORED_SCHEMA` took."""
    given = [row for row in table.column("model_effort").to_pylist() if row is not None]
    efforts = (ModelEffort(**row | {"problems": frozenset(row["problems"])}) for row in given)
    return sum(efforts, ModelEffort())


def outcomes(table: pa.Table) -> Iterator[UnitOutcome]:
    """Reads rows of `SCORED_SCHEMA` back into records."""
    for row in table.to_pylist():
        spans = tuple(_span(span) for span in row["spans"])
        info = None if row["info"] is None else _info(row["info"])
        ref = VideoRef(
            row["video_id"], row["uri"], row["size_bytes"], row["content_key"], row["extra"]
        )
        failure = row["failure"] and VideoFailure(
            row["failure"]["code"], row["failure"]["message"], row["unit_index"], row["units"], info
        )
        yield UnitOutcome(
            ref=ref,
            attempt=row["attempt"],
            unit_index=row["unit_index"],
            units=row["units"],
            info=info,
            spans=spans,
            scores=None if failure else _scores(row, len(spans)),
            failure=failure,
            fetch=FetchEffort(**row["fetch"] | {"retries": dict(row["fetch"]["retries"])}),
            decode_seconds=row["decode_seconds"],
            codec_seconds=row["codec_seconds"],
            decode_wall_seconds=row["decode_wall_seconds"],
            worker=row["worker"],
        )


@dataclass(frozen=True, slots=True)
class Todo:
    """One video to do.

    Attributes:
        ref: the video.
        attempt: 1 for the first time, and so on.
        units: how many units it has, as far as the index knows; 1 where it does not.
        done_units: units that need no work.
    """

    ref: VideoRef
    attempt: int
    units: int
    done_units: frozenset[int]


def todos(table: pa.Table) -> Iterator[Todo]:
    """Reads rows of `TODO_SCHEMA`."""
    for row in table.to_pylist():
        attempt, units, done_units = (row.pop(key) for key in ("attempt", "units", "done_units"))
        yield Todo(VideoRef(**row), attempt, units, frozenset(done_units))


def _binary(array: npt.NDArray[Any]) -> pa.Array:
    """A column of one cell that shares the array's memory."""
    contiguous = np.ascontiguousarray(array)
    offsets = pa.py_buffer(np.array([0, contiguous.nbytes], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(contiguous)])


def _scores(row: dict[str, Any], clips: int) -> ClipScores:
    return ClipScores(
        logits_NK=np.frombuffer(row["logits_NK"], np.float32).reshape(clips, -1),
        embeddings_ND=np.frombuffer(row["embeddings_ND"], np.float32).reshape(clips, -1),
    )


def _span(row: dict[str, Any]) -> ClipSpan:
    return replace(ClipSpan(**row), frame_pts_seconds=tuple(row["frame_pts_seconds"]))


def _info(row: dict[str, Any]) -> VideoInfo:
    return replace(VideoInfo(**row), warnings=tuple(row["warnings"]))
