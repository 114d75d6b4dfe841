from pathlib import Path

import pyarrow as pa
import pytest

from indexer.errors import StorageError
from indexer.table.resume import STATES, finished_videos, unit_states, videos_version
from tests.table.make import TAG, Run, new_index, ref, unit


@pytest.fixture
def run(tmp_path):
    return Run(new_index(str(tmp_path / "index")))


def states(run):
    table = unit_states(run.paths, TAG)
    assert table.schema == STATES
    assert table["video_id"].to_pylist() == sorted(table["video_id"].to_pylist())
    return {row.pop("video_id"): row for row in table.to_pylist()}


def state(run, uri="a"):
    return states(run)[ref(uri).video_id]


def test_no_table_and_no_rows_are_no_states(tmp_path):
    paths = new_index(str(tmp_path / "index"))
    assert unit_states(paths, TAG) == STATES.empty_table()
    Run(paths)
    assert unit_states(paths, TAG).num_rows == 0


def test_one_row_for_each_video(run):
    run.add(
        unit("a", [4], unit_index=2, units=4),
        unit("a", [0], units=4),
        unit("a", failure="corrupt", unit_index=1, units=4),
        unit("b"),
    )
    assert len(states(run)) == 2
    assert state(run) == {
        "content_key": "10-abc", "units": 4, "done": [0, 2], "failed": [1], "attempts": 1,
        "error_code": "corrupt",
    }  # fmt: skip
    assert state(run, "b")["error_code"] is None


def test_a_unit_is_done_once_any_attempt_was_indexed(run):
    run.add(unit(failure="timeout", uri="a"))
    assert state(run)["failed"] == [0]
    run.add(unit("a", attempt=2))
    assert (state(run)["done"], state(run)["failed"], state(run)["attempts"]) == ([0], [], 2)
    run.add(unit("a", failure="missing", attempt=3))
    assert (state(run)["done"], state(run)["failed"]) == ([0], [])
    assert (state(run)["error_code"], state(run)["attempts"]) == (None, 3)


def test_the_latest_failure_gives_the_code(run):
    run.add(unit("a", failure="timeout"))
    run.add(unit("a", failure="corrupt", attempt=2))
    assert (state(run)["error_code"], state(run)["attempts"]) == ("corrupt", 2)


def test_a_failure_before_the_units_were_known_does_not_hide_them(run):
    run.add(unit("a", [0], units=3), unit("a", failure="timeout", unit_index=1, units=3))
    run.add(unit("a", failure="missing", attempt=2, info=None))
    assert state(run) == {
        "content_key": "10-abc", "units": 3, "done": [0], "failed": [1], "attempts": 2,
        "error_code": "missing",
    }  # fmt: skip


def test_only_the_newest_content_counts(run):
    run.add(unit("a"))
    run.add(unit("a", failure="corrupt", content_key="11-new"), indexed_at=later())
    assert (state(run)["content_key"], state(run)["done"]) == ("11-new", [])


def later():
    from datetime import timedelta

    from tests.table.make import NOW

    return NOW + timedelta(hours=1)


def listed(*videos):
    return pa.table(
        {
            "video_id": [ref(name).video_id for name, _ in videos],
            "content_key": [key for _, key in videos],
        }
    )


def test_finished_are_those_whose_every_unit_is_indexed_with_this_content(run):
    run.add(
        unit("whole"),
        unit("two", [0], units=2),
        unit("two", [1], unit_index=1, units=2),
        unit("half", [0], units=2),
        unit("failed", failure="corrupt"),
        unit("changed"),
        unit("unlisted"),
    )
    run.add(unit("late", failure="timeout"))
    run.add(unit("late", attempt=2))
    names = ["new", "whole", "two", "half", "failed", "changed", "late"]
    manifest = listed(*((name, "11-new" if name == "changed" else "10-abc") for name in names))
    found = finished_videos(run.paths, TAG, manifest).to_pylist()
    assert {name for name, done in zip(names, found, strict=True) if done} == {
        "whole", "two", "late",
    }  # fmt: skip
    assert finished_videos(run.paths, "other", manifest).to_pylist() == [False] * 7


def test_states_may_be_asked_of_some_videos(run):
    run.add(unit("a"), unit("b", failure="corrupt"), unit("c"))
    wanted = pa.chunked_array([[ref("b").video_id, ref("new").video_id]])
    found = unit_states(run.paths, TAG, wanted)
    assert found["video_id"].to_pylist() == [ref("b").video_id]
    assert unit_states(run.paths, TAG, wanted.slice(0, 0)).num_rows == 0


def test_the_version_of_the_videos_is_known(tmp_path):
    paths = new_index(str(tmp_path / "index"))
    assert videos_version(paths) is None
    Run(paths).add(unit("a"))
    assert videos_version(paths) == 1


def test_a_missing_file_is_a_storage_error(run):
    files = run.write(unit("a"))
    run.committer.commit(files)
    Path(run.paths.data_file("videos", files[-1].path)).unlink()
    with pytest.raises(StorageError, match="videos"):
        unit_states(run.paths, TAG)


def test_models_have_states_of_their_own(run):
    Run(run.paths, tag="other", run_id="run-2").add(unit("a"))
    assert states(run) == {}
