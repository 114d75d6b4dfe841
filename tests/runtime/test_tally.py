"""Each unit counts once, whatever comes twice or not at all."""

import pyarrow as pa
import pytest

from indexer.errors import ClusterError
from indexer.metrics import Counts
from indexer.runtime.blocks import TODO_SCHEMA
from indexer.runtime.tally import Tally
from indexer.runtime.writing import UnitReceipt, WriteReceipt
from indexer.table.write import DataFile

SECONDS = {"a": 3.0, "b": 2.0}


def todo(**videos):
    """Rows of videos with their number of units and those that are done."""
    rows = [
        {
            "video_id": name, "uri": f"/{name}", "size_bytes": 1, "content_key": "k", "extra": "{}",
            "attempt": 1, "units": units, "done_units": done,
        }
        for name, (units, done) in videos.items()
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, TODO_SCHEMA)


def receipt(*units, clips=None, rows=None):
    """A write task's answer for (video, unit, units, failed); each good unit has two clips."""
    made = 2 * sum(not failed for *_, failed in units) if clips is None else clips
    numbers = {"clips": made, "videos": len(units)} | (rows or {})
    files = tuple(
        DataFile(table, f"{table}.parquet", 1, number, "", "{}")
        for table, number in numbers.items()
    )
    receipts = tuple(UnitReceipt(*unit, f"/{unit[0]}", SECONDS.get(unit[0], 1.0)) for unit in units)
    return WriteReceipt(files, receipts, Counts(units=len(units), clips=made))


def left(tally):
    rows = tally.left().to_pylist()
    return {row["video_id"]: (row["units"], row["done_units"]) for row in rows}


def test_a_video_counts_when_all_its_units_are_there():
    tally = Tally(todo(a=(1, []), b=(1, []), c=(3, [1])))
    assert tally.add(receipt(("a", 0, 1, False), ("b", 0, 2, False)))
    assert (tally.videos_indexed, tally.videos_failed) == (1, 0)
    assert left(tally) == {"b": (2, [0]), "c": (3, [1])}
    assert tally.add(receipt(("b", 1, 2, True), ("c", 0, 3, False)))
    assert tally.add(receipt(("c", 2, 3, False)))
    assert (tally.videos_indexed, tally.videos_failed, tally.videos) == (2, 1, 3)
    assert tally.counts.clips == 8
    assert left(tally) == {}


@pytest.mark.parametrize(
    "again",
    [
        receipt(("a", 0, 1, False)),
        receipt(("b", 0, 2, False)),
        receipt(("new", 0, 1, False), ("b", 0, 2, False)),
        receipt(("c", 1, 2, False)),
    ],
)
def test_what_has_arrived_before_is_not_taken_again(again):
    tally = Tally(todo(a=(1, []), b=(1, []), c=(2, [1]), new=(1, [])))
    tally.add(receipt(("a", 0, 1, False), ("b", 0, 2, False)))
    before = (tally.counts, left(tally))
    assert not tally.add(again)
    assert (tally.counts, left(tally)) == before


@pytest.mark.parametrize("rows", [{"clips": 1}, {"clips": 3}, {"videos": 0}, {"videos": 2}])
def test_files_that_hold_something_else_than_their_receipt_says_are_refused(rows):
    with pytest.raises(ClusterError, match="a write task got 2 clips of 1 units"):
        Tally(todo(a=(1, []))).add(receipt(("a", 0, 1, False), rows=rows))


def test_the_slowest_videos_are_known_by_all_their_units():
    tally = Tally(todo(**{name: (1, []) for name in "abcdefghijklm"}))
    tally.add(receipt(("b", 0, 2, False)))
    assert tally.slowest == []
    tally.add(receipt(("b", 1, 2, False), *((name, 0, 1, False) for name in "acdefghijklm")))
    assert tally.slowest[:2] == [(4.0, "/b"), (3.0, "/a")]
    assert len(tally.slowest) == 10
