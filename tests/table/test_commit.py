"""Commits happen once, in order, and a failure half-way is finished later."""

import contextlib
import json
import shutil
import threading
from pathlib import Path

import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from indexer.errors import CommitConflict, CommitUnknown, StorageError
from indexer.table.commit import Committer
from indexer.table.compact import compact
from indexer.table.record import RECORD
from indexer.table.resume import unit_states
from indexer.table.schema import CLIPS, TABLES, VIDEOS
from indexer.table.write import DataFile
from tests.table.make import TAG, Run, new_index, ref, unit

NAMES = tuple(TABLES)


@pytest.fixture
def paths(tmp_path):
    return new_index(str(tmp_path / "index"))


def counts(paths):
    return {name: DeltaTable(paths.table(name)).count() for name in NAMES}


def versions(paths):
    return {name: DeltaTable(paths.table(name)).version() for name in NAMES}


class Flaky(Committer):
    """Fails before or after the n-th write to the log, as a lost connection would."""

    def __init__(self, *arguments, fail_at, after, error):
        super().__init__(*arguments)
        self.writes: list[str] = []
        self.fail_at, self.after, self.error = fail_at, after, error

    def _write(self, spec, *arguments):
        self.writes.append(spec.name)
        failing = len(self.writes) == self.fail_at
        if failing and not self.after:
            raise self.error
        super()._write(spec, *arguments)
        if failing:
            raise self.error


def flaky(run, fail_at, *, after=False, error=None):
    error = error or OSError("connection reset")
    return Flaky(run.paths, TAG, run.run_id, fail_at=fail_at, after=after, error=error)


def test_tables_are_committed_in_order_with_one_transaction(paths):
    run = Run(paths)
    committer = flaky(run, 0)
    committer.commit(run.write(unit()))
    assert committer.writes == ["clips", "embeddings", "labels", "videos"]
    for name in NAMES:
        assert DeltaTable(paths.table(name)).transaction_version(f"{TAG}/run-1") == 1


def test_the_first_commit_records_the_files_of_all_tables(paths):
    run = Run(paths)
    files = run.write(unit(), unit("b", failure="corrupt"))
    run.committer.commit(files)
    record = json.loads(DeltaTable(paths.table("clips")).history(1)[0][RECORD])
    assert (record["run_id"], record["sequence"]) == ("run-1", 1)
    assert tuple(map(DataFile.from_json, record["files"])) == files


def test_a_commit_of_failures_only_is_recorded_too(paths):
    run = Run(paths)
    files = run.write(unit(failure="corrupt"))
    run.committer.commit(files)
    assert counts(paths) == {"clips": 0, "embeddings": 0, "labels": 0, "videos": 1}
    record = json.loads(DeltaTable(paths.table("clips")).history(1)[0][RECORD])
    assert [file["table"] for file in record["files"]] == ["videos"]


def test_nothing_to_commit_commits_nothing(paths):
    run = Run(paths)
    run.committer.commit([])
    assert set(versions(paths).values()) == {0}


def test_the_same_sequence_twice_is_one_commit(paths):
    run, twin = Run(paths), Run(paths)
    files = run.write(unit())
    run.committer.commit(files)
    before = versions(paths)
    twin.committer.commit(files)
    assert versions(paths) == before
    assert counts(paths) == {"clips": 2, "embeddings": 2, "labels": 6, "videos": 1}


def test_one_run_id_used_by_two_jobs_is_noticed_before_rows_are_lost(paths):
    run, twin = Run(paths), Run(paths)
    run.add(unit("a"))
    with pytest.raises(CommitConflict, match="do two jobs use one run id"):
        twin.add(unit("b"))


def test_a_later_committer_of_the_run_goes_on_counting(paths):
    Run(paths).add(unit("a"))
    Run(paths).add(unit("b"))
    assert counts(paths)["videos"] == 2


@pytest.mark.parametrize("fail_at", [1, 2, 3, 4])
@pytest.mark.parametrize("after", [False, True])
def test_a_failure_at_any_step_is_finished_by_the_next_commit(paths, fail_at, after):
    run = Run(paths)
    committer = flaky(run, fail_at, after=after)
    first, second = run.write(unit("a")), run.write(unit("b"))
    if after:
        committer.commit(first)  # applied, but the reply was lost: the log knows
        assert unit_states(paths, TAG)["done"].to_pylist() == [[0]]
    else:
        with pytest.raises(StorageError, match="the commit was refused: connection reset"):
            committer.commit(first)
        begun = {name: int(step < fail_at) for step, name in enumerate(NAMES, 1)}
        assert {name: int(n > 0) for name, n in counts(paths).items()} == begun
        assert unit_states(paths, TAG).num_rows == 0
    committer.commit(first) if not after else None
    committer.commit(second)
    assert counts(paths) == {"clips": 4, "embeddings": 4, "labels": 12, "videos": 2}


@pytest.mark.parametrize("fail_at", [1, 2, 3, 4])
def test_a_lost_reply_is_recognised_after_a_compaction_has_replaced_the_files(paths, fail_at):
    run = Run(paths)
    run.add(unit("a"))

    class Overtaken(Flaky):
        """Loses a reply, and is so slow to ask again that a compaction comes in between."""

        def _write(self, spec, *arguments):
            try:
                super()._write(spec, *arguments)
            except OSError:
                compact(paths, TAG)
                raise

    committer = Overtaken(
        paths, TAG, "run-1", fail_at=fail_at, after=True, error=OSError("connection reset")
    )
    committer.commit(run.write(unit("b")))
    assert len(committer.writes) == 4
    assert counts(paths) == {"clips": 4, "embeddings": 4, "labels": 12, "videos": 2}
    assert unit_states(paths, TAG)["done"].to_pylist() == [[0], [0]]


def test_new_files_after_a_failure_do_not_displace_the_begun_ones(paths):
    run = Run(paths)
    committer = flaky(run, 2)
    with pytest.raises(StorageError):
        committer.commit(run.write(unit("a")))
    committer.commit(run.write(unit("b")))
    assert counts(paths) == {"clips": 4, "embeddings": 4, "labels": 12, "videos": 2}


def test_a_log_that_cannot_be_read_back_leaves_the_outcome_unknown(paths):
    run = Run(paths)
    files = run.write(unit())
    log = Path(paths.table("labels"), "_delta_log")
    shutil.move(log, log.with_name("away"))
    log.write_text("not a folder")
    with pytest.raises(CommitUnknown, match=r"labels.*log cannot be read"):
        run.committer.commit(files)
    log.unlink()
    shutil.move(log.with_name("away"), log)
    run.committer.commit(files)
    assert counts(paths) == {"clips": 2, "embeddings": 2, "labels": 6, "videos": 1}


def test_a_lost_race_is_run_again_and_a_hopeless_one_is_given_up(paths):
    run = Run(paths)
    once = flaky(run, 1, error=CommitFailedError("another writer won"))
    once.commit(run.write(unit("a")))
    assert once.writes[:2] == ["clips", "clips"]

    class Beaten(Committer):
        def _write(self, *_arguments):
            raise CommitFailedError("another writer won")

    with pytest.raises(CommitConflict, match="other writers won 8 times"):
        Beaten(paths, TAG, "run-2").commit(run.write(unit("b")))


def test_committers_of_several_runs_lose_nothing(paths):
    runs = [Run(paths, run_id=f"run-{i}") for i in range(4)]
    faults = []

    def work(run):
        with contextlib.suppress(StorageError):
            for i in range(5):
                files = run.write(unit(f"{run.run_id}/{i}"))
                for _ in range(20):
                    try:
                        run.committer.commit(files)
                        break
                    except CommitConflict:
                        continue
            return
        faults.append(run)

    threads = [threading.Thread(target=work, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert counts(paths) == {"clips": 40, "embeddings": 40, "labels": 120, "videos": 20}


def test_a_table_of_another_shape_is_refused_with_the_column(paths):
    Run(paths)
    table = paths.table("videos")
    extended = VIDEOS.schema.remove(3).empty_table()
    shutil.rmtree(table)
    write_deltalake(table, extended, partition_by=["model"])
    with pytest.raises(StorageError, match="the table has no column 'status'"):
        Run(paths)
    shutil.rmtree(table)
    unknown = VIDEOS.schema.append(VIDEOS.schema.field(0).with_name("colour"))
    DeltaTable.create(table, schema=unknown, partition_by=["model"])
    with pytest.raises(StorageError, match="a column 'colour' that this program does not know"):
        Run(paths)
    shutil.rmtree(table)
    other = VIDEOS.schema.set(0, VIDEOS.schema.field(0).with_nullable(True))
    DeltaTable.create(table, schema=other, partition_by=["model"])
    with pytest.raises(StorageError, match="the column 'video_id' is"):
        Run(paths)


def test_a_table_that_cannot_be_made_is_a_storage_error(paths):
    Path(paths.table("labels")).write_text("in the way")
    with pytest.raises(StorageError, match="labels"):
        Run(paths)


def test_many_committers_may_make_the_tables_at_once(paths):
    made, barrier = [], threading.Barrier(6)

    def make():
        barrier.wait()
        made.append(Committer(paths, TAG, f"run-{threading.get_ident()}"))

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 6
    assert set(versions(paths).values()) == {0}


def rows_of(paths, name):
    return DeltaTable(paths.table(name)).to_pyarrow_table().to_pylist()


def test_removing_videos_takes_all_their_rows_and_no_others(paths):
    run = Run(paths)
    hostile = "s3://videos/it's'; DELETE FROM clips; --.mp4"
    run.add(unit("a"), unit("b"), unit(hostile))
    run.add(unit("c"))
    run.add(unit("a", failure="corrupt", attempt=2))
    kept = {
        name: [row for row in rows_of(paths, name) if row.get("uri") in ("b", "c")]
        for name in ("clips", "labels", "videos")
    }
    gone = ["a", hostile, "never indexed"]
    run.committer.remove_videos([ref(uri).video_id for uri in gone], gone)
    for name, rows in kept.items():
        assert sorted(rows_of(paths, name), key=repr) == sorted(rows, key=repr)
    assert counts(paths)["embeddings"] == 4
    before = versions(paths)
    run.committer.remove_videos([ref(uri).video_id for uri in gone], gone)
    assert versions(paths) == before


def test_removing_leaves_other_models_alone(paths):
    Run(paths, tag="other", run_id="run-2").add(unit("a"))
    run = Run(paths)
    run.add(unit("a"))
    run.committer.remove_videos([ref("a").video_id], ["a"])
    assert {row["model"] for name in NAMES for row in rows_of(paths, name)} == {"other"}


def test_a_removal_cut_short_is_finished_by_the_next_commit(paths):
    run = Run(paths)
    run.add(unit("a"))
    committer = flaky(run, 3)
    with pytest.raises(StorageError):
        committer.remove_videos([ref("a").video_id], ["a"])
    assert counts(paths) == {"clips": 0, "embeddings": 0, "labels": 6, "videos": 1}
    committer.commit(run.write(unit("b")))
    assert counts(paths) == {"clips": 2, "embeddings": 2, "labels": 6, "videos": 1}


def test_files_that_are_no_whole_units_are_refused(paths):
    run = Run(paths)
    files = run.write(unit("a"))
    for table in NAMES:
        with pytest.raises(StorageError, match="do not hold whole units"):
            run.committer.commit([file for file in files if file.table != table])
    assert set(counts(paths).values()) == {0}


def test_a_removal_whose_reply_was_lost_is_recognised(paths):
    run = Run(paths)
    run.add(unit("a"), unit("b"))
    committer = flaky(run, 1, after=True, error=DeltaError("timeout"))
    committer.remove_videos([ref("a").video_id], ["a"])
    assert counts(paths) == {"clips": 2, "embeddings": 2, "labels": 6, "videos": 1}


def test_a_damaged_file_is_not_rewritten(paths):
    run = Run(paths)
    files = run.write(unit("a"), unit("b"))
    run.committer.commit(files)
    file = Path(paths.data_file(CLIPS.name, files[0].path))
    content = bytearray(file.read_bytes())
    content[10] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(StorageError, match="missing or damaged"):
        run.committer.remove_videos([ref("a").video_id], ["a"])
    file.unlink()
    with pytest.raises(StorageError, match="missing or damaged"):
        run.committer.remove_videos([ref("a").video_id], ["a"])


def test_commits_and_removals_work_on_s3(s3):
    paths = new_index(f"s3://{s3.bucket()}/index")
    run = Run(paths)
    run.add(unit("a"), unit("b"))
    run.committer.remove_videos([ref("a").video_id], ["a"])
    run.add(unit("a", content_key="11-def"))
    states = {row["content_key"]: row["done"] for row in unit_states(paths, TAG).to_pylist()}
    assert states == {"10-abc": [0], "11-def": [0]}
