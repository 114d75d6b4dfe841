"""The one committer of a job: makes data files visible in the Delta tables, all or none of a unit.

A commit of files goes to the four tables one after the other, `clips` first and `videos` last, each
with the same application transaction (run, sequence):

    clips       its files, and in the commit's own metadata the files of all four tables
    embeddings  its files
    labels      its files
    videos      its files: from here on the units are done

The `clips` commit is made even where no clip was indexed, with no file in it: what it records is
all that is needed to finish a commit that was cut short. Each step is looked up in a fresh snapshot
of the log before it is made, and again after any failure, so that making it twice does nothing.
"""

import bisect
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from indexer import storage
from indexer.errors import CommitConflict, CommitUnknown, StorageError
from indexer.table.delta import (
    LiveFile,
    add_action,
    live_files,
    open_or_create,
    reason,
    remove_action,
)
from indexer.table.paths import IndexPaths
from indexer.table.schema import CLIPS, LABELS, PARTITION, TABLES, TableSpec
from indexer.table.write import DataFile, write_file

RECORD: Final = "indexer.commit"
"""Key of a commit's record in the metadata of its `clips` commit."""

_TRIES: Final = 8
_FIRST_PAUSE_SECONDS: Final = 0.01

Actions = list[AddAction | RemoveAction]


class Committer:
    """Commits the files of one run; a job has exactly one."""

    def __init__(self, paths: IndexPaths, tag: str, run_id: str) -> None:
        """Opens the tables, and makes those that are missing.

        Args:
            paths: of the index.
            tag: the model's partition.
            run_id: of the run; the application id of its transactions.

        Raises:
            StorageError: a table cannot be opened or made, or has other columns than ours.
        """
        self._paths = paths
        self._tag = tag
        self._run_id = run_id
        self._tables = {name: open_or_create(paths, spec) for name, spec in TABLES.items()}
        self._unfinished: tuple[DataFile, ...] = ()
        self._sequence = 1 + (self._tables[CLIPS.name].transaction_version(run_id) or 0)

    def commit(self, files: Sequence[DataFile]) -> None:
        """Makes files visible: whole units, in all four tables.

        After an error, the next call first finishes what this one had begun; a caller that wants
        nothing else calls it again with the same files.

        Args:
            files: of one or more units; of each unit the files of all its tables.

        Raises:
            CommitConflict: other writers won every time; nothing is lost, commit again.
            CommitUnknown: the log cannot be read; commit again when it can.
            StorageError: the storage refuses the commit.
        """
        begun = self._unfinished
        if begun:
            self._finish(begun)
        fresh = tuple(file for file in files if file not in begun)
        if fresh:
            self._finish(fresh)

    def remove_videos(self, video_ids: Collection[str], uris: Collection[str]) -> None:
        """Takes all rows of some videos out of this model's partition, outcomes last.

        Until their outcomes are gone, the videos still count as indexed with their old content, so
        that a run after a crash finds them changed and removes the rest before it indexes anew.

        Args:
            video_ids: of the videos.
            uris: of the same videos; `labels` knows them by these only.

        Raises:
            CommitConflict: other writers won every time; call it again.
            StorageError: the storage cannot be read, or refuses.
        """
        for spec in TABLES.values():
            keys = sorted(uris) if spec is LABELS else sorted(video_ids)
            self._remove(spec, "uri" if spec is LABELS else "video_id", keys)

    def _finish(self, files: tuple[DataFile, ...]) -> None:
        self._unfinished = files
        for spec in TABLES.values():
            own = tuple(file for file in files if file.table == spec.name)
            if spec is CLIPS:
                self._apply(spec, own, {RECORD: self._record(files)})
            elif own:
                self._apply(spec, own, {})
        self._unfinished = ()
        self._sequence += 1

    def _record(self, files: Sequence[DataFile]) -> str:
        content = {
            "run_id": self._run_id,
            "sequence": self._sequence,
            "files": [file.to_json() for file in files],
        }
        return json.dumps(content)

    def _apply(
        self, spec: TableSpec, files: Sequence[DataFile], metadata: Mapping[str, str]
    ) -> None:
        """Makes one table's commit, unless it is in the log."""
        properties = CommitProperties(
            app_transactions=[Transaction(self._run_id, self._sequence)],
            custom_metadata=dict(metadata),
        )

        def missing() -> Actions:
            return [add_action(file, self._tag) for file in files]

        def applied() -> bool:
            return self._is_applied(spec, files)

        self._until_applied(spec, applied, missing, properties)

    def _remove(self, spec: TableSpec, column: str, keys: Sequence[str]) -> None:
        """Replaces every file that holds one of the keys by one without it."""
        table = self._tables[spec.name]
        plan: Actions = []

        def done() -> bool:
            _refresh(table)
            plan[:] = self._without(spec, table, column, keys)
            return not plan

        self._until_applied(spec, done, lambda: plan, CommitProperties())

    def _until_applied(
        self,
        spec: TableSpec,
        applied: Callable[[], bool],
        actions: Callable[[], Actions],
        properties: CommitProperties,
    ) -> None:
        """Tries again as long as other writers win; after any failure the log decides."""
        uri = storage.redact(self._paths.table(spec.name))
        for attempt in range(_TRIES):
            if applied():
                return
            try:
                self._write(spec, actions(), properties)
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

    def _is_applied(self, spec: TableSpec, files: Sequence[DataFile]) -> bool:
        """Whether a fresh snapshot holds this transaction of this run."""
        table = self._tables[spec.name]
        _refresh(table)
        found = table.transaction_version(self._run_id) or 0
        if found < self._sequence:
            return False
        live = {file.path for file in live_files(table, self._tag)}
        if not live.issuperset(file.path for file in files):
            message = (
                f"{storage.redact(table.table_uri)}: run {self._run_id} has made transaction"
                f" {found} with other files; do two jobs use one run id?"
            )
            raise CommitConflict(message)
        return True

    def _without(
        self, spec: TableSpec, table: DeltaTable, column: str, keys: Sequence[str]
    ) -> Actions:
        """Writes what is left of the files that hold a key; nothing where none does."""
        actions: Actions = []
        key_set = pa.array(keys, pa.string())
        for file in live_files(table, self._tag):
            if not _may_hold(file, column, keys):
                continue
            rows = self._read(spec, file)
            kept = rows.filter(pc.invert(pc.is_in(rows[column], value_set=key_set)))
            if kept.num_rows == rows.num_rows:
                continue
            actions.append(remove_action(file, self._tag))
            if kept.num_rows:
                writer = f"{self._run_id}-rest"
                rest = write_file(kept, spec, self._paths, self._tag, writer)
                actions.append(add_action(rest, self._tag))
        return actions

    def _read(self, spec: TableSpec, file: LiveFile) -> pa.Table:
        uri = self._paths.data_file(spec.name, file.path)
        try:
            content = storage.read_bytes(uri)
            return pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read()
        except (OSError, pa.ArrowInvalid) as error:
            message = f"{storage.redact(uri)} is missing or damaged: {error}"
            raise StorageError(message) from error


def _refresh(table: DeltaTable) -> None:
    try:
        table.update_incremental()
    except (DeltaError, OSError) as error:
        message = (
            f"{storage.redact(table.table_uri)}: the log cannot be read, so it is unknown whether"
            f" the commit was applied: {reason(error)}"
        )
        raise CommitUnknown(message) from error


def _may_hold(file: LiveFile, column: str, keys: Sequence[str]) -> bool:
    """Whether one of the sorted keys lies within the file's bounds."""
    first = bisect.bisect_left(keys, file.lower.get(column, ""))
    upper = file.upper.get(column)
    return first < len(keys) and (upper is None or keys[first] <= upper)
