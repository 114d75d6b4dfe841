"""Writes rows as data files of the Delta tables; a later commit makes them visible.

A file is named by its content, put in one piece, and never changed. Strings are dictionary
encoded, floats byte-stream split, which with rounded mantissas halves an embedding; every page has
a checksum.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
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
    content = parquet_bytes(table, spec)
    sha256 = hashlib.sha256(content).hexdigest()
    path = data_file_path(tag, writer, sha256)
    storage.write_bytes(paths.data_file(spec.name, path), content)
    return DataFile(
        table=spec.name,
        path=path,
        size_bytes=len(content),
        rows=table.num_rows,
        sha256=sha256,
        stats_json=stats_json(table, spec),
    )


def parquet_bytes(table: pa.Table, spec: TableSpec) -> bytes:
    """The rows as a Parquet file.

    Raises:
        ValueError: the columns are not those of the table.
    """
    if not table.schema.equals(spec.data_schema):
        message = f"{spec.name}: the columns are {table.schema}, not {spec.data_schema}"
        raise ValueError(message)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=spec.row_group_rows,
        compression="zstd",
        compression_level=1,
        use_dictionary=_leaves(spec, pa.types.is_string),
        use_byte_stream_split=_leaves(spec, pa.types.is_floating),
        write_statistics=[name for name in spec.data_schema.names if not _is_list(spec, name)],
        write_page_checksum=True,
    )
    return bytes(sink.getvalue())


def stats_json(table: pa.Table, spec: TableSpec) -> str:
    """Delta's statistics of a file, by which readers skip it: rows, nulls and bounds.

    Every column but a list has bounds: `DeltaTable.to_pyarrow_dataset` takes a missing
    bound for null, and drops the whole file from any answer that filters by the column.
    """
    names = [name for name in spec.data_schema.names if not _is_list(spec, name)]
    bounds = {name: pc.min_max(table[name]).as_py() for name in names}
    stats = {
        "numRecords": table.num_rows,
        "minValues": _present({name: _lower_bound(bounds[name]["min"]) for name in names}),
        "maxValues": _present({name: _upper_bound(bounds[name]["max"]) for name in names}),
        "nullCount": {name: table[name].null_count for name in names},
    }
    return json.dumps(stats, allow_nan=False)


def _present(bounds: dict[str, Bound]) -> dict[str, Bound]:
    return {name: bound for name, bound in bounds.items() if bound is not None}


def _lower_bound(value: Bound | datetime) -> Bound:
    """A long string is cut, and so sorts before itself."""
    if isinstance(value, datetime):
        return _instant(value)
    return value[:_STAT_CHARS] if isinstance(value, str) else value


def _upper_bound(value: Bound | datetime) -> Bound:
    """A long string is cut, and gets the last of all characters so that it sorts after itself."""
    if isinstance(value, datetime):
        return _instant(value)
    if not isinstance(value, str) or len(value) <= _STAT_CHARS:
        return value
    cut = _STAT_CHARS
    while cut < len(value) and value[cut] == _LAST_CHARACTER:
        cut += 1
    return value[:cut] + _LAST_CHARACTER


def _instant(value: datetime) -> str:
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
