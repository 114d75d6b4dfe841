"""What commands that rewrite an index share: the lease, and commits that replace files.

Such a command holds the lease `maintenance` of a model, so that there is one at a time, and writes
the lease's epoch into all four tables before it does anything else. A predecessor that was taken
for dead and wakes up finds a higher epoch than its own and stops.
"""

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError

from indexer import storage
from indexer.errors import CommitConflict, CommitFenced
from indexer.table.commit import refresh
from indexer.table.delta import (
    LiveFile,
    add_action,
    delta_errors,
    live_files,
    open_or_create,
    reason,
    remove_action,
)
from indexer.table.lease import Lease, Waiting, held, say_nothing, taken_over
from indexer.table.log_checks import FILES
from indexer.table.paths import IndexPaths
from indexer.table.record import epoch_application
from indexer.table.recovery import Recovered, recover
from indexer.table.removal import Actions
from indexer.table.schema import PARTITION, TABLES, TableSpec
from indexer.table.strays import removed_paths
from indexer.table.write import DataFile

WRITER: Final = "maintenance"
"""Name of the lease."""

_TRIES: Final = 12
_FIRST_PAUSE_SECONDS: Final = 0.01
_LONGEST_PAUSE_SECONDS: Final = 1.0
_DELETE_THREADS: Final = 16


@dataclass(frozen=True, slots=True)
class Maintainer:
    """One command at work on one model of an index.

    Attributes:
        paths: of the index.
        tag: of the model.
        lease: that it holds.
        tables: by name; refreshed before each commit.
    """

    paths: IndexPaths
    tag: str
    lease: Lease
    tables: dict[str, DeltaTable] = field(default_factory=dict)

    def fresh(self, spec: TableSpec) -> DeltaTable:
        """The newest snapshot of a table.

        Raises:
            CommitFenced: another command has taken this one's place.
            CommitUnknown: the log cannot be read.
        """
        self.lease.check()
        table = self.tables[spec.name]
        refresh(table)
        epoch = table.transaction_version(self._application) or 0
        if epoch > self.lease.epoch:
            raise CommitFenced(taken_over(self.paths, WRITER))
        return table

    def live(self, spec: TableSpec) -> list[LiveFile]:
        """The model's files in the newest snapshot."""
        return live_files(self.fresh(spec), self.tag)

    def replace(
        self, spec: TableSpec, old: Sequence[LiveFile], new: Sequence[DataFile], *, same_rows: bool
    ) -> bool:
        """Takes files out of a table and puts others in, in one commit.

        Files that writers add meanwhile stay as they are.

        Args:
            spec: of the table.
            old: files to take out.
            new: files to put in.
            same_rows: whether the new files hold just the rows of the old ones.

        Returns:
            False, and nothing is changed, where a writer has taken an old file out meanwhile.

        Raises:
            CommitConflict: writers won every time.
            CommitFenced: another command has taken this one's place.
            StorageError: the storage refuses.
        """
        actions: Actions = [
            *(remove_action(file, self.tag, data_change=not same_rows) for file in old),
            *(add_action(file, self.tag, data_change=not same_rows) for file in new),
        ]
        record = json.dumps({"run_id": self.lease.run_id, "files": [f.to_json() for f in new]})
        refusal = ""
        for attempt in range(_TRIES):
            live = {file.path for file in self.live(spec)}
            if new and live.issuperset(file.path for file in new):
                return True  # the reply to an earlier try was lost
            if not live.issuperset(file.path for file in old):
                return False
            try:
                self._commit(spec, actions, record)
            except (DeltaError, OSError) as error:
                won = isinstance(error, CommitFailedError)
                refusal = "other writers won every time" if won else reason(error)
                time.sleep(min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**attempt))
            else:
                return True
        uri = storage.redact(self.paths.table(spec.name))
        message = f"{uri}: the commit was refused {_TRIES} times: {refusal}"
        raise CommitConflict(message)

    def fence(self) -> None:
        """Writes the lease's epoch into all tables.

        Raises:
            StorageError: as `replace`.
        """
        for spec in TABLES.values():
            self.replace(spec, (), (), same_rows=True)

    def vacuum(self) -> int:
        """Deletes the files that were taken out of the tables, and counts them.

        Raises:
            StorageError: a folder cannot be listed, or a file not be deleted.
        """
        doomed: list[str] = []
        for spec in TABLES.values():
            folder = self.paths.partition(spec.name, self.tag)
            listed = storage.list_names(folder)
            gone = {path.rpartition("/")[2] for path in removed_paths(self.fresh(spec))}
            doomed += (storage.join(folder, name) for name in listed if name in gone)
        with ThreadPoolExecutor(_DELETE_THREADS) as pool:
            list(pool.map(storage.delete, doomed))
        return len(doomed)

    def checkpoint(self) -> None:
        """Sums up each table's log in one file, so that a reader need not read every commit.

        Raises:
            StorageError: it cannot be written.
        """
        for spec in TABLES.values():
            with delta_errors(self.paths.table(spec.name)):
                self.fresh(spec).create_checkpoint()

    @property
    def _application(self) -> str:
        return epoch_application(self.tag, WRITER)

    def _commit(self, spec: TableSpec, actions: Actions, record: str) -> None:
        """Makes one commit on top of the snapshot just read, or none if that is not the newest."""
        table = self.tables[spec.name]
        table.create_write_transaction(
            actions,
            "append",
            table.schema(),
            [PARTITION],
            commit_properties=CommitProperties(
                app_transactions=[Transaction(self._application, self.lease.epoch)],
                custom_metadata={FILES: record},
                max_commit_retries=0,
            ),
        )


@contextmanager
def maintaining(
    paths: IndexPaths, tag: str, command: str, waiting: Waiting = say_nothing
) -> Iterator[tuple[Maintainer, Recovered]]:
    """Holds the lease of maintenance while the block runs, in a tidy index.

    Args:
        paths: of the index.
        tag: of the model.
        command: that does it; part of the names of its files.
        waiting: is told where a dead command's lease is waited for.

    Yields:
        The maintainer, and what dead jobs had left and was finished or removed.

    Raises:
        LeaseHeld: another such command is at work on this model.
        StorageError: the index cannot be read or written.
    """
    run_id = new_run_id(command)
    with held(paths, tag, WRITER, run_id, waiting=waiting) as lease:
        tables = {name: open_or_create(paths, spec) for name, spec in TABLES.items()}
        maintainer = Maintainer(paths, tag, lease, tables)
        maintainer.fence()
        yield maintainer, recover(paths, tag, run_id=run_id)


def new_run_id(command: str) -> str:
    """An id for one run of a command, by which the names of its files begin."""
    return f"{command}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
