"""What a relabelled model lacks of its source, and what it has that the source no longer has.

The table `videos` of a relabelled model is a copy of its source's, so the two are compared row by
row: what the source has beyond it is to do, and a video of which it has a row that the source does
not have is stale, for it was indexed again, or deleted.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexer import storage
from indexer.errors import CommitConflict
from indexer.table.by_video import ByVideo, by_video, checked_rows
from indexer.table.delta import LiveFile, live_files, open_or_create
from indexer.table.paths import IndexPaths
from indexer.table.schema import CLIPS, EMBEDDINGS, VIDEOS, TableSpec

KEY: Final = ("video_id", "unit_index", "attempt", "status", "run_id", "content_key")
"""Columns of `videos` that tell one outcome from every other; the last may hold any text."""

ROWS: Final = 32_768
"""Rows of each side that are compared at a time."""

_LOOKS: Final = 40
_LOOK_SECONDS: Final = 0.25

Files = Mapping[str, list[LiveFile]]


@dataclass(frozen=True, slots=True)
class Difference:
    """Of the next few videos.

    Attributes:
        todo: the source's rows of `videos` that are to be made; of a stale video all of them.
        stale: `video_id` and `uri` of the videos whose rows go first, in no order, with repeats.
    """

    todo: pa.Table
    stale: pa.Table


def settled_files(paths: IndexPaths, tag: str) -> Files:
    """The files of a model that others may be writing, without a video that is half replaced.

    A job replaces a video by taking its rows out of all tables, `videos` last, before it adds new
    ones. So where the outcomes are still the same after the other tables were looked at, these hold
    nothing newer than what the outcomes tell of.

    Raises:
        CommitConflict: outcomes are replaced faster than they can be looked at.
        StorageError: a log cannot be read.
    """
    for _ in range(_LOOKS):
        files = {s.name: _live(paths, s, tag) for s in (VIDEOS, CLIPS, EMBEDDINGS)}
        now = {file.path for file in _live(paths, VIDEOS, tag)}
        if now.issuperset(file.path for file in files[VIDEOS.name]):
            return files
        time.sleep(_LOOK_SECONDS)
    message = (
        f"{storage.redact(paths.table(VIDEOS.name))}: a job keeps replacing videos of {tag};"
        " relabel when it is done"
    )
    raise CommitConflict(message)


def differences(
    paths: IndexPaths, source: Iterable[pa.Table], own: Iterable[LiveFile]
) -> Iterator[Difference]:
    """Compares the outcomes of a source with those of a relabelled model, some videos at a time.

    Args:
        paths: of the index.
        source: the source's rows of `videos`, in any order.
        own: the model's files of `videos`.

    Raises:
        StorageError: a file is missing or damaged.
    """
    columns = [*KEY, "uri"]
    schema = pa.schema([VIDEOS.schema.field(name) for name in columns])
    theirs = by_video(source, VIDEOS.data_schema, "unit_index", "attempt")
    read = (rows.select(columns) for rows in checked_rows(paths, VIDEOS, list(own)))
    ours = by_video(read, schema, "unit_index", "attempt")
    while (last := _next_video(theirs, ours)) is not None:
        yield _compare(theirs.through(last), ours.through(last))


def groups(todo: pa.Table, clips_each: int) -> Iterator[pa.Table]:
    """Cuts rows of `videos`, sorted by video, between videos: so many clips at most, or one."""
    if not todo.num_rows:
        return
    ids = todo["video_id"].combine_chunks()
    changes = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    ends = np.flatnonzero(np.append(changes, True)) + 1
    totals = np.cumsum(todo["clips"].to_numpy())[ends - 1]
    first = row = clips = 0
    while first < len(ends):
        last = max(first, int(np.searchsorted(totals, clips + clips_each, "right")) - 1)
        yield todo.slice(row, int(ends[last]) - row)
        first, row, clips = last + 1, int(ends[last]), int(totals[last])


def _next_video(theirs: ByVideo, ours: ByVideo) -> str | None:
    """The nearer of the videos that end both streams' next rows."""
    ends = [end for end in (theirs.next_video(ROWS), ours.next_video(ROWS)) if end is not None]
    return min(ends, default=None)


def _compare(theirs: pa.Table, ours: pa.Table) -> Difference:
    their_keys, our_keys = _keys(theirs), _keys(ours)
    gone = pc.invert(pc.is_in(our_keys, value_set=their_keys))
    stale = ours.filter(gone).select(["video_id", "uri"])
    new = pc.invert(pc.is_in(their_keys, value_set=our_keys))
    redone = pc.is_in(theirs["video_id"], value_set=stale["video_id"].combine_chunks())
    return Difference(theirs.filter(pc.or_(new, redone)), stale)


def _keys(rows: pa.Table) -> pa.Array:
    texts = (rows[name].cast(pa.string()) for name in KEY)
    return pc.binary_join_element_wise(*texts, "/").combine_chunks()


def _live(paths: IndexPaths, spec: TableSpec, tag: str) -> list[LiveFile]:
    return live_files(open_or_create(paths, spec), tag)
