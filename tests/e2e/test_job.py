import json
import os
import shutil
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from deltalake import DeltaTable

from indexer import LabelIndex
from indexer.errors import ConfigError, LeaseHeld, ManifestError, ModelError, StorageError
from indexer.metrics import ClusterReady, JobFinished, JobPlanned, Progress
from indexer.runtime.estimate import describe_plan
from indexer.runtime.todo import plan_job
from indexer.table import lease
from indexer.table.paths import IndexPaths
from tests.e2e.conftest import ARCHIVE_CLIPS
from tests.e2e.jobs import TABLES, configuration, lasting_rows, run
from tests.model.stress import write_stress_checkpoint
from tests.table.readers import ENGINES, read_all
from tests.video.synth import Synth

pytestmark = pytest.mark.usefixtures("ray_session")


class Listener:
    def __init__(self, interrupt_after_units=None):
        self.events = []
        self._interrupt_after_units = interrupt_after_units

    def on_event(self, event):
        self.events.append(event)
        limit = self._interrupt_after_units
        if limit is None or threading.current_thread() is not threading.main_thread():
            return  # Ctrl-C reaches the main thread only
        if isinstance(event, Progress) and event.committed_units >= limit:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def clean(archive, checkpoint, tmp_path_factory, ray_session):
    """An index of the archive, made as planned and in one go; never changed by a test."""
    folder = tmp_path_factory.mktemp("clean")
    index, file, listener = folder / "index", folder / "plan.json", Listener()
    settings = {"sampling__segment_clips": 4, "plan": str(file)}
    facts = describe_plan(plan_job(configuration(archive, index, checkpoint, **settings)))
    file.write_text(json.dumps(facts | {"estimated_hours": 1 / 3600}))
    result = run(archive, index, checkpoint, listener, **settings)
    return index, result, listener.events


def names(rows):
    return Counter(Path(row["uri"]).name for row in rows)


def test_every_video_has_exactly_one_outcome(clean):
    index, result, _ = clean
    assert (result.videos_indexed, result.videos_failed, result.counts.clips) == (3, 2, 19)
    videos = LabelIndex.open(str(index)).videos().to_pylist()
    outcomes = {Path(v["uri"]).name: (v["status"], v["error_code"]) for v in videos}
    assert outcomes == {
        "a.mp4": ("indexed", None),
        "b #1 é.mkv": ("indexed", None),
        "long.mp4": ("indexed", None),
        "empty.mp4": ("failed", "empty"),
        "noise.mp4": ("failed", "not_a_video"),
    }


def test_the_report_holds_the_plan_against_what_came(clean):
    index, result, _ = clean
    told = result.report["estimate"]
    assert (told["share"], told["clips"]) == (1.0, {"estimate": 19.0, "came": 19})
    assert told["hours"]["estimate"] == pytest.approx(1 / 3600, abs=1e-4)
    assert told["hours"]["came"] > 0
    (written,) = LabelIndex.open(str(index)).status()["runs"]
    assert written["estimate"] == told


def test_a_plan_of_another_job_is_refused_before_anything_is_written(archive, checkpoint, tmp_path):
    index, file = tmp_path / "index", tmp_path / "plan.json"
    file.write_text(json.dumps({"model": "other", "todo_bytes": 1}))
    with pytest.raises(ConfigError, match="made for other"):
        run(archive, index, checkpoint, plan=str(file))
    assert not index.exists()


def test_clips_embeddings_and_postings_belong_together(clean):
    index, _, _ = clean
    rows = {table: read_all(str(index), table)["deltalake"] for table in TABLES}
    assert names(rows["clips"]) == ARCHIVE_CLIPS
    ids = Counter(row["clip_id"] for row in rows["clips"])
    assert set(ids.values()) == {1}
    assert Counter(row["clip_id"] for row in rows["embeddings"]) == ids
    assert {row["clip_id"] for row in rows["labels"]} == set(ids)
    assert Counter(row["unit_index"] for row in rows["videos"] if "long" in row["uri"]) == {
        0: 1, 1: 1, 2: 1, 3: 1,
    }  # fmt: skip


def test_every_engine_reads_the_same_rows(clean):
    for table in TABLES:
        rows = read_all(str(clean[0]), table)
        for engine in ENGINES:
            assert rows[engine] == rows["deltalake"], (table, engine)
        assert rows["deltalake"]


def test_the_observer_hears_of_the_whole_job_in_order(clean):
    _, result, events = clean
    kinds = [type(event) for event in events]
    assert kinds[:2] == [JobPlanned, ClusterReady]
    assert kinds[-1] is JobFinished
    assert set(kinds[2:-1]) == {Progress}
    last = events[-2]
    assert (last.videos_indexed, last.videos_failed, last.committed_units) == (3, 2, 8)
    assert result.counts.failures == {"empty": 1, "not_a_video": 1}


def test_the_report_is_written_and_says_what_happened(clean):
    index, result, _ = clean
    report = json.loads((index / "runs" / f"{result.run_id}.json").read_text())
    assert report["status"] == "finished"
    assert report["videos"] == {
        "listed": 5, "skipped": 0, "todo": 5, "indexed": 3, "failed": 2, "changed": 0,
    }  # fmt: skip
    assert report["clips"] == 19
    assert report["failed_units"] == {"empty": 1, "not_a_video": 1}
    assert report["verdict"].startswith(f"{report['bottleneck']}-bound: ")
    assert set(report["busy"]) == {"storage", "decode", "model", "write"}
    assert all(0 <= share <= 1 for share in report["busy"].values())
    assert {Path(video["uri"]).name for video in report["slowest_videos"]} == {
        *ARCHIVE_CLIPS, "empty.mp4", "noise.mp4"
    }  # fmt: skip
    seconds = report["stage_seconds"]
    assert seconds["commit"] > 0
    assert 0 < seconds["codec_cpu"] < seconds["decode_cpu"]
    assert 0 < report["decoded_frames_per_cpu_second"] < report["codec_frames_per_cpu_second"]
    assert report["cost"]["cpu_hours"] == pytest.approx(2 * report["elapsed_seconds"] / 3600, 0.01)
    assert report["cost"]["price"] is None
    assert report["video_hours"] == pytest.approx((40 / 30 + 33 / 25 + 200 / 30) / 3600, abs=1e-5)


def test_prometheus_can_scrape_what_the_job_did(clean, metrics_url):
    _, result, _ = clean
    wanted = f'run="{result.run_id}"'
    deadline = time.monotonic() + 60
    found = []
    while not found and time.monotonic() < deadline:
        time.sleep(0.5)
        with urllib.request.urlopen(metrics_url, timeout=10) as answer:  # noqa: S310
            text = answer.read().decode()
        lines = [line for line in text.splitlines() if wanted in line]
        found = [line for line in lines if line.startswith("ray_indexer_clips_total{")]
    assert found, lines
    assert float(found[0].rpartition(" ")[2]) == 19
    outcomes = [line for line in lines if line.startswith("ray_indexer_videos_total{")]
    assert sorted(float(line.rpartition(" ")[2]) for line in outcomes) == [2, 3]


def test_a_second_run_does_nothing(clean, archive, checkpoint, tmp_path):
    index = shutil.copytree(clean[0], tmp_path / "index")
    before = lasting_rows(index)
    listener = Listener()
    result = run(archive, index, checkpoint, listener, sampling__segment_clips=4)
    assert (result.skipped_videos, result.skipped_failed_videos, result.counts.units) == (5, 2, 0)
    assert ClusterReady not in {type(event) for event in listener.events}
    assert lasting_rows(index) == before


@pytest.mark.parametrize("units", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_an_interrupted_run_resumes_to_the_rows_of_a_clean_one(
    clean, archive, checkpoint, tmp_path, units
):
    index = tmp_path / "index"
    arguments = {"sampling__segment_clips": 4, "output__commit_seconds": 0.001}
    arguments |= {"cluster__block_clips": 1}
    first = run(archive, index, checkpoint, Listener(interrupt_after_units=units), **arguments)
    assert first.status == "interrupted"
    # the first unit may be a failure, and the other tables not there yet
    units_done = DeltaTable(str(index / "videos")).to_pyarrow_table().num_rows
    assert 0 < units_done < 8
    second = run(archive, index, checkpoint, **arguments)
    assert second.status == "finished"
    assert second.counts.units == 8 - units_done
    assert lasting_rows(index) == lasting_rows(clean[0])


@pytest.mark.slow
def test_a_changed_video_is_indexed_anew_and_its_old_rows_go(checkpoint, tmp_path):
    videos, index = tmp_path / "videos", tmp_path / "index"
    videos.mkdir()
    (videos / "same.mp4").write_bytes(Synth(frames=20).encode())
    (videos / "new.mp4").write_bytes(Synth(frames=60).encode())
    run(videos, index, checkpoint)
    (videos / "new.mp4").write_bytes(Synth(frames=33, noise=40).encode())
    result = run(videos, index, checkpoint)
    assert (result.videos_indexed, result.skipped_videos) == (1, 1)
    fresh = tmp_path / "fresh"
    run(videos, fresh, checkpoint)
    assert lasting_rows(index) == lasting_rows(fresh)


def test_failed_videos_are_left_alone_until_they_are_asked_for(checkpoint, tmp_path):
    videos, index = tmp_path / "videos", tmp_path / "index"
    videos.mkdir()
    good = Synth(frames=20).encode()
    bad, locked = videos / "bad.mp4", videos / "empty.mp4"
    bad.write_bytes(b"\0" * len(good))
    locked.write_bytes(b"")
    run(videos, index, checkpoint)
    stamp = bad.stat().st_mtime_ns
    bad.write_bytes(good)  # the same size and time: only --retry can know
    os.utime(bad, ns=(stamp, stamp))
    assert run(videos, index, checkpoint).counts.units == 0
    assert run(videos, index, checkpoint, retry="timeout").counts.units == 0
    again = run(videos, index, checkpoint, retry="all")
    assert (again.videos_indexed, again.videos_failed, again.skipped_videos) == (1, 1, 0)
    attempts = {
        Path(row["uri"]).name: (row["status"], row["attempts"])
        for row in LabelIndex.open(str(index)).videos().to_pylist()
    }
    assert attempts == {"bad.mp4": ("indexed", 2), "empty.mp4": ("failed", 2)}


@pytest.mark.slow
def test_a_video_that_vanishes_between_runs_gives_its_missing_units_an_outcome(
    archive, checkpoint, tmp_path
):
    videos, index = tmp_path / "videos", tmp_path / "index"
    videos.mkdir()
    shutil.copy2(archive / "long.mp4", videos / "long.mp4")
    arguments = {"sampling__segment_clips": 4, "output__commit_seconds": 0.001}
    arguments |= {"cluster__block_clips": 1}
    run(videos, index, checkpoint, Listener(interrupt_after_units=1), **arguments)
    manifest = tmp_path / "manifest.csv"
    stat = (videos / "long.mp4").stat()
    manifest.write_text(
        "uri,size_bytes,content_key\n"
        f"{videos / 'long.mp4'},{stat.st_size},{stat.st_size}-{stat.st_mtime_ns}\n"
    )
    (videos / "long.mp4").unlink()
    result = run(manifest, index, checkpoint, **arguments)
    assert (result.videos_indexed, result.videos_failed) == (0, 1)
    rows = read_all(str(index), "videos")["deltalake"]
    assert sorted(row["unit_index"] for row in rows) == [0, 1, 2, 3]
    assert {row["units"] for row in rows} == {4}
    assert {row["error_code"] for row in rows} == {None, "missing"}
    assert run(manifest, index, checkpoint, **arguments).counts.units == 0


def test_two_models_lie_side_by_side(clean, archive, checkpoint, tmp_path):
    index = shutil.copytree(clean[0], tmp_path / "index")
    before = lasting_rows(index)
    other = write_stress_checkpoint(tmp_path / "other", num_frames=4, frame_rate_divisor=4, seed=1)
    tag = run(archive / "a.mp4", index, other).tag
    assert tag != clean[1].tag
    after = lasting_rows(index)
    for table in TABLES:
        assert [row for row in after[table] if row["model"] == clean[1].tag] == before[table]
        of_one_video = [row for row in before[table] if row.get("uri", "").endswith("/a.mp4")]
        if table != "embeddings":  # which has no uri
            assert len(after[table]) - len(before[table]) == len(of_one_video)


@pytest.mark.slow
def test_limit_takes_the_first_videos_and_the_next_run_the_others(archive, checkpoint, tmp_path):
    index = tmp_path / "index"
    assert run(archive, index, checkpoint, limit=2).counts.units == 2
    assert run(archive, index, checkpoint).counts.units == 3
    assert run(archive, index, checkpoint).counts.units == 0


@pytest.mark.slow
def test_extra_columns_of_a_manifest_reach_the_videos_table(archive, checkpoint, tmp_path):
    manifest = tmp_path / "list.csv"
    manifest.write_text(f'uri,camera,"odd ""name"""\n{archive / "a.mp4"},north,7\n')
    run(manifest, tmp_path / "index", checkpoint)
    (row,) = read_all(str(tmp_path / "index"), "videos")["duckdb"]
    assert json.loads(row["extra"]) == {"camera": "north", 'odd "name"': "7"}


def test_overwriting_replaces_the_listed_videos_and_no_others(clean, archive, checkpoint, tmp_path):
    index = shutil.copytree(clean[0], tmp_path / "index")
    arguments = {"sampling__segment_clips": 4, "if_exists": "overwrite"}
    result = run(archive / "long.mp4", index, checkpoint, **arguments)
    assert (result.videos_indexed, result.counts.clips, result.skipped_videos) == (1, 13, 0)
    assert lasting_rows(index) == lasting_rows(clean[0])
    runs = Counter(row["run_id"] for row in read_all(str(index), "clips")["deltalake"])
    assert runs == {result.run_id: 13, clean[1].run_id: 6}


def test_a_job_whose_shard_another_is_writing_is_refused(clean, archive, checkpoint, tmp_path):
    index = shutil.copytree(clean[0], tmp_path / "index")
    listener = Listener()
    arguments = {"sampling__segment_clips": 4, "if_exists": "overwrite"}
    held = lease.held(IndexPaths(str(index)), clean[1].tag, "1-of-1", "other", beat_seconds=0.2)
    with held, pytest.raises(LeaseHeld, match=r"run other on .* is writing shard 1/1"):
        run(archive, index, checkpoint, listener, **arguments)
    assert listener.events == []
    assert lasting_rows(index) == lasting_rows(clean[0])


@pytest.mark.slow
def test_shards_share_an_archive_out(clean, archive, checkpoint, tmp_path):
    index, done = tmp_path / "index", 0
    for shard in ("1/2", "2/2"):
        result = run(archive, index, checkpoint, sampling__segment_clips=4, shard=shard)
        done += result.videos_indexed + result.videos_failed
    assert done == 5
    assert lasting_rows(index) == lasting_rows(clean[0])


def test_if_exists_error_refuses_to_add_to_an_index(clean, archive, checkpoint):
    with pytest.raises(ConfigError, match="already has 5 of these videos"):
        run(archive, clean[0], checkpoint, sampling__segment_clips=4, if_exists="error")


def test_another_recipe_under_the_same_tag_is_refused(clean, archive, checkpoint):
    tag = clean[1].tag
    with pytest.raises(ConfigError, match=r"sampling\.hop_seconds"):
        run(archive, clean[0], checkpoint, output__tag=tag, sampling__hop_seconds=1)


@pytest.mark.slow
def test_a_run_that_would_score_in_another_dtype_than_the_first_is_refused(
    archive, checkpoint, tmp_path
):
    index, arguments = tmp_path / "index", {"output__tag": "mine", "precision__model": "auto"}
    result = run(archive / "a.mp4", index, checkpoint, **arguments)
    kept = IndexPaths(str(index)).precision_json("mine")
    assert json.loads(Path(kept).read_text()) == {"model": result.report["dtype"]}
    Path(kept).write_text('{"model": "float16"}')  # as if that run had had a GPU
    rows = lasting_rows(index)
    with pytest.raises(ConfigError, match="was scored in float16"):
        run(archive, index, checkpoint, **arguments)
    assert lasting_rows(index) == rows


@pytest.mark.slow
def test_weights_that_change_under_a_running_job_stop_it(archive, tmp_path):
    model = write_stress_checkpoint(tmp_path / "model", num_frames=4)

    class Vandal(Listener):
        def on_event(self, event):
            if isinstance(event, JobPlanned):
                (model / "model.safetensors").write_bytes(b"gone")

    with pytest.raises(ModelError, match="safetensors"):
        run(archive, tmp_path / "index", model, Vandal())
    (report,) = (tmp_path / "index" / "runs").iterdir()
    assert json.loads(report.read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"inputs": "/no/such/folder"}, ManifestError, "/no/such/folder"),
        ({"model": "/no/such/model"}, ModelError, "/no/such/model"),
        ({"index": "/proc/index"}, StorageError, "/proc/index"),
        ({"index": "ftp://host/index"}, ConfigError, "scheme 'ftp' is not allowed"),
        ({"retry": "sometimes"}, ConfigError, "retry = 'sometimes'"),
    ],
)
def test_what_cannot_work_is_refused_before_the_cluster_is_asked(
    archive, checkpoint, tmp_path, change, error, words
):
    listener = Listener()
    arguments = {"inputs": archive, "index": tmp_path / "index", "model": checkpoint} | change
    with pytest.raises(error, match=words):
        run(observer=listener, **arguments)
    assert ClusterReady not in {type(event) for event in listener.events}
