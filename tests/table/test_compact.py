"""Compaction changes files and nothing else, whenever it dies and whoever reads or writes."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from indexer import storage
from indexer.errors import CommitConflict, ConfigError, LeaseHeld, StorageError
from indexer.table import lease, maintenance, write
from indexer.table.compact import COMMAND, compact
from indexer.table.delta import live_files, open_table
from indexer.table.maintenance import WRITER, Maintainer, maintaining
from indexer.table.query import LabelIndex
from indexer.table.schema import CLIPS, EMBEDDINGS, TABLES
from indexer.table.snapshot import newest_version
from indexer.table.verify import verify
from tests.table.make import TAG, Run, new_index, ref, unit
from tests.table.readers import ENGINES, read_all

REPOSITORY = Path(__file__).resolve().parents[2]
FOLLOWING_THE_LOG = ("deltalake", "polars delta")


def fill(run: Run, videos: int = 6) -> None:
    for number in range(videos):
        run.add(unit(f"v{number}", range(4)), unit(f"bad{number}", failure="corrupt"))
    run.committer.remove_videos([ref("v3").video_id], ["v3"])


@pytest.fixture
def run(tmp_path):
    run = Run(new_index(str(tmp_path / "index")))
    fill(run)
    return run


def answers(paths):
    """What the log's readers and our own queries say."""
    index = LabelIndex.open(paths.root_uri)
    rows = {
        name: DeltaTable(paths.table(name)).to_pyarrow_table().sort_by(_keys(name)).to_pylist()
        for name in TABLES
    }
    return rows, index.search("growing", top=None), index.labels(), index.videos(), index.errors()


def _keys(name):
    own = {"labels": ["clip_id", "rank"], "videos": ["uri", "attempt"]}
    return [(key, "ascending") for key in own.get(name, ["clip_id"])]


def check_same(paths, before):
    now = answers(paths)
    assert now[0] == before[0]
    assert all(mine.equals(theirs) for mine, theirs in zip(now[1:], before[1:], strict=True))


def check_glob(paths, before):
    for name in TABLES:
        found = read_all(paths.root_uri, name)
        assert set(found) == set(ENGINES)
        reference = found["deltalake"]
        assert len(reference) == len(before[0][name])
        assert all(rows == reference for rows in found.values()), name


def data_files(paths):
    return sorted(Path(paths.root_uri).glob("*/model=*/*.parquet"))


def test_afterwards_every_engine_sees_each_row_once_through_log_and_glob(run):
    before = answers(run.paths)
    found = compact(run.paths, TAG)
    assert [(one.table, one.files_before, one.files_after) for one in found] == [
        ("clips", 5, 1), ("embeddings", 5, 1), ("labels", 5, 1), ("videos", 6, 1),
        ("_similarity", 0, 1),
    ]  # fmt: skip
    assert [one.rows for one in found[:-1]] == [len(before[0][name]) for name in TABLES]
    check_same(run.paths, before)
    check_glob(run.paths, before)
    assert len(data_files(run.paths)) == 4
    assert not verify(run.paths).broken


def test_answers_are_the_same_at_every_moment(run, monkeypatch):
    before, moments = answers(run.paths), []
    original = Maintainer.replace

    def watched(self, spec, old, new, **kwargs):
        check_same(run.paths, before)
        if new:  # written, but not committed
            moments.append(spec.name)
            for engine in FOLLOWING_THE_LOG:
                assert len(read_all(run.paths.root_uri, spec.name)[engine]) == len(
                    before[0][spec.name]
                )
        done = original(self, spec, old, new, **kwargs)
        check_same(run.paths, before)
        return done

    monkeypatch.setattr(Maintainer, "replace", watched)
    compact(run.paths, TAG, progress=lambda _: check_same(run.paths, before))
    assert moments == list(TABLES)


def test_files_are_sorted_within_and_among_themselves_and_end_at_the_target(tmp_path, monkeypatch):
    run = Run(new_index(str(tmp_path / "index")))
    rng = np.random.default_rng(0)
    for number in range(8):
        values = rng.normal(size=(40, 64)).astype(np.float32)
        run.add(unit(f"v{number}", range(40), embeddings_ND=values))
    largest = max(
        f.size_bytes for s in TABLES.values() for f in live_files(open_table(run.paths, s))
    )
    monkeypatch.setattr(write, "_row_groups", small_row_groups(write._row_groups, 10))
    before = answers(run.paths)
    compact(run.paths, TAG, target_bytes=2 * largest + 2)
    sizes = sorted(file.size_bytes for file in live_files(open_table(run.paths, EMBEDDINGS)))
    assert len(sizes) > 2
    assert all(2 * largest < size < 3 * largest for size in sizes[1:])
    for spec in TABLES.values():
        files = live_files(open_table(run.paths, spec))
        parts = [
            pq.read_table(run.paths.data_file(spec.name, file.path), partitioning=None)
            for file in files
        ]
        parts.sort(key=lambda rows: key(rows.slice(0, 1).to_pylist()[0], spec))
        whole = pa.concat_tables(parts).combine_chunks()
        assert whole.equals(whole.sort_by(list(spec.order)))
    check_same(run.paths, before)
    check_glob(run.paths, before)
    assert not verify(run.paths).broken


def key(row, spec):
    return [-row[name] if way == "descending" else row[name] for name, way in spec.order]


def small_row_groups(original, rows):
    """Row groups of a few rows, so that a small index makes files of several."""

    def cut(chunks, spec, most_bytes):
        for group in original(chunks, spec, most_bytes):
            for start in range(0, group.num_rows, rows):
                yield group.slice(start, rows)

    return cut


def test_a_second_compaction_has_nothing_to_do(run):
    compact(run.paths, TAG)
    files = data_files(run.paths)
    again = compact(run.paths, TAG)
    assert [one.rows for one in again] == [0, 0, 0, 0, 0]
    assert data_files(run.paths) == files


def test_a_reader_of_the_log_afterwards_needs_no_commit_but_the_checkpoint(run):
    compact(run.paths, TAG)
    for name in TABLES:
        log = f"{run.paths.table(name)}/_delta_log"
        newest = newest_version(run.paths, name)
        assert json.loads(storage.read_bytes(f"{log}/_last_checkpoint"))["version"] == newest
    assert not verify(run.paths).broken


def test_large_files_stay_but_labels_are_sorted_as_one(run):
    compact(run.paths, TAG)
    first = {name: live_files(open_table(run.paths, spec)) for name, spec in TABLES.items()}
    later = Run(run.paths, run_id="run-2")
    fill(later, 1)
    later.add(unit("w1"))
    target_bytes = 2 * first["clips"][0].size_bytes
    found = {one.table: one for one in compact(run.paths, TAG, target_bytes=target_bytes)}
    assert found["labels"].rows > first["labels"][0].rows
    assert found["labels"].files_after == 1
    kept = {file.path for file in live_files(open_table(run.paths, CLIPS))}
    assert first["clips"][0].path in kept
    assert found["clips"].files_after < found["clips"].files_before


def test_a_reader_of_an_older_snapshot_is_told_to_open_the_index_again(run):
    older = LabelIndex.open(run.paths.root_uri)
    compact(run.paths, TAG, keep_history=True)
    assert older.search("growing").num_rows
    compact(run.paths, TAG)
    with pytest.raises(StorageError, match="open it again"):
        older.search("growing")


def test_an_empty_index_is_compacted(tmp_path):
    paths = new_index(str(tmp_path / "empty"))
    assert [one.files_after for one in compact(paths, TAG)] == [0, 0, 0, 0, 0]


def test_history_is_kept_on_request(run):
    version = DeltaTable(run.paths.table("labels")).version()
    files = set(data_files(run.paths))
    compact(run.paths, TAG, keep_history=True)
    assert files < set(data_files(run.paths))
    old = DeltaTable(run.paths.table("labels"), version=version)
    new = DeltaTable(run.paths.table("labels"))
    assert old.to_pyarrow_table().num_rows == new.to_pyarrow_table().num_rows
    compact(run.paths, TAG)
    assert len(data_files(run.paths)) == 4


def test_another_model_is_left_alone(run):
    new_index(run.paths.root_uri, "other")
    other = Run(run.paths, "other", "run-2")
    fill(other, 2)
    before = {file.path for spec in TABLES.values() for file in of(run.paths, spec, "other")}
    compact(run.paths, TAG)
    assert {
        file.path for spec in TABLES.values() for file in of(run.paths, spec, "other")
    } == before
    assert not verify(run.paths).broken


def of(paths, spec, tag):
    return live_files(open_table(paths, spec), tag)


def test_rows_that_a_run_adds_meanwhile_stay(run, monkeypatch):
    original, added = Maintainer.replace, []

    def meanwhile(self, spec, old, new, **kwargs):
        if new:
            added.append(f"late-{spec.name}")
            run.add(unit(added[-1]))
        return original(self, spec, old, new, **kwargs)

    monkeypatch.setattr(Maintainer, "replace", meanwhile)
    compact(run.paths, TAG)
    assert len(added) == 4
    uris = set(LabelIndex.open(run.paths.root_uri).videos()["uri"].to_pylist())
    assert uris > set(added)
    assert not verify(run.paths).broken


def test_rows_that_a_run_takes_out_meanwhile_do_not_come_back(run, monkeypatch):
    original, calls = Maintainer.replace, []

    def meanwhile(self, spec, old, new, **kwargs):
        if new:
            calls.append(spec.name)
        if calls == ["clips"]:
            run.committer.remove_videos([ref("v1").video_id], ["v1"])
        return original(self, spec, old, new, **kwargs)

    monkeypatch.setattr(Maintainer, "replace", meanwhile)
    compact(run.paths, TAG)
    assert calls[:2] == ["clips", "clips"]  # made again from what was left
    assert "v1" not in LabelIndex.open(run.paths.root_uri).videos()["uri"].to_pylist()
    assert not verify(run.paths).broken
    assert len(data_files(run.paths)) == 4


def test_a_commit_that_comes_second_is_made_on_top_of_the_first(run, monkeypatch):
    original, tries = Maintainer._commit, []

    def after_another(self, spec, actions, record):
        if len(actions) > 1 and "late" not in tries:
            tries.append("late")
            run.add(unit("late"))  # between the look at the log and the commit
        tries.append(spec.name)
        original(self, spec, actions, record)

    monkeypatch.setattr(Maintainer, "_commit", after_another)
    compact(run.paths, TAG)
    assert tries.count("clips") == 3  # the fence, the loser, the winner
    assert "late" in LabelIndex.open(run.paths.root_uri).videos()["uri"].to_pylist()
    assert not verify(run.paths).broken


def test_a_commit_whose_reply_is_lost_is_not_made_twice(run, monkeypatch):
    before, original = answers(run.paths), Maintainer._commit

    def lossy(self, spec, actions, record):
        original(self, spec, actions, record)
        raise OSError("connection reset")

    monkeypatch.setattr(maintenance, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(Maintainer, "fence", lambda self: None)
    monkeypatch.setattr(Maintainer, "_commit", lossy)
    versions = {name: DeltaTable(run.paths.table(name)).version() for name in TABLES}
    compact(run.paths, TAG)
    check_same(run.paths, before)
    assert {n: DeltaTable(run.paths.table(n)).version() - v for n, v in versions.items()} == (
        dict.fromkeys(TABLES, 1)
    )


def test_a_commit_that_is_always_refused_says_why(run, monkeypatch):
    def refuse(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(maintenance, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(Maintainer, "_commit", refuse)
    with pytest.raises(CommitConflict, match="refused 12 times: the disk is full"):
        compact(run.paths, TAG)


def test_a_second_compaction_beside_the_first_is_refused(run):
    with (
        lease.held(run.paths, TAG, WRITER, "other", beat_seconds=0.05),
        pytest.raises(LeaseHeld, match="is writing maintenance"),
    ):
        compact(run.paths, TAG)


def test_a_compaction_that_was_given_up_for_dead_cannot_commit(run):
    with maintaining(run.paths, TAG, COMMAND) as (sleeper, _):
        old = sleeper.live(CLIPS)
        epoch = storage.list_names(run.paths.writer_leases(TAG, WRITER))
        successor = lease.LeaseRecord(WRITER, 99, "next", "t", "released", 0, "h", "", "")
        assert len(epoch) == 1
        sleeper.lease._over.set()
        storage.write_bytes(run.paths.lease_json(TAG, WRITER, 99), successor.dump())
        with maintaining(run.paths, TAG, COMMAND):
            pass
        with pytest.raises(StorageError, match="taken over"):
            sleeper.replace(CLIPS, old, (), same_rows=True)


def test_a_damaged_file_is_refused_not_laundered(run):
    path = data_files(run.paths)[0]
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    live = {file.path for file in live_files(open_table(run.paths, CLIPS))}
    with pytest.raises(StorageError, match=r"is damaged: its sha256 .*verify --repair"):
        compact(run.paths, TAG)
    assert {file.path for file in live_files(open_table(run.paths, CLIPS))} == live


def test_rows_that_the_log_counts_and_no_file_has_are_not_lost_in_silence(run):
    files = run.write(unit("e"))
    lie = files[0].stats_json.replace('"numRecords": 2', '"numRecords": 3')
    run.committer.commit((dataclasses.replace(files[0], stats_json=lie), *files[1:]))
    with pytest.raises(StorageError, match=r"the log says 23 rows, the files have 22"):
        compact(run.paths, TAG)


def test_a_size_below_one_is_refused(run):
    with pytest.raises(ConfigError, match="target file size"):
        compact(run.paths, TAG, target_bytes=0)


def test_compaction_on_s3(s3_folder):
    run = Run(new_index(f"{s3_folder}/index"))
    fill(run)
    before = answers(run.paths)
    compact(run.paths, TAG)
    check_same(run.paths, before)
    check_glob(run.paths, before)
    found = verify(run.paths)
    assert not found.broken
    assert found.stray_files == ()


# --- killed anywhere


def die(paths, point: int, moment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "tests/table/compacting_child.py",
            paths.root_uri,
            TAG,
            str(point),
            moment,
        ],
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def check_death(paths, point, moment):
    before = answers(paths)
    assert die(paths, point, moment).returncode == -9
    check_same(paths, before)
    compact(paths, TAG, target_bytes=5_000)
    check_same(paths, before)
    check_glob(paths, before)
    assert not verify(paths).broken


@pytest.mark.parametrize(
    ("point", "moment"),
    [(7, "before"), (8, "after"), (13, "after"), (15, "before"), (20, "before")],
)
def test_a_compaction_killed_at_some_steps_is_finished_by_the_next(run, point, moment):
    check_death(run.paths, point, moment)


@pytest.mark.slow
def test_a_compaction_killed_at_any_step_is_finished_by_the_next(tmp_path):
    first = Run(new_index(str(tmp_path / "count")))
    fill(first)
    steps = int(die(first.paths, 10_000, "before").stdout)
    assert steps > 20
    for point in range(1, steps + 1):
        for moment in ("before", "after"):
            run = Run(new_index(str(tmp_path / f"{point}-{moment}")))
            fill(run)
            check_death(run.paths, point, moment)
