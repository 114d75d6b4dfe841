import json
import re
from pathlib import Path

import pytest

from indexer import LabelIndex
from indexer.demo import BROKEN_VIDEO, CLIP_SECONDS, LONG_VIDEO, answers, make_videos, run_demo
from indexer.errors import ConfigError
from indexer.video.motion import LABELS

RIGHT = 0.95


@pytest.fixture(scope="module")
def told(tmp_path_factory, ray_session):
    """The demo, run once: its folder, its exit code and its story."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    story = []
    code = run_demo(folder, story.append)
    return folder, code, "\n".join(story)


@pytest.mark.timeout(600)
def test_the_demo_s_answers_are_right(told):
    folder, code, _ = told
    truth = json.loads((folder / "truth.json").read_text())
    found = answers(LabelIndex.open(str(folder / "index")), truth)
    short = [answer for answer in found if answer.video != LONG_VIDEO]
    assert code == 0
    assert len(short) == 2 * len(LABELS)
    assert {answer.truth for answer in short} == set(LABELS)
    assert sum(answer.right for answer in short) >= RIGHT * len(short)
    long = [answer for answer in found if answer.video == LONG_VIDEO]
    assert [answer.truth for answer in long] == truth[LONG_VIDEO]
    assert sum(answer.right for answer in long) >= RIGHT * len(long)


def test_a_search_finds_exactly_the_videos_and_the_seconds(told):
    folder, _, _ = told
    truth = json.loads((folder / "truth.json").read_text())
    index = LabelIndex.open(str(folder / "index"))
    expected = {name for name, labels in truth.items() if "moving left" in labels}
    assert len(expected) == 3
    hits = index.search("moving left", min_score=0.5, top=None)
    assert {Path(uri).name for uri in hits["uri"].to_pylist()} == expected
    (segment,) = index.segments("moving left", video=f"*/{LONG_VIDEO}").to_pylist()
    begins = truth[LONG_VIDEO].index("moving left") * 2 * CLIP_SECONDS
    assert abs(segment["start_ms"] / 1000 - begins) <= CLIP_SECONDS
    assert abs(segment["end_ms"] / 1000 - (begins + 2 * CLIP_SECONDS)) <= CLIP_SECONDS


def test_the_broken_video_is_one_typed_failure(told):
    folder, _, _ = told
    index = LabelIndex.open(str(folder / "index"))
    (failure,) = index.errors().to_pylist()
    assert failure["uri"].endswith(BROKEN_VIDEO)
    assert failure["error_code"] == "truncated"
    assert index.status()["videos"] == {"indexed": 21, "failed": 1, "incomplete": 0}


def test_the_story_shows_what_was_run_and_what_to_try(told):
    folder, _, story = told
    for word in ("indexer run", "indexer labels", "indexer search", "indexer status"):
        assert f"$ {word}" in story
    assert str(folder / "videos") in story
    assert re.search(r"right for \d+ of 20 short videos", story)
    assert "truncated" in story


def test_a_second_demo_in_the_same_folder_has_nothing_to_do(told):
    folder, _, _ = told
    before = {path: path.stat().st_mtime_ns for path in (folder / "videos").iterdir()}
    story = []
    assert run_demo(folder, story.append) == 0
    assert "nothing to do" in "\n".join(story)
    assert {path: path.stat().st_mtime_ns for path in (folder / "videos").iterdir()} == before


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="holds no demo"):
        make_videos(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_demo_that_was_interrupted_while_rendering_starts_over(tmp_path, monkeypatch):
    def interrupted(videos):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("indexer.demo._make_long_video", interrupted)
        patch.setattr("indexer.demo._make_short_videos", lambda videos: [])
        with pytest.raises(KeyboardInterrupt):
            make_videos(tmp_path)
        patch.setattr("indexer.demo._make_long_video", lambda videos: ["growing"])
        patch.setattr("indexer.demo._make_broken_video", lambda videos: None)
        assert make_videos(tmp_path) == {LONG_VIDEO: ["growing"]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["truth.json", "videos"]
