"""What the package asks of `deltalake`: open, make, list; with errors that name the table."""

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from indexer import storage
from indexer.errors import StorageError
from indexer.table.paths import IndexPaths
from indexer.table.schema import PARTITION, TableSpec

if TYPE_CHECKING:
    from indexer.table.write import DataFile

_CONFIGURATION: Final = {"delta.checkpointInterval": "100"}
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class LiveFile:
    """A data file that a snapshot names.

    Attributes:
        path: within the table, as the file system names it.
        size_bytes: size of the file.
        rows: number of rows.
        lower: lower bound of each column, where the log has one.
        upper: upper bound of each column, where the log has one.
        nulls: number of nulls of each column, where the log has one.
        tag: the model's partition.
    """

    path: str
    size_bytes: int
    rows: int
    lower: dict[str, Any]
    upper: dict[str, Any]
    nulls: dict[str, int]
    tag: str


@contextlib.contextmanager
def delta_errors(uri: str) -> Iterator[None]:
    """Turns what `deltalake` raises into an error that names the table.

    Raises:
        StorageError: in place of the library's errors.
    """
    try:
        yield
    except (DeltaError, OSError) as error:
        message = f"{storage.redact(uri)}: {reason(error)}"
        raise StorageError(message) from error


def reason(error: Exception) -> str:
    """The library's message in one line and without colours."""
    return " ".join(_COLOURS.sub("", str(error)).split())


def open_table(paths: IndexPaths, spec: TableSpec, version: int | None = None) -> DeltaTable | None:
    """A snapshot of a table, or None where there is no table yet.

    Args:
        paths: of the index.
        spec: of the table.
        version: of the snapshot; by default the newest.

    Raises:
        StorageError: it cannot be read, or has other columns than ours.
    """
    uri = paths.table(spec.name)
    with delta_errors(uri):
        try:
            options = storage.delta_storage_options(uri)
            table = DeltaTable(uri, version=version, storage_options=options)
        except TableNotFoundError:
            return None
        fault = _schema_fault(pa.schema(table.schema().to_arrow()), spec.schema)
    if fault:
        message = f"{storage.redact(uri)}: {fault}; was it written by another program?"
        raise StorageError(message)
    return table


def open_or_create(paths: IndexPaths, spec: TableSpec) -> DeltaTable:
    """The newest snapshot of a table; of many who make it at once, one does.

    Raises:
        StorageError: it cannot be opened or made, or has other columns than ours.
    """
    table = open_table(paths, spec)
    if table is not None:
        return table
    uri = paths.table(spec.name)
    try:
        return DeltaTable.create(
            uri,
            schema=spec.schema,
            partition_by=[PARTITION],
            configuration=_CONFIGURATION,
            commit_properties=CommitProperties(max_commit_retries=0),  # else a loser makes it again
            storage_options=storage.delta_storage_options(uri),
        )
    except (DeltaError, OSError) as error:
        table = open_table(paths, spec)
        if table is None:
            message = f"{storage.redact(uri)}: the table cannot be made: {reason(error)}"
            raise StorageError(message) from error
        return table


def live_files(table: DeltaTable, tag: str | None = None) -> list[LiveFile]:
    """The files of the snapshot, of one model or of all."""
    # from_stream, because pa.table() would import pandas
    found = pa.RecordBatchReader.from_stream(table.get_add_actions(flatten=True))
    actions = found.read_all().to_pylist()
    return [
        LiveFile(
            path=unquote(action["path"]),
            size_bytes=action["size_bytes"],
            rows=action["num_records"],
            lower=_bounds(action, "min."),
            upper=_bounds(action, "max."),
            nulls=_bounds(action, "null_count."),
            tag=action[f"partition.{PARTITION}"],
        )
        for action in actions
        if tag is None or action[f"partition.{PARTITION}"] == tag
    ]


def add_action(file: "DataFile", tag: str, *, data_change: bool = True) -> AddAction:
    """Makes a written file part of its table.

    Args:
        file: that was written.
        tag: the model's partition.
        data_change: False where its rows were in the table before, in other files.
    """
    return AddAction(
        path=file.path,
        size=file.size_bytes,
        partition_values={PARTITION: tag},
        modification_time=_now_ms(),
        data_change=data_change,
        stats=file.stats_json,
    )


def remove_action(file: LiveFile, tag: str, *, data_change: bool = True) -> RemoveAction:
    """Takes a file out of its table; its bytes stay until vacuum.

    Args:
        file: of the snapshot.
        tag: the model's partition.
        data_change: False where its rows stay in the table, in other files.
    """
    return RemoveAction(
        path=file.path,
        size=file.size_bytes,
        partition_values={PARTITION: tag},
        deletion_timestamp=_now_ms(),
        data_change=data_change,
    )


def _bounds(action: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): value
        for name, value in action.items()
        if name.startswith(prefix) and value is not None
    }


def _schema_fault(found: pa.Schema, ours: pa.Schema) -> str | None:
    for name in dict.fromkeys([*ours.names, *found.names]):
        if name not in found.names:
            return f"the table has no column {name!r}"
        if name not in ours.names:
            return f"the table has a column {name!r} that this program does not know"
        if not found.field(name).equals(ours.field(name)):
            return f"the column {name!r} is {found.field(name)}, not {ours.field(name)}"
    return None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
