"""Sorts more rows than memory holds: sorted runs in temporary files, then one merge of them all.

Memory: while the runs are made, three times `RUN_BYTES`; while they are merged, `PAGE_BYTES` for
each run, of which there is one for every `RUN_BYTES` of rows. The temporary files take as much as
the rows do in memory, at most; they have no names, so that nothing is left of a killed process.
"""

import bisect
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

RUN_BYTES: Final = 128_000_000
PAGE_BYTES: Final = 1_000_000

Order = Sequence[tuple[str, str]]


def sorted_rows(
    pieces: Iterable[pa.Table], order: Order, *, run_bytes: int = RUN_BYTES
) -> Iterator[pa.Table]:
    """The rows of all pieces in one order, in pieces of other sizes.

    Args:
        pieces: tables of one schema; read once, none is held.
        order: (column, direction) of strings and finite numbers, "ascending" or "descending".
        run_bytes: rows that are sorted in memory at once.

    Raises:
        OSError: the temporary folder is full.
    """
    with ExitStack() as stack:
        files = []
        for table in _sorted_runs(pieces, order, run_bytes):
            files.append(stack.enter_context(tempfile.TemporaryFile(buffering=0)))
            _write_run(table, files[-1])
        yield from _merged([_Run(file, order) for file in files], order)


def _sorted_runs(pieces: Iterable[pa.Table], order: Order, run_bytes: int) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    held_bytes = 0
    for piece in pieces:
        held.append(piece)
        held_bytes += piece.nbytes
        if held_bytes >= run_bytes:
            yield _sorted(held, order)
            held, held_bytes = [], 0
    if held:
        yield _sorted(held, order)


def _sorted(tables: Sequence[pa.Table], order: Order) -> pa.Table:
    table = pa.concat_tables(tables).combine_chunks()
    return table.take(pc.sort_indices(table, sort_keys=list(order)))


def _write_run(table: pa.Table, file: IO[bytes]) -> None:
    rows = max(1, PAGE_BYTES * table.num_rows // max(1, table.nbytes))
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


class _Run:
    """A sorted run on disk, of which one page is in memory."""

    def __init__(self, file: IO[bytes], order: Order) -> None:
        self._file = pa.ipc.open_file(file)
        self._order = order
        self._page_number = -1
        self._page: pa.RecordBatch | None = None
        self._next = 0
        self._turn()

    @property
    def last_key(self) -> tuple[Any, ...]:
        """Key of the page's last row."""
        page = self._current()
        return self._key(page.num_rows - 1)

    @property
    def is_over(self) -> bool:
        return self._page is None

    def take_up_to(self, key: tuple[Any, ...]) -> pa.RecordBatch:
        """The page's next rows whose keys are not above this one."""
        page = self._current()
        rows = range(page.num_rows)
        end = bisect.bisect_right(rows, key, lo=self._next, key=self._key)
        taken = page.slice(self._next, end - self._next)
        self._next = end
        if end == page.num_rows:
            self._turn()
        return taken

    def _current(self) -> pa.RecordBatch:
        if self._page is None:
            message = "the run is over"
            raise ValueError(message)
        return self._page

    def _key(self, row: int) -> tuple[Any, ...]:
        page = self._current()
        return tuple(
            -page[name][row].as_py() if direction == "descending" else page[name][row].as_py()
            for name, direction in self._order
        )

    def _turn(self) -> None:
        """Goes to the next page that has rows."""
        self._page, self._next = None, 0
        while self._page_number + 1 < self._file.num_record_batches:
            self._page_number += 1
            page = self._file.get_batch(self._page_number)
            if page.num_rows:
                self._page = page
                return


def _merged(runs: list[_Run], order: Order) -> Iterator[pa.Table]:
    """Takes from all runs what lies before the end of the page that ends first, again and again."""
    while open_runs := [run for run in runs if not run.is_over]:
        boundary = min(run.last_key for run in open_runs)
        taken = [run.take_up_to(boundary) for run in open_runs]
        tables = [pa.Table.from_batches([batch]) for batch in taken if batch.num_rows]
        yield tables[0] if len(tables) == 1 else _sorted(tables, order)
