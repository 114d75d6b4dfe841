"""Stretches of video that come back in another video, or later in the same one.

A copied stretch shows in the index as a run: clips of one video that each look like a clip of the
other, all of them the same time apart. Two clips may look alike by chance, short runs too; a run
counts where it stands out from what lies around it (`diagonals`).

Axes in array names: N clips, D their dimensions, P pairs of clips, R runs.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from indexer.errors import QueryError
from indexer.table.comparison import (
    MAX_NEIGHBOURS,
    MIN_HITS,
    MIN_SIMILARITY,
    Compared,
    ignored,
)
from indexer.table.diagonals import Clips, standing_out
from indexer.table.pairs import Pairs, similar_pairs
from indexer.table.read import ask
from indexer.table.whitening import whitened

DUPLICATES: Final = pa.schema(
    [
        pa.field("score", pa.float64()),
        pa.field("hits", pa.int64()),
        pa.field("uri", pa.string()),
        pa.field("start_seconds", pa.float64()),
        pa.field("end_seconds", pa.float64()),
        pa.field("other_uri", pa.string()),
        pa.field("other_start_seconds", pa.float64()),
        pa.field("other_end_seconds", pa.float64()),
    ]
)

_RUNS: Final = pa.schema(
    [
        *DUPLICATES,
        pa.field("bin", pa.int64()),
        *(pa.field(name, pa.int64()) for name in ("first_clip", "first_other_clip")),
    ]
)

_STILL_SIMILARITY: Final = 0.5
"""Of the first and the last clip of a run in which little changes: anything that is as still, and
looks a little like it, makes such a run. It takes twice as many hits to count."""

_HIT_ABOVE_ORDINARY: Final = 0.1
"""What is nearly a hit speaks for a copy, too; what is still less alike speaks against it."""

_COPY_SIMILARITY: Final = 0.975
"""A run counts where it stands out as much as the fewest hits do if they are as alike as this."""

_BRIDGED_HOPS: Final = 3.5
"""Longest step from one hit of a run to the next: two clips between them may look otherwise."""

_RUNS_SQL: Final = """
    WITH binned AS (
        SELECT
            *, round((other_start_seconds - start_seconds) / $1)::BIGINT AS hops,
            unnest([hops, hops + 1]) AS bin
        FROM hits
    ),
    ranked AS (
        SELECT
            *,
            row_number() OVER (
                PARTITION BY uri, other_uri, bin, start_seconds
                ORDER BY similarity DESC, other_start_seconds
            ) = 1 AS is_best,
            start_seconds - lag(start_seconds) OVER (
                PARTITION BY uri, other_uri, bin ORDER BY start_seconds, other_start_seconds
            ) > $1 * $2 AS is_new
        FROM binned
    ),
    numbered AS (
        SELECT *, count(*) FILTER (is_new) OVER (
            PARTITION BY uri, other_uri, bin ORDER BY start_seconds, other_start_seconds
            ROWS UNBOUNDED PRECEDING
        ) AS number
        FROM ranked
    ),
    runs AS (
        SELECT
            uri, other_uri, bin,
            avg(similarity ORDER BY start_seconds) FILTER (is_best) AS score,
            least(count(DISTINCT start_seconds), count(DISTINCT other_start_seconds)) AS hits,
            min(start_seconds) FILTER (is_best) AS start_seconds,
            max(end_seconds) FILTER (is_best) AS end_seconds,
            min(other_start_seconds) FILTER (is_best) AS other_start_seconds,
            max(other_end_seconds) FILTER (is_best) AS other_end_seconds,
            min(clip) AS first_clip, min(other_clip) AS first_other_clip
        FROM numbered GROUP BY uri, other_uri, bin, number
    )
    SELECT
        score, hits, uri, start_seconds, end_seconds,
        other_uri, other_start_seconds, other_end_seconds,
        bin, first_clip, first_other_clip
    FROM runs
    WHERE hits >= $3 AND (uri != other_uri OR end_seconds <= other_start_seconds)
"""
"""A bin holds the hits of two offsets that are one hop apart: windows of a copy lie between those
of the original, and are like the one before or the one after."""

_BEST_SQL: Final = """
    SELECT
        score, hits, uri, start_seconds, end_seconds,
        other_uri, other_start_seconds, other_end_seconds
    FROM stretches AS told WHERE NOT EXISTS (
        SELECT * FROM stretches AS better
        WHERE better.uri = told.uri AND better.other_uri = told.other_uri
            AND (better.hits * better.score, -better.bin) > (told.hits * told.score, -told.bin)
            AND better.start_seconds < told.end_seconds
            AND told.start_seconds < better.end_seconds
            AND better.other_start_seconds < told.other_end_seconds
            AND told.other_start_seconds < better.other_end_seconds
    )
    ORDER BY score DESC, hits DESC, uri, start_seconds, other_uri, other_start_seconds
    LIMIT $1
"""
"""Of runs that overlap in both videos the one with the most to it."""


def find_duplicates(
    places: pa.Table,
    embeddings: ds.Dataset,
    chosen_videos: pa.Array | None = None,
    *,
    min_similarity: float = MIN_SIMILARITY,
    min_hits: int = MIN_HITS,
    max_neighbours: int = MAX_NEIGHBOURS,
    top: int | None = None,
    observe: Callable[[Compared], None] = ignored,
) -> pa.Table:
    """Finds stretches that two videos, or two places of one, share.

    Time grows with the square of the number of clips; memory with the number, by at most
    `max_neighbours` pairs a clip.

    Args:
        places: `clip_id, video_id, uri, clip_index, start_seconds, end_seconds` of all clips.
        embeddings: `clip_id` and `embedding` of all clips.
        chosen_videos: ids of videos of which one is to be in each pair; all if None.
        min_similarity: of two clips that count as a hit, above 0 and at most 1: the cosine of their
            whitened embeddings, which is 1 for equal clips and near 0 for unrelated ones.
        min_hits: clips that a stretch has at least; a stretch whose clips are not all but equal
            needs more of them.
        max_neighbours: a clip that is like more others than this counts as like none.
        top: at most this many, the best first; by default all.
        observe: is told how far the search is, the last time when it is over.

    Returns:
        Columns `DUPLICATES`, the highest score first, equal ones by hits, uri and time; each pair
        of stretches once, the uri that sorts first before the other. `score` is the mean similarity
        of the hits.

    Raises:
        QueryError: a threshold is impossible.
        StorageError: the embeddings cannot be read.
    """
    _check(min_similarity, min_hits, max_neighbours)
    places = places.sort_by([("uri", "ascending"), ("clip_index", "ascending")])
    videos_N = pc.rank(places["uri"], tiebreaker="dense").to_numpy()
    chosen_N = np.ones(len(videos_N), np.bool_)
    if chosen_videos is not None:
        chosen_N = pc.is_in(places["video_id"], value_set=chosen_videos).to_numpy()
    units_ND = whitened(embeddings, places["clip_id"].combine_chunks())
    pairs = similar_pairs(
        units_ND,
        videos_N,
        chosen_N,
        min_similarity=min_similarity,
        max_neighbours=max_neighbours,
        observe=observe,
    )
    hops_seconds = np.diff(places["start_seconds"].to_numpy())[np.diff(videos_N) == 0]
    if not len(hops_seconds):
        return DUPLICATES.empty_table()
    hop_seconds = float(np.median(hops_seconds))
    runs = ask(_RUNS_SQL, _RUNS, hop_seconds, _BRIDGED_HOPS, min_hits, hits=_hits(pairs, places))
    clips = Clips(units_ND, videos_N, places["start_seconds"].to_numpy(), hop_seconds)
    ordinary = min_similarity - _HIT_ABOVE_ORDINARY
    evidence_R, likeness_R = standing_out(runs, clips, ordinary)
    stands_out_R = evidence_R >= min_hits * (_COPY_SIMILARITY - ordinary)
    changes_R = (likeness_R < _STILL_SIMILARITY) | (runs["hits"].to_numpy() >= 2 * min_hits)
    stretches = runs.filter(pa.array(stands_out_R & changes_R))
    return ask(_BEST_SQL, DUPLICATES, top, stretches=stretches)


def _hits(pairs: Pairs, places: pa.Table) -> pa.Table:
    columns = places.select(["uri", "start_seconds", "end_seconds"])
    hits: dict[str, object] = {"similarity": pairs.similarity_P}
    for side, rows_P in (("", pairs.first_P), ("other_", pairs.second_P)):
        found = columns.take(pa.array(rows_P))
        hits |= {f"{side}{name}": found[name] for name in columns.column_names}
        hits[f"{side}clip"] = rows_P
    return pa.table(hits)


def _check(min_similarity: float, min_hits: int, max_neighbours: int) -> None:
    if not 0.0 < min_similarity <= 1.0:
        message = f"min_similarity = {min_similarity}: should be above 0, and at most 1"
        raise QueryError(message)
    for name, value in (("min_hits", min_hits), ("max_neighbours", max_neighbours)):
        if value < 1:
            message = f"{name} = {value}: should be 1 or more"
            raise QueryError(message)
