"""What a dead job left half done is finished, and what it left lying about is removed."""

from pathlib import Path

import pytest
from deltalake import DeltaTable

from indexer import storage
from indexer.errors import StorageError
from indexer.table import lease, recovery
from indexer.table.commit import Committer, TableLogs
from indexer.table.recovery import find_unfinished, recover
from indexer.table.resume import unit_states
from indexer.table.schema import TABLES, VIDEOS
from tests.table.make import TAG, Run, new_index, ref, unit, write_units

NAMES = tuple(TABLES)
WHOLE = {"clips": 2, "embeddings": 2, "labels": 6, "videos": 1}


@pytest.fixture
def paths(tmp_path):
    return new_index(str(tmp_path / "index"))


class Dying(Committer):
    """Is no more after some writes to the logs."""

    def __init__(self, *arguments, writes):
        super().__init__(*arguments)
        self.left = writes

    def _write(self, *arguments):
        if not self.left:
            raise OSError("killed")
        self.left -= 1
        super()._write(*arguments)


def die(paths, writes, act, run_id="dead", held=None):
    committer = Dying(paths, TAG, run_id, held, writes=writes)
    with pytest.raises(StorageError, match="killed"):
        act(committer)


def half_commit(paths, writes, *units, run_id="dead", held=None):
    files = write_units(paths, run_id, *(units or (unit("a"),)))
    die(paths, writes, lambda committer: committer.commit(files), run_id, held)
    return files


def counts(paths):
    return {name: DeltaTable(paths.table(name)).count() for name in NAMES}


def versions(paths):
    return {name: DeltaTable(paths.table(name)).version() for name in NAMES}


def test_an_index_without_tables_has_nothing_to_recover(paths):
    assert find_unfinished(paths, TAG) == recovery.Unfinished((), ())
    assert recover(paths, TAG) == recovery.Recovered((), ())
    assert not storage.exists(paths.table("clips"))


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_a_half_done_commit_is_rolled_forward_once(paths, writes):
    files = half_commit(paths, writes)
    found = find_unfinished(paths, TAG)
    assert [(c.run_id, c.sequence, c.files) for c in found.commits] == [("dead", 1, files)]
    assert found.orphans == ()
    assert recover(paths, TAG).rolled_forward == found.commits
    assert counts(paths) == WHOLE
    assert unit_states(paths, TAG)["done"].to_pylist() == [[0]]
    before = versions(paths)
    assert recover(paths, TAG) == recovery.Recovered((), ())
    assert versions(paths) == before


def test_a_commit_of_failures_only_is_rolled_forward(paths):
    half_commit(paths, 1, unit("a", failure="corrupt"))
    assert len(recover(paths, TAG).rolled_forward) == 1
    assert counts(paths) == {"clips": 0, "embeddings": 0, "labels": 0, "videos": 1}


def test_what_no_commit_names_is_removed_with_its_bytes(paths):
    half_commit(paths, 0)
    orphans = find_unfinished(paths, TAG).orphans
    assert len(orphans) == 4
    assert all(storage.exists(uri) for uri in orphans)
    assert recover(paths, TAG).orphans_removed == orphans
    assert not any(storage.exists(uri) for uri in orphans)
    assert set(counts(paths).values()) == {0}


def test_the_commits_of_several_dead_runs_are_all_finished(paths):
    for number, writes in enumerate((1, 2, 3)):
        half_commit(paths, writes, unit(str(number)), run_id=f"dead-{number}")
    assert {c.run_id for c in recover(paths, TAG).rolled_forward} == {"dead-0", "dead-1", "dead-2"}
    assert counts(paths) == {name: 3 * rows for name, rows in WHOLE.items()}


def test_another_model_is_left_alone(paths):
    other = write_units(paths, "dead", unit("a"), tag="other")
    with pytest.raises(StorageError, match="killed"):
        Dying(paths, "other", "dead", writes=1).commit(other)
    assert recover(paths, TAG) == recovery.Recovered((), ())
    assert len(recover(paths, "other").rolled_forward) == 1
    assert counts(paths) == WHOLE


def test_what_a_job_at_work_has_begun_is_its_own(paths):
    with lease.held(paths, TAG, "1-of-2", "live") as held:
        half_commit(paths, 1, run_id="live", held=held)
        written = write_units(paths, "live", unit("b"))
        assert recover(paths, TAG) == recovery.Recovered((), ())
        assert find_unfinished(paths, TAG) == recovery.Unfinished((), ())
        uris = [paths.data_file(file.table, file.path) for file in written]
        assert all(storage.exists(uri) for uri in uris)
    assert len(recover(paths, TAG).rolled_forward) == 1
    assert counts(paths) == WHOLE
    assert not any(storage.exists(uri) for uri in uris)


def test_files_that_a_snapshot_has_taken_out_are_not_orphans(paths):
    run = Run(paths)
    run.add(unit("a"), unit("b"))
    run.committer.remove_videos([ref("a").video_id], ["a"])
    assert recover(paths, TAG) == recovery.Recovered((), ())
    before = DeltaTable(paths.table("clips"), version=1).to_pyarrow_table()
    assert before.num_rows == 4


def test_half_written_files_go_unless_another_job_is_at_work(paths):
    run = Run(paths)
    run.add(unit("a"))
    half = storage.join(paths.partition("clips", TAG), ".0123.tmp")
    storage.write_bytes(half, b"half")
    with lease.held(paths, TAG, "1-of-2", "live"):
        assert recover(paths, TAG).orphans_removed == ()
    assert recover(paths, TAG).orphans_removed == (half,)


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_a_removal_that_was_cut_short_is_finished(paths, writes):
    """Else the outcome of a video whose clips are gone would say that it is done."""
    Run(paths).add(unit("a"), unit("b"))
    removed = ([ref("a").video_id], ["a"])
    die(paths, writes, lambda committer: committer.remove_videos(*removed))
    begun = writes > 0
    assert len(recover(paths, TAG).rolled_forward) == begun
    rows = 1 if begun else 2
    assert counts(paths) == {name: rows * number for name, number in WHOLE.items()}
    assert storage.list_names(paths.removals(TAG)) == []
    Run(paths, run_id="next").committer.remove_videos(*removed)
    assert counts(paths) == WHOLE


def test_a_half_done_commit_stops_who_would_count_on(paths):
    half_commit(paths, 2)
    with pytest.raises(StorageError, match="verify --repair"):
        Committer(paths, TAG, "dead")


def entries(paths, number):
    """Makes the log of `clips` longer."""
    logs = TableLogs(paths, TAG)
    for epoch in range(1, number + 1):
        logs.fence({f"{TAG}/other/epoch": epoch})


@pytest.mark.parametrize("number", [90, 130])
def test_a_record_is_found_however_long_ago_it_was_made(paths, number):
    Run(paths).add(unit("z"))
    half_commit(paths, 1)
    entries(paths, number)
    checkpoints = list(Path(paths.table("clips"), "_delta_log").glob("*.checkpoint.parquet"))
    assert bool(checkpoints) == (number > 100)
    assert [c.run_id for c in recover(paths, TAG).rolled_forward] == ["dead"]
    assert counts(paths) == {name: 2 * rows for name, rows in WHOLE.items()}


def test_a_record_that_has_expired_is_told(paths):
    half_commit(paths, 1)
    entries(paths, 130)
    log = Path(paths.table("clips"), "_delta_log")
    for number in range(50):
        (log / f"{number:020}.json").unlink()
    with pytest.raises(StorageError, match="has expired from the log"):
        recover(paths, TAG)


def test_a_damaged_log_is_told(paths):
    Run(paths)
    entries(paths, 101)
    clips = DeltaTable(paths.table("clips"))
    log = Path(paths.table("clips"), "_delta_log")
    (checkpoint,) = log.glob("*.checkpoint.parquet")
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(b"junk")
    with pytest.raises(StorageError, match=r"checkpoint\.parquet is missing or damaged"):
        recovery._read_state(paths, clips)
    checkpoint.write_bytes(content)
    (log / f"{101:020}.json").unlink()
    with pytest.raises(StorageError, match="json is missing"):
        recovery._read_state(paths, clips)


def test_what_is_recovered_twice_at_once_is_there_once(paths):
    half_commit(paths, 1)
    (record,) = find_unfinished(paths, TAG).commits

    class Late(TableLogs):
        def _write(self, spec, *arguments):
            if spec is VIDEOS:
                recover(paths, TAG)
            super()._write(spec, *arguments)

    Late(paths, TAG).finish(record)
    assert counts(paths) == WHOLE


def test_recovery_works_on_s3(s3):
    paths = new_index(f"s3://{s3.bucket()}/index")
    half_commit(paths, 2)
    write_units(paths, "dead", unit("b"))
    with lease.held(paths, TAG, "1-of-1", "next") as held:
        recovered = recovery.begin(paths, TAG, held)
    assert (len(recovered.rolled_forward), len(recovered.orphans_removed)) == (1, 4)
    assert counts(paths) == WHOLE
