"""Charts of what an index holds, as images.

Names are drawn as they are: no dollar sign in a label starts a formula. Colours are those of Okabe
and Ito, which are told apart without red or green.
"""

import io
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import PurePosixPath
from typing import Any, Final

import matplotlib as mpl
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from indexer import storage
from indexer.errors import ConfigError
from indexer.render import cell_text, clock_text

KINDS: Final = (".png", ".svg", ".pdf")

_COLOURS: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_MARKERS: Final = "osD^vPX"
_GOOD, _BAD, _OPEN = "#0072B2", "#D55E00", "#999999"
_STYLE: Final[dict[Any, Any]] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": "#dddddd",
    "savefig.dpi": 150,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.usetex": False,
}
_MOST_LABELS: Final = 20
_NAME_CHARS: Final = 40
_MINUTE, _HOUR = 60.0, 3600.0


def check_plot(name: str) -> None:
    """Refuses a name by which a chart cannot be written.

    Raises:
        ConfigError: its ending is none of `KINDS`.
    """
    if PurePosixPath(name).suffix.lower() not in KINDS:
        message = f"{name}: a plot's name ends in {', '.join(KINDS)}"
        raise ConfigError(message)


def plot_status(videos: pa.Table, counts: pa.Table, min_score: float) -> Figure:
    """What became of the videos, and which labels fill the most time.

    Args:
        videos: the answer of `LabelIndex.videos`.
        counts: the answer of `LabelIndex.counts`.
        min_score: that it was asked for.
    """
    best = counts.sort_by([("seconds", "descending"), ("label", "ascending")]).slice(
        0, _MOST_LABELS
    )
    outcomes = _outcomes(videos)
    heights = [max(len(outcomes), 2), max(best.num_rows, 2)]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, 1.8 + 0.3 * sum(heights)))
        above, below = figure.subplots(2, height_ratios=heights)
        _bars(above, [name for name, _, _ in outcomes], [count for _, count, _ in outcomes])
        for bar, (_, _, colour) in zip(above.patches, outcomes, strict=True):
            bar.set_facecolor(colour)
        above.set_xlabel("videos")
        above.xaxis.set_major_locator(MaxNLocator(integer=True))
        seconds = best["seconds"].to_pylist()
        unit, name = _unit_of(max(seconds, default=0.0))
        _bars(below, best["label"].to_pylist(), [value / unit for value in seconds])
        below.set_xlabel(f"{name} of video with a score of at least {min_score:g}")
    return figure


def plot_video(clips: pa.Table) -> Figure:
    """The scores of a video's main labels over its time.

    Args:
        clips: the answer of `LabelIndex.video`.
    """
    rows = clips.to_pylist()
    end_seconds = max((row["end_seconds"] for row in rows), default=1.0)
    ranked = _ranked_labels(rows)
    labels = ranked[: len(_COLOURS)]
    some = f"the main {len(labels)} of {len(ranked)} labels" if len(ranked) > len(labels) else None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 4))
        axes = figure.subplots()
        lines = [_draw_label(axes, rows, label, place) for place, label in enumerate(labels)]
        axes.set_ylim(0, 1.04)
        axes.set_xlim(0, end_seconds)
        axes.set_ylabel("score (probability)")
        axes.set_xlabel("time in the video (minutes:seconds)")
        if end_seconds >= _HOUR:
            axes.set_xlabel("time in the video (hours:minutes:seconds)")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: clock_text(value)[:-3]))
        names = [_name(label) for label in labels]
        figure.legend(lines, names, loc="outside right upper", title=some, frameon=False)
    return figure


def write_plot(figure: Figure, name: str) -> None:
    """Writes a figure in the format that its name asks for; see `check_plot`.

    Raises:
        StorageError: it cannot be written.
    """
    file = io.BytesIO()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for it
        figure.savefig(file, format=PurePosixPath(name).suffix.lower().removeprefix("."))
    storage.write_bytes(name, file.getvalue())


def _outcomes(videos: pa.Table) -> list[tuple[str, int, str]]:
    """(name, number, colour): what is indexed, what failed and why, what is still to come."""
    states = Counter(videos["status"].to_pylist())
    failed = videos.filter(pc.field("status") == "failed")
    codes = Counter(failed["error_code"].to_pylist())
    found = [("indexed", states["indexed"], _GOOD)]
    for code, count in sorted(codes.items(), key=lambda item: (-item[1], item[0])):
        found.append((f"failed: {code}", count, _BAD))
    if states["incomplete"]:
        found.append(("incomplete", states["incomplete"], _OPEN))
    return found


def _bars(axes: Axes, names: Sequence[str], values: Sequence[float]) -> None:
    """Horizontal bars, the first one above, with their values behind them."""
    places = range(len(names))
    bars = axes.barh(places, values, height=0.7, color=_GOOD)
    axes.bar_label(bars, [f"{value:,.4g}" for value in values], padding=4)
    axes.set_yticks(places, [_name(name) for name in names])
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _ranked_labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The labels of a video, those with the most score and time first."""
    weights: dict[str, float] = {}
    for row in rows:
        for label, score in zip(row["top_labels"], row["top_scores"], strict=True):
            seconds = row["end_seconds"] - row["start_seconds"]
            weights[label] = weights.get(label, 0.0) + score * seconds
    return sorted(weights, key=lambda label: (-weights[label], label))


def _draw_label(axes: Axes, rows: Sequence[Mapping[str, Any]], label: str, place: int) -> Any:  # noqa: ANN401 - an artist
    """A bar at the height of the score for each window, joined by a thin line."""
    scores = [dict(zip(row["top_labels"], row["top_scores"], strict=True)) for row in rows]
    heights = [score.get(label, nan) for score in scores]
    middles = [(row["start_seconds"] + row["end_seconds"]) / 2 for row in rows]
    held = [(row, score[label]) for row, score in zip(rows, scores, strict=True) if label in score]
    axes.hlines(
        [height for _, height in held],
        [row["start_seconds"] for row, _ in held],
        [row["end_seconds"] for row, _ in held],
        colors=_COLOURS[place],
        linewidth=3,
    )
    (line,) = axes.plot(
        middles,
        heights,
        color=_COLOURS[place],
        linewidth=0.8,
        marker=_MARKERS[place],
        markersize=5,
    )
    return line


def _unit_of(seconds: float) -> tuple[float, str]:
    if seconds >= 2 * _HOUR:
        return _HOUR, "hours"
    return (_MINUTE, "minutes") if seconds >= 2 * _MINUTE else (1.0, "seconds")


def _name(text: str) -> str:
    shown = cell_text("", text)
    return shown if len(shown) <= _NAME_CHARS else f"{shown[: _NAME_CHARS - 1]}…"
