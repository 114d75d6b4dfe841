import itertools

import pyarrow as pa
import pytest

from indexer.runtime.blocks import TODO_SCHEMA
from indexer.runtime.sharing import SHARE_BYTES, _shares, most_rows


def row(shares, units=1, done_units=()):
    return {
        "video_id": "v", "uri": "v.mp4", "size_bytes": shares * SHARE_BYTES, "content_key": "k",
        "extra": "{}", "attempt": 1, "units": units, "done_units": list(done_units),
    }  # fmt: skip


def owed(shared):
    return [sorted(set(range(part["units"])) - set(part["done_units"])) for part in shared]


@pytest.mark.parametrize(("shares", "units", "most", "number"), [
    (10, 7, 4, 4),
    (10, 3, 8, 3),
    (2, 100, 8, 2),
])  # fmt: skip
def test_every_unit_is_owed_by_one_row(shares, units, most, number):
    shared = _shares(row(shares), units, most)
    assert len(shared) == number
    assert list(itertools.chain.from_iterable(owed(shared))) == list(range(units))
    assert {part["units"] for part in shared} == {units}


def test_finished_units_stay_finished():
    shared = _shares(row(10, units=6, done_units=[1, 4]), 6, 2)
    assert owed(shared) == [[0, 2], [3, 5]]


@pytest.mark.parametrize(
    ("given", "units"),
    [
        (row(10), 0),  # nobody could count them
        (row(10), 1),
        (row(1), 5),
        (
            row(10, units=6, done_units=[1]),
            7,
        ),  # the index counts otherwise
    ],
)
def test_what_cannot_be_shared_stays_whole(given, units):
    assert _shares(given, units, 4) == [given]


def test_most_rows_bounds_what_sharing_makes():
    todo = pa.Table.from_pylist([row(0), row(1), row(5)], TODO_SCHEMA)
    assert most_rows(todo) == 7
    assert most_rows(todo.slice(0, 0)) == 0
