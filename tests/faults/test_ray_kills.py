"""The real job on Ray: its driver, or one of its workers, is killed at some moment."""

import itertools
import json
import logging
import random
import re
import shutil
import socket
import time

import pytest

from tests.faults.forks import lasting_rows
from tests.faults.ray_job import Job, kill, workers, write_archive
from tests.model.stress import write_stress_checkpoint
from tests.ray_env import own_ray_env

VIDEOS = 12
HOST = socket.gethostname()
ROW = "2 actors of DyingActor in a row could not be made"
LOGGER = logging.getLogger(__name__)
STAGES = ("DecodeVideos", "ScoreUnits", "WriteUnits")

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("archive"), VIDEOS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "stress"
    return write_stress_checkpoint(folder, num_frames=4, frame_rate_divisor=4)


@pytest.fixture(scope="module")
def clean(archive, model, driver_env, tmp_path_factory):
    index = tmp_path_factory.mktemp("clean") / "index"
    job = Job(archive, index, model, env=driver_env)
    code, told = job.end()
    assert code == 1, told  # one video is none
    rows = lasting_rows(str(index))
    assert (len(rows["clips"]), len(rows["videos"])) == (13 * VIDEOS, 4 * VIDEOS + 1)
    return rows, job.commits()


def check_kills(archive, model, clean, index, kills, rng, *, env=None):
    rows, commits = clean
    done = 0
    for _ in range(kills):
        job = Job(archive, index, model, env=env)
        wanted = job.commits() + rng.randint(0, commits // (kills + 1))
        if job.wait_for(lambda job=job, wanted=wanted: job.commits() >= wanted):
            time.sleep(rng.random() * 0.2)
            if job.process.poll() is None:
                job.kill()
                done += 1
                continue
        job.end()
    code, told = Job(archive, index, model, env=env).end()
    assert code in (0, 1), told
    assert lasting_rows(str(index)) == rows
    return done


@pytest.mark.timeout(600)
def test_a_driver_that_is_killed_leaves_what_a_clean_run_leaves(
    archive, model, clean, driver_env, tmp_path
):
    index, rng = tmp_path / "index", random.Random(1)
    assert check_kills(archive, model, clean, index, 1, rng, env=driver_env) == 1
    reports = [json.loads(path.read_text()) for path in (index / "runs").iterdir()]
    assert sorted(report["status"] for report in reports) == ["finished", "running"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_of_the_driver(archive, model, clean, tmp_path):
    """Each with a Ray of its own, which dies with it."""
    rng = random.Random(2)
    kills = [check_kills(archive, model, clean, tmp_path / str(n), 4, rng) for n in range(5)]
    assert sum(kills) >= 15


@pytest.mark.soak
@pytest.mark.timeout(21600)
def test_two_hundred_kills_of_the_driver(archive, model, clean, driver_env, tmp_path):
    """On a cluster that outlives its drivers: a dead one's workers may go on for a moment."""
    rng, killed = random.Random(3), 0
    for number in itertools.count():
        index = tmp_path / str(number)
        killed += check_kills(archive, model, clean, index, 10, rng, env=driver_env)
        LOGGER.info("%d drivers were killed, and %d indexes are right", killed, number + 1)
        if killed >= 200:
            break
        shutil.rmtree(index)


def check_worker_kills(archive, model, clean, index, stages):
    job, killed = Job(archive, index, model), []
    for number, stage in enumerate(stages):
        assert job.wait_for(lambda number=number: job.commits() >= 2 + 3 * number), job.end()
        killed += [pid for pid in workers(stage, job.process.pid) if kill(pid)]
    code, told = job.end()
    assert len(killed) >= len(stages)
    assert code == 1, told  # the run itself goes on to its end; one video is none
    assert lasting_rows(str(index)) == clean[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_that_are_killed_cost_nothing(archive, model, clean, tmp_path):
    check_worker_kills(archive, model, clean, tmp_path / "index", STAGES)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stage", STAGES)
def test_a_worker_that_is_killed_again_and_again(archive, model, clean, tmp_path, stage):
    check_worker_kills(archive, model, clean, tmp_path / "index", [stage] * 3)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("how", "words"),
    [
        (
            "raises",
            rf"{ROW}, the last on node \S+: .*on {HOST}:\d+: RuntimeError: this GPU is broken",
        ),
        ("killed when made", r"an actor of DyingActor died 2 times, the last on node [\d.]+:"),
        ("killed at work", r"an actor of DyingActor died 2 times, the last on node [\d.]+:"),
    ],
)
def test_actors_that_die_whenever_they_are_made_end_the_job(archive, model, tmp_path, how, words):
    env = own_ray_env() | {"DYING": how}
    job = Job(archive, tmp_path / "index", model, module="tests.faults.dying", env=env)
    code, told = job.end()
    assert code == 3, told
    assert re.search(words, told), told
    assert "run the same command again" in told
