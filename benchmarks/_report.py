"""What was measured, as tables, as JSON and against the bars that our decoder is held to."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

_LONG: Final = "h264_1080p_g250_60s"
_LONGEST: Final = "h264_1080p_g250_600s"
_HEVC: Final = "hevc_1080p_60s"


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant on one video in one scenario.

    Attributes:
        video: its name.
        is_real: whether it is footage as it was found.
        scenario: which frames were wanted.
        method: the contestant.
        frames: number of different frames wanted.
        cpu_seconds: of each repetition.
        wall_seconds: of each repetition.
        wrong: frames that are others than the wanted ones; None where none were returned.
        error: why there is no measurement; empty where there is one.
    """

    video: str
    is_real: bool
    scenario: str
    method: str
    frames: int
    cpu_seconds: tuple[float, ...]
    wall_seconds: tuple[float, ...]
    wrong: int | None
    error: str

    @property
    def seconds(self) -> float | None:
        """Median CPU seconds; None where there is no measurement."""
        return statistics.median(self.cpu_seconds) if self.cpu_seconds else None


class Results:
    """All rows, found by video, scenario and method."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self._by_place = {(row.video, row.scenario, row.method): row for row in self.rows}

    def row(self, video: str, scenario: str, method: str) -> Row | None:
        """The row, where that was measured."""
        return self._by_place.get((video, scenario, method))

    def seconds(self, video: str, scenario: str, method: str) -> float | None:
        """Median CPU seconds, where there is a measurement."""
        row = self.row(video, scenario, method)
        return row.seconds if row else None

    def ratio(self, video: str, scenario: str, method: str, other: str) -> float | None:
        """CPU seconds of one method divided by those of another."""
        seconds = self.seconds(video, scenario, method)
        others = self.seconds(video, scenario, other)
        return seconds / others if seconds is not None and others else None

    def places(self) -> list[tuple[str, str]]:
        """Videos and scenarios, in the order in which they were measured."""
        return list(dict.fromkeys((row.video, row.scenario) for row in self.rows))


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise about our decoder.

    Attributes:
        promise: in words.
        limit: the figure may be at most this.
        figure: what was measured; None where it was not.
    """

    promise: str
    limit: float
    figure: float | None

    @property
    def is_missed(self) -> bool:
        """Whether there is a figure, and it is above the limit."""
        return self.figure is not None and self.figure > self.limit

    def __str__(self) -> str:
        figure = "not measured" if self.figure is None else f"{self.figure:.3f}"
        state = {True: "MISSED", False: "met"}[self.is_missed] if self.figure is not None else "-"
        return f"{state:6}  {figure:>12}  <= {self.limit:.3f}  {self.promise}"


def bars(results: Results) -> list[Bar]:
    """Everything that is promised, with the figures of this run."""
    ratios = [
        ("torchcodec", _LONG, "a", 0.70),
        ("torchcodec", _LONG, "c32", 0.62),
        ("torchcodec", _HEVC, "a", 0.56),
        ("hf", _LONG, "a", 1 / 7),
        ("hf", _LONGEST, "a", 1 / 60),
    ]
    found = [
        Bar(
            f"fast / {other}: {video}, {scenario}",
            limit,
            results.ratio(video, scenario, "fast", other),
        )
        for other, video, scenario, limit in ratios
    ]
    made = dict.fromkeys(row.video for row in results.rows if not row.is_real)
    found += [
        Bar(f"fast / packets: {video}, a", 1.25, results.ratio(video, "a", "fast", "packets"))
        for video in made
    ]
    worst = [_worst_on_real_videos(results, other) for other in ("torchcodec", "torchcodec+resize")]
    return [*found, *worst, _price_of_exact(results)]


def _worst_on_real_videos(results: Results, other: str) -> Bar:
    """Where the peer returns wrong frames it is no measure."""
    ratios = {
        (row.video, row.scenario): ratio
        for row in results.rows
        if row.is_real and row.method == other and not row.wrong
        if (ratio := results.ratio(row.video, row.scenario, "fast", other)) is not None
    }
    worst = max(ratios, key=lambda place: ratios[place], default=None)
    where = f"{worst[0]}, {worst[1]}" if worst else "none"
    above = sum(ratio > 1 for ratio in ratios.values())
    return Bar(
        f"fast / {other}: worst of {len(ratios)} on real videos ({where}; {above} are above 1)",
        1.0,
        ratios[worst] if worst else None,
    )


def _price_of_exact(results: Results) -> Bar:
    """Of the most frames that were measured: the difference of two medians is noisy."""
    promise = f"exact - fast, milliseconds for each frame: {_LONG}"
    for scenario in ("c4", "c32", "a"):
        row = results.row(_LONG, scenario, "exact")
        exact, fast = (results.seconds(_LONG, scenario, name) for name in ("exact", "fast"))
        if row and exact is not None and fast is not None:
            return Bar(f"{promise}, {scenario}", 1.3, (exact - fast) * 1000 / row.frames)
    return Bar(promise, 1.3, None)


def tables(results: Results, methods: Sequence[str]) -> str:
    """One Markdown table for each scenario; in brackets, our `fast` as a share of the other."""
    parts = []
    for scenario in dict.fromkeys(scenario for _, scenario in results.places()):
        lines = [["video", "frames", *methods]]
        for video in (video for video, at in results.places() if at == scenario):
            rows = [results.row(video, scenario, method) for method in methods]
            frames = next((row.frames for row in rows if row), 0)
            cells = [_cell(results, row) if row else "" for row in rows]
            lines.append([video, str(frames), *cells])
        parts.append(f"### Scenario {scenario}: CPU seconds\n\n{_markdown(lines)}")
    return "\n\n".join(parts)


def problems(results: Results) -> list[str]:
    """What failed, in a line each."""
    return [
        f"{row.video}, {row.scenario}, {row.method}: {row.error}"
        for row in results.rows
        if row.error
    ]


def write_json(
    path: Path,
    results: Results,
    found: Sequence[Bar],
    facts: Mapping[str, object],
) -> None:
    """Writes everything, with what it was measured on."""
    document = {
        **facts,
        "rows": [asdict(row) | {"median_cpu_seconds": row.seconds} for row in results.rows],
        "bars": [asdict(bar) | {"missed": bar.is_missed} for bar in found],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _cell(results: Results, row: Row) -> str:
    if row.seconds is None:
        return "fails"
    cell = f"{row.seconds:.3f}"
    ratio = results.ratio(row.video, row.scenario, "fast", row.method)
    if ratio is not None and row.method != "fast":
        cell += f" ({ratio:.2f})"
    if row.wrong:
        cell += f" wrong {row.wrong}/{row.frames}"
    return cell


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    padded = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
