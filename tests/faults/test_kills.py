"""SIGKILL before and after every operation on the storage, and again during the resume."""

import random
import shutil

import pytest

from indexer.table import lease
from indexer.table.paths import IndexPaths
from tests.faults.forks import KILLED, bytes_left_over, lasting_rows
from tests.table.make import TAG

ROWS = {"clips": 14, "embeddings": 14, "labels": 42, "videos": 8}


@pytest.fixture(scope="module")
def begun(forks, tmp_path_factory):
    """An index of an earlier run, of whose videos some have changed since."""
    index = tmp_path_factory.mktemp("begun") / "index"
    assert forks.run(str(index), "first", first=True) == 0, forks.errors()
    return index


@pytest.fixture(scope="module")
def clean(forks, begun, tmp_path_factory):
    """The rows of a run that nothing disturbed, and the number of its operations."""
    folder = tmp_path_factory.mktemp("clean")
    index = shutil.copytree(begun, folder / "index")
    assert forks.run(str(index), "clean", count_to=str(folder / "n")) == 0, forks.errors()
    rows = lasting_rows(str(index))
    assert {name: len(found) for name, found in rows.items()} == ROWS
    assert bytes_left_over(str(index)) == set()
    return rows, int((folder / "n").read_text())


def check_point(forks, begun, clean, folder, kill_at, *, after, resume_kill_at):
    index = str(shutil.copytree(begun, folder))
    place = {"after": after}
    assert forks.run(index, "killed", kill_at=kill_at, **place) == KILLED, (kill_at, after)
    second = forks.run(index, "resumed", kill_at=resume_kill_at, **place)
    assert second in (0, KILLED), forks.errors()
    if second == KILLED:
        assert forks.run(index, "last") == 0, forks.errors()
    point = (kill_at, after, resume_kill_at)
    assert lasting_rows(index) == clean[0], point
    assert bytes_left_over(index) == set(), point
    shutil.rmtree(index)
    return second == KILLED


@pytest.mark.timeout(300)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_at_any_operation_leaves_what_a_clean_run_leaves(
    forks, begun, clean, tmp_path, after
):
    _, operations = clean
    assert operations >= 40
    rng = random.Random(after)
    killed_twice = 0
    for kill_at in range(1, operations + 1):
        resume_kill_at = rng.randint(1, operations)
        killed_twice += check_point(
            forks, begun, clean, tmp_path / str(kill_at), kill_at,
            after=after, resume_kill_at=resume_kill_at,
        )  # fmt: skip
    assert killed_twice > operations // 4


def test_two_models_in_one_index_are_both_exact_after_one_s_driver_died(
    forks, clean, begun, tmp_path
):
    rows, operations = clean
    index = str(shutil.copytree(begun, tmp_path / "index"))
    assert forks.run(index, "one") == 0, forks.errors()
    for number, kill_at in enumerate((operations // 2, operations // 3)):
        assert forks.run(index, f"other-{number}", tag="other", kill_at=kill_at) == KILLED
    assert forks.run(index, "other-last", tag="other") == 0, forks.errors()
    both = lasting_rows(index)
    for table, expected in rows.items():
        assert len(expected) == ROWS[table]
        theirs = [row.replace("'other'", repr(TAG)) for row in both[table] if "'other'" in row]
        assert [row for row in both[table] if "'other'" not in row] == expected
        assert sorted(theirs) == expected
    assert bytes_left_over(index) == set()


def test_of_two_jobs_on_one_shard_one_is_refused_and_touches_nothing(forks, begun, tmp_path):
    index = str(shutil.copytree(begun, tmp_path / "index"))
    before = lasting_rows(index)
    with lease.held(IndexPaths(index), TAG, "1-of-1", "first", beat_seconds=0.2):
        assert forks.run(index, "second") == 13
    assert "LeaseHeld: " in forks.errors()
    assert "run first on" in forks.errors()
    assert lasting_rows(index) == before
    assert forks.run(index, "third") == 0
    assert lasting_rows(index) != before


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_two_thousand_pairs_of_kills(forks, begun, clean, tmp_path):
    _, operations = clean
    rng = random.Random(5)
    for number in range(2000):
        check_point(
            forks, begun, clean, tmp_path / str(number), rng.randint(1, operations),
            after=rng.random() < 0.5, resume_kill_at=rng.randint(1, operations),
        )  # fmt: skip


def test_the_changed_rows_are_really_other_rows(forks, begun, clean):
    old = lasting_rows(str(begun))
    assert not set(clean[0]["clips"]) >= set(old["clips"])
    assert set(clean[0]["clips"]) & set(old["clips"])
