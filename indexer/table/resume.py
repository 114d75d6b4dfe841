"""What of a model is done: the state of every video, worked out from the `videos` table.

A unit is done when one of its attempts was indexed; else its latest attempt counts. A video whose
content has changed counts with its newest content only.
"""

from typing import Final

import pyarrow as pa

from indexer.table.delta import open_table
from indexer.table.paths import IndexPaths
from indexer.table.read import ask, model_rows
from indexer.table.schema import VIDEOS

UNIT_OUTCOMES: Final = """
    WITH contents AS (
        SELECT video_id, max({'at': finished_at, 'key': content_key}).key AS content_key
        FROM videos GROUP BY video_id
    ),
    attempts AS (SELECT videos.* FROM videos JOIN contents USING (video_id, content_key)),
    outcomes AS (
        SELECT * FROM attempts QUALIFY row_number() OVER (
            PARTITION BY video_id, unit_index
            ORDER BY status = 'indexed' DESC, attempt DESC, finished_at DESC
        ) = 1
    )
"""
"""Gives a query over `videos` the view `outcomes`: one row for each unit, the one that counts."""

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


def unit_states(paths: IndexPaths, tag: str) -> pa.Table:
    """The state of every video that a model has met, by video id.

    Returns:
        A row for each video: `video_id`, `content_key`, `units` (how many it has), `done` (indices
        of the units that are indexed), `failed` (of those whose attempts all failed), `attempts`
        (the highest), `error_code` (of the latest failure, null where all units are done). Units in
        neither list have had no outcome yet.

    Raises:
        StorageError: the table cannot be read.
    """
    table = open_table(paths, VIDEOS)
    if table is None:
        return STATES.empty_table()
    return ask(_STATES_SQL, STATES, videos=model_rows(table, tag))
