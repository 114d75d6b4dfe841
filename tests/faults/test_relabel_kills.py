"""SIGKILL at every operation of a relabelling, and again during the resume."""

import random
import shutil

import pytest

from tests.faults.forks import KILLED, bytes_left_over, lasting_rows
from tests.faults.job import RELABELLED

ROWS = {"clips": 14, "embeddings": 14, "labels": 56, "videos": 8}


@pytest.fixture(scope="module")
def begun(forks, tmp_path_factory):
    """An index that was relabelled, and then run again: some videos have another content."""
    index = tmp_path_factory.mktemp("begun") / "index"
    assert forks.run(str(index), "first", first=True) == 0, forks.errors()
    assert forks.run(str(index), "-", relabel=True) == 0, forks.errors()
    assert relabelled_rows(index)["clips"]
    assert forks.run(str(index), "second") == 0, forks.errors()
    return index


@pytest.fixture(scope="module")
def clean(forks, begun, tmp_path_factory):
    """All rows after a relabelling that nothing disturbed, and the number of its operations."""
    folder = tmp_path_factory.mktemp("clean")
    index = shutil.copytree(begun, folder / "index")
    code = forks.run(str(index), "-", relabel=True, count_to=str(folder / "n"))
    assert code == 0, forks.errors()
    assert {name: len(found) for name, found in relabelled_rows(index).items()} == ROWS
    assert bytes_left_over(str(index)) == set()
    return lasting_rows(str(index)), int((folder / "n").read_text())


def relabelled_rows(index):
    rows = lasting_rows(str(index))
    return {name: [row for row in rows[name] if repr(RELABELLED) in row] for name in rows}


def check_point(forks, begun, clean, folder, kill_at, *, after, resume_kill_at):
    index = str(shutil.copytree(begun, folder))
    point = (kill_at, after, resume_kill_at)
    first = forks.run(index, "-", relabel=True, kill_at=kill_at, after=after)
    assert first == KILLED, (point, forks.errors())
    second = forks.run(index, "-", relabel=True, kill_at=resume_kill_at, after=after)
    assert second in (0, KILLED), forks.errors()
    if second == KILLED:
        assert forks.run(index, "-", relabel=True) == 0, forks.errors()
    assert lasting_rows(index) == clean[0], point
    assert bytes_left_over(index) == set(), point
    shutil.rmtree(index)
    return second == KILLED


def check_points(forks, begun, clean, folder, points):
    rng = random.Random(len(points))
    operations = clean[1]
    twice = [
        check_point(
            forks, begun, clean, folder / f"{kill_at}-{after}", kill_at,
            after=after, resume_kill_at=rng.randint(1, operations),
        )
        for kill_at, after in points
    ]  # fmt: skip
    assert sum(twice) > len(points) // 5


@pytest.mark.timeout(300)
def test_a_kill_at_some_operations_leaves_what_a_clean_relabelling_leaves(
    forks, begun, clean, tmp_path
):
    operations = clean[1]
    assert operations >= 40
    points = [(kill_at, bool(kill_at % 2)) for kill_at in range(2, operations + 1, 7)]
    check_points(forks, begun, clean, tmp_path, points)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_kill_at_any_operation_leaves_what_a_clean_relabelling_leaves(
    forks, begun, clean, tmp_path
):
    numbers = range(1, clean[1] + 1)
    points = [(kill_at, after) for kill_at in numbers for after in (False, True)]
    check_points(forks, begun, clean, tmp_path, points)
