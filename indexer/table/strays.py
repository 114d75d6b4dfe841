"""What lies in the folders of the tables, and what of it no snapshot names."""

from collections.abc import Collection, Iterator
from typing import Final

from deltalake import DeltaTable

from indexer import storage
from indexer.table.delta import delta_errors
from indexer.table.paths import IndexPaths
from indexer.table.schema import TABLES

LOG: Final = "_delta_log"
"""Folder of a table's log."""


def stray_files(paths: IndexPaths, known: Collection[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(table, path) of what lies in the tables beside their logs and is not known.

    Raises:
        StorageError: a folder cannot be listed.
    """
    for name in TABLES:
        for path in files_below(paths.table(name)):
            if not path.startswith(f"{LOG}/") and (name, path) not in known:
                yield name, path


def removed_paths(table: DeltaTable) -> set[str]:
    """Files that the snapshot has taken out of the table, as far as its log still knows.

    Raises:
        StorageError: the log cannot be read.
    """
    with delta_errors(table.table_uri):
        return set(table.vacuum(0, dry_run=True, enforce_retention_duration=False))


def files_below(uri: str) -> list[str]:
    """Paths of all objects below a folder, within it, sorted; none where there is no folder.

    Raises:
        StorageError: the folder cannot be listed.
    """
    fs, path = storage.filesystem(uri)
    with storage.storage_errors(uri):
        try:
            found = fs.find(path)
        except FileNotFoundError:
            return []
    return sorted(name[len(path.rstrip("/")) + 1 :] for name in found)
