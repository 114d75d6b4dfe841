"""What of a model is done: the state of every video, worked out from the `videos` table.

A unit is done when one of its attempts was indexed; else its latest attempt counts. A video whose
content has changed counts with its newest content only.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexer import storage
from indexer.errors import StorageError
from indexer.table.delta import open_table, reason
from indexer.table.lookup import VideoLookup
from indexer.table.paths import IndexPaths
from indexer.table.read import ask, model_rows
from indexer.table.schema import INDEXED, VIDEOS

STATES: Final = pa.schema(
    [
        pa.field("video_id", pa.string()),
        pa.field("content_key", pa.string()),
        pa.field("units", pa.int32()),
        pa.field("done", pa.list_(pa.int32())),
        pa.field("failed", pa.list_(pa.int32())),
        pa.field("attempts", pa.int32()),
        pa.field("error_code", pa.string()),
    ]
)

_STATE_COLUMNS: Final = (
    "video_id", "content_key", "unit_index", "units", "status", "attempt", "error_code",
    "finished_at",
)  # fmt: skip
_STATE_SCHEMA: Final = pa.schema([VIDEOS.schema.field(name) for name in _STATE_COLUMNS])

_STATES_SQL: Final = """
    WITH contents AS (
        SELECT video_id, max({'at': finished_at, 'key': content_key}).key AS content_key
        FROM videos GROUP BY video_id
    ),
    units AS (
        SELECT
            video_id, content_key, unit_index,
            bool_or(status = 'indexed') AS indexed,
            max(units) AS units,
            max(attempt) AS attempts,
            max({'attempt': attempt, 'code': error_code}) FILTER (status = 'failed') AS failure
        FROM videos JOIN contents USING (video_id, content_key)
        GROUP BY video_id, content_key, unit_index
    )
    SELECT
        video_id, content_key, max(units) AS units,
        coalesce(list(unit_index ORDER BY unit_index) FILTER (indexed), []) AS done,
        coalesce(list(unit_index ORDER BY unit_index) FILTER (NOT indexed), []) AS failed,
        max(attempts) AS attempts,
        CASE WHEN count(*) FILTER (indexed) < max(units) THEN max(failure).code END AS error_code
    FROM units GROUP BY video_id, content_key ORDER BY video_id
"""


def videos_version(paths: IndexPaths) -> int | None:
    """Version of the `videos` table; None before there is one.

    Raises:
        StorageError: the table cannot be read.
    """
    table = open_table(paths, VIDEOS)
    return None if table is None else int(table.version())


def finished_videos(paths: IndexPaths, tag: str, manifest: pa.Table) -> pa.BooleanArray:
    """Which videos of a manifest are indexed with all their units and their present content.

    Streams the table once and keeps some 40 bytes for each video of the manifest.

    Raises:
        StorageError: the table cannot be read.
    """
    if videos_version(paths) is None:
        return pa.array(np.zeros(manifest.num_rows, np.bool_))
    done = np.zeros(manifest.num_rows, np.int32)
    units = np.ones(manifest.num_rows, np.int32)
    lookup = VideoLookup(manifest["video_id"])
    listed_keys = manifest["content_key"].cast(pa.large_string()).combine_chunks()
    wanted = pc.field("status") == INDEXED
    for batch in _batches(paths, tag, ["video_id", "content_key", "units"], wanted):
        rows = lookup.rows(batch["video_id"])
        listed = pa.array(rows, mask=rows < 0)
        same = pc.equal(listed_keys.take(listed), batch["content_key"])
        mask = pc.fill_null(same, False).to_numpy(zero_copy_only=False)
        np.add.at(done, rows[mask], 1)
        np.maximum.at(units, rows[mask], batch["units"].to_numpy()[mask])
    return pa.array(done >= units)


def unit_states(paths: IndexPaths, tag: str, video_ids: pa.ChunkedArray | None = None) -> pa.Table:
    """The state of every video that a model has met, by video id.

    Args:
        paths: of the index.
        tag: of the model.
        video_ids: the videos that matter; by default all.

    Returns:
        A row for each video: `video_id`, `content_key`, `units` (how many it has), `done` (indices
        of the units that are indexed), `failed` (of those whose attempts all failed), `attempts`
        (the highest), `error_code` (of the latest failure, null where all units are done). Units in
        neither list have had no outcome yet.

    Raises:
        StorageError: the table cannot be read.
    """
    lookup = None if video_ids is None else VideoLookup(video_ids)
    kept: list[pa.RecordBatch] = []
    if video_ids is None or len(video_ids):
        for batch in _batches(paths, tag, _STATE_COLUMNS):
            known = None if lookup is None else pa.array(lookup.rows(batch["video_id"]) >= 0)
            kept.append(batch if known is None else batch.filter(known))
    rows = pa.Table.from_batches(kept, _STATE_SCHEMA)
    return ask(_STATES_SQL, STATES, videos=rows) if rows.num_rows else STATES.empty_table()


def _batches(
    paths: IndexPaths, tag: str, columns: Sequence[str], wanted: pc.Expression | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of `videos` as they lie in its files.

    Raises:
        StorageError: the table cannot be read.
    """
    table = open_table(paths, VIDEOS)
    if table is None:
        return
    try:
        yield from model_rows(table, tag).to_batches(
            columns=list(columns), filter=wanted, batch_readahead=2, fragment_readahead=2
        )
    except (pa.ArrowException, OSError) as error:
        message = f"{storage.redact(paths.table(VIDEOS.name))}: {reason(error)}"
        raise StorageError(message) from error
