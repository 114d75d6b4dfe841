"""Arrow rows that travel between the stages: one row is one unit.

A row is never split by Ray, so a unit's clips, their scores and their outcome stay together from
the decoder to the commit, whatever Ray merges or slices.
"""

import itertools
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from indexer.metrics import FetchEffort, ModelEffort
from indexer.records import ClipScores, DecodedClips, UnitOutcome, VideoFailure, VideoRef

TODO_SCHEMA: Final = pa.schema(
    [
        ("video_id", pa.string()),
        ("uri", pa.large_string()),
        ("size_bytes", pa.int64()),
        ("content_key", pa.string()),
        ("extra", pa.large_string()),
        ("attempt", pa.int32()),
        ("units", pa.int32()),
        ("done_units", pa.list_(pa.int32())),
    ]
)
"""What the decoders get: the manifest, and the fields of `Todo`."""

DECODED_SCHEMA: Final = pa.schema(
    [("unit", pa.large_binary()), ("clips", pa.int32()), ("frames_NTHWC", pa.large_binary())]
)
"""What the model gets: of each unit, what is known of it so far, pickled, and its clips."""

SCORED_SCHEMA: Final = pa.schema(
    [
        ("unit", pa.large_binary()),
        ("clips", pa.int32()),
        ("logits_NK", pa.large_binary()),
        ("embeddings_ND", pa.large_binary()),
        ("model_effort", pa.large_binary()),
    ]
)
"""What the writers get; the effort of a block, pickled, is in its first row.

What no stage looks at one by one is pickled: each column of a table, and of a struct in it, costs
Ray as much as a unit's worth of pickle.
"""


def decoded_row(
    ref: VideoRef,
    attempt: int,
    item: DecodedClips | VideoFailure,
    *,
    fetch: FetchEffort,
    decode_seconds: float,
    decode_wall_seconds: float,
    decode_wait_seconds: float,
    worker: str,
) -> pa.Table:
    """One unit as a table of one row of `DECODED_SCHEMA`; frames are not copied."""
    decoded = item if isinstance(item, DecodedClips) else None
    unit = {
        "ref": ref,
        "attempt": attempt,
        "unit_index": item.unit_index,
        "units": item.units,
        "info": item.info,
        "spans": decoded.spans if decoded else (),
        "failure": item if isinstance(item, VideoFailure) else None,
        "fetch": fetch,
        "decode_seconds": decode_seconds,
        "codec_seconds": decoded.codec_seconds if decoded else 0.0,
        "decode_wall_seconds": decode_wall_seconds,
        "decode_wait_seconds": decode_wait_seconds,
        "worker": worker,
    }
    columns = [
        pa.array([pickle.dumps(unit)], pa.large_binary()),
        pa.array([len(decoded.spans) if decoded else 0], pa.int32()),
        pa.nulls(1, pa.large_binary()) if decoded is None else _binary(decoded.frames_NTHWC),
    ]
    return pa.table(columns, schema=DECODED_SCHEMA)


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
        waiting_clips += sum(row.column("clips").to_pylist())
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
    efforts = [pickle.dumps(effort), *[None] * (table.num_rows - 1)]
    logits = [None if s is None else s.logits_NK.astype(np.float32).tobytes() for s in scores]
    vectors = [None if s is None else s.embeddings_ND.astype(np.float32).tobytes() for s in scores]
    return (
        table.drop_columns(["frames_NTHWC"])
        .combine_chunks()
        .append_column("logits_NK", pa.array(logits, pa.large_binary()))
        .append_column("embeddings_ND", pa.array(vectors, pa.large_binary()))
        .append_column("model_effort", pa.array(efforts[: table.num_rows], pa.large_binary()))
    )


def effort_of(table: pa.Table) -> ModelEffort:
    """What scoring all rows of `SCORED_SCHEMA` took."""
    told = table.column("model_effort").to_pylist()
    efforts = (pickle.loads(one) for one in told if one is not None)  # noqa: S301 - our own actor's
    return sum(efforts, ModelEffort())


def outcomes(table: pa.Table) -> Iterator[UnitOutcome]:
    """Reads rows of `SCORED_SCHEMA` back into records."""
    for row in table.to_pylist():
        unit = pickle.loads(row["unit"])  # noqa: S301 - written by our own actor
        scores = None if row["logits_NK"] is None else _scores(row)
        yield UnitOutcome(**unit, scores=scores)


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


def _scores(row: dict[str, Any]) -> ClipScores:
    return ClipScores(
        logits_NK=np.frombuffer(row["logits_NK"], np.float32).reshape(row["clips"], -1),
        embeddings_ND=np.frombuffer(row["embeddings_ND"], np.float32).reshape(row["clips"], -1),
    )
