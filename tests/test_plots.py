import warnings

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from indexer.plots import plot_status, plot_video, write_plot
from indexer.table.answers import COUNTS, VIDEO_CLIPS, VIDEO_STATES
from tests.gallery.hostile import NAMES, visible
from tests.table.make import Run, new_index, unit
from tests.test_cli import call

FORMULAS = ("$", "a $x", r"$\frac{1}$", r"$\evil{", "$$$", "_nolegend_", "50%", r"\alpha", "{}")

SETS = (FORMULAS[:5], FORMULAS[5:], NAMES[:7], NAMES[76:83], NAMES[93:])


def clips(labels):
    rows = [
        {
            "clip_index": number,
            "start_seconds": 8.5 * number,
            "end_seconds": 8.5 * number + 8.5,
            "top_labels": [label],
            "top_scores": [1 / (number + 1)],
            "frames_exact": True,
            "uri": "a.mp4",
            "clip_id": str(number),
        }
        for number, label in enumerate(labels)
    ]
    return pa.Table.from_pylist(rows, VIDEO_CLIPS)


def states(**outcomes):
    rows = [
        {"uri": f"{code}{n}", "status": code if code in {"indexed", "incomplete"} else "failed",
         "error_code": code}
        for code, number in outcomes.items() for n in range(number)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, VIDEO_STATES)


def counts(**seconds):
    rows = [{"label": label, "seconds": value} for label, value in seconds.items()]
    return pa.Table.from_pylist(rows, COUNTS)


def texts(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


@pytest.mark.parametrize("names", SETS)
@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_names_are_drawn_as_they_are(names, ending, tmp_path):
    figure = plot_video(clips(names))
    (legend,) = figure.legends
    shown = {visible(name) for name in names}
    drawn = [text.get_text() for text in legend.get_texts()]
    assert len(drawn) == len(names)
    assert all(text in shown or any(s.startswith(text[:-1]) for s in shown) for text in drawn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_plot(figure, str(tmp_path / f"out{ending}"))
        write_plot(
            plot_status(states(indexed=1), counts(**dict.fromkeys(names, 1.0)), 0.5),
            str(tmp_path / f"status{ending}"),
        )


def test_scores_lie_over_the_seconds_of_their_windows():
    figure = plot_video(clips(["a", "b", "a"]))
    (axes,) = figure.axes
    assert "score" in axes.get_ylabel()
    assert "minutes:seconds" in axes.get_xlabel()
    first, second = (bars.get_segments() for bars in axes.collections)
    np.testing.assert_allclose(first, [[(0, 1), (8.5, 1)], [(17, 1 / 3), (25.5, 1 / 3)]], 1e-6)
    np.testing.assert_allclose(second, [[(8.5, 0.5), (17, 0.5)]])


def test_only_the_main_labels_are_drawn_and_that_is_said():
    (legend,) = plot_video(clips([f"label {n}" for n in range(12)])).legends
    assert len(legend.get_texts()) == 7
    assert legend.get_title().get_text() == "the main 7 of 12 labels"


def test_outcomes_and_labels_are_counted():
    figure = plot_status(
        states(indexed=3, corrupt=1, timeout=2, incomplete=1), counts(a=30.0, b=9000.0), 0.5
    )
    above, below = figure.axes
    assert texts(above.yaxis) == ["indexed", "failed: timeout", "failed: corrupt", "incomplete"]
    assert [bar.get_width() for bar in above.patches] == [3, 2, 1, 1]
    assert texts(below.yaxis) == ["b", "a"]
    assert [bar.get_width() for bar in below.patches] == [2.5, 30 / 3600]
    assert below.get_xlabel() == "hours of video with a score of at least 0.5"


def test_nothing_is_drawn_too(tmp_path):
    write_plot(plot_status(states(), counts(), 0.5), str(tmp_path / "a.png"))
    write_plot(plot_video(clips([])), str(tmp_path / "b.png"))


def test_the_commands(tmp_path, capsys):
    run = Run(new_index(str(tmp_path / "index")))
    run.add(unit("s3://films/a.mp4", range(3)), unit("s3://films/b.mp4", failure="corrupt"))
    for name, args in {"s": ("status",), "v": ("video", "a.mp4")}.items():
        command, *rest = args
        out = tmp_path / f"{name}.png"
        code, text, _ = call(capsys, command, run.paths.root_uri, *rest, "--plot", out)
        assert code == 0
        assert text
        assert Image.open(out).width >= 1000
    code, _, err = call(capsys, "status", run.paths.root_uri, "--plot", tmp_path / "x.gif")
    assert code == 2
    assert "ends in .png" in err
