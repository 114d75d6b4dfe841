"""The option `--plot` of the commands that can draw what they print."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    import pyarrow as pa

    from indexer.table.query import LabelIndex

Plot = Annotated[
    str | None,
    typer.Option("--plot", help="Draw it as well, as an image: .png, .svg or .pdf."),
]

_MIN_SCORE: Final = 0.5
"""From which a label is believed, as in the view `segments`."""


def draw_status(index: "LabelIndex", name: str) -> None:
    """Draws the outcomes of an index's videos, and its main labels."""
    from indexer.plots import check_plot, plot_status, write_plot

    check_plot(name)
    counts = index.counts(min_score=_MIN_SCORE)
    write_plot(plot_status(index.videos(), counts, _MIN_SCORE), name)


def draw_video(clips: "pa.Table", name: str) -> None:
    """Draws the scores of a video's main labels over its time."""
    from indexer.plots import check_plot, plot_video, write_plot

    check_plot(name)
    write_plot(plot_video(clips), name)
