"""The write stage: scored units in, data files that wait for their commit out."""

import time
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
        uri: of its video.
        seconds: that bringing its bytes and decoding took.
    """

    video_id: str
    unit_index: int
    units: int
    failed: bool
    uri: str
    seconds: float


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
    started = time.perf_counter()
    units = [checked(outcome) for outcome in blocks.outcomes(scored)]
    files = write_tables(
        unit_tables(units, context), paths, tag=context.tag, run_id=context.run_id, task=task
    )
    counts = sum((_counts_of(unit) for unit in units), Counts())
    counts += Counts(
        model=blocks.effort_of(scored),
        write_seconds=time.perf_counter() - started,
        written_bytes=sum(file.size_bytes for file in files),
    )
    return WriteReceipt(files, tuple(map(_receipt_of, units)), counts)


def _receipt_of(unit: UnitOutcome) -> UnitReceipt:
    return UnitReceipt(
        video_id=unit.ref.video_id,
        unit_index=unit.unit_index,
        units=unit.units,
        failed=unit.failure is not None,
        uri=unit.ref.uri,
        seconds=unit.fetch.seconds + unit.decode_wall_seconds,
    )


def _counts_of(unit: UnitOutcome) -> Counts:
    first = unit.unit_index == 0
    return Counts(
        units=1,
        clips=len(unit.spans),
        failures={unit.failure.code: 1} if unit.failure else {},
        fetch=unit.fetch,
        decode_seconds=unit.decode_seconds,
        codec_seconds=unit.codec_seconds,
        decode_wall_seconds=unit.decode_wall_seconds,
        decode_wait_seconds=unit.decode_wait_seconds,
        video_seconds=unit.info.duration_seconds if first and unit.info else 0.0,
        listed_bytes=unit.ref.size_bytes if first else 0,
    )
