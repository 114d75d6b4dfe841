"""Ctrl-C and SIGTERM end the real command with a report, and the same command resumes."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from deltalake import DeltaTable

from indexer import LabelIndex
from indexer.table.paths import IndexPaths
from tests.ray_env import own_ray_env

REPOSITORY = Path(__file__).resolve().parents[2]
VIDEOS = 16
PATIENCE_SECONDS = 150


@pytest.fixture(scope="module")
def many(archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    for number in range(VIDEOS):
        shutil.copy2(archive / "long.mp4", folder / f"{number:03d}.mp4")
    return folder


def start(inputs, index, model, env):
    options = ["sampling.min_seconds=0.1", "cluster.block_clips=1", "output.commit_seconds=0.01"]
    settings = [part for option in options for part in ("--set", option)]
    command = [sys.executable, "-m", "indexer", "run", inputs, "--index", index, "--model", model]
    return subprocess.Popen(
        [*map(str, command), *settings],
        cwd=REPOSITORY,
        env=env or own_ray_env(),
        stderr=subprocess.PIPE,
        text=True,
    )


def outcomes(index):
    try:
        return DeltaTable(IndexPaths(str(index)).table("videos")).to_pyarrow_table().num_rows
    except Exception:  # noqa: BLE001 - not there yet, in one of several ways
        return 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_resumable_index(many, checkpoint, tmp_path, number):
    check_signal(many, checkpoint, tmp_path / "index", number)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sigterm_on_a_cluster_leaves_a_resumable_index(many, checkpoint, tmp_path, driver_env):
    check_signal(many, checkpoint, tmp_path / "index", signal.SIGTERM, driver_env)


def check_signal(many, checkpoint, index, number, env=None):
    job = start(many, index, checkpoint, env)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while outcomes(index) < 2 and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(number)
    _, told = job.communicate(timeout=PATIENCE_SECONDS)
    assert job.returncode == 130, told
    assert "run the same command again" in told
    (report,) = (json.loads(path.read_text()) for path in (index / "runs").iterdir())
    assert report["status"] == "interrupted"
    done = outcomes(index)
    assert 2 <= done < VIDEOS
    again = start(many, index, checkpoint, env)
    _, told = again.communicate(timeout=PATIENCE_SECONDS)
    assert again.returncode == 0, told
    assert f"{VIDEOS - done} videos indexed, 0 failed, {done} skipped" in told
    status = LabelIndex.open(str(index)).status()
    assert status["videos"] == {"indexed": VIDEOS, "failed": 0, "incomplete": 0}
    assert status["clips"] == 13 * VIDEOS
