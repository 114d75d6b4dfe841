"""The clips that answer a question, each with the moment that its picture is taken at."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from indexer.errors import QueryError
from indexer.records import VideoRef
from indexer.table.answers import HITS
from indexer.table.globs import glob_pattern
from indexer.table.query import LabelIndex
from indexer.table.read import ask, read
from indexer.table.schema import CLIPS, INDEXED, LABELS, VIDEOS

_BEST_SQL: Final = """
    SELECT label, score, rank, uri, start_seconds, end_seconds, clip_index, clip_id
    FROM (
        SELECT *, row_number() OVER (
            PARTITION BY label ORDER BY score DESC, uri, clip_index
        ) AS place
        FROM labels
        WHERE rank = 1 AND score >= $1
            AND ($2 IS NULL OR uri = $2 OR regexp_full_match(uri, $3))
            AND ($4 IS NULL OR starts_with(uri, $4))
    )
    ORDER BY place, score DESC, label LIMIT $5
"""
"""The best clip of every label, then the second best of every label, and so on."""

_REF_COLUMNS: Final = ("video_id", "uri", "size_bytes", "content_key")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked; without labels and without `like`, for the best clips of every label.

    Attributes:
        labels: as `LabelIndex.search` takes them.
        like: as `LabelIndex.similar` takes it; instead of labels.
        min_score: lowest probability, 0 to 1.
        top: at most this many clips.
        video: a uri, or a glob over uris.
        source: what the uri begins with.
    """

    labels: tuple[str, ...] = ()
    like: str | None = None
    min_score: float = 0.0
    top: int = 60
    video: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Tile:
    """One clip of an answer.

    Attributes:
        label: that it was found by; its best one where it was found by its looks.
        score: the label's probability, or the cosine similarity.
        uri: of its video.
        start_seconds: of the clip.
        end_seconds: of the clip, exclusive.
        frame_seconds: when the frame in the middle of those that the model saw begins.
    """

    label: str
    score: float
    uri: str
    start_seconds: float
    end_seconds: float
    frame_seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The clips that answer a question.

    Attributes:
        index: URI of the index.
        model: tag of the model.
        question: that was asked.
        tiles: the best first.
        videos: theirs, by uri, as they were when they were indexed.
        durations_seconds: of these videos, by uri.
    """

    index: str
    model: str
    question: Question
    tiles: tuple[Tile, ...]
    videos: Mapping[str, VideoRef]
    durations_seconds: Mapping[str, float]


def find_tiles(index: LabelIndex, question: Question) -> Answer:
    """Asks the index.

    Raises:
        QueryError: the question names what the index does not have, or contradicts itself.
        StorageError: the index cannot be read.
    """
    hits = _hits(index, question).to_pylist()
    clips = _clips(index, hits)
    tiles = tuple(_tile(hit, clips[hit["clip_id"]]) for hit in hits)
    rows = _videos(index, {tile.uri for tile in tiles})
    return Answer(
        index.uri,
        index.tag,
        question,
        tiles,
        {uri: VideoRef(*(row[name] for name in _REF_COLUMNS)) for uri, row in rows.items()},
        _durations_seconds(tiles, rows),
    )


def _hits(index: LabelIndex, question: Question) -> pa.Table:
    if question.like is not None:
        if question.labels or question.min_score or question.source:
            message = "clips that look alike are found without label, min_score and source"
            raise QueryError(message)
        return index.similar(question.like, top=question.top, video=question.video)
    if question.labels:
        return index.search(
            question.labels,
            min_score=question.min_score,
            top=question.top,
            video=question.video,
            source=question.source,
        )
    least = pa.scalar(question.min_score, pa.float32()).as_py()  # as `search` compares
    pattern = glob_pattern(question.video or "")
    filters = (least, question.video, pattern, question.source, question.top)
    return ask(_BEST_SQL, HITS, *filters, labels=index.rows(LABELS.name))


def _clips(index: LabelIndex, hits: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By clip id: the times of the frames that the model saw, and the labels."""
    uris, clip_ids = {hit["uri"] for hit in hits}, {hit["clip_id"] for hit in hits}
    wanted = _isin("uri", uris) & _isin("clip_id", clip_ids)
    columns = ["clip_id", "frame_pts_seconds", "top_labels"]
    rows = read(index.rows(CLIPS.name), columns, wanted).to_pylist()
    return {row["clip_id"]: row for row in rows}


def _videos(index: LabelIndex, uris: Iterable[str]) -> dict[str, dict[str, Any]]:
    """By uri: the video as it was at the latest attempt that gave clips."""
    wanted = _isin("uri", uris) & (pc.field("status") == INDEXED)
    columns = [*_REF_COLUMNS, "duration_seconds", "attempt"]
    rows = read(index.rows(VIDEOS.name), columns, wanted).to_pylist()
    return {row["uri"]: row for row in sorted(rows, key=lambda row: row["attempt"])}


def _durations_seconds(
    tiles: Iterable[Tile], rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """By uri; a video is at least as long as its clips, whatever else is known."""
    durations = {uri: row["duration_seconds"] or 0.0 for uri, row in rows.items()}
    for tile in tiles:
        durations[tile.uri] = max(durations.get(tile.uri, 0.0), tile.end_seconds)
    return durations


def _isin(column: str, values: Iterable[str]) -> pc.Expression:
    return pc.field(column).isin(pa.array(sorted(values), pa.string()))


def _tile(hit: Mapping[str, Any], clip: Mapping[str, Any]) -> Tile:
    times = clip["frame_pts_seconds"]
    return Tile(
        label=hit["label"] if "label" in hit else clip["top_labels"][0],
        score=hit["score"] if "score" in hit else hit["similarity"],
        uri=hit["uri"],
        start_seconds=hit["start_seconds"],
        end_seconds=hit["end_seconds"],
        frame_seconds=times[len(times) // 2],
    )
