"""Takes the rows of some videos out of a table: what is left of their files replaces these."""

import bisect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.transaction import AddAction, RemoveAction

from indexer import storage
from indexer.errors import StorageError
from indexer.table.delta import LiveFile, add_action, live_files, remove_action
from indexer.table.paths import IndexPaths
from indexer.table.schema import LABELS, TableSpec
from indexer.table.write import write_file

Actions = list[AddAction | RemoveAction]


@dataclass(frozen=True, slots=True)
class Removal:
    """Videos whose rows go.

    Attributes:
        video_ids: sorted.
        uris: of the same videos, sorted; `labels` knows them by these only.
    """

    video_ids: tuple[str, ...]
    uris: tuple[str, ...]

    def keys(self, spec: TableSpec) -> tuple[str, Sequence[str]]:
        """The column by which a table knows the videos, and its values."""
        return ("uri", self.uris) if spec is LABELS else ("video_id", self.video_ids)

    def write(self, uri: str) -> None:
        """Puts the list where whoever finishes the removal finds it.

        Raises:
            StorageError: it cannot be written.
        """
        content = {"video_ids": self.video_ids, "uris": self.uris}
        storage.write_bytes(uri, json.dumps(content).encode())

    @classmethod
    def read(cls, uri: str) -> Self:
        """The list that `write` put there.

        Raises:
            StorageError: it cannot be read.
        """
        try:
            content = json.loads(storage.read_bytes(uri))
            return cls(tuple(content["video_ids"]), tuple(content["uris"]))
        except (FileNotFoundError, ValueError, KeyError) as error:
            message = f"{storage.redact(uri)} is missing or damaged: {error!r}"
            raise StorageError(message) from error


def removal_actions(
    table: DeltaTable, spec: TableSpec, paths: IndexPaths, tag: str, removal: Removal, writer: str
) -> Actions:
    """Writes what is left of the files that hold rows of the videos; nothing where none does.

    Args:
        table: a fresh snapshot.
        spec: of the table.
        paths: of the index.
        tag: the model's partition.
        removal: whose rows go.
        writer: part of the new files' names.

    Raises:
        StorageError: a file is missing or damaged, or cannot be written.
    """
    column, keys = removal.keys(spec)
    actions: Actions = []
    key_set = pa.array(keys, pa.string())
    for file in live_files(table, tag):
        if not _may_hold(file, column, keys):
            continue
        rows = _read(paths, spec, file)
        kept = rows.filter(pc.invert(pc.is_in(rows[column], value_set=key_set)))
        if kept.num_rows == rows.num_rows:
            continue
        actions.append(remove_action(file, tag))
        if kept.num_rows:
            actions.append(add_action(write_file(kept, spec, paths, tag, writer), tag))
    return actions


def holds_any(
    table: DeltaTable, spec: TableSpec, paths: IndexPaths, tag: str, removal: Removal
) -> bool:
    """Whether a snapshot has any row of the videos.

    Raises:
        StorageError: a file is missing or damaged.
    """
    column, keys = removal.keys(spec)
    key_set = pa.array(keys, pa.string())
    files = (file for file in live_files(table, tag) if _may_hold(file, column, keys))
    return any(
        pc.any(pc.is_in(_read(paths, spec, file, [column])[column], value_set=key_set)).as_py()
        for file in files
    )


def _read(
    paths: IndexPaths, spec: TableSpec, file: LiveFile, columns: list[str] | None = None
) -> pa.Table:
    uri = paths.data_file(spec.name, file.path)
    try:
        content = pa.BufferReader(storage.read_bytes(uri))
        return pq.ParquetFile(content, page_checksum_verification=True).read(columns)
    except (OSError, pa.ArrowInvalid) as error:
        message = f"{storage.redact(uri)} is missing or damaged: {error}"
        raise StorageError(message) from error


def _may_hold(file: LiveFile, column: str, keys: Sequence[str]) -> bool:
    """Whether one of the sorted keys lies within the file's bounds."""
    first = bisect.bisect_left(keys, file.lower.get(column, ""))
    upper = file.upper.get(column)
    return first < len(keys) and (upper is None or keys[first] <= upper)
