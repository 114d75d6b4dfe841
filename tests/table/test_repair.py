"""What an index's own bytes can make right is made right; the rest is named and can be indexed."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from indexer.errors import LeaseHeld
from indexer.table import lease
from indexer.table.commit import Committer, TableLogs
from indexer.table.delta import live_files, open_table
from indexer.table.repair import postings_of, repair
from indexer.table.rows import unit_tables
from indexer.table.schema import LABELS, TABLES
from indexer.table.verify import verify
from indexer.table.write import write_tables
from tests.table.make import TAG, VOCABULARY, Run, context, new_index, ref, unit


@pytest.fixture
def run(tmp_path):
    run = Run(new_index(str(tmp_path / "index")))
    run.add(unit("a"), unit("b", range(5)))
    run.add(unit("c"), unit("d", failure="corrupt"))
    return run


def rows(paths, table):
    found = DeltaTable(paths.table(table)).to_pyarrow_table().to_pylist()
    return sorted(found, key=repr)


def damage(paths, table):
    file = live_files(open_table(paths, TABLES[table]), TAG)[0]
    path = Path(paths.data_file(table, file.path))
    lost = pq.ParquetFile(path).read()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return file.path, lost


def test_a_sound_index_is_left_as_it_is(run):
    before = {name: rows(run.paths, name) for name in TABLES}
    found = repair(run.paths)
    assert (found.commits, found.orphans, found.postings) == (0, 0, ())
    assert found.dropped_files == found.rewritten_files == ()
    assert not found.left.broken
    assert {name: rows(run.paths, name) for name in TABLES} == before


def test_postings_are_those_that_the_run_wrote():
    units = [unit("a", range(4)), unit("b", range(3))]
    tables = unit_tables(units, context(top_k=4))
    derived = postings_of(tables["clips"], pa.array(VOCABULARY, pa.string()))
    assert derived.sort_by(list(LABELS.order)).equals(tables["labels"])


def test_damaged_postings_are_made_again_from_the_clips(run):
    before = {name: rows(run.paths, name) for name in TABLES}
    path, _ = damage(run.paths, "labels")
    found = repair(run.paths)
    assert found.dropped_files == (("labels", path),)
    assert found.postings == (TAG,)
    assert not found.left.broken
    assert {name: rows(run.paths, name) for name in TABLES} == before


def test_postings_that_tell_another_story_are_made_again(run):
    tables = unit_tables([unit("e")], context(run_id="run-1"))
    wrong = pa.array([0.125] * tables["labels"].num_rows, pa.float32())
    field = LABELS.schema.field("score")
    tables["labels"] = tables["labels"].set_column(2, field, wrong)
    run.committer.commit(write_tables(tables, run.paths, TAG, "run-1", "t9"))
    assert verify(run.paths).broken
    assert not repair(run.paths).left.broken


@pytest.mark.parametrize("table", ["clips", "embeddings", "videos"])
def test_what_only_the_videos_can_mend_is_named_and_then_indexed_anew(run, table):
    before = {name: rows(run.paths, name) for name in TABLES}
    path, lost = damage(run.paths, table)
    found = repair(run.paths)
    assert found.dropped_files == ((table, path),)
    uris = found.left.damaged_uris[TAG]
    failed = [unit("d", failure="corrupt")] if "d" in lost.to_pydict().get("uri", []) else []
    named = [ref(uri).video_id for uri in uris] + [one.ref.video_id for one in failed]
    assert set(named) == set(lost["video_id"].to_pylist())  # a lost failure is tried again anyway
    units = {"a": unit("a"), "b": unit("b", range(5)), "c": unit("c")}
    again = Run(run.paths, run_id="run-1")
    again.committer.remove_videos([ref(uri).video_id for uri in uris], uris)
    again.tasks = 9
    again.add(*(units[uri] for uri in uris), *failed)
    assert not verify(run.paths).broken
    assert {name: rows(run.paths, name) for name in TABLES} == before


def test_files_of_which_the_log_tells_lies_are_written_anew(run):
    files = run.write(unit("e"))
    stats = json.loads(files[0].stats_json)
    stats["maxValues"]["clip_index"] = 0
    lies = (
        dataclasses.replace(files[0], stats_json=json.dumps(stats)),
        dataclasses.replace(files[1], size_bytes=files[1].size_bytes + 1),
        dataclasses.replace(files[2], sha256="0" * 64),
        files[3],
    )
    run.committer.commit(lies)
    found = verify(run.paths)
    assert [(f.table, f.promise) for f in found.findings if f.broken] == [
        (name, "log_entry") for name in ("clips", "embeddings", "labels")
    ]
    done = repair(run.paths)
    assert done.rewritten_files == tuple((file.table, file.path) for file in lies[:3])
    assert done.dropped_files == ()
    assert not done.left.broken


def test_rows_out_of_order_are_sorted(run):
    tables = unit_tables([unit("e", range(4))], context(run_id="run-1"))
    tables["clips"] = tables["clips"].take([1, 0, 2, 3])
    run.committer.commit(write_tables(tables, run.paths, TAG, "run-1", "t9"))
    assert len(repair(run.paths).rewritten_files) == 1
    assert not verify(run.paths).broken


def test_a_half_done_commit_is_found_and_finished(run, monkeypatch):
    monkeypatch.setattr("indexer.table.verify._LOOKS", 1)
    original = TableLogs._apply

    def cut_short(self, spec, *arguments, **options):
        if spec is LABELS:
            raise KeyboardInterrupt
        original(self, spec, *arguments, **options)

    with lease.held(run.paths, TAG, "1-of-1", "run-5") as own:
        files = Run(run.paths, run_id="run-5").write(unit("e"))
        with monkeypatch.context() as patch:
            patch.setattr(TableLogs, "_apply", cut_short)
            with pytest.raises(KeyboardInterrupt):
                Committer(run.paths, TAG, "run-5", own).commit(files)
    (found,) = [f for f in verify(run.paths).findings if f.promise == "whole_commits"]
    assert found.broken
    assert "commit 1 of 1-of-1 is half done; `verify --repair` finishes it" in found.detail
    done = repair(run.paths)
    assert done.commits == 1
    assert not done.left.broken


def test_files_of_nobody_are_removed(run):
    lost = run.write(unit("lost"))
    assert len(verify(run.paths).stray_files) == len(lost)
    done = repair(run.paths)
    assert done.orphans == len(lost)
    assert done.left.stray_files == ()


def test_a_job_at_work_is_not_disturbed(run):
    with (
        lease.held(run.paths, TAG, "1-of-1", "run-7", beat_seconds=0.05),
        pytest.raises(LeaseHeld, match="run-7"),
    ):
        repair(run.paths)
