"""Rows of a table in the order of their videos, read from checked files in bounded memory."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from indexer.table.delta import LiveFile
from indexer.table.paths import IndexPaths
from indexer.table.read import file_batches
from indexer.table.schema import TableSpec
from indexer.table.sorting import Order, sorted_rows

_BATCH_ROWS: Final = 8192


class ByVideo:
    """A stream of rows sorted by `video_id`, of which the next videos are taken again and again.

    Args:
        pieces: the rows, in tables of any size and one schema.
        empty: a table of this schema without rows.
    """

    def __init__(self, pieces: Iterable[pa.Table], empty: pa.Table) -> None:
        self._pieces = iter(pieces)
        self._held = empty

    def next_video(self, rows: int) -> str | None:
        """The video to which the row lies that comes so many rows on; None after the last row."""
        while self._held.num_rows < rows and self._grow():
            pass
        last = min(rows, self._held.num_rows) - 1
        return None if last < 0 else str(self._held["video_id"][last])

    def through(self, video_id: str) -> pa.Table:
        """Takes all rows up to the last one of this video."""
        while not self._held.num_rows or str(self._held["video_id"][-1]) <= video_id:
            if not self._grow():
                break
        end = pc.sum(pc.less_equal(self._held["video_id"], video_id)).as_py() or 0
        taken, self._held = self._held.slice(0, end), self._held.slice(end)
        return taken

    def _grow(self) -> bool:
        piece = next(self._pieces, None)
        if piece is not None:
            self._held = pa.concat_tables([self._held, piece])
        return piece is not None


def checked_rows(
    paths: IndexPaths, spec: TableSpec, files: Sequence[LiveFile]
) -> Iterator[pa.Table]:
    """The rows of data files, whose bytes are proved first.

    Raises:
        StorageError: a file is missing or is not as it was written.
    """
    for file in files:
        yield from file_batches(paths, spec, file, _BATCH_ROWS)


def by_video(pieces: Iterable[pa.Table], schema: pa.Schema, *then: str) -> ByVideo:
    """Sorts rows by their videos, and by other columns within a video.

    Args:
        pieces: the rows, in any order.
        schema: of these.
        then: the other columns, in ascending order.
    """
    order: Order = [(name, "ascending") for name in ("video_id", *then)]
    return ByVideo(sorted_rows(pieces, order), schema.empty_table())
