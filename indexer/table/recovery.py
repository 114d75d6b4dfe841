"""Finishes what dead jobs left half done, and removes what they left lying about.

A commit is half done when its writer's transaction in `clips` has a higher number than the one in
`videos`. The transactions are read from the log of `clips`: one column of its newest checkpoint and
the entries since, of which there are about a hundred at most. The record of the commit is in one of
these entries, else it is found by bisection over the older versions. What finishes a commit is the
same whoever does it, so that two who do it at once, or one of them and an owner that was only slow,
make it once.

A data file is an orphan when no commit names it and its run holds no lease. The files are listed
first, then the leases are read, then the log: whoever writes a file holds a lease before, and has
committed it before he gives the lease up. Nothing is told by clocks.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from indexer import storage
from indexer.errors import StorageError
from indexer.table.commit import TableLogs
from indexer.table.delta import live_files, open_table
from indexer.table.lease import RELEASED, Lease, all_leases, live_leases
from indexer.table.paths import IndexPaths
from indexer.table.record import (
    RECORD,
    CommitRecord,
    epoch_application,
    sequence_application,
)
from indexer.table.schema import CLIPS, EMBEDDINGS, TABLES, VIDEOS
from indexer.table.sidecar import stale_names
from indexer.table.strays import LOG, files_below, removed_paths

_READ_THREADS: Final = 16


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What dead jobs have left.

    Attributes:
        commits: that are half done.
        orphans: URIs of files that belong to nobody: data files that no commit names, lists of
            removals that are done, and parts of the similarity sidecar without a data file.
    """

    commits: tuple[CommitRecord, ...]
    orphans: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was done about it.

    Attributes:
        rolled_forward: commits that were finished.
        orphans_removed: URIs of the files that were removed.
    """

    rolled_forward: tuple[CommitRecord, ...]
    orphans_removed: tuple[str, ...]


def begin(paths: IndexPaths, tag: str, lease: Lease) -> Recovered:
    """What a job does once it holds its lease and before it looks at what is done.

    Makes the tables refuse earlier owners of the lease, and of those that were taken over with it,
    then recovers.

    Raises:
        StorageError: as `recover`.
    """
    epochs = {epoch_application(tag, lease.writer): lease.epoch}
    for other in all_leases(paths, tag):
        if other.state == RELEASED and other.run_id == lease.run_id:
            epochs[epoch_application(tag, other.writer)] = other.epoch
    TableLogs(paths, tag).fence(epochs)
    return recover(paths, tag, run_id=lease.run_id)


def recover(paths: IndexPaths, tag: str, *, run_id: str | None = None) -> Recovered:
    """Finishes half-done commits of dead jobs, then removes the files that belong to nobody.

    Whoever writes data files into the index must hold a lease meanwhile (`lease.held`), or this
    takes them for orphans.

    Args:
        paths: of the index.
        tag: of the model.
        run_id: of the caller where he holds a lease: what its earlier owners left is recovered.

    Raises:
        CommitConflict: other writers won every time; try again.
        StorageError: a store refuses, or the record of a commit is lost.
    """
    commits = tuple(_half_done(paths, tag, run_id))
    if commits:
        logs = TableLogs(paths, tag)
        for record in commits:
            logs.finish(record)
    orphans = tuple(_orphans(paths, tag, run_id, commits=()))
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        list(pool.map(storage.delete, orphans))
    return Recovered(commits, orphans)


def find_unfinished(paths: IndexPaths, tag: str) -> Unfinished:
    """What `recover` would do; changes nothing.

    Raises:
        StorageError: a store refuses, or the record of a commit is lost.
    """
    commits = tuple(_half_done(paths, tag, None))
    return Unfinished(commits, tuple(_orphans(paths, tag, None, commits=commits)))


def _half_done(paths: IndexPaths, tag: str, run_id: str | None) -> Iterator[CommitRecord]:
    """Commits that were begun and not ended, of all writers but those at work."""
    clips, videos = open_table(paths, CLIPS), open_table(paths, VIDEOS)
    if clips is None:
        return
    state = _read_state(paths, clips)
    busy = {
        sequence_application(tag, lease.writer)
        for lease in live_leases(paths, tag)
        if lease.run_id != run_id
    }
    for application, begun in sorted(state.versions.items()):
        own = application.startswith(f"{tag}/") and not application.endswith("/epoch")
        done = 0 if videos is None else videos.transaction_version(application) or 0
        if own and begun > done and application not in busy:
            yield state.records.get((application, begun)) or _older_record(
                paths, clips, application, begun, state.checkpoint
            )


@dataclass(slots=True)
class _LogState:
    """Transactions of a snapshot, and the commit records among its newest entries.

    Attributes:
        checkpoint: version of the checkpoint that was read; -1 where there is none.
        versions: by application id.
        records: by application id and sequence.
    """

    checkpoint: int = -1
    versions: dict[str, int] = field(default_factory=dict)
    records: dict[tuple[str, int], CommitRecord] = field(default_factory=dict)

    def add(self, entry: bytes) -> None:
        for line in entry.splitlines():
            action: dict[str, Any] = json.loads(line)
            if "txn" in action:
                name, version = action["txn"]["appId"], action["txn"]["version"]
                self.versions[name] = max(version, self.versions.get(name, 0))
            text = action.get("commitInfo", {}).get(RECORD)
            if text:
                record = CommitRecord.from_json(text)
                self.records[record.application, record.sequence] = record


def _read_state(paths: IndexPaths, clips: DeltaTable) -> _LogState:
    log = storage.join(paths.table(CLIPS.name), LOG)
    state = _LogState()
    try:
        state.checkpoint = json.loads(storage.read_bytes(storage.join(log, "_last_checkpoint")))[
            "version"
        ]
    except FileNotFoundError:
        pass
    else:
        state.versions.update(_checkpoint_versions(log, state.checkpoint))
    numbers = range(state.checkpoint + 1, clips.version() + 1)
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        for entry in pool.map(lambda number: _read_entry(log, number), numbers):
            state.add(entry)
    return state


def _checkpoint_versions(log: str, version: int) -> dict[str, int]:
    uri = storage.join(log, f"{version:020}.checkpoint.parquet")
    fs, path = storage.filesystem(uri)
    try:
        with storage.storage_errors(uri), fs.open(path) as file:
            rows = pq.ParquetFile(file).read(columns=["txn"])["txn"].drop_null().to_pylist()
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        message = f"{storage.redact(uri)} is missing or damaged: {error}"
        raise StorageError(message) from error
    return {row["appId"]: row["version"] for row in rows}


def _read_entry(log: str, number: int) -> bytes:
    uri = storage.join(log, f"{number:020}.json")
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError as error:
        message = f"{storage.redact(uri)} is missing: the log is damaged, or another program's"
        raise StorageError(message) from error


def _older_record(
    paths: IndexPaths, clips: DeltaTable, application: str, sequence: int, newest: int
) -> CommitRecord:
    """Finds the version at which a transaction appeared; each step loads one old snapshot."""
    log = storage.join(paths.table(CLIPS.name), LOG)
    kept = [int(name[:20]) for name in storage.list_names(log) if name.endswith(".json")]
    low, high = min(kept), newest
    while low < high:
        middle = (low + high) // 2
        if _version_at(clips, middle, application) >= sequence:
            high = middle
        else:
            low = middle + 1
    state = _LogState()
    state.add(_read_entry(log, low))
    record = state.records.get((application, sequence))
    if record is None:
        message = (
            f"{storage.redact(paths.root_uri)}: commit {sequence} of {application} is half done,"
            " and its record has expired from the log; index these videos into a new tag:"
            " --set output.tag=NAME"
        )
        raise StorageError(message)
    return record


def _version_at(clips: DeltaTable, version: int, application: str) -> int:
    """The transaction in an old snapshot; 0 in one so old that its log is cleaned up."""
    try:
        clips.load_as_version(version)
        return clips.transaction_version(application) or 0
    except DeltaError:
        return 0


def _orphans(
    paths: IndexPaths, tag: str, run_id: str | None, commits: tuple[CommitRecord, ...]
) -> Iterator[str]:
    listed = {name: files_below(paths.partition(name, tag)) for name in TABLES}
    lists = storage.list_names(paths.removals(tag))
    parts = storage.list_names(paths.similarity(tag))
    live = frozenset(lease.run_id for lease in live_leases(paths, tag)) - {run_id}
    planned = {(file.table, file.path.rpartition("/")[2]) for c in commits for file in c.files}
    for spec in TABLES.values():
        doubtful = {
            name
            for name in listed[spec.name]
            if name and (spec.name, name) not in planned and not _may_be_of(name, live)
        }
        if doubtful:
            doubtful -= _named(open_table(paths, spec), tag)
        folder = paths.partition(spec.name, tag)
        yield from (storage.join(folder, name) for name in sorted(doubtful))
    waiting = {f"{record.removal}.json" for record in commits}
    yield from (
        storage.join(paths.removals(tag), name)
        for name in lists
        if name not in waiting and not any(name.startswith(f"{run}-") for run in live)
    )
    yield from _stale_parts(paths, tag, [name for name in parts if not _may_be_of(name, live)])


def _stale_parts(paths: IndexPaths, tag: str, names: list[str]) -> Iterator[str]:
    """Of the similarity sidecar, what belongs to no data file; the log is read after the names."""
    embeddings = open_table(paths, EMBEDDINGS) if names else None
    if embeddings is not None:
        for name in stale_names(names, live_files(embeddings, tag)):
            yield paths.similarity_part(tag, name)


def _may_be_of(name: str, runs: frozenset[str]) -> bool:
    """Whether one of the runs writes this file; a half-written one on a disk tells no name."""
    return any(name.startswith(f"part-{run}-") or name.endswith(".tmp") for run in runs)


def _named(table: DeltaTable | None, tag: str) -> set[str]:
    """Names of the files that a snapshot holds, or has taken out and still remembers."""
    if table is None:
        return set()
    paths = {file.path for file in live_files(table, tag)} | removed_paths(table)
    return {path.rpartition("/")[2] for path in paths}
