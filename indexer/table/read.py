"""Reads rows through the Delta log, and asks DuckDB about them.

DuckDB, and pyarrow's datasets and functions, are loaded by who needs them: datasets bring pandas
along, and each takes longer to load than a search takes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from indexer import storage
from indexer.errors import StorageError
from indexer.table.delta import LiveFile, delta_errors, reason
from indexer.table.paths import IndexPaths, digest_in_name
from indexer.table.schema import PARTITION, TableSpec

if TYPE_CHECKING:
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

_SIGNS_OF_ABSENCE: Final = ("No such file", "not found", "NoSuchKey", "does not exist")
_CLOSED: Final[dict[str, str | bool | int | float | list[str]]] = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "lock_configuration": "true",
}


def model_rows(table: DeltaTable, tag: str, *filters: tuple[str, str, str]) -> "ds.Dataset":
    """One model's rows, in the files of a snapshot that filters do not rule out.

    Args:
        table: a snapshot.
        tag: of the model.
        filters: (column, operator, value); they choose files, not rows.

    Raises:
        StorageError: the log cannot be read.
    """
    with delta_errors(table.table_uri):
        return table.to_pyarrow_dataset(file_pruning_predicate=[(PARTITION, "=", tag), *filters])


def file_batches(
    paths: IndexPaths, spec: TableSpec, file: LiveFile, batch_rows: int
) -> Iterator[pa.Table]:
    """The rows of one data file, whose bytes are proved first; holds its bytes and one batch.

    Args:
        paths: of the index.
        spec: of its table.
        file: of a snapshot.
        batch_rows: most rows of a piece.

    Yields:
        The rows in the file's order, without the partition column.

    Raises:
        StorageError: the file is missing or is not as it was written.
    """
    uri = paths.data_file(spec.name, file.path)
    try:
        content = storage.read_bytes(uri)
    except FileNotFoundError as error:
        message = f"{storage.redact(uri)} is missing; `indexer verify --repair` says what is lost"
        raise StorageError(message) from error
    fault = content_fault(file, content)
    if fault:
        message = (
            f"{storage.redact(uri)} is damaged: {fault};"
            " `indexer verify --repair` says what is lost"
        )
        raise StorageError(message)
    try:
        yield from checked_batches(content, spec, batch_rows)
    except StorageError as error:
        message = f"{storage.redact(uri)} is damaged: {error}"
        raise StorageError(message) from error


def content_fault(file: LiveFile, content: bytes) -> str | None:
    """How a file's bytes differ from those that were written; None where they do not."""
    named = digest_in_name(file.path)
    if named is None:
        return None if len(content) == file.size_bytes else _size_fault(file, content)
    found = hashlib.sha256(content).hexdigest()
    if found.startswith(named):
        return None
    if len(content) != file.size_bytes:
        return _size_fault(file, content)
    return f"its sha256 is {found}, its name says {named}"


def _size_fault(file: LiveFile, content: bytes) -> str:
    return f"it has {len(content)} bytes, the log says {file.size_bytes}"


def checked_batches(content: bytes, spec: TableSpec, batch_rows: int) -> Iterator[pa.Table]:
    """The rows of a Parquet file in pieces, every page against its checksum.

    Raises:
        StorageError: a page or the footer is damaged, or the columns are not those of the table.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        batches = file.iter_batches(batch_rows)
        while (batch := next(batches, None)) is not None:
            rows = pa.Table.from_batches([batch])
            if not rows.schema.equals(spec.data_schema):
                rows = rows.cast(spec.data_schema)
            yield rows
    except (pa.ArrowException, OSError) as error:
        raise StorageError(reason(error)) from error


def read(rows: "ds.Dataset", columns: Sequence[str], wanted: "pc.Expression") -> pa.Table:
    """The columns of the wanted rows.

    Raises:
        StorageError: a file cannot be read.
    """
    try:
        return rows.to_table(columns=list(columns), filter=wanted)
    except (pa.ArrowException, OSError) as error:
        raise StorageError(unreadable(error)) from error


def rows_in_batches(
    rows: "ds.Dataset", columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """All rows in pieces, in no particular order.

    Raises:
        StorageError: a file cannot be read.
    """
    try:
        yield from rows.to_batches(columns=list(columns), batch_size=batch_rows, batch_readahead=2)
    except (pa.ArrowException, OSError) as error:
        raise StorageError(unreadable(error)) from error


def ask(
    sql: str, schema: pa.Schema, *parameters: object, **tables: "pa.Table | ds.Dataset"
) -> pa.Table:
    """Runs one query over Arrow tables or datasets, in a DuckDB that can reach nothing else.

    Args:
        sql: a constant; whatever the user says goes into `parameters`.
        schema: of the answer.
        parameters: for the `$1`, `$2` ... of the query.
        tables: what the query may read, by name.

    Raises:
        StorageError: the rows cannot be read.
    """
    import duckdb

    try:
        with duckdb.connect(config=_CLOSED) as connection:
            for name, rows in tables.items():
                connection.register(name, rows)
            answer = connection.sql(sql, params=list(parameters)).to_arrow_table()
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise StorageError(unreadable(error)) from error
    return answer.cast(schema)


def unreadable(error: Exception) -> str:
    """What to say of rows that cannot be read."""
    text = reason(error)
    message = f"the rows of the index cannot be read: {text}"
    if any(sign in text for sign in _SIGNS_OF_ABSENCE):
        message += "; if the index was compacted meanwhile, open it again, else run indexer verify"
    return message
