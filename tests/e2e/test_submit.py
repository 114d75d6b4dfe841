"""`ray job submit` against a real head with token authentication."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from deltalake import DeltaTable

from indexer import LabelIndex
from tests.e2e.conftest import ARCHIVE_CLIPS
from tests.e2e.head import REPOSITORY, Head

VIDEOS = 90
JOB = "jobs/index_videos.py"


@pytest.fixture(scope="module")
def head():
    # Not a folder of pytest's: Ray's sockets lie in it, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        head = Head(Path(folder))
        try:
            yield head.wait()
        finally:
            head.stop()


def reports(index):
    found = [json.loads(path.read_text()) for path in (index / "runs").iterdir()]
    return sorted(found, key=lambda report: report["started_at"])


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_submitted_job_indexes_and_says_that_some_failed(head, archive, checkpoint, tmp_path):
    index = tmp_path / "index"
    options = ["--index", index, "--model", checkpoint, "--set", "sampling.min_seconds=0.1"]
    ended = head.submit(JOB, archive, *options, name="some")
    assert ended.returncode == 1, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert "3 videos indexed, 2 failed (1 empty, 1 not_a_video" in ended.stdout
    assert LabelIndex.open(str(index)).status()["clips"] == sum(ARCHIVE_CLIPS.values())
    assert head.jobs()["some"]["driver_exit_code"] == 1


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_exit_code_of_a_submitted_job_says_how_it_went(head, archive, checkpoint, tmp_path):
    index = tmp_path / "index"
    options = ["--index", index, "--model", checkpoint, "--set", "sampling.min_seconds=0.1"]
    good = head.submit(JOB, archive / "a.mp4", archive / "sub folder", *options, name="good")
    assert good.returncode == 0, good.stdout[-3000:] + good.stderr[-3000:]
    assert "2 videos indexed, 0 failed" in good.stdout
    some_failed = head.submit(JOB, archive, *options, name="some-failed")
    assert some_failed.returncode == 1, some_failed.stdout[-3000:]
    assert "1 videos indexed, 2 failed (1 empty, 1 not_a_video" in some_failed.stdout
    clips = LabelIndex.open(str(index)).status()["clips"]
    assert clips == sum(ARCHIVE_CLIPS.values())
    assert [(r["status"], r["videos"]["todo"], r["videos"]["skipped"]) for r in reports(index)] == [
        ("finished", 2, 0),
        ("finished", 3, 2),
    ]
    assert all(report["cluster"]["cpus"] == 2 for report in reports(index))
    refused = head.submit(JOB, archive, *options, "--sampling", "every", name="refused")
    assert "sampling.mode = 'every'" in refused.stdout
    fatal = head.submit(JOB, archive, *options, "--model", "/nowhere", name="fatal")
    assert "/nowhere: no such folder" in fatal.stdout
    names = ("good", "some-failed", "refused", "fatal")
    assert [head.jobs()[name]["driver_exit_code"] for name in names] == [0, 1, 2, 3]


@pytest.mark.ray
def test_nobody_submits_without_the_token(head):
    assert [head.status(), head.status("0" * 64), head.status(head.token)] == [401, 403, 200]
    job = {"entrypoint": "echo submitted", "submission_id": "without-a-token"}
    assert head.request(body=job)[0] == 401
    assert head.request(body=job, token="0" * 64)[0] == 403
    assert head.request(body=job, token="")[0] == 403
    assert "without-a-token" not in head.jobs()
    accepted = head.request(body=job | {"submission_id": "with-a-token"}, token=head.token)
    assert accepted[0] == 200, accepted
    assert head.ended("with-a-token")["driver_exit_code"] == 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stopped_job_leaves_a_report_and_goes_on_when_resubmitted(
    head, archive, checkpoint, tmp_path
):
    videos, index, config = tmp_path / "videos", tmp_path / "index", tmp_path / "job.toml"
    videos.mkdir()
    for number in range(VIDEOS):
        shutil.copy2(archive / "long.mp4", videos / f"{number:03d}.mp4")
    config.write_text(
        f"inputs = ['{videos}']\nindex = '{index}'\n[model]\nid = '{checkpoint}'\n"
        "[sampling]\nmin_seconds = 0.1\n[cluster]\nblock_clips = 1\n"
        "[output]\ncommit_seconds = 0.01\n"
    )
    assert head.submit(JOB, "--config", config, name="stopped", wait=False).returncode == 0
    while outcomes(index) < 2 and head.jobs()["stopped"]["status"] in {"PENDING", "RUNNING"}:
        time.sleep(0.05)
    stopped = head.ray("job", "stop", "stopped")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert head.ended("stopped")["status"] == "STOPPED"
    (report,) = reports(index)
    assert report["status"] == "interrupted"
    assert "run the same command again" in head.ray("job", "logs", "stopped").stdout
    done = outcomes(index)
    assert 2 <= done < VIDEOS
    again = head.submit(JOB, "--config", config, name="again")
    assert again.returncode == 0, again.stdout[-3000:]
    assert f"{VIDEOS - done} videos indexed, 0 failed, {done} skipped" in again.stdout
    assert [report["status"] for report in reports(index)] == ["interrupted", "finished"]
    assert LabelIndex.open(str(index)).status()["clips"] == 13 * VIDEOS


def outcomes(index):
    with contextlib.suppress(Exception):  # not there yet, in one of several ways
        return DeltaTable(str(index / "videos")).to_pyarrow_table().num_rows
    return 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_installed_wheel_needs_no_working_dir(head, archive, checkpoint, tmp_path):
    """As on a cluster whose image has the package: Python finds it installed, and no checkout."""
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", installed]
    subprocess.run([*pip, REPOSITORY], check=True, env=dict(os.environ), cwd=tmp_path)
    index = tmp_path / "index"
    options = ["--index", index, "--model", checkpoint, "--set", "sampling.min_seconds=0.1"]
    command = ["-m", "indexer", "run", archive / "a.mp4", *options]
    ended = head.submit(
        *command, name="wheel", working_dir=None, env={"PYTHONPATH": str(installed)}
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
    head.submit(
        "-c", "import indexer; print(indexer.__file__)", name="where", working_dir=None,
        env={"PYTHONPATH": str(installed)},
    )  # fmt: skip
    printed = head.ray("job", "logs", "where").stdout  # a short job ends before its log is streamed
    assert f"{installed}/indexer/__init__.py" in printed
    assert LabelIndex.open(str(index)).status()["clips"] == ARCHIVE_CLIPS["a.mp4"]
