"""Promises of the log itself, from the bytes of its entries."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from indexer import storage
from indexer.table.checkpoint_checks import Replay
from indexer.table.findings import Finding
from indexer.table.paths import IndexPaths
from indexer.table.record import RECORD, sequence_application
from indexer.table.schema import TABLES, TableSpec
from indexer.table.strays import LOG

FILES: Final = "indexer.files"
"""Key of the files that a commit of maintenance adds, in the commit's metadata."""

_ENTRY: Final = re.compile(r"^\d{20}\.json$")
_DIGITS: Final = 20
_READ_THREADS: Final = 8


@dataclass
class LogFacts:
    """What the entries of all tables' logs say.

    Attributes:
        sha256: what the commits recorded, by (table, path) of the file.
        findings: entries that cannot be right.
    """

    sha256: dict[tuple[str, str], str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def read_logs(paths: IndexPaths, live: Iterable[tuple[str, str]]) -> LogFacts:
    """Reads every entry that the logs still have.

    Args:
        paths: of the index.
        live: (table, path) of the files whose records are kept.

    Raises:
        StorageError: a log cannot be listed or read.
    """
    wanted, facts = set(live), LogFacts()
    for spec in TABLES.values():
        replay = Replay(paths, spec)
        facts.findings += replay.hint_faults()
        for name, content in _entries(paths, spec):
            actions = _take(facts, spec, name, content, wanted)
            facts.findings += replay.take(int(name[:_DIGITS]), actions)
    return facts


def _entries(paths: IndexPaths, spec: TableSpec) -> Iterator[tuple[str, bytes]]:
    folder = paths.data_file(spec.name, LOG)
    names = [name for name in storage.list_names(folder) if _ENTRY.match(name)]
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        read = pool.map(lambda name: _read(storage.join(folder, name)), names)
        for name, content in zip(names, read, strict=True):
            if content is not None:
                yield name, content


def _read(uri: str) -> bytes | None:
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        return None  # cleaned up since it was listed


def _take(
    facts: LogFacts, spec: TableSpec, name: str, content: bytes, wanted: set[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Takes note of an entry, and gives its actions; none where it cannot be read."""
    try:
        actions = [json.loads(line) for line in content.decode().splitlines() if line]
        records = [record for action in actions for record in _records(action)]
        files = [file for record in records for file in record["files"]]
        for file in files:
            key = (file["table"], file["path"])
            if key in wanted:
                facts.sha256[key] = str(file["sha256"])
        transactions = {
            (action["txn"]["appId"], action["txn"]["version"])
            for action in actions
            if "txn" in action
        }
        recorded = {
            (sequence_application(r["tag"], r["writer"]), r["sequence"])
            for r in records
            if "sequence" in r
        }
    except (ValueError, KeyError, TypeError) as error:
        detail = f"the log's entry cannot be read: {error!r}"
        facts.findings.append(Finding(spec.name, f"{LOG}/{name}", None, "log", detail))
        return []
    if not recorded <= transactions:
        detail = f"the entry is of the transactions {transactions}, its record of {recorded}"
        facts.findings.append(Finding(spec.name, f"{LOG}/{name}", None, "log", detail))
    return actions


def _records(action: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    info = action.get("commitInfo", {})
    for key in (RECORD, FILES):
        if key in info:
            yield json.loads(info[key])
