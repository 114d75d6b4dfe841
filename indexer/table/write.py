"""Writes rows as data files of the Delta tables; a later commit makes them visible.

A file is named by its content, put in one piece, and never changed. Strings are dictionary
encoded, floats byte-stream split, which with rounded mantissas halves an embedding; every page has
a checksum.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from indexer import storage
from indexer.table.paths import IndexPaths, data_file_path
from indexer.table.schema import TABLES, TableSpec

Bound = str | float | None

_STAT_CHARS: Final = 256
_BLOOM_FALSE_POSITIVES: Final = 0.05
_CAN_BLOOM: Final = "bloom_filter_options" in inspect.signature(pq.write_table).parameters
"""Not every pyarrow that we support writes Bloom filters."""

_LAST_CHARACTER: Final = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class DataFile:
    """One written data file, not visible to readers of the log before it is committed.

    Attributes:
        table: name of the table.
        path: within the table, as the file system names it.
        size_bytes: size of the file.
        rows: number of rows.
        sha256: of the file's bytes, in hex.
        stats_json: Delta's statistics, by which readers skip files.
    """

    table: str
    path: str
    size_bytes: int
    rows: int
    sha256: str
    stats_json: str

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes the same value."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The value of which `content` is the JSON object."""
        return cls(**content)


def write_tables(
    tables: Mapping[str, pa.Table], paths: IndexPaths, tag: str, run_id: str, task: str
) -> tuple[DataFile, ...]:
    """Writes each table that has rows as one file.

    Args:
        tables: by name, as `rows.unit_tables` makes them, without the partition column.
        paths: of the index.
        tag: the model's partition.
        run_id: of the run, part of the files' names.
        task: of the write task, part of the files' names.

    Raises:
        StorageError: a file cannot be written.
    """
    return tuple(
        write_file(tables[name], spec, paths, tag, f"{run_id}-{task}")
        for name, spec in TABLES.items()
        if tables[name].num_rows
    )


def write_file(
    table: pa.Table, spec: TableSpec, paths: IndexPaths, tag: str, writer: str
) -> DataFile:
    """Writes the rows of one table as one file.

    Raises:
        StorageError: the file cannot be written.
    """
    part = _Part(spec)
    part.add(table)
    return part.publish(paths, tag, writer)


def write_sorted(
    chunks: Iterable[pa.Table],
    spec: TableSpec,
    paths: IndexPaths,
    tag: str,
    writer: str,
    target_bytes: int,
) -> Iterator[DataFile]:
    """Writes a stream of rows as files of about one size; holds one file and one row group.

    Args:
        chunks: the rows, in the order of the table, in pieces of any size.
        spec: of the table.
        paths: of the index.
        tag: the model's partition.
        writer: who writes them, part of the files' names.
        target_bytes: a file ends with the row group that reaches this size.

    Yields:
        Each file once it is written.

    Raises:
        StorageError: a file cannot be written.
    """
    part = None
    for group in _row_groups(chunks, spec, target_bytes):
        if part is None:
            part = _Part(spec, distinct=group.num_rows)
        part.add(group)
        if part.size_bytes >= target_bytes:
            yield part.publish(paths, tag, writer)
            part = None
    if part is not None:
        yield part.publish(paths, tag, writer)


def parquet_bytes(table: pa.Table, spec: TableSpec) -> bytes:
    """The rows as a Parquet file.

    Raises:
        ValueError: the columns are not those of the table.
    """
    part = _Part(spec)
    part.add(table)
    return part.content()


def stats_json(table: pa.Table, spec: TableSpec) -> str:
    """Delta's statistics of a file, by which readers skip it: rows, nulls and bounds."""
    statistics = FileStatistics(spec)
    statistics.add(table)
    return statistics.to_json()


class FileStatistics:
    """Delta's statistics of a file whose rows come in pieces.

    Every column but a list has bounds: `DeltaTable.to_pyarrow_dataset` takes a missing
    bound for null, and drops the whole file from any answer that filters by the column.
    """

    def __init__(self, spec: TableSpec) -> None:
        """Begins with no rows."""
        names = [name for name in spec.data_schema.names if not _is_list(spec, name)]
        self.rows = 0
        self._bounds: dict[str, tuple[Any, Any]] = dict.fromkeys(names, (None, None))
        self._nulls = dict.fromkeys(names, 0)

    def add(self, table: pa.Table) -> None:
        """Takes some more rows into account."""
        self.rows += table.num_rows
        for name, (low, high) in self._bounds.items():
            found = pc.min_max(table[name]).as_py()
            self._bounds[name] = (
                min((v for v in (low, found["min"]) if v is not None), default=None),
                max((v for v in (high, found["max"]) if v is not None), default=None),
            )
            self._nulls[name] += table[name].null_count

    def to_json(self) -> str:
        """As the log holds them."""
        # not in ASCII: deltalake 1.6 misreads the escapes of U+20000 and above, and skips the file
        return json.dumps(self.to_dict(), allow_nan=False, ensure_ascii=False)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of `to_json`."""
        return {
            "numRecords": self.rows,
            "minValues": _present({n: _lower_bound(b[0]) for n, b in self._bounds.items()}),
            "maxValues": _present({n: _upper_bound(b[1]) for n, b in self._bounds.items()}),
            "nullCount": self._nulls,
        }


class _Part:
    """One data file in the making.

    Args:
        spec: of the table.
        distinct: for how many values of a row group its Bloom filters are made; 0 makes none, for
            small files are read whole anyway.
    """

    def __init__(self, spec: TableSpec, *, distinct: int = 0) -> None:
        self._spec = spec
        self._statistics = FileStatistics(spec)
        self._sink = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(
            self._sink,
            spec.data_schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=_leaves(spec, pa.types.is_string),
            use_byte_stream_split=_leaves(spec, pa.types.is_floating),
            write_statistics=[name for name in spec.data_schema.names if not _is_list(spec, name)],
            write_page_checksum=True,
            **_bloom_filters(spec, distinct),
        )

    @property
    def rows(self) -> int:
        return self._statistics.rows

    @property
    def size_bytes(self) -> int:
        return int(self._sink.tell())

    def add(self, table: pa.Table) -> None:
        if not table.schema.equals(self._spec.data_schema):
            message = (
                f"{self._spec.name}: the columns are {table.schema}, not {self._spec.data_schema}"
            )
            raise ValueError(message)
        self._writer.write_table(table, row_group_size=self._spec.row_group_rows)
        self._statistics.add(table)

    def content(self) -> bytes:
        self._writer.close()
        return bytes(self._sink.getvalue())

    def publish(self, paths: IndexPaths, tag: str, writer: str) -> DataFile:
        content = self.content()
        sha256 = hashlib.sha256(content).hexdigest()
        path = data_file_path(tag, writer, sha256)
        storage.write_bytes(paths.data_file(self._spec.name, path), content)
        return DataFile(
            table=self._spec.name,
            path=path,
            size_bytes=len(content),
            rows=self.rows,
            sha256=sha256,
            stats_json=self._statistics.to_json(),
        )


def _bloom_filters(spec: TableSpec, distinct: int) -> dict[str, Any]:
    if not (distinct and _CAN_BLOOM):
        return {}
    filter_ = {"ndv": distinct, "fpp": _BLOOM_FALSE_POSITIVES}
    return {"bloom_filter_options": dict.fromkeys(spec.looked_up, filter_)}


def _row_groups(chunks: Iterable[pa.Table], spec: TableSpec, most_bytes: int) -> Iterator[pa.Table]:
    """Cuts a stream of rows into full row groups, none larger than a file shall be."""
    held: list[pa.Table] = []
    rows = held_bytes = 0
    for chunk in chunks:
        piece = chunk
        while piece.num_rows:
            taken = piece.slice(0, spec.row_group_rows - rows)
            piece = piece.slice(taken.num_rows)
            held.append(taken)
            rows += taken.num_rows
            held_bytes += taken.nbytes
            if rows == spec.row_group_rows or held_bytes >= most_bytes:
                yield pa.concat_tables(held)
                held, rows, held_bytes = [], 0, 0
    if held:
        yield pa.concat_tables(held)


def _present(bounds: dict[str, Bound]) -> dict[str, Bound]:
    return {name: bound for name, bound in bounds.items() if bound is not None}


def _lower_bound(value: Bound | datetime) -> Bound:
    """A long string is cut, and so sorts before itself."""
    if isinstance(value, datetime):
        return instant_text(value)
    return value[:_STAT_CHARS] if isinstance(value, str) else value


def _upper_bound(value: Bound | datetime) -> Bound:
    """A long string is cut, and gets the last of all characters so that it sorts after itself."""
    if isinstance(value, datetime):
        return instant_text(value)
    if not isinstance(value, str) or len(value) <= _STAT_CHARS:
        return value
    cut = _STAT_CHARS
    while cut < len(value) and value[cut] == _LAST_CHARACTER:
        cut += 1
    return value[:cut] + _LAST_CHARACTER


def instant_text(value: datetime) -> str:
    """A time as the log holds it."""
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _is_list(spec: TableSpec, name: str) -> bool:
    return bool(pa.types.is_list(spec.schema.field(name).type))


def _leaves(spec: TableSpec, wanted: Callable[[pa.DataType], bool]) -> list[str]:
    """Parquet's names of the leaf columns of a kind."""
    names = []
    for field in spec.data_schema:
        if pa.types.is_list(field.type) and wanted(field.type.value_type):
            names.append(f"{field.name}.list.element")
        elif wanted(field.type):
            names.append(field.name)
    return names
