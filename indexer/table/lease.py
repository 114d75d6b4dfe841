"""Who may write: one job for each shard of a model, told by objects in the index.

A writer's lease is a folder `leases/<tag>/<writer>` with one object for each epoch, made only if it
is absent, so that of many who want the next epoch one gets it. The owner of the highest epoch holds
the lease. It says so by changing its object every few seconds; a job that wants the same lease
watches the object, and takes over where it has not changed for two minutes of the watcher's own
time. No clock is compared with that of another machine.

A lease alone cannot stop an owner that slept through all this. The epoch does: it is part of the
owner's commits, and `recovery.begin` makes the tables refuse the epochs before it.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from indexer import storage
from indexer.errors import CommitFenced, LeaseHeld, StorageError
from indexer.metrics import LeaseAwaited
from indexer.table.paths import IndexPaths
from indexer.table.patience import patiently
from indexer.table.shard import Shard

BEAT_SECONDS: Final = 5.0
"""Between two signs of life of an owner."""

TAKEOVER_SECONDS: Final = 120.0
"""Without a sign of life for this long, an owner is given up."""

HELD: Final = "held"
RELEASED: Final = "released"

TELL_SECONDS: Final = 10.0
"""Between two words to whoever waits for a lease."""

Waiting = Callable[[LeaseAwaited], None]
"""Is told now and then that a lease is waited for."""

_LOOKS_PER_BEAT: Final = 5


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What a lease object says.

    Attributes:
        writer: name of the lease.
        epoch: 1 for the first owner, and so on.
        run_id: of the owner.
        token: of this very owner, unlike any other.
        state: held or released.
        beat: grows with every sign of life.
        host: of the owner; for people.
        machine: of the owner; empty where the system does not tell.
        process: of the owner on that machine.
        since: when the owner took it, by its clock; for people.
    """

    writer: str
    epoch: int
    run_id: str
    token: str
    state: str
    beat: int
    host: str
    machine: str
    process: str
    since: str = ""

    def dump(self) -> bytes:
        """The object's bytes."""
        return json.dumps(asdict(self), indent=1).encode()


class Lease:
    """A lease that this process holds, kept alive by a thread until `release`."""

    def __init__(self, paths: IndexPaths, tag: str, record: LeaseRecord, beat: float) -> None:
        self._paths, self._tag, self._record = paths, tag, record
        self._over = threading.Event()
        self._lost = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(
            target=self._keep, args=(beat,), name=f"lease-{record.writer}", daemon=True
        )
        self._thread.start()

    @property
    def writer(self) -> str:
        """Name of the lease."""
        return self._record.writer

    @property
    def epoch(self) -> int:
        """Of this owner."""
        return self._record.epoch

    @property
    def run_id(self) -> str:
        """Of this owner."""
        return self._record.run_id

    def check(self) -> None:
        """Looks whether the lease is known to be lost; asks nobody.

        Raises:
            CommitFenced: another job has taken it over.
        """
        if self._lost:
            raise CommitFenced(taken_over(self._paths, self.writer))

    def release(self) -> None:
        """Gives the lease up, so that the next job need not wait.

        Raises:
            StorageError: nobody could be told.
        """
        self._over.set()
        self._thread.join()
        if not self._lost:
            patiently(self._put, replace(self._record, state=RELEASED))

    def _keep(self, beat_seconds: float) -> None:
        while not self._over.wait(beat_seconds):
            try:
                newest = newest_lease(self._paths, self._tag, self.writer)
                if newest is not None and newest.epoch > self.epoch:
                    self._lost = True
                    return
                self._put(replace(self._record, beat=self._record.beat + 1))
            except StorageError:
                continue  # the store may come back; until then others may think us dead

    def _put(self, record: LeaseRecord) -> None:
        with self._lock:
            uri = self._paths.lease_json(self._tag, record.writer, record.epoch)
            storage.write_bytes(uri, record.dump())
            self._record = record


def say_nothing(_: LeaseAwaited) -> None:
    """Tells nobody that a lease is waited for."""


@contextmanager
def held(
    paths: IndexPaths,
    tag: str,
    writer: str,
    run_id: str,
    *,
    waiting: Waiting = say_nothing,
    beat_seconds: float = BEAT_SECONDS,
    takeover_seconds: float = TAKEOVER_SECONDS,
) -> Iterator[Lease]:
    """Holds a lease while the block runs, whatever becomes of it; see `acquire`."""
    lease = acquire(
        paths,
        tag,
        writer,
        run_id,
        waiting=waiting,
        beat_seconds=beat_seconds,
        takeover_seconds=takeover_seconds,
    )
    try:
        yield lease
    finally:
        lease.release()


def acquire(
    paths: IndexPaths,
    tag: str,
    writer: str,
    run_id: str,
    *,
    waiting: Waiting = say_nothing,
    beat_seconds: float = BEAT_SECONDS,
    takeover_seconds: float = TAKEOVER_SECONDS,
) -> Lease:
    """Takes a lease; waits for an owner that gives no sign of life, at most until its time is up.

    Args:
        paths: of the index.
        tag: of the model.
        writer: name of the lease: that of a shard, or of a service such as "maintenance".
        run_id: of the run that will write; files of its name are left alone by other jobs.
        waiting: is told of an owner that is silent, every `TELL_SECONDS`.
        beat_seconds: between two signs of life.
        takeover_seconds: without one, the owner counts as dead.

    Raises:
        LeaseHeld: its owner lives, or another job was quicker.
        StorageError: the leases cannot be read or written.
    """
    patience = _Patience(waiting, beat_seconds, takeover_seconds)
    found = newest_lease(paths, tag, writer)
    _wait_until_free(paths, tag, found, patience)
    record = _new_record(writer, 1 + (found.epoch if found else 0), run_id)
    _create(paths, tag, record)
    lease = Lease(paths, tag, record, beat_seconds)
    try:
        _take_over_overlapping(paths, tag, lease, patience)
        _forget_before(paths, tag, record)
    except BaseException:  # after a Ctrl-C too, nobody has to wait for it to expire
        lease.release()
        raise
    return lease


@dataclass(frozen=True, slots=True)
class _Patience:
    """How an owner that gives no sign of life is waited for; see `acquire`."""

    waiting: Waiting
    beat_seconds: float
    takeover_seconds: float


def newest_lease(paths: IndexPaths, tag: str, writer: str) -> LeaseRecord | None:
    """What the last owner of a lease says; None where it never had one.

    Raises:
        StorageError: the lease cannot be read.
    """
    folder = paths.writer_leases(tag, writer)
    while True:
        names = [name for name in patiently(storage.list_names, folder) if _is_lease(name)]
        if not names:
            return None
        uri = storage.join(folder, names[-1])
        try:
            content = patiently(storage.read_bytes, uri)
            return LeaseRecord(**json.loads(content))
        except FileNotFoundError:
            continue  # a later owner has put it away
        except (ValueError, TypeError) as error:
            message = f"{storage.redact(uri)} is no lease: {error}; remove it if no job is at work"
            raise StorageError(message) from error


def all_leases(paths: IndexPaths, tag: str) -> tuple[LeaseRecord, ...]:
    """The newest lease of every writer of a model.

    Raises:
        StorageError: they cannot be read.
    """
    writers = patiently(storage.list_folders, paths.leases(tag))
    found = (newest_lease(paths, tag, name) for name in writers)
    return tuple(record for record in found if record is not None)


def live_leases(paths: IndexPaths, tag: str) -> tuple[LeaseRecord, ...]:
    """The leases whose owners may be at work: held, and not by a process known to be gone.

    Raises:
        StorageError: they cannot be read.
    """
    found = all_leases(paths, tag)
    return tuple(record for record in found if record.state == HELD and not _has_died(record))


def taken_over(paths: IndexPaths, writer: str) -> str:
    """What an owner is told that has lost its lease."""
    return (
        f"{storage.redact(paths.root_uri)}: another job has taken over {_plain(writer)} because"
        " this one gave no sign of life; what was committed stands, the other job does the rest"
    )


def _take_over_overlapping(paths: IndexPaths, tag: str, lease: Lease, patience: _Patience) -> None:
    """Retires dead owners of shards that share videos with ours, such as 1/2 beside 1/1."""
    if "-of-" not in lease.writer:
        return
    number, _, count = lease.writer.partition("-of-")
    shard = Shard(int(number), int(count))
    for other in all_leases(paths, tag):
        overlapping = other.writer != lease.writer and shard.overlaps(other.writer)
        if overlapping and other.state == HELD:
            _wait_until_free(paths, tag, other, patience)
            record = _new_record(other.writer, other.epoch + 1, lease.run_id)
            _create(paths, tag, replace(record, state=RELEASED))


def _wait_until_free(
    paths: IndexPaths,
    tag: str,
    found: LeaseRecord | None,
    patience: _Patience,
    now: Callable[[], float] = time.monotonic,
) -> None:
    if found is None or found.state == RELEASED or _has_died(found):
        return
    look_seconds = min(patience.beat_seconds, patience.takeover_seconds) / _LOOKS_PER_BEAT
    # a job that lives gives a sign within a beat, and is no matter of waiting
    tell_at = now() + 2 * patience.beat_seconds
    deadline = now() + patience.takeover_seconds
    while now() < deadline:
        if now() >= tell_at:
            patience.waiting(_awaited(found, deadline - now()))
            tell_at += TELL_SECONDS
        time.sleep(look_seconds)
        newest = newest_lease(paths, tag, found.writer)
        if newest is not None and newest.state == RELEASED:
            return
        if newest != found:
            raise LeaseHeld(_refusal(paths, tag, newest or found))


def _awaited(owner: LeaseRecord, left_seconds: float) -> LeaseAwaited:
    part = _plain(owner.writer)
    return LeaseAwaited(part, owner.run_id, owner.host, owner.since, max(0.0, left_seconds))


def _create(paths: IndexPaths, tag: str, record: LeaseRecord) -> None:
    uri = paths.lease_json(tag, record.writer, record.epoch)
    if not patiently(storage.create_bytes, uri, record.dump()):
        raise LeaseHeld(_refusal(paths, tag, newest_lease(paths, tag, record.writer) or record))


def _forget_before(paths: IndexPaths, tag: str, record: LeaseRecord) -> None:
    folder = paths.writer_leases(tag, record.writer)
    for name in storage.list_names(folder):
        if _is_lease(name) and int(name.removesuffix(".json")) < record.epoch:
            patiently(storage.delete, storage.join(folder, name))


def _new_record(writer: str, epoch: int, run_id: str) -> LeaseRecord:
    return LeaseRecord(
        writer=writer,
        epoch=epoch,
        run_id=run_id,
        token=uuid.uuid4().hex,
        state=HELD,
        beat=0,
        host=socket.gethostname(),
        machine=_machine(),
        process=_process(os.getpid()),
        since=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
    )


def _has_died(record: LeaseRecord) -> bool:
    """Whether the owner ran on this very machine and is gone; nobody else can be so sure."""
    pid = record.process.partition(":")[0]
    here = bool(record.machine) and record.machine == _machine()
    return here and pid.isdecimal() and _process(int(pid)) != record.process


def _machine() -> str:
    """This boot of this machine and its space of process ids; empty where it cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process(pid: int) -> str:
    """A process id with the tick of its start, since ids are used again; empty if it is gone."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = status.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else f"{pid}:{fields[19]}"


def _is_lease(name: str) -> bool:
    return name.endswith(".json") and name.removesuffix(".json").isdecimal()


def _refusal(paths: IndexPaths, tag: str, owner: LeaseRecord) -> str:
    return (
        f"{storage.redact(paths.root_uri)}: run {owner.run_id} on {owner.host} is writing"
        f" {_plain(owner.writer)} of {tag}; wait for its end, stop it, or give each job its own"
        " part with --shard i/n"
    )


def _plain(writer: str) -> str:
    number, of, count = writer.partition("-of-")
    return f"shard {number}/{count}" if of else writer
