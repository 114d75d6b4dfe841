"""The one committer of a job: makes data files visible in the Delta tables, all or none of a unit.

A commit goes to the four tables one after the other, `clips` first and `videos` last, each with the
same application transaction (writer, sequence):

    clips       its files, and in the commit's own metadata the record of the whole commit
    embeddings  its files
    labels      its files
    videos      its files: from here on the units are done

The commits to `clips` and to `videos` are made even where they have no file: what the first records
is all that is needed to finish a commit that was cut short, and that the last has the same number
says that it was not (`recovery`). A removal of videos is a commit like any other.

Delta refuses a commit that names an application which a commit since the writer's snapshot has
named; in a newer snapshot the writer sees the other's number. So a step is made at once on the
snapshot in which its writer knows it to be missing, and after any failure it is looked up in a new
one, so that making it twice does nothing.

A writer is a shard of the model's videos. Its commits to `clips` name the epoch of its lease too.
So an owner that slept through a take-over cannot begin a commit, and one that it had begun is the
same whoever finishes it.
"""

import contextlib
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError

from indexer import storage
from indexer.errors import CommitConflict, CommitFenced, CommitUnknown, StorageError
from indexer.table.delta import add_action, live_files, open_or_create, reason
from indexer.table.entries import added_by
from indexer.table.lease import Lease, taken_over
from indexer.table.paths import IndexPaths
from indexer.table.record import (
    RECORD,
    CommitRecord,
    epoch_application,
    sequence_application,
)
from indexer.table.removal import Actions, Removal, holds_any, removal_actions
from indexer.table.schema import CLIPS, EMBEDDINGS, LABELS, PARTITION, TABLES, VIDEOS, TableSpec
from indexer.table.write import DataFile

__all__ = [
    "RECORD",
    "CommitRecord",
    "Committer",
    "TableLogs",
    "epoch_application",
    "refresh",
    "sequence_application",
]

_TRIES: Final = 8
_FIRST_PAUSE_SECONDS: Final = 0.01


class TableLogs:
    """The four tables of an index as somebody who commits to them sees them."""

    def __init__(self, paths: IndexPaths, tag: str) -> None:
        """Opens the tables, and makes those that are missing.

        Raises:
            StorageError: a table cannot be opened or made, or has other columns than ours.
        """
        self._paths = paths
        self._tag = tag
        self._tables = {name: open_or_create(paths, spec) for name, spec in TABLES.items()}
        self._known_versions: dict[str, int] = {}  # snapshots that hold no step of a new commit

    def finish(self, record: CommitRecord, *, is_new: bool = False) -> None:
        """Makes every step of a commit that is not yet in the logs.

        Args:
            record: of the commit.
            is_new: whether nobody can have made a step of it before; spares looks at the logs, each
                of which reads a checkpoint and all entries since.

        Raises:
            CommitConflict: other writers won every time; nothing is lost, try again.
            CommitUnknown: a log cannot be read; try again when it can.
            StorageError: the storage refuses.
        """
        name = record.removal
        uri = None if name is None else self._paths.removal_json(record.tag, name)
        for spec in TABLES.values():
            own = [file for file in record.files if file.table == spec.name]
            if own or uri is not None or spec in (CLIPS, VIDEOS):
                self._apply(spec, record, own, uri, is_new=is_new)
        if uri is not None:
            storage.delete(uri)

    def fence(self, epochs: Mapping[str, int]) -> None:
        """Makes the tables refuse what owners of earlier epochs have not begun to commit.

        Args:
            epochs: by application id; see `epoch_application`.

        Raises:
            StorageError: as `finish`.
        """
        clips = self._tables[CLIPS.name]
        properties = CommitProperties(
            app_transactions=[Transaction(name, epoch) for name, epoch in epochs.items()]
        )

        def fenced() -> bool:
            refresh(clips)
            return all((clips.transaction_version(a) or 0) >= e for a, e in epochs.items())

        self._until_applied(CLIPS, fenced, list, properties)

    def _apply(
        self,
        spec: TableSpec,
        record: CommitRecord,
        files: Sequence[DataFile],
        removal_uri: str | None,
        *,
        is_new: bool,
    ) -> None:
        """Makes one table's commit, unless it is in the log."""
        properties = CommitProperties(
            app_transactions=self._transactions(spec, record),
            custom_metadata={RECORD: record.to_json()} if spec is CLIPS else None,
        )

        def actions() -> Actions:
            added: Actions = [add_action(file, record.tag) for file in files]
            if removal_uri is None:
                return added
            removal = Removal.read(removal_uri)
            table, writer = self._tables[spec.name], f"{record.run_id}-rest"
            rest = removal_actions(table, spec, self._paths, record.tag, removal, writer)
            return rest + added

        def applied() -> bool:
            return self._is_applied(spec, record, files)

        self._until_applied(spec, applied, actions, properties, is_new=is_new)

    def _transactions(self, _spec: TableSpec, record: CommitRecord) -> list[Transaction]:
        return [Transaction(record.application, record.sequence)]

    def _until_applied(
        self,
        spec: TableSpec,
        applied: Callable[[], bool],
        actions: Callable[[], Actions],
        properties: CommitProperties,
        *,
        is_new: bool = False,
    ) -> None:
        """Tries again as long as other writers win; after any failure the log decides."""
        uri = storage.redact(self._paths.table(spec.name))
        for attempt in range(_TRIES):
            if not (is_new and attempt == 0 and self._is_known(spec)):
                if applied():
                    return
                self._known_versions[spec.name] = self._tables[spec.name].version()
            try:
                self._write(spec, actions(), properties)
                self._remember(spec)
            except CommitFailedError:
                time.sleep(_FIRST_PAUSE_SECONDS * 2**attempt)
            except (DeltaError, OSError) as error:
                if applied():
                    return
                message = f"{uri}: the commit was refused: {reason(error)}"
                raise StorageError(message) from error
            else:
                return
        message = f"{uri}: other writers won {_TRIES} times; is another job at work?"
        raise CommitConflict(message)

    def _write(self, spec: TableSpec, actions: Actions, properties: CommitProperties) -> None:
        table = self._tables[spec.name]
        table.create_write_transaction(
            actions,
            "append",
            table.schema(),
            partition_by=[PARTITION],
            commit_properties=properties,
        )

    def _is_known(self, spec: TableSpec) -> bool:
        return self._known_versions.get(spec.name) == self._tables[spec.name].version()

    def _remember(self, spec: TableSpec) -> None:
        """Takes the next version for known; with another's write between, ours has a later one."""
        table = self._tables[spec.name]
        if self._is_known(spec):
            self._known_versions[spec.name] = table.version() + 1
        with contextlib.suppress(CommitUnknown):  # the write is done; the next one looks again
            refresh(table)

    def _is_applied(
        self, spec: TableSpec, record: CommitRecord, _files: Sequence[DataFile]
    ) -> bool:
        """Whether a fresh snapshot holds this transaction of this writer."""
        table = self._tables[spec.name]
        refresh(table)
        return (table.transaction_version(record.application) or 0) >= record.sequence


class Committer(TableLogs):
    """Commits the files of one run; a job has exactly one."""

    def __init__(
        self, paths: IndexPaths, tag: str, run_id: str, lease: Lease | None = None
    ) -> None:
        """Opens the tables, and makes those that are missing.

        Args:
            paths: of the index.
            tag: the model's partition.
            run_id: of the run.
            lease: of the shard that it writes; without one, nothing keeps other writers off.

        Raises:
            StorageError: a table cannot be opened or made, or has other columns than ours, or the
                writer's last commit is half done and waits for `recovery.recover`.
        """
        super().__init__(paths, tag)
        self._run_id = run_id
        self._lease = lease
        self._writer = lease.writer if lease else run_id
        self._unfinished: CommitRecord | None = None
        application = sequence_application(tag, self._writer)
        begun, done = (
            self._tables[spec.name].transaction_version(application) or 0
            for spec in (CLIPS, VIDEOS)
        )
        if begun != done:
            message = (
                f"{storage.redact(paths.root_uri)}: commit {begun} of {self._writer} is half done;"
                " finish it with: indexer verify --repair"
            )
            raise StorageError(message)
        self._sequence = 1 + done
        self._check_epoch()
        self._known_versions = {name: table.version() for name, table in self._tables.items()}

    def commit(self, files: Sequence[DataFile]) -> None:
        """Makes files visible: whole units, in all four tables.

        After an error, the next call first finishes what this one had begun; a caller that wants
        nothing else calls it again with the same files.

        Args:
            files: of one or more units; of each unit the files of all its tables.

        Raises:
            CommitConflict: other writers won every time; nothing is lost, commit again.
            CommitFenced: another job has taken this one's place.
            CommitUnknown: the log cannot be read; commit again when it can.
            StorageError: the storage refuses the commit, or a file of a unit is missing.
        """
        begun = self._finish_begun()
        fresh = tuple(file for file in files if file not in begun)
        if fresh:
            _check_whole(fresh)
            self._begin(self._record(files=fresh), is_new=True)

    def remove_videos(self, video_ids: Collection[str], uris: Collection[str]) -> None:
        """Takes all rows of some videos out of this model's partition.

        A removal that is cut short is finished like any commit, so that no crash leaves the
        outcome of a video without its clips.

        Args:
            video_ids: of the videos.
            uris: of the same videos; `labels` knows them by these only.

        Raises:
            StorageError: as `commit`.
        """
        self._finish_begun()
        removal = Removal(tuple(sorted(video_ids)), tuple(sorted(uris)))
        if not self._holds_any(removal):
            return
        name = f"{self._run_id}-{uuid.uuid4().hex[:12]}"
        removal.write(self._paths.removal_json(self._tag, name))
        self._begin(self._record(removal=name))

    def _holds_any(self, removal: Removal) -> bool:
        for spec in TABLES.values():
            table = self._tables[spec.name]
            refresh(table)
            if holds_any(table, spec, self._paths, self._tag, removal):
                return True
        return False

    def _record(
        self, *, files: tuple[DataFile, ...] = (), removal: str | None = None
    ) -> CommitRecord:
        return CommitRecord(self._tag, self._writer, self._run_id, self._sequence, files, removal)

    def _finish_begun(self) -> tuple[DataFile, ...]:
        begun = self._unfinished
        if begun is None:
            return ()
        self._begin(begun)
        return begun.files

    def _begin(self, record: CommitRecord, *, is_new: bool = False) -> None:
        if self._lease is not None:
            self._lease.check()
        self._unfinished = record
        self.finish(record, is_new=is_new)
        self._unfinished = None
        self._sequence += 1

    def _transactions(self, spec: TableSpec, record: CommitRecord) -> list[Transaction]:
        transactions = super()._transactions(spec, record)
        if self._lease is not None and spec is CLIPS:
            application = epoch_application(self._tag, self._writer)
            transactions.append(Transaction(application, self._lease.epoch))
        return transactions

    def _is_applied(self, spec: TableSpec, record: CommitRecord, files: Sequence[DataFile]) -> bool:
        applied = super()._is_applied(spec, record, files)
        table = self._tables[spec.name]
        if spec is CLIPS:
            self._check_epoch()
        if not applied:
            return False
        if files and not self._has_added(spec, record, {file.path for file in files}):
            message = (
                f"{storage.redact(table.table_uri)}: {self._writer} has made transaction"
                f" {record.sequence} with other files; do two jobs use one run id?"
            )
            raise CommitConflict(message)
        return True

    def _has_added(self, spec: TableSpec, record: CommitRecord, paths: set[str]) -> bool:
        """Whether a transaction that is in the log is ours: another's has other files."""
        table = self._tables[spec.name]
        if paths <= {file.path for file in live_files(table, self._tag)}:
            return True
        # a compaction may have put others in their place
        uri = self._paths.table(spec.name)
        added = added_by(uri, record.application, record.sequence, table.version())
        return added is not None and paths <= added

    def _check_epoch(self) -> None:
        if self._lease is None:
            return
        clips = self._tables[CLIPS.name]
        epoch = clips.transaction_version(epoch_application(self._tag, self._writer)) or 0
        if epoch > self._lease.epoch:
            raise CommitFenced(taken_over(self._paths, self._writer))


def refresh(table: DeltaTable) -> None:
    """Brings a table to its newest snapshot.

    Raises:
        CommitUnknown: the log cannot be read.
    """
    try:
        table.update_incremental()
    except (DeltaError, OSError) as error:
        message = (
            f"{storage.redact(table.table_uri)}: the log cannot be read, so it is unknown whether"
            f" the commit was applied: {reason(error)}"
        )
        raise CommitUnknown(message) from error


def _check_whole(files: Sequence[DataFile]) -> None:
    """Refuses files of units of which a table's file was lost on the way."""
    rows = dict.fromkeys(TABLES, 0)
    for file in files:
        rows[file.table] += file.rows
    clips = rows[CLIPS.name]
    if rows[EMBEDDINGS.name] != clips or rows[LABELS.name] < clips or not rows[VIDEOS.name]:
        message = f"the files of a commit do not hold whole units: {rows}; report this as a fault"
        raise StorageError(message)
