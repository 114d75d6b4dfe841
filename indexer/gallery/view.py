"""What the page says, in words and numbers; how it looks is the template's business.

Names are shown with their control characters made visible, as on a terminal, so that no name can
turn its neighbours around or hide a part of itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import pyarrow as pa

from indexer.gallery.links import LinkPrefix, link_to
from indexer.gallery.thumbnails import Thumbnail
from indexer.gallery.tiles import Answer, Question, Tile
from indexer.render import cell_text, clock_text
from indexer.table.answers import HITS
from indexer.table.segments import COLUMNS, merge_windows
from indexer.uris import redact

BAR_UNITS: Final = 1000
"""Length of a timeline in its own units."""

_TO: Final = "\N{EN DASH}"
_WINDOWS: Final = pa.schema([HITS.field(name) for name in COLUMNS])
_LEAST_UNITS: Final = 6.0
"""Of a stretch on a timeline, so that one second of a day can be seen."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a video.

    Attributes:
        span: its times, in words.
        link: that opens the video there, or None.
        x: where it begins on the video's timeline, in `BAR_UNITS`.
        width: its length there.
    """

    span: str
    link: str | None
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Card:
    """One clip.

    Attributes:
        label: that it was found by.
        score: in words.
        uri: of its video.
        name: of its video, without the folders.
        at: when the picture was taken, in words.
        stretch: of the video that the clip is.
        thumbnail: the picture, or why there is none.
    """

    label: str
    score: str
    uri: str
    name: str
    at: str
    stretch: Stretch
    thumbnail: Thumbnail | str


@dataclass(frozen=True, slots=True)
class Lane:
    """Where one label holds in a video."""

    label: str
    stretches: Sequence[Stretch]


@dataclass(frozen=True, slots=True)
class Bar:
    """The timeline of one video: as many lanes as it has labels on this page."""

    uri: str
    duration: str
    lanes: Sequence[Lane]


def cards_of(
    answer: Answer,
    thumbnails: Mapping[Tile, Thumbnail | str],
    prefixes: Sequence[LinkPrefix],
) -> list[Card]:
    """One card for each tile, in order."""
    return [
        Card(
            label=cell_text("", tile.label),
            score=f"{tile.score:.2f}",
            uri=cell_text("", redact(tile.uri)),
            name=name_of(tile.uri),
            at=clock_text(tile.frame_seconds),
            stretch=_stretch(answer, tile.uri, tile.start_seconds, tile.end_seconds, prefixes),
            thumbnail=thumbnails[tile],
        )
        for tile in answer.tiles
    ]


def bars_of(answer: Answer, prefixes: Sequence[LinkPrefix]) -> list[Bar]:
    """One timeline for each video, in the order of its best clip; clips that touch are merged."""
    places = {uri: place for place, uri in enumerate(dict.fromkeys(t.uri for t in answer.tiles))}
    merged = sorted(_merged(answer.tiles), key=lambda row: (places[row["uri"]], row["label"]))
    return [
        Bar(
            uri=cell_text("", redact(uri)),
            duration=clock_text(answer.durations_seconds[uri]),
            lanes=[
                Lane(cell_text("", label), [_merged_stretch(answer, row, prefixes) for row in rows])
                for label, rows in groupby(of_video, key=lambda row: row["label"])
            ],
        )
        for uri, of_video in groupby(merged, key=lambda row: row["uri"])
    ]


def title_of(question: Question) -> str:
    """The question in words."""
    if question.like is not None:
        return f"Clips like {cell_text('', redact(question.like))}"
    if question.labels:
        return cell_text("", list(question.labels))
    return "The best clips of every label"


def conditions_of(question: Question) -> list[str]:
    """What else the question asks for, in words."""
    found = []
    if question.min_score:
        found.append(f"score of at least {question.min_score:g}")
    if question.video is not None:
        found.append(f"videos {cell_text('', redact(question.video))}")
    if question.source is not None:
        found.append(f"videos below {cell_text('', redact(question.source))}")
    return found


def name_of(uri: str) -> str:
    """The last part of a video's uri, as it is shown."""
    return cell_text("", redact(uri).rstrip("/").rpartition("/")[2])


def _merged(tiles: Sequence[Tile]) -> list[dict[str, Any]]:
    rows = [
        {
            "label": tile.label,
            "uri": tile.uri,
            "start_seconds": tile.start_seconds,
            "end_seconds": tile.end_seconds,
            "score": 1.0,  # a cosine may be below zero; whatever is on the page counts
        }
        for tile in tiles
    ]
    windows = pa.Table.from_pylist(rows, _WINDOWS)
    merged: list[dict[str, Any]] = merge_windows(
        windows, enter=0.0, leave=0.0, gap_seconds=0.0
    ).to_pylist()
    return merged


def _merged_stretch(
    answer: Answer, row: Mapping[str, Any], prefixes: Sequence[LinkPrefix]
) -> Stretch:
    return _stretch(answer, row["uri"], row["start_ms"] / 1000, row["end_ms"] / 1000, prefixes)


def _stretch(
    answer: Answer,
    uri: str,
    start_seconds: float,
    end_seconds: float,
    prefixes: Sequence[LinkPrefix],
) -> Stretch:
    scale = BAR_UNITS / answer.durations_seconds[uri]
    width = min(max((end_seconds - start_seconds) * scale, _LEAST_UNITS), BAR_UNITS)
    return Stretch(
        span=f"{clock_text(start_seconds)}{_TO}{clock_text(end_seconds)}",
        link=link_to(uri, start_seconds, end_seconds, prefixes),
        x=round(min(start_seconds * scale, BAR_UNITS - width), 1),
        width=round(width, 1),
    )
