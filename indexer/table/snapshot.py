"""The tables of an index at one moment; the log of each is read when it is first asked for."""

import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self

from deltalake import DeltaTable

from indexer import storage
from indexer.errors import StorageError
from indexer.table.delta import open_table
from indexer.table.paths import IndexPaths
from indexer.table.schema import TABLES, VIDEOS

_VERSION: Final = re.compile(r"(\d{20})\.(json|checkpoint\..*parquet)")


class Snapshot(Mapping[str, DeltaTable]):
    """The four tables, each at the version that it had when the snapshot was taken.

    What `videos` calls indexed is in the other tables: a commit writes `videos` last, and its
    version is taken first.
    """

    def __init__(self, paths: IndexPaths, versions: Mapping[str, int]) -> None:
        self._paths = paths
        self._versions = versions
        self._opened: dict[str, DeltaTable] = {}

    @classmethod
    def take(cls, paths: IndexPaths) -> Self | None:
        """The newest versions of the tables, or None where one of them does not exist yet.

        Raises:
            StorageError: the logs cannot be listed.
        """
        others = [name for name in TABLES if name != VIDEOS.name]
        outcomes = newest_version(paths, VIDEOS.name)
        with ThreadPoolExecutor(len(others)) as pool:
            found = list(pool.map(lambda name: newest_version(paths, name), others))
        versions = dict(zip(others, found, strict=True)) | {VIDEOS.name: outcomes}
        known = {name: version for name, version in versions.items() if version is not None}
        return cls(paths, known) if len(known) == len(TABLES) else None

    def __getitem__(self, name: str) -> DeltaTable:
        if name not in self._opened:
            table = open_table(self._paths, TABLES[name], self._versions[name])
            if table is None:
                message = f"{storage.redact(self._paths.table(name))} has vanished"
                raise StorageError(message)
            self._opened[name] = table
        return self._opened[name]

    def __iter__(self) -> Iterator[str]:
        return iter(TABLES)

    def __len__(self) -> int:
        return len(TABLES)


def newest_version(paths: IndexPaths, table: str) -> int | None:
    """The newest version in a table's log, which is not read; None where there is no table.

    Raises:
        StorageError: the log cannot be listed.
    """
    log = storage.join(paths.table(table), "_delta_log")
    names = storage.list_names(log, after=f"{_checkpoint(log):020}")
    versions = [int(match[1]) for name in names if (match := _VERSION.fullmatch(name))]
    return max(versions, default=None)


def _checkpoint(log: str) -> int:
    """A version that the log has, from which on it is worth listing; 0 where it names none."""
    uri = storage.join(log, "_last_checkpoint")
    try:
        return int(json.loads(storage.read_bytes(uri))["version"])
    except FileNotFoundError:
        return 0
    except (ValueError, TypeError, KeyError) as error:
        message = f"{storage.redact(uri)} is damaged: {error!r}"
        raise StorageError(message) from error
