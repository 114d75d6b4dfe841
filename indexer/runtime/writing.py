"""The write stage: scored units in, data files that wait for their commit out."""

from dataclasses import dataclass

import pyarrow as pa

from indexer.metrics import Counts
from indexer.records import UnitOutcome
from indexer.runtime import blocks
from indexer.table.paths import IndexPaths
from indexer.table.rows import RowContext, checked, unit_tables
from indexer.table.write import DataFile, write_tables


@dataclass(frozen=True, slots=True)
class UnitReceipt:
    """What the driver needs to know of a written unit.

    Attributes:
        video_id: of its video.
        unit_index: ordinal within the video.
        units: number of units of the video.
        failed: whether its outcome is a failure.
    """

    video_id: str
    unit_index: int
    units: int
    failed: bool


@dataclass(frozen=True, slots=True)
class WriteReceipt:
    """Data files that wait for their commit, with what they hold.

    Attributes:
        files: the data files, under the table roots.
        units: one receipt per unit in them.
        counts: sums over these units.
    """

    files: tuple[DataFile, ...]
    units: tuple[UnitReceipt, ...]
    counts: Counts


def write_units(
    scored: pa.Table, *, paths: IndexPaths, context: RowContext, task: str
) -> WriteReceipt:
    """Writes the rows of all units of a block as data files that no commit names yet."""
    units = [checked(outcome) for outcome in blocks.outcomes(scored)]
    files = write_tables(
        unit_tables(units, context), paths, tag=context.tag, run_id=context.run_id, task=task
    )
    receipts = tuple(
        UnitReceipt(u.ref.video_id, u.unit_index, u.units, u.failure is not None) for u in units
    )
    counts = sum((_counts_of(unit) for unit in units), Counts())
    return WriteReceipt(files, receipts, counts + Counts(model=blocks.effort_of(scored)))


def _counts_of(unit: UnitOutcome) -> Counts:
    first = unit.unit_index == 0
    return Counts(
        units=1,
        clips=len(unit.spans),
        failures={unit.failure.code: 1} if unit.failure else {},
        fetch_seconds=unit.fetch_seconds,
        decode_seconds=unit.decode_seconds,
        video_seconds=unit.info.duration_seconds if first and unit.info else 0.0,
        read_bytes=unit.ref.size_bytes if first else 0,
    )
