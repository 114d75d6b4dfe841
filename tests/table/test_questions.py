"""Questions beyond one label: words, exclusions, segments, counts, one video, SQL."""

import numpy as np
import pytest

from indexer.errors import QueryError
from indexer.table.answers import COUNTS, HITS, VIDEO_CLIPS
from indexer.table.query import LabelIndex
from indexer.table.segments import SEGMENTS
from indexer.table.vocabulary import matching_labels
from tests.table.make import Run, new_index, unit

ACTIONS = ("playing guitar", "tapping guitar", "guitar", "tap-dancing", "Yoga", "yoga")
OFF, ON = -9.0, 9.0


class TestVocabulary:
    def matching(self, words):
        return matching_labels(words, ACTIONS, owner="the model")

    def test_a_name_in_full_is_that_label_alone(self):
        assert self.matching("guitar") == ("guitar",)
        assert self.matching("Yoga") == ("Yoga",)
        assert self.matching(" TAP-dancing ") == ("tap-dancing",)

    def test_words_are_the_labels_that_hold_them(self):
        assert self.matching("Playing") == ("playing guitar",)
        assert self.matching("guitar tap") == ("tapping guitar",)
        assert self.matching("tap") == ("tapping guitar", "tap-dancing")
        assert self.matching("danc") == ("tap-dancing",)

    @pytest.mark.parametrize("words", ["YOGA", "uitar", "", "tap juggling"])
    def test_what_no_label_holds_or_several_are_called_is_refused(self, words):
        with pytest.raises(QueryError, match="the model has no label"):
            self.matching(words)


def rows(*labels_of_clips):
    """Logits of clips that have these of the vocabulary's first three labels."""
    return np.array(
        [[ON if label in labels else OFF for label in range(5)] for labels in labels_of_clips],
        np.float32,
    )


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Label 0 is `growing`, 1 `moving left`, 2 `Moving Right`."""
    run = Run(new_index(str(tmp_path_factory.mktemp("questions") / "index")))
    logits = rows([0], [0], [1], [0, 1], [2])
    run.add(
        unit("s3://films/a.mp4", range(5), logits_NK=logits),
        unit("s3://films/b.mp4", range(2), logits_NK=rows([0], [1])),
        unit("/home/c.mp4", range(1), logits_NK=rows([2])),
        unit("/home/bad.mp4", failure="corrupt"),
    )
    return LabelIndex.open(run.paths.root_uri)


def found(table):
    return sorted((r["label"], r["uri"], r["clip_index"]) for r in table.to_pylist())


def test_words_find_every_label_that_holds_them(index):
    hits = index.search("moving", min_score=0.4, top=None)
    assert hits.schema.equals(HITS)
    assert found(hits) == [
        ("Moving Right", "/home/c.mp4", 0),
        ("Moving Right", "s3://films/a.mp4", 4),
        ("moving left", "s3://films/a.mp4", 2),
        ("moving left", "s3://films/a.mp4", 3),
        ("moving left", "s3://films/b.mp4", 1),
    ]


def test_several_labels_are_alternatives_and_each_counts_once(index):
    hits = index.search(["growing", "moving left", "growing"], min_score=0.4, top=None)
    assert found(hits) == found(index.search("growing", min_score=0.4, top=None)) + found(
        index.search("moving left", min_score=0.4, top=None)
    )


def test_labels_can_be_ruled_out(index):
    hits = index.search("growing", without=["moving left"], min_score=0.4)
    assert [r[2] for r in found(hits) if r[1].endswith("a.mp4")] == [0, 1]
    poor = index.search("growing", without=["moving left"], min_score=0.0, top=None)
    assert ("growing", "s3://films/a.mp4", 3) not in found(poor)


def test_a_source_is_what_the_uri_begins_with(index):
    hits = index.search("moving", min_score=0.4, source="s3://films/")
    assert {r[1] for r in found(hits)} == {"s3://films/a.mp4", "s3://films/b.mp4"}
    assert not index.search("moving", min_score=0.4, source="films").num_rows


def test_segments_of_a_label(index):
    segments = index.segments("growing", min_score=0.4)
    assert segments.schema.equals(SEGMENTS)
    spans = [(s["uri"], s["start_ms"], s["end_ms"]) for s in segments.to_pylist()]
    assert spans == [
        ("s3://films/a.mp4", 0, 17000),
        ("s3://films/a.mp4", 25500, 34000),
        ("s3://films/b.mp4", 0, 8500),
    ]
    bridged = index.segments("growing", min_score=0.4, gap_seconds=8.5, video="*a.mp4")
    assert [s["duration_ms"] for s in bridged.to_pylist()] == [34000]


def test_segments_may_waver_down_to_another_threshold(index):
    assert index.segments("growing", min_score=0.9).num_rows == 2
    longer = index.segments("growing", min_score=0.9, leave_score=0.4, gap_seconds=8.5)
    assert [s["clips"] for s in longer.to_pylist()] == [3, 1]
    with pytest.raises(QueryError, match="leave <= enter"):
        index.segments("growing", min_score=0.4, leave_score=0.5)


def test_the_best_segments_come_in_the_order_of_the_film(index):
    every = index.segments(min_score=0.4).to_pylist()
    assert len(every) == 7
    best = index.segments(min_score=0.4, top=2).to_pylist()
    peaks = sorted((s["peak_score"] for s in every), reverse=True)
    assert sorted((s["peak_score"] for s in best), reverse=True) == peaks[:2]
    assert best == sorted(best, key=lambda s: (s["uri"], s["start_ms"], s["label"]))


def test_counts_are_of_clips_videos_and_seconds(index):
    counts = index.counts(min_score=0.4)
    assert counts.schema.equals(COUNTS)
    assert counts.to_pylist() == [
        {"label": "growing", "clips": 4, "videos": 2, "segments": 3, "seconds": 34.0},
        {"label": "moving left", "clips": 3, "videos": 2, "segments": 2, "seconds": 25.5},
        {"label": "Moving Right", "clips": 2, "videos": 2, "segments": 2, "seconds": 17.0},
    ]


def test_all_clips_of_a_video(index):
    for name in ("s3://films/a.mp4", "a.mp4"):
        clips = index.video(name)
        assert clips.schema.equals(VIDEO_CLIPS)
        assert clips["clip_index"].to_pylist() == [0, 1, 2, 3, 4]
        assert set(clips["uri"].to_pylist()) == {"s3://films/a.mp4"}
    assert index.video("bad.mp4").num_rows == 0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (".mp4", "4 videos of .* are called '.mp4'; did you mean"),
        ("s3://films/aa.mp4", "no videos .*; did you mean s3://films/a.mp4"),
        ("zzz", "no videos of .* are called 'zzz'; list them with: indexer sql .* 'SELECT uri"),
    ],
)
def test_a_video_that_is_not_one_is_refused(index, name, says):
    with pytest.raises(QueryError, match=says):
        index.video(name)


class TestSql:
    @pytest.mark.parametrize(
        ("query", "rows"),
        [
            ("SELECT count(*) AS n FROM clips", [{"n": 8}]),
            ("SELECT count(*) AS n FROM embeddings", [{"n": 8}]),
            ("FROM errors SELECT error_code AS c", [{"c": "corrupt"}]),
            ("SELECT count(*) AS n FROM videos WHERE status = 'indexed'", [{"n": 3}]),
            ("SELECT max(rank) AS r FROM labels", [{"r": 3}]),
            ("WITH x AS (SELECT 1 AS a) SELECT a FROM x", [{"a": 1}]),
        ],
    )  # fmt: skip
    def test_views(self, index, query, rows):
        assert index.sql(query).to_pylist() == rows

    def test_segments_are_those_of_one_half(self, index):
        theirs = index.sql("SELECT * FROM segments ORDER BY uri, start_ms, label")
        assert theirs.to_pylist() == index.segments(min_score=0.5).to_pylist()

    def test_a_query_that_takes_too_long_is_stopped(self, index):
        endless = (
            "SELECT count(*) FROM range(100000000) a JOIN range(100000) b ON a.range % 7 < b.range"
        )
        with pytest.raises(QueryError, match=r"stopped after 0.2 s|Memory"):
            index.sql(endless, timeout_seconds=0.2)

    def test_a_query_that_takes_too_much_fails(self, index):
        with pytest.raises(QueryError, match="Memory"):
            index.sql("SELECT list(range) FROM range(100000000)", memory_bytes=50_000_000)

    def test_other_threads_of_the_process_may_ask_too(self, index):
        assert index.sql("SELECT 1 AS a").to_pylist() == index.sql("SELECT 1 AS a").to_pylist()
