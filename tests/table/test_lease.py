"""One job a shard: leases are won once, kept alive, taken over, and fenced."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st

from indexer import storage
from indexer.errors import CommitFenced, ConfigError, LeaseHeld, StorageError
from indexer.table import lease, recovery
from indexer.table.commit import Committer
from indexer.table.lease import HELD, RELEASED
from indexer.table.shard import Shard
from tests.table.make import TAG, new_index, ref, unit, write_units

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = {"beat_seconds": 0.05, "takeover_seconds": 1.0}


@pytest.fixture
def paths(tmp_path):
    return new_index(str(tmp_path / "index"))


def held(paths, run_id="run-1", writer="1-of-1", **changes):
    return lease.held(paths, TAG, writer, run_id, **(QUICK | changes))


def dead_owner(paths, run_id="dead", writer="1-of-1", epoch=1):
    """A lease whose owner, on another machine, was killed."""
    record = replace(lease._new_record(writer, epoch, run_id), machine="elsewhere")
    storage.write_bytes(paths.lease_json(TAG, writer, epoch), record.dump())


def live_runs(paths):
    return {record.run_id for record in lease.live_leases(paths, TAG)}


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/2/3", "-1/2", "1.0/2"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="should be i/n"):
        Shard.parse(text)


@given(st.integers(1, 40), st.text(min_size=1))
def test_every_video_is_in_exactly_one_shard(count, uri):
    video_id = ref(uri.encode("utf-8", "replace").decode()).video_id
    shards = [Shard.parse(f"{number}/{count}") for number in range(1, count + 1)]
    assert sum(shard.holds(video_id) for shard in shards) == 1


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_shards_overlap_when_a_video_can_be_in_both(n, m, data):
    one, other = (Shard(data.draw(st.integers(1, count)), count) for count in (n, m))
    common = any(
        one.holds(f"{number:012x}") and other.holds(f"{number:012x}") for number in range(n * m)
    )
    assert one.overlaps(other.writer) == other.overlaps(one.writer) == common


def test_services_overlap_with_no_shard():
    assert not Shard().overlaps("maintenance")


def test_a_second_job_on_the_shard_is_refused_and_the_next_is_not(paths):
    with held(paths) as first:
        started = time.monotonic()
        message = r"run run-1 on .* is writing shard 1/1 .* --shard i/n"
        with pytest.raises(LeaseHeld, match=message), held(paths, "run-2"):
            pass
        assert time.monotonic() - started < QUICK["takeover_seconds"]
        first.check()
    with held(paths, "run-2") as second:
        assert second.epoch == first.epoch + 1


def test_shards_that_share_no_video_are_held_at_once(paths):
    with held(paths, "a", "1-of-2"), held(paths, "b", "2-of-2"):
        for overlapping in ("1-of-1", "2-of-4", "1-of-4"):
            with pytest.raises(LeaseHeld), held(paths, "c", overlapping):
                pass
        with held(paths, "d", "maintenance"):
            assert live_runs(paths) == {"a", "b", "d"}
    assert live_runs(paths) == set()
    assert {record.state for record in lease.all_leases(paths, TAG)} == {RELEASED}


def test_an_owner_without_a_sign_of_life_is_taken_over_after_its_time(paths):
    dead_owner(paths)
    assert live_runs(paths) == {"dead"}  # nobody here can tell
    started = time.monotonic()
    with held(paths) as mine:
        assert time.monotonic() - started >= QUICK["takeover_seconds"]
        assert mine.epoch == 2
    assert storage.list_names(paths.writer_leases(TAG, "1-of-1")) == ["00000002.json"]


def test_who_waits_is_told_for_whom_and_how_long(paths, monkeypatch):
    monkeypatch.setattr(lease, "TELL_SECONDS", 0.3)
    dead_owner(paths)
    told = []
    with held(paths, waiting=told.append):
        pass
    assert {(one.part, one.run_id) for one in told} == {("shard 1/1", "dead")}
    assert 2 <= len(told) <= 3
    assert [one.left_seconds for one in told] == sorted(
        (one.left_seconds for one in told), reverse=True
    )
    assert all(0 < one.left_seconds < QUICK["takeover_seconds"] for one in told)
    assert all(one.since.endswith(" UTC") for one in told)


def test_nobody_is_told_of_a_lease_that_is_free_or_of_an_owner_that_lives(paths):
    told = []
    with (
        held(paths, waiting=told.append),
        pytest.raises(LeaseHeld),
        held(paths, "run-2", waiting=told.append, beat_seconds=0.5),
    ):
        pass
    assert told == []


def test_a_lease_that_says_nothing_of_its_start_is_still_one(paths):
    content = json.loads(lease._new_record("1-of-1", 1, "old").dump())
    del content["since"]
    storage.write_bytes(paths.lease_json(TAG, "1-of-1", 1), json.dumps(content).encode())
    assert live_runs(paths) == {"old"}


def test_a_dead_owner_of_an_overlapping_shard_is_retired_too(paths):
    dead_owner(paths, writer="2-of-3")
    with held(paths) as mine:
        records = {record.writer: record for record in lease.all_leases(paths, TAG)}
        assert (records["2-of-3"].epoch, records["2-of-3"].state) == (2, RELEASED)
        assert (mine.epoch, records["1-of-1"].state) == (1, HELD)


def test_an_owner_that_comes_back_while_it_is_watched_keeps_its_lease(paths):
    dead_owner(paths)
    uri = paths.lease_json(TAG, "1-of-1", 1)

    def wake():
        time.sleep(0.2)
        storage.write_bytes(uri, storage.read_bytes(uri).replace(b'"beat": 0', b'"beat": 1'))

    waking = threading.Thread(target=wake)
    waking.start()
    with pytest.raises(LeaseHeld), held(paths):
        pass
    waking.join()


def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(paths):
    code = (
        "import os, signal, sys; from indexer.table import lease;"
        "from indexer.table.paths import IndexPaths;"
        f"lease.acquire(IndexPaths(sys.argv[1]), {TAG!r}, '1-of-1', 'dead');"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, paths.root_uri], cwd=REPOSITORY, check=False)
    assert done.returncode == -9
    (record,) = lease.all_leases(paths, TAG)
    assert (record.run_id, record.state, live_runs(paths)) == ("dead", HELD, set())
    with held(paths, takeover_seconds=60) as mine:
        assert mine.epoch == 2


def test_of_many_who_want_a_lease_one_gets_it(paths):
    dead_owner(paths)
    outcomes, barrier = [], threading.Barrier(8)

    def want(number):
        barrier.wait()
        try:
            outcomes.append(lease.acquire(paths, TAG, "1-of-1", f"run-{number}", **QUICK))
        except LeaseHeld:
            outcomes.append(None)

    threads = [threading.Thread(target=want, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = (owner for owner in outcomes if owner is not None)
    winner.release()
    assert len(outcomes) == 8


def test_an_owner_learns_that_it_was_taken_over(paths):
    owner = lease.acquire(paths, TAG, "1-of-1", "run-1", **QUICK)
    dead_owner(paths, run_id="taker", epoch=2)
    deadline = time.monotonic() + 10
    while owner._thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(CommitFenced, match="another job has taken over shard 1/1"):
        owner.check()
    owner.release()
    (record,) = lease.all_leases(paths, TAG)
    assert (record.run_id, record.state) == ("taker", HELD)


def test_the_lease_beats_and_survives_a_store_that_is_away(paths):
    with held(paths) as mine:
        folder = Path(paths.leases(TAG))
        folder.rename(folder.with_name("away"))
        folder.write_text("not a folder")
        time.sleep(0.2)
        folder.unlink()
        folder.with_name("away").rename(folder)
        before = lease.newest_lease(paths, TAG, "1-of-1")
        deadline = time.monotonic() + 10
        while lease.newest_lease(paths, TAG, "1-of-1") == before and time.monotonic() < deadline:
            time.sleep(0.01)
        after = lease.newest_lease(paths, TAG, "1-of-1")
        assert after == replace(before, beat=after.beat)
        assert after.beat > before.beat
        mine.check()


def test_a_damaged_lease_is_an_error_that_says_which(paths):
    storage.write_bytes(paths.lease_json(TAG, "1-of-1", 1), b"{}")
    with pytest.raises(StorageError, match=r"00000001\.json is no lease"), held(paths):
        pass


def test_a_lease_works_on_s3(s3):
    paths = new_index(f"s3://{s3.bucket()}/index")
    with (
        held(paths, beat_seconds=0.5),
        pytest.raises(LeaseHeld),
        held(paths, "run-2", beat_seconds=0.5, takeover_seconds=5),
    ):
        pass
    with held(paths, "run-2") as mine:
        assert mine.epoch == 2


class Sleeper(Committer):
    """Sleeps between its check and its write, at the n-th write."""

    def __init__(self, *arguments, sleep_at):
        super().__init__(*arguments)
        self.left, self.asleep, self.wake = sleep_at, threading.Event(), threading.Event()

    def _write(self, *arguments):
        self.left -= 1
        if not self.left:
            self.asleep.set()
            assert self.wake.wait(60)
        super()._write(*arguments)


@pytest.mark.parametrize("sleep_at", [1, 2, 3, 4])
def test_an_owner_that_wakes_up_after_a_take_over_commits_nothing_of_its_own(paths, sleep_at):
    """Also at steps 2 to 4 the unit is there once: then its new owner has finished it."""
    old = lease.acquire(paths, TAG, "1-of-1", "old", beat_seconds=60)
    recovery.begin(paths, TAG, old)
    committer = Sleeper(paths, TAG, "old", old, sleep_at=sleep_at)
    files = write_units(paths, "old", unit("a"))
    errors = []

    def commit():
        try:
            committer.commit(files)
            committer.commit(write_units(paths, "old", unit("late")))
        except CommitFenced as error:
            errors.append(error)

    sleeping = threading.Thread(target=commit)
    sleeping.start()
    assert committer.asleep.wait(60)
    with held(paths, "new") as mine:
        recovered = recovery.begin(paths, TAG, mine)
        assert len(recovered.rolled_forward) == (sleep_at > 1)
        todo = ["b"] if sleep_at > 1 else ["a", "b"]
        new = Committer(paths, TAG, "new", mine)
        new.commit(write_units(paths, "new", *map(unit, todo)))
        committer.wake.set()
        sleeping.join()
        new.commit(write_units(paths, "new", unit("c")))
    assert len(errors) == 1
    videos = DeltaTable(paths.table("videos")).to_pyarrow_table()["uri"].to_pylist()
    clips = DeltaTable(paths.table("clips")).to_pyarrow_table()["uri"].to_pylist()
    assert sorted(videos) == ["a", "b", "c"]
    assert sorted(clips) == ["a", "a", "b", "b", "c", "c"]
    old.release()


@pytest.mark.parametrize("writer", ["1-of-1", "2-of-3"])
def test_an_owner_that_was_taken_over_is_fenced_before_the_new_one_commits(paths, writer):
    """Also that of a shard which the new owner's shard only overlaps."""
    old = lease.acquire(paths, TAG, writer, "old", beat_seconds=60)
    recovery.begin(paths, TAG, old)
    late = Committer(paths, TAG, "old", old)
    files = write_units(paths, "old", unit("a"))
    with held(paths, "new") as mine:
        recovery.begin(paths, TAG, mine)
        with pytest.raises(CommitFenced):
            late.commit(files)
    old.release()
    assert DeltaTable(paths.table("clips")).count() == 0


class Overtaken(Committer):
    """Is taken over just after its first write, before it looks at the log again."""

    taker = None

    def _write(self, *arguments):
        super()._write(*arguments)
        if self.taker is None:
            self.taker = lease.acquire(self._paths, TAG, "1-of-1", "new", **QUICK)
            recovery.begin(self._paths, TAG, self.taker)


def test_a_take_over_just_after_a_write_is_noticed_at_the_next(paths):
    old = lease.acquire(paths, TAG, "1-of-1", "old", beat_seconds=60)
    recovery.begin(paths, TAG, old)
    committer = Overtaken(paths, TAG, "old", old)
    committer.commit(write_units(paths, "old", unit("a")))
    with pytest.raises(CommitFenced):
        committer.commit(write_units(paths, "old", unit("late")))
    committer.taker.release()
    old.release()
    assert DeltaTable(paths.table("videos")).to_pyarrow_table()["uri"].to_pylist() == ["a"]


def test_what_a_lease_says_is_plain_json(paths):
    with held(paths):
        content = json.loads(storage.read_bytes(paths.lease_json(TAG, "1-of-1", 1)))
    assert content["run_id"] == "run-1"
    assert content["process"].startswith(f"{os.getpid()}:")
