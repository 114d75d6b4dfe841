"""The promise that a checkpoint of a log says what the entries before it say.

Readers begin with the newest checkpoint and never look at the entries before it; no checksum
protects it. While these entries are kept, it can be told from them.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from indexer import storage
from indexer.table.findings import Finding
from indexer.table.paths import IndexPaths
from indexer.table.schema import TableSpec
from indexer.table.strays import LOG

_CHECKPOINT: Final = re.compile(r"^(\d{20})\.checkpoint\.parquet$")
_HINT: Final = "_last_checkpoint"
_ACTIONS: Final = ("add", "remove", "txn", "metaData", "protocol")

Action = Mapping[str, Any]


class Replay:
    """What the entries of a log add up to, compared with the newest checkpoint on the way.

    Args:
        paths: of the index.
        spec: of the table.

    Raises:
        StorageError: the log cannot be listed or read.
    """

    def __init__(self, paths: IndexPaths, spec: TableSpec) -> None:
        self._spec, self._log = spec, paths.data_file(spec.name, LOG)
        found = map(_CHECKPOINT.match, storage.list_names(self._log))
        self._versions = sorted(int(match[1]) for match in found if match)
        self._state: _State | None = None
        self._next = 0

    def hint_faults(self) -> Iterator[Finding]:
        """What is wrong with the log's hint at its newest checkpoint.

        Raises:
            StorageError: it cannot be read.
        """
        try:
            content = json.loads(storage.read_bytes(storage.join(self._log, _HINT)))
            fault = None if content["version"] in self._versions else f"names none: {content}"
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as error:
            fault = f"cannot be read: {error!r}"
        if fault:
            yield self._finding(_HINT, f"the hint at the newest checkpoint {fault}")

    def take(self, version: int, actions: Iterable[Action]) -> Iterator[Finding]:
        """Goes on by one entry.

        Args:
            version: of the entry; they come in order, but the first ones may be gone.
            actions: of the entry.

        Yields:
            What is wrong with the entry, or with the newest checkpoint if it is of this version.
        """
        if self._state is None or version != self._next:
            self._state = _State() if version == 0 else self._read(version - 1)
        if self._state is not None:
            try:
                self._state.add(actions)
            except (ValueError, KeyError, TypeError) as error:
                yield self._finding(f"{version:020}.json", f"the entry cannot be read: {error!r}")
                self._state = None
        self._next = version + 1
        if self._versions and version == self._versions[-1]:
            yield from self._compare(version)

    def _compare(self, version: int) -> Iterator[Finding]:
        found = self._read(version)
        name = f"{version:020}.checkpoint.parquet"
        if found is None:
            yield self._finding(name, "the checkpoint cannot be read")
        elif self._state is not None:
            for difference in self._state.differences(found):
                yield self._finding(name, f"the checkpoint differs from the entries: {difference}")

    def _read(self, version: int) -> "_State | None":
        """The state that a checkpoint holds; None where it is not there or cannot be read."""
        if version not in self._versions:
            return None
        content = storage.read_bytes(storage.join(self._log, f"{version:020}.checkpoint.parquet"))
        state = _State()
        try:
            file = pq.ParquetFile(pa.BufferReader(content))
            state.add(file.read(columns=list(_ACTIONS)).to_pylist(maps_as_pydicts="strict"))
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
            return None
        return state

    def _finding(self, name: str, detail: str) -> Finding:
        return Finding(self._spec.name, f"{LOG}/{name}", None, "log", detail)


@dataclass
class _State:
    """What a log adds up to; of what a file is said to be only a digest is kept."""

    files: dict[str, bytes] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    transactions: dict[str, int] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)

    def add(self, actions: Iterable[Action]) -> None:
        for action in actions:
            for kind in _ACTIONS:
                if action.get(kind) is not None:
                    self._add(kind, action[kind])

    def _add(self, kind: str, said: Mapping[str, Any]) -> None:
        match kind:
            case "add":
                self.files[said["path"]] = _digest(said)
                self.removed.discard(said["path"])
            case "remove":
                self.files.pop(said["path"], None)
                self.removed.add(said["path"])
            case "txn":
                self.transactions[said["appId"]] = said["version"]
            case "metaData":
                self._describe(
                    kind, said, "id", "schemaString", "partitionColumns", "configuration"
                )
            case _:
                self._describe(kind, said, "minReaderVersion", "minWriterVersion")

    def _describe(self, kind: str, said: Mapping[str, Any], *names: str) -> None:
        self.about[kind] = _canonical({name: said[name] for name in names})

    def differences(self, found: "_State") -> Iterator[str]:
        for path in sorted(self.files.keys() | found.files.keys()):
            if self.files.get(path) != found.files.get(path):
                yield f"file {path}"
        # what was taken out long ago is left out
        yield from (f"removed file {path}" for path in sorted(found.removed - self.removed))
        if self.transactions != found.transactions:
            yield f"transactions {found.transactions}, not {self.transactions}"
        for kind in sorted(self.about):
            if self.about[kind] != found.about.get(kind):
                yield kind


def _digest(added: Mapping[str, Any]) -> bytes:
    stats = json.loads(added["stats"]) if added.get("stats") else None
    said = [added["size"], added["partitionValues"], stats]
    return hashlib.sha256(_canonical(said).encode()).digest()[:16]


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)
