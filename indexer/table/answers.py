"""The columns of an index's answers, and the queries that give them."""

from typing import Final

import pyarrow as pa

from indexer.table.schema import CLIPS, VIDEOS

HITS: Final = pa.schema(
    [
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("rank", pa.int32()),
        pa.field("uri", pa.string()),
        pa.field("start_seconds", pa.float64()),
        pa.field("end_seconds", pa.float64()),
        pa.field("clip_index", pa.int32()),
        pa.field("clip_id", pa.string()),
    ]
)
LABEL_COUNTS: Final = pa.schema(
    [
        pa.field("label", pa.string()),
        pa.field("clips", pa.int64()),
        pa.field("videos", pa.int64()),
        pa.field("best_score", pa.float32()),
        pa.field("mean_score", pa.float64()),
    ]
)
VIDEO_STATES: Final = pa.schema(
    [
        pa.field("uri", pa.string()),
        pa.field("status", pa.string()),
        pa.field("units", pa.int32()),
        pa.field("units_indexed", pa.int32()),
        pa.field("clips", pa.int64()),
        pa.field("attempts", pa.int32()),
        pa.field("error_code", pa.string()),
        *(VIDEOS.schema.field(name).with_nullable(True) for name in (
            "duration_seconds", "width", "height", "codec", "fps", "rotation", "size_bytes",
            "warnings", "extra", "video_id", "finished_at",
        )),
    ]
)  # fmt: skip
ERRORS: Final = pa.schema(
    [
        VIDEOS.schema.field(name).with_nullable(True)
        for name in (
            "uri", "error_code", "error_message", "attempt", "unit_index", "units",
            "decode_seconds", "fetch_seconds", "worker", "run_id", "finished_at", "video_id",
        )
    ]
)  # fmt: skip

COUNTS: Final = pa.schema(
    [
        pa.field("label", pa.string()),
        pa.field("clips", pa.int64()),
        pa.field("videos", pa.int64()),
        pa.field("segments", pa.int64()),
        pa.field("seconds", pa.float64()),
    ]
)
VIDEO_CLIPS: Final = pa.schema(
    [
        CLIPS.schema.field(name).with_nullable(True)
        for name in (
            "clip_index", "start_seconds", "end_seconds", "top_labels", "top_scores",
            "frames_exact", "uri", "clip_id",
        )
    ]
)  # fmt: skip

PLACES: Final = pa.schema(
    [
        CLIPS.schema.field(name).with_nullable(True)
        for name in ("clip_id", "video_id", "uri", "clip_index", "start_seconds", "end_seconds")
    ]
)
SIMILAR: Final = pa.schema(
    [
        pa.field("similarity", pa.float64()),
        *(
            PLACES.field(n)
            for n in ("uri", "start_seconds", "end_seconds", "clip_index", "clip_id")
        ),
    ]
)
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

CHOSEN_VIDEOS: Final = pa.schema([pa.field("video_id", pa.string())])

VIDEOS_LIKE_SQL: Final = """
    SELECT DISTINCT video_id FROM videos
    WHERE ($1 IS NULL OR uri = $1 OR regexp_full_match(uri, $3))
        AND ($2 IS NULL OR starts_with(uri, $2))
"""
SHOWN_SQL: Final = """
    SELECT * FROM places WHERE start_seconds <= $1 AND $1 < end_seconds
    ORDER BY abs(start_seconds + end_seconds - 2 * $1), clip_index LIMIT 1
"""
SIMILAR_SQL: Final = """
    SELECT similarity, uri, start_seconds, end_seconds, clip_index, clip_id
    FROM found JOIN places USING (clip_id) ORDER BY similarity DESC, clip_id
"""
BEST_SEGMENTS_SQL: Final = """
    SELECT * FROM (
        SELECT * FROM segments ORDER BY peak_score DESC, mean_score DESC, uri, start_ms, label
        LIMIT $1
    ) ORDER BY uri, start_ms, label
"""
COUNTS_SQL: Final = """
    SELECT
        label, sum(clips) AS clips, count(DISTINCT uri) AS videos, count(*) AS segments,
        sum(duration_ms) / 1000 AS seconds
    FROM segments GROUP BY label ORDER BY clips DESC, label
"""
LABELS_SQL: Final = """
    SELECT
        label, count(*) AS clips, count(DISTINCT uri) AS videos,
        max(score) AS best_score, avg(score::DOUBLE) AS mean_score
    FROM labels GROUP BY label ORDER BY clips DESC, label
"""
VIDEOS_SQL: Final = (
    UNIT_OUTCOMES
    + """
    SELECT
        any_value(uri) AS uri,
        CASE
            WHEN count(*) FILTER (status = 'indexed') = max(units) THEN 'indexed'
            WHEN bool_or(status = 'failed') THEN 'failed'
            ELSE 'incomplete'
        END AS status,
        max(units) AS units,
        count(*) FILTER (status = 'indexed') AS units_indexed,
        sum(clips) AS clips,
        max(attempt) AS attempts,
        max({'attempt': attempt, 'code': error_code}) FILTER (status = 'failed').code AS error_code,
        max(duration_seconds) AS duration_seconds,
        any_value(width) AS width, any_value(height) AS height, any_value(codec) AS codec,
        any_value(fps) AS fps, any_value(rotation) AS rotation,
        any_value(size_bytes) AS size_bytes,
        list_sort(list_distinct(flatten(list(warnings)))) AS warnings,
        any_value(extra) AS extra, video_id, max(finished_at) AS finished_at
    FROM outcomes GROUP BY video_id ORDER BY uri, video_id
"""
)
ERRORS_SQL: Final = (
    UNIT_OUTCOMES
    + """
    SELECT
        uri, error_code, error_message, attempt, unit_index, units, decode_seconds, fetch_seconds,
        worker, run_id, finished_at, video_id
    FROM outcomes
    WHERE status = 'failed' AND ($1 IS NULL OR error_code = $1)
    ORDER BY error_code, uri, unit_index
"""
)
