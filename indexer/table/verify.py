"""Proves an index from its bytes: every promise of the tables, each broken one by name.

One pass over the data files, one file at a time: its size and sha256 against the log and its name,
every page against its checksum, rows against the log's counts and bounds, order, ids and numbers.
The keys of the rows are then compared between the tables (`cross_checks`).
"""

import contextlib
import hashlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import pyarrow as pa
from deltalake import DeltaTable

from indexer import storage
from indexer.config import fingerprint_digest
from indexer.errors import IndexerError, StorageError
from indexer.table import catalog
from indexer.table.commit import refresh
from indexer.table.cross_checks import CrossChecks
from indexer.table.deleted import deleted_video_ids
from indexer.table.delta import LiveFile, live_files, open_table
from indexer.table.findings import Finding, shortened
from indexer.table.lease import all_leases
from indexer.table.log_checks import LogFacts, read_logs
from indexer.table.paths import SIMILARITY, IndexPaths, digest_in_name
from indexer.table.read import checked_batches, content_fault
from indexer.table.record import sequence_application
from indexer.table.recovery import find_unfinished
from indexer.table.row_checks import RowChecks
from indexer.table.schema import CLIPS, EMBEDDINGS, TABLES, VIDEOS, TableSpec
from indexer.table.sidecar import parts_by_digest, stale_names
from indexer.table.sidecar_checks import part_fault
from indexer.table.strays import LOG, removed_paths, stray_files
from indexer.table.write import FileStatistics, instant_text

BATCH_ROWS: Final = 8192
"""Rows that are looked at together: 40 MB of the widest table."""

DESCRIBED: Final = "log_entry"
"""The promise that the log says of a file what is in it."""

_PROTOCOL: Final = (1, 2)
_TRIES: Final = 3
_LOOKS: Final = 20
_LOOK_SECONDS: Final = 0.25
_DIGEST_IN_TAG: Final = re.compile(r"-([0-9a-f]{6})$")


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found.

    Attributes:
        findings: what is broken, and what is merely left over.
        damaged_files: (table, path) of live files that are missing or not as they were written.
        damaged_uris: videos that only indexing anew can make whole, by model tag.
        stray_files: (table, path) of what lies in the tables and no commit names.
        files: data files that were read.
        rows: rows that were read.
        bytes: of the files that were read.
    """

    findings: tuple[Finding, ...]
    damaged_files: tuple[tuple[str, str], ...]
    damaged_uris: Mapping[str, tuple[str, ...]]
    stray_files: tuple[tuple[str, str], ...]
    files: int
    rows: int
    bytes: int

    @property
    def broken(self) -> bool:
        """Whether any promise is broken."""
        return any(finding.broken for finding in self.findings)


def verify(paths: IndexPaths, tag: str | None = None) -> Verification:
    """Re-checks every promise of an index from its bytes; changes nothing.

    Holds one data file, `BATCH_ROWS` rows and `cross_checks.MEMORY_BYTES` at a time; the keys of
    all rows go to a temporary folder.

    Args:
        paths: of the index.
        tag: of the only model to look at; None looks at all.

    Raises:
        QueryError: there is no index, or no such model.
        StorageError: the storage cannot be read.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(_Moved):
            return _Verifier(paths, tag).run()
    message = (
        f"{storage.redact(paths.root_uri)}: files are replaced faster than they can be verified;"
        " verify again when no compaction is at work"
    )
    raise StorageError(message)


class _Moved(Exception):  # noqa: N818 - not an error: the files have been replaced meanwhile
    """A file of the snapshot is gone because a newer snapshot has others in its place."""


class _Verifier:
    def __init__(self, paths: IndexPaths, tag: str | None) -> None:
        self._paths = paths
        self._only = tag
        self._findings: list[Finding] = []
        self._damaged: list[tuple[str, str]] = []
        self._damaged_uris: dict[str, tuple[str, ...]] = {}
        self._files = self._rows = self._bytes = 0

    def run(self) -> Verification:
        catalog.check_index(self._paths)
        models = self._models()
        tables = self._settled_tables(tuple(models))
        live = {name: live_files(table) for name, table in tables.items()}
        known = {(name, file.path) for name, files in live.items() for file in files}
        log = read_logs(self._paths, known)
        self._findings += log.findings
        for tag, vocabulary in models.items():
            self._check_model(tag, vocabulary, live, log)
        for tag in models:
            self._note_stale_parts(tag, live.get(EMBEDDINGS.name, ()))
        known |= {(n, path) for n, table in tables.items() for path in removed_paths(table)}
        strays = self._note_strays(known)
        return Verification(
            findings=tuple(shortened(self._findings)),
            damaged_files=tuple(self._damaged),
            damaged_uris=self._damaged_uris,
            stray_files=strays,
            files=self._files,
            rows=self._rows,
            bytes=self._bytes,
        )

    def _note(self, table: str, file: str, promise: str, detail: str) -> None:
        self._findings.append(Finding(table, file, None, promise, detail))

    def _misdescribed(self, spec: TableSpec, file: LiveFile, detail: str) -> None:
        self._note(spec.name, file.path, DESCRIBED, detail)

    def _models(self) -> dict[str, tuple[str, ...]]:
        """The vocabularies by tag, of the models whose files are as they should be."""
        if self._only is not None:
            return {self._only: catalog.read_model(self._paths, self._only).labels}
        models = {}
        for name in storage.list_names(self._paths.models):
            tag = name.removesuffix(".json")
            try:
                model = catalog.read_model(self._paths, tag)
            except IndexerError as error:
                self._note("models", name, "catalog", str(error))
                continue
            models[tag] = model.labels
            if model.tag != tag:
                self._note("models", name, "catalog", f"it says that its tag is {model.tag!r}")
            named = _DIGEST_IN_TAG.search(tag)
            digest = fingerprint_digest(dict(model.fingerprint))
            if named and not digest.startswith(named[1]):
                detail = f"its fingerprint's digest begins with {digest[:6]}; is the tag your own?"
                self._findings.append(
                    Finding("models", name, None, "catalog", detail, broken=False)
                )
        return models

    def _settled_tables(self, tags: Sequence[str]) -> dict[str, DeltaTable]:
        """Snapshots between two commits of the jobs at work; half-done commits are noted."""
        tables = self._tables()
        for _ in range(_LOOKS):
            if not set(_half_done(self._paths, tags, tables)):
                break
            time.sleep(_LOOK_SECONDS)
            for table in reversed(tables.values()):  # else outcomes are newer than their clips
                refresh(table)
        for tag, commit in self._unfinished(tags, tables):
            detail = f"{commit} is half done; `verify --repair` finishes it when no job is at work"
            self._note(CLIPS.name, LOG, "whole_commits", f"{tag}: {detail}")
        return tables

    def _unfinished(
        self, tags: Sequence[str], tables: Mapping[str, DeltaTable]
    ) -> set[tuple[str, str]]:
        found = set(_half_done(self._paths, tags, tables))
        for tag in tags if tables.keys() == TABLES.keys() else ():
            try:
                records = find_unfinished(self._paths, tag).commits
            except (IndexerError, ValueError, KeyError, TypeError) as error:
                self._note(CLIPS.name, LOG, "log", f"a record cannot be read: {error!r}")
                continue
            found |= {(tag, f"commit {record.sequence} of {record.writer}") for record in records}
        return found

    def _tables(self) -> dict[str, DeltaTable]:
        tables = {}
        for spec in TABLES.values():
            try:
                table = open_table(self._paths, spec)
            except StorageError as error:
                self._note(spec.name, LOG, "log", str(error))
                continue
            if table is None:
                self._note(spec.name, LOG, "log", "there is no such table")
                continue
            protocol = table.protocol()
            found = (protocol.min_reader_version, protocol.min_writer_version)
            if found != _PROTOCOL:
                self._note(spec.name, LOG, "log", f"its protocol is {found}, not {_PROTOCOL}")
            tables[spec.name] = table
        return tables

    def _check_model(
        self,
        tag: str,
        vocabulary: Sequence[str],
        live: Mapping[str, Sequence[LiveFile]],
        log: LogFacts,
    ) -> None:
        with CrossChecks() as cross:
            for name, files in live.items():
                for file in files:
                    if file.tag == tag:
                        sha256 = log.sha256.get((name, file.path))
                        self._check_file(TABLES[name], file, sha256, vocabulary, cross)
            cross.mark_deleted(deleted_video_ids(self._paths, tag))
            self._findings += shortened(cross.findings())
            self._damaged_uris[tag] = cross.damaged_uris()

    def _check_file(
        self,
        spec: TableSpec,
        file: LiveFile,
        sha256: str | None,
        vocabulary: Sequence[str],
        cross: CrossChecks,
    ) -> None:
        try:
            content = storage.read_bytes(self._paths.data_file(spec.name, file.path))
        except FileNotFoundError:
            if self._has_moved(spec, file):
                raise _Moved from None
            self._note(spec.name, file.path, "file", "the file is missing")
            self._damaged.append((spec.name, file.path))
            return
        self._files += 1
        self._bytes += len(content)
        fault = content_fault(file, content)
        if fault:
            self._note(spec.name, file.path, "bytes", fault)
            self._damaged.append((spec.name, file.path))
            return
        for detail in _description_faults(file, content, sha256):
            self._misdescribed(spec, file, detail)
        try:
            self._check_rows(spec, file, content, RowChecks(spec, vocabulary), cross)
        except StorageError as error:
            self._note(spec.name, file.path, "page_checksum", str(error))
            self._damaged.append((spec.name, file.path))
            return
        if spec is EMBEDDINGS:
            self._check_part(file, checked_batches(content, spec, BATCH_ROWS))

    def _check_part(self, file: LiveFile, batches: Iterator[pa.Table]) -> None:
        names = parts_by_digest(storage.list_names(self._paths.similarity(file.tag)))
        name = names.get(digest_in_name(file.path) or "")
        if name is None:
            return
        try:
            content = storage.read_bytes(self._paths.similarity_part(file.tag, name))
        except FileNotFoundError:  # removed since it was listed
            return
        self._bytes += len(content)
        fault = part_fault(name, content, batches)
        if fault:
            self._note(SIMILARITY, f"{file.tag}/{name}", "similarity", fault)

    def _note_stale_parts(self, tag: str, files: Sequence[LiveFile]) -> None:
        own = [file for file in files if file.tag == tag]
        for name in stale_names(storage.list_names(self._paths.similarity(tag)), own):
            detail = "it covers no data file; `verify --repair` removes it"
            stale = Finding(SIMILARITY, f"{tag}/{name}", None, "stray", detail, broken=False)
            self._findings.append(stale)

    def _has_moved(self, spec: TableSpec, file: LiveFile) -> bool:
        table = open_table(self._paths, spec)
        return table is not None and file.path not in {f.path for f in live_files(table)}

    def _check_rows(
        self, spec: TableSpec, file: LiveFile, content: bytes, checks: RowChecks, cross: CrossChecks
    ) -> None:
        statistics = FileStatistics(spec)
        cross.begin_file(spec, file.path)
        for rows in checked_batches(content, spec, BATCH_ROWS):
            self._findings += (
                Finding(spec.name, file.path, statistics.rows + row, promise, detail)
                for row, promise, detail in checks.faults(rows)
            )
            cross.add(spec, rows, statistics.rows)
            statistics.add(rows)
        self._rows += statistics.rows
        for detail in _statistics_faults(file, statistics.to_dict()):
            self._misdescribed(spec, file, detail)

    def _note_strays(self, known: set[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        strays = tuple(stray_files(self._paths, known))
        for name, path in strays:
            detail = "no commit names it; `verify --repair` removes it"
            self._findings.append(Finding(name, path, None, "stray", detail, broken=False))
        return strays


def _half_done(
    paths: IndexPaths, tags: Sequence[str], tables: Mapping[str, DeltaTable]
) -> Iterator[tuple[str, str]]:
    """Commits of the writers that have a lease which not all tables have."""
    if not {CLIPS.name, VIDEOS.name} <= tables.keys():
        return
    for tag in tags:
        for lease in all_leases(paths, tag):
            application = sequence_application(tag, lease.writer)
            begun = tables[CLIPS.name].transaction_version(application) or 0
            done = tables[VIDEOS.name].transaction_version(application) or 0
            if begun != done:
                yield tag, f"commit {begun} of {lease.writer}"


def _description_faults(file: LiveFile, content: bytes, sha256: str | None) -> Iterator[str]:
    if len(content) != file.size_bytes:
        yield f"the log says {file.size_bytes} bytes, the file has {len(content)}"
    if sha256 is not None and sha256 != hashlib.sha256(content).hexdigest():
        yield f"the commit recorded sha256 {sha256}, which is not the file's"


def _statistics_faults(file: LiveFile, found: Mapping[str, Any]) -> Iterator[str]:
    if file.rows != found["numRecords"]:
        yield f"the log says {file.rows} rows, the file has {found['numRecords']}"
    logged = {"minValues": file.lower, "maxValues": file.upper, "nullCount": file.nulls}
    for kind, said in logged.items():
        for name in sorted(found[kind].keys() | said.keys()):
            have, told = found[kind].get(name), _as_json(said.get(name))
            if have != told:
                yield f"{kind} of {name}: the log says {told!r}, the rows {have!r}"


def _as_json(bound: object) -> object:
    return instant_text(bound) if isinstance(bound, datetime) else bound
