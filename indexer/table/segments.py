"""Windows that follow each other, merged into the stretches of a video in which a label holds."""

from typing import Final

import pyarrow as pa

from indexer.errors import QueryError
from indexer.table.read import ask

SEGMENTS: Final = pa.schema(
    [
        pa.field("label", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("start_ms", pa.int64()),
        pa.field("end_ms", pa.int64()),
        pa.field("duration_ms", pa.int64()),
        pa.field("mean_score", pa.float64()),
        pa.field("peak_score", pa.float32()),
        pa.field("clips", pa.int64()),
    ]
)

COLUMNS: Final = ("label", "uri", "start_seconds", "end_seconds", "score")
"""Of the postings that segments are made of."""

SEGMENTS_SQL: Final = """
    WITH reached AS (
        SELECT *, max(end_seconds) OVER (
            PARTITION BY label, uri ORDER BY start_seconds, end_seconds
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS reached_seconds
        FROM postings WHERE score >= $2
    ),
    numbered AS (
        SELECT *, count(*) FILTER (
            reached_seconds IS NULL OR start_seconds > reached_seconds + $3
        ) OVER (
            PARTITION BY label, uri ORDER BY start_seconds, end_seconds
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS number
        FROM reached
    ),
    merged AS (
        SELECT
            label, uri,
            round(min(start_seconds) * 1000)::BIGINT AS start_ms,
            round(max(end_seconds) * 1000)::BIGINT AS end_ms,
            avg(score::DOUBLE ORDER BY start_seconds, end_seconds) AS mean_score,
            max(score) AS peak_score,
            count(*) AS clips
        FROM numbered GROUP BY label, uri, number HAVING max(score) >= $1
    )
    SELECT
        label, uri, start_ms, end_ms, end_ms - start_ms AS duration_ms,
        mean_score, peak_score, clips
    FROM merged
"""
"""Columns `SEGMENTS` of the view `postings`; `$1` enters, `$2` leaves, `$3` is the gap."""


_VIEW_SCORE: Final = "0.5"

SEGMENTS_VIEW: Final = (
    SEGMENTS_SQL.replace("$1", _VIEW_SCORE).replace("$2", _VIEW_SCORE).replace("$3", "0")
)
"""The same as the text of a view, which takes no parameters."""


def merge_windows(
    postings: pa.Table, *, enter: float, leave: float, gap_seconds: float
) -> pa.Table:
    """Merges the windows of each label and video into segments.

    Windows that score at least `leave` and lie no further apart than `gap_seconds` make one
    segment, from the first one's start to the last one's end, if one of them scores at least
    `enter`: so a label that wavers around one threshold does not fall to pieces. Windows that
    overlap are one stretch; another one between them, which does not qualify, changes nothing.

    Args:
        postings: `COLUMNS`, in any order.
        enter: score, 0 to 1, that one window of a segment reaches.
        leave: score that all of them reach; at most `enter`.
        gap_seconds: longest time between two windows of a segment in which no window qualifies.

    Returns:
        Columns `SEGMENTS`: by uri, start and label. Scores are those of the windows, each counted
        once; times are rounded to milliseconds.

    Raises:
        QueryError: the thresholds are impossible.
    """
    if not 0.0 <= leave <= enter <= 1.0:
        message = f"scores to enter {enter} and to leave {leave}: give 0 <= leave <= enter <= 1"
        raise QueryError(message)
    if gap_seconds < 0:
        message = f"gap_seconds = {gap_seconds}: should be 0 or more"
        raise QueryError(message)
    # scores are float32: 0.6 is to mean the same on both sides
    scores = [pa.scalar(score, pa.float32()).as_py() for score in (enter, leave)]
    sql = SEGMENTS_SQL + " ORDER BY uri, start_ms, label"
    return ask(sql, SEGMENTS, *scores, float(gap_seconds), postings=postings)
