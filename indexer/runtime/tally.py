"""Which outcomes of a run have arrived: each unit once, whatever Ray repeats or loses."""

import heapq
from collections import Counter
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from indexer.errors import ClusterError
from indexer.metrics import Counts
from indexer.runtime.blocks import TODO_SCHEMA
from indexer.runtime.writing import UnitReceipt, WriteReceipt
from indexer.table.schema import CLIPS, VIDEOS

SLOWEST_VIDEOS: Final = 10
"""As many are named in a run's report."""


@dataclass(slots=True)
class _OpenVideo:
    """A video of which some units have an outcome, from this run or an earlier one."""

    units: int
    arrived: set[int]
    seconds: float = 0.0


class Tally:
    """Outcomes so far; a video counts once all its units have arrived.

    Args:
        todo: rows of `TODO_SCHEMA`, all that the run has to do.
    """

    def __init__(self, todo: pa.Table) -> None:
        self.counts = Counts()
        self.videos_indexed = 0
        self.videos_failed = 0
        self._todo = todo
        begun = todo.filter(pa.compute.greater(pa.compute.list_value_length(todo["done_units"]), 0))
        self._open = {
            row["video_id"]: _OpenVideo(row["units"], set(row["done_units"]))
            for row in begun.select(["video_id", "units", "done_units"]).to_pylist()
        }
        self._complete: set[str] = set()
        self._failed_ids: set[str] = set()
        self._slowest: list[tuple[float, str]] = []  # a heap

    @property
    def videos(self) -> int:
        """Videos with all their units."""
        return self.videos_indexed + self.videos_failed

    @property
    def slowest(self) -> list[tuple[float, str]]:
        """Seconds of bytes and decoding, and uri, of the complete videos that took longest."""
        return sorted(self._slowest, reverse=True)

    def add(self, receipt: WriteReceipt) -> bool:
        """Counts the units of a receipt, unless it holds one that has arrived before.

        A stage that dies is run again, and what it gave before may be cut into other pieces the
        second time (ray-project/ray gives a repeated task's blocks by their number).

        Returns:
            Whether its files are to be committed; where not, `left` has its units again.

        Raises:
            ClusterError: its files do not hold what it says.
        """
        _check_rows(receipt)
        if any(self._has_arrived(unit) for unit in receipt.units):
            return False
        self.counts += receipt.counts
        for unit in receipt.units:
            self._add_unit(unit)
        return True

    def left(self) -> pa.Table:
        """Rows of `TODO_SCHEMA`: the videos that are not complete, without what has arrived."""
        waiting = [
            video_id not in self._complete for video_id in self._todo["video_id"].to_pylist()
        ]
        rows = self._todo.filter(pa.array(waiting, pa.bool_())).to_pylist()
        for row in rows:
            begun = self._open.get(row["video_id"])
            if begun is not None:
                row |= {"units": begun.units, "done_units": sorted(begun.arrived)}
        return pa.Table.from_pylist(rows, TODO_SCHEMA)

    def _has_arrived(self, unit: UnitReceipt) -> bool:
        begun = self._open.get(unit.video_id)
        return unit.video_id in self._complete or (
            begun is not None and unit.unit_index in begun.arrived
        )

    def _add_unit(self, unit: UnitReceipt) -> None:
        video = self._open.setdefault(unit.video_id, _OpenVideo(unit.units, set()))
        video.units = unit.units
        video.arrived.add(unit.unit_index)
        video.seconds += unit.seconds
        if unit.failed:
            self._failed_ids.add(unit.video_id)
        if len(video.arrived) < video.units:
            return
        del self._open[unit.video_id]
        self._complete.add(unit.video_id)
        heapq.heappush(self._slowest, (video.seconds, unit.uri))
        if len(self._slowest) > SLOWEST_VIDEOS:
            heapq.heappop(self._slowest)
        if unit.video_id in self._failed_ids:
            self.videos_failed += 1
        else:
            self.videos_indexed += 1


def _check_rows(receipt: WriteReceipt) -> None:
    rows = Counter[str]()
    for file in receipt.files:
        rows[file.table] += file.rows
    if (rows[CLIPS.name], rows[VIDEOS.name]) != (receipt.counts.clips, len(receipt.units)):
        message = (
            f"a write task got {receipt.counts.clips} clips of {len(receipt.units)} units, but"
            f" wrote {rows[CLIPS.name]} and {rows[VIDEOS.name]}; run the same command again"
        )
        raise ClusterError(message)
