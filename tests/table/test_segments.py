"""Windows become segments: against a plain loop, and against what segments promise."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import QueryError
from indexer.table.segments import SEGMENTS, merge_windows

SCORES = [0.0, 0.1, 0.3, 0.5, 0.6, 0.9, 1.0]


def postings(*rows):
    names = ["label", "uri", "start_seconds", "end_seconds", "score"]
    columns = list(zip(*rows, strict=True)) or [[]] * len(names)
    types = [pa.string(), pa.string(), pa.float64(), pa.float64(), pa.float32()]
    return pa.table(
        [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)], names=names
    )


def merged(rows, enter=0.5, leave=0.3, gap_seconds=0.0):
    found = merge_windows(postings(*rows), enter=enter, leave=leave, gap_seconds=gap_seconds)
    assert found.schema.equals(SEGMENTS)
    return found.to_pylist()


def windows(*scores, hop=2.0, length=2.0, label="running", uri="a.mp4"):
    return [(label, uri, i * hop, i * hop + length, s) for i, s in enumerate(scores) if s]


def spans(segments):
    return [(s["start_ms"], s["end_ms"], s["clips"]) for s in segments]


def test_windows_that_touch_are_one_segment():
    (segment,) = merged(windows(0.5, 0.9, 0.7))
    assert segment == {
        "label": "running",
        "uri": "a.mp4",
        "start_ms": 0,
        "end_ms": 6000,
        "duration_ms": 6000,
        "mean_score": pytest.approx(0.7, abs=1e-6),
        "peak_score": pytest.approx(0.9),
        "clips": 3,
    }


def test_a_window_that_does_not_qualify_parts_them():
    assert spans(merged(windows(0.9, 0.2, 0.9))) == [(0, 2000, 1), (4000, 6000, 1)]
    assert spans(merged(windows(0.9, 0, 0.9))) == [(0, 2000, 1), (4000, 6000, 1)]


def test_a_gap_may_be_tolerated():
    assert spans(merged(windows(0.9, 0, 0.9), gap_seconds=2.0)) == [(0, 6000, 2)]
    assert spans(merged(windows(0.9, 0, 0.9), gap_seconds=1.9)) == [(0, 2000, 1), (4000, 6000, 1)]


def test_a_score_that_wavers_does_not_part_them_but_must_once_be_high():
    assert spans(merged(windows(0.4, 0.9, 0.3, 0.4))) == [(0, 8000, 4)]
    assert merged(windows(0.4, 0.45, 0.4)) == []


def test_overlapping_windows_are_one_stretch_even_around_a_poor_one():
    rows = windows(0.9, 0.1, 0.9, hop=1.0, length=2.0)
    assert spans(merged(rows)) == [(0, 4000, 2)]


def test_a_long_window_holds_together_what_short_ones_do_not():
    rows = [("running", "a", 0.0, 10.0, 0.9), ("running", "a", 1.0, 2.0, 0.9)]
    assert spans(merged([*rows, ("running", "a", 9.0, 11.0, 0.9)])) == [(0, 11000, 3)]


def test_labels_and_videos_are_kept_apart():
    rows = windows(0.9, label="a") + windows(0.9, label="b") + windows(0.9, uri="b.mp4")
    assert [(s["uri"], s["label"]) for s in merged(rows)] == [
        ("a.mp4", "a"),
        ("a.mp4", "b"),
        ("b.mp4", "running"),
    ]


def test_a_score_that_is_the_threshold_counts():
    assert len(merged([("x", "a", 0.0, 1.0, np.float32(0.6))], enter=0.6, leave=0.6)) == 1


def test_nothing_makes_no_segments():
    assert merged([]) == []


@pytest.mark.parametrize(
    "bad",
    [{"enter": 1.1}, {"leave": -0.1}, {"enter": 0.2}, {"gap_seconds": -1.0}],
)
def test_impossible_thresholds_are_refused(bad):
    with pytest.raises(QueryError):
        merged(windows(0.9), **bad)


@st.composite
def some_windows(draw):
    window = st.tuples(
        st.sampled_from(["run", "jump"]),
        st.sampled_from(["a", "b"]),
        st.integers(0, 60),
        st.integers(1, 12),
        st.sampled_from(SCORES),
    )
    found = draw(st.lists(window, max_size=40, unique_by=lambda row: row[:4]))
    return [(label, uri, s / 2, (s + n) / 2, score) for label, uri, s, n, score in found]


@settings(max_examples=120)
@given(
    rows=some_windows(),
    thresholds=st.tuples(*[st.sampled_from(SCORES)] * 2),
    gap=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
)
def test_what_segments_promise(rows, thresholds, gap):
    leave, enter = sorted(thresholds)
    found = merged(rows, enter, leave, gap)
    good = [row for row in rows if np.float32(row[4]) >= np.float32(leave)]
    for label, uri in {row[:2] for row in rows}:
        own = [s for s in found if (s["label"], s["uri"]) == (label, uri)]
        mine = [row for row in good if row[:2] == (label, uri)]
        _none_too_near(own, gap)
        covered = [_held(segment, mine) for segment in own]
        for segment, held in zip(own, covered, strict=True):
            _holds_its_windows(segment, held, enter, gap)
        left_out = [row for row in mine if not any(row in held for held in covered)]
        assert all(np.float32(row[4]) < np.float32(enter) for row in left_out)


def _held(segment, rows):
    return [r for r in rows if segment["start_ms"] <= r[2] * 1000 < segment["end_ms"]]


def _none_too_near(segments, gap):
    for before, after in pairwise(segments):
        assert after["start_ms"] > before["end_ms"] + 1000 * gap


def _holds_its_windows(segment, held, enter, gap):
    assert segment["clips"] == len(held)
    assert segment["start_ms"] == 1000 * min(r[2] for r in held)
    assert segment["end_ms"] == 1000 * max(r[3] for r in held)
    assert segment["peak_score"] == max(np.float32(r[4]) for r in held) >= np.float32(enter)
    assert segment["mean_score"] == pytest.approx(np.mean([np.float32(r[4]) for r in held]))
    reached = held[0][2] if held else 0
    for row in sorted(held, key=lambda row: row[2:4]):
        assert row[2] <= reached + gap or row[2] * 1000 == segment["start_ms"]
        reached = max(reached, row[3])
