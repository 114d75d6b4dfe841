"""After a deletion no byte of a video is left: every file of the index is searched, unpacked."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from indexer import storage
from indexer.errors import LeaseHeld, QueryError
from indexer.table import catalog, delete, lease
from indexer.table.compact import compact
from indexer.table.delete import DELETED, delete_videos
from indexer.table.deleted import deleted_video_ids, lift_deletions, without_deleted
from indexer.table.query import LabelIndex
from indexer.table.resume import unit_states
from indexer.table.rows import clip_id
from indexer.table.schema import TABLES
from indexer.table.verify import verify
from tests.table.make import TAG, Run, new_index, ref, unit
from tests.table.readers import read_all

HIDDEN = "s3://videos/secret-party-on-friday.mp4"
HIDDEN_ID = ref(HIDDEN).video_id
CLIP_IDS = [clip_id(HIDDEN_ID, index) for index in range(4)]


@pytest.fixture
def run(tmp_path):
    run = Run(new_index(str(tmp_path / "index")))
    run.add(unit("s3://videos/a.mp4"), unit(HIDDEN, range(4)), unit("s3://videos/z.mp4"))
    run.add(unit(HIDDEN, [4], content_key="11"), unit("s3://videos/b.mp4", failure="corrupt"))
    run.committer.remove_videos([ref("s3://videos/z.mp4").video_id], ["s3://videos/z.mp4"])
    run.add(unit("s3://videos/c.mp4"))
    return run


def texts(uri: str):
    """The bytes of every file below a folder, of Parquet files also all their values."""
    fs, root = storage.filesystem(uri)
    for path in fs.find(root):
        content = fs.cat_file(path)
        yield path, content + path.encode()
        if path.endswith(".parquet"):
            file = pq.ParquetFile(pa.BufferReader(content))
            bounds = str(file.metadata.to_dict())
            yield path, (json.dumps(file.read().to_pylist(), default=str) + bounds).encode()


def traces(uri: str, *names: str) -> set[str]:
    """Files that hold one of the names, but for the tombstones."""
    return {
        path
        for path, content in texts(uri)
        if "/deleted/" not in path and any(name.encode() in content for name in names)
    }


def check_gone(paths) -> None:
    assert traces(paths.root_uri, "secret-party", HIDDEN_ID, *CLIP_IDS) == set()


def test_no_byte_of_a_deleted_video_is_left(run):
    report = {"started_at": "x", "model": TAG, "config": {"inputs": [HIDDEN, "s3://videos"]}}
    catalog.write_run_report(run.paths, "r1", report)
    assert len(traces(run.paths.root_uri, "secret-party")) > 10
    deletion = delete_videos(run.paths, [HIDDEN])
    check_gone(run.paths)
    assert deletion.video_ids == (HIDDEN_ID,)
    assert deletion.models == (TAG,)
    assert deletion.reports == 1
    assert deletion.files > 4
    (report,) = catalog.read_run_reports(run.paths)
    assert report["config"]["inputs"] == [DELETED, "s3://videos"]
    left = LabelIndex.open(run.paths.root_uri).videos()["uri"].to_pylist()
    assert left == ["s3://videos/a.mp4", "s3://videos/b.mp4", "s3://videos/c.mp4"]
    assert not verify(run.paths).broken


def test_what_is_left_is_a_sound_index_for_every_reader_and_writer(run):
    delete_videos(run.paths, [HIDDEN])
    run = Run(run.paths, run_id="run-9")
    run.add(unit("s3://videos/new.mp4"))
    for name in TABLES:
        found = read_all(run.paths.root_uri, name)
        assert all(rows == found["deltalake"] for rows in found.values())
    compact(run.paths, TAG)
    check_gone(run.paths)
    assert not verify(run.paths).broken
    assert unit_states(run.paths, TAG).num_rows == 4


def test_a_deletion_after_compaction_rewrites_the_large_files(run):
    compact(run.paths, TAG, keep_history=True)
    delete_videos(run.paths, [HIDDEN_ID])
    check_gone(run.paths)
    assert not verify(run.paths).broken


def test_a_checkpoint_of_the_log_forgets_too(run):
    for name in TABLES:
        DeltaTable(run.paths.table(name)).create_checkpoint()
    run.add(unit("s3://videos/d.mp4"))
    delete_videos(run.paths, [HIDDEN])
    check_gone(run.paths)


def test_a_deleted_video_stays_out_until_somebody_wants_it(run):
    manifest = pa.table({"video_id": [HIDDEN_ID, ref("b").video_id]})
    assert without_deleted(manifest, run.paths, TAG) is manifest
    delete_videos(run.paths, [HIDDEN])
    assert deleted_video_ids(run.paths, TAG) == {HIDDEN_ID}
    assert deleted_video_ids(run.paths, "a model to come") == {HIDDEN_ID}
    left = without_deleted(manifest, run.paths, TAG)
    assert left["video_id"].to_pylist() == [ref("b").video_id]
    lift_deletions(run.paths, TAG, [HIDDEN_ID, ref("b").video_id])
    assert deleted_video_ids(run.paths, TAG) == set()


def test_all_that_is_kept_is_the_id(run):
    delete_videos(run.paths, [HIDDEN])
    folder = Path(run.paths.root_uri) / "deleted"
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [(HIDDEN_ID, b"")]


def test_one_model_or_all(run):
    new_index(run.paths.root_uri, "other")
    other = Run(run.paths, "other", "run-2")
    other.add(unit(HIDDEN), unit("s3://videos/a.mp4"))
    delete_videos(run.paths, [HIDDEN], TAG)
    assert deleted_video_ids(run.paths, TAG) == {HIDDEN_ID}
    assert deleted_video_ids(run.paths, "other") == set()
    assert unit_states(run.paths, "other").num_rows == 2
    assert all("model=other" in path or "_delta_log" in path
               for path in traces(run.paths.root_uri, "secret-party"))  # fmt: skip
    delete_videos(run.paths, [HIDDEN])
    check_gone(run.paths)
    assert not verify(run.paths).broken


def test_a_video_that_is_not_there_is_named_and_nothing_happens(run):
    before = traces(run.paths.root_uri, "secret-party")
    with pytest.raises(QueryError, match=r"no video 's3://videos/nope.mp4' \(nor 1 others\)"):
        delete_videos(run.paths, [HIDDEN, "s3://videos/nope.mp4", "0" * 32])
    assert traces(run.paths.root_uri, "secret-party") == before
    assert deleted_video_ids(run.paths, TAG) == set()
    with pytest.raises(QueryError, match="has no model 'nope'"):
        delete_videos(run.paths, [HIDDEN], "nope")


def test_a_job_at_work_is_not_disturbed(run):
    with (
        lease.held(run.paths, TAG, "2-of-4", "run-7", beat_seconds=0.05),
        pytest.raises(LeaseHeld, match="run-7"),
    ):
        delete_videos(run.paths, [HIDDEN])
    assert deleted_video_ids(run.paths, TAG) == set()


STEPS = ("mark_deleted", "_forget_in_reports", "_remove_rows", "_forget_in_log")


class Death(BaseException):
    """The end of the process, as far as the command is concerned."""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_deletion_that_dies_is_finished_by_the_same_command(run, monkeypatch, step, moment):
    original = getattr(delete, step)

    def deadly(*args):
        if moment == "before":
            raise Death
        original(*args)
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr(delete, step, deadly)
        with pytest.raises(Death):
            delete_videos(run.paths, [HIDDEN])
    delete_videos(run.paths, [HIDDEN])
    check_gone(run.paths)
    assert not verify(run.paths).broken


def test_a_deletion_on_s3(s3_folder):
    run = Run(new_index(f"{s3_folder}/index"))
    run.add(unit("s3://videos/a.mp4"), unit(HIDDEN, range(4)))
    delete_videos(run.paths, [HIDDEN])
    check_gone(run.paths)
    assert unit_states(run.paths, TAG).num_rows == 1
    assert deleted_video_ids(run.paths, TAG) == {HIDDEN_ID}
    lift_deletions(run.paths, TAG, [HIDDEN_ID])
    assert deleted_video_ids(run.paths, TAG) == set()
