"""The real job on several nodes, of which some go, and many of whose workers are killed."""

import logging
import time

import pytest

from tests.faults.cluster import Cluster
from tests.faults.forks import lasting_rows
from tests.faults.ray_job import Job, kill, workers, write_archive
from tests.model.stress import write_stress_checkpoint

VIDEOS = 120
LOGGER = logging.getLogger(__name__)
OPTIONS = ("precision.model=float32",)
DECODE = {"num_cpus": 2, "labels": {"role": "decode"}}
GPU = {"num_cpus": 1, "num_gpus": 1, "labels": {"role": "gpu"}}

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("archive"), VIDEOS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "stress"
    return write_stress_checkpoint(folder, num_frames=4, frame_rate_divisor=4)


@pytest.fixture(scope="module")
def clean(archive, model, tmp_path_factory):
    """Rows of a run on one node, without faults."""
    index = tmp_path_factory.mktemp("clean") / "index"
    code, told = Job(archive, index, model, options=OPTIONS).end()
    assert code == 1, told  # one video is none
    rows = lasting_rows(str(index))
    assert (len(rows["clips"]), len(rows["videos"])) == (13 * VIDEOS, 4 * VIDEOS + 1)
    return rows


def start(cluster, archive, model, index, *options):
    return Job(
        archive, index, model, module="tests.faults.faked_gpu", env=cluster.env,
        options=(*OPTIONS, *options),
    )  # fmt: skip


def nodes_of(cluster):
    """Where the actors of each stage have been."""
    found = {}
    for stage, node in cluster.actors():
        found.setdefault(stage, set()).add(node)
    return found


def test_lost_nodes_and_killed_actors_cost_nothing(archive, model, clean, tmp_path):
    with Cluster() as cluster:
        decoders = [cluster.add(**DECODE) for _ in range(2)]
        gpus = [cluster.add(**GPU)]
        job, killed = start(cluster, archive, model, tmp_path / "index"), 0
        events = (
            "DecodeVideos", "ScoreUnits", "WriteUnits", "decode node", "ScoreUnits",
            "DecodeVideos", "gpu node", "ScoreUnits", "WriteUnits", "DecodeVideos",
        )  # fmt: skip
        for event in events:
            due = job.commits() + 1  # it still does something between two events
            assert job.wait_for(lambda due=due: job.commits() >= due), job.end()
            LOGGER.info("%s is killed after %d commits", event, due)
            if event == "decode node":
                cluster.kill(decoders[0])
            elif event == "gpu node":
                cluster.kill(gpus[0])
                gpus.append(cluster.add(**GPU))
            else:
                assert job.wait_for(lambda event=event: workers(event, cluster.pid)), job.end()
                killed += kill(workers(event, cluster.pid)[0])
        code, told = job.end()
        where = nodes_of(cluster)
    LOGGER.info("%d actors and 2 nodes killed; stages were on %s", killed, where)
    assert killed == 8
    assert code == 1, told
    assert lasting_rows(str(tmp_path / "index")) == clean
    assert where["DecodeVideos"] | where["WriteUnits"] <= set(decoders)
    assert where["ScoreUnits"] == set(gpus)


GROWING = (
    "cluster.autoscaling=true", "cluster.decode_actors=4", "cluster.model_actors=2",
    "model.device=cuda", "decode.deadline_seconds=10",
)  # fmt: skip


def test_a_job_waits_for_the_nodes_that_it_asked_for(archive, model, clean, tmp_path):
    """On a head alone at first; another node for the model comes later."""
    with Cluster() as cluster:
        nodes = [cluster.add(**DECODE)]
        job = start(cluster, archive, model, tmp_path / "index", *GROWING)
        assert job.wait_for(lambda: "DecodeVideos" in nodes_of(cluster)), job.end()
        nodes.append(cluster.add(**GPU))
        code, told = job.end()
        where = nodes_of(cluster)
    assert code == 1, told
    assert "up to 4 decoding, up to 2 running the model" in told
    assert lasting_rows(str(tmp_path / "index")) == clean
    assert where["DecodeVideos"] == {nodes[0]}
    assert where["ScoreUnits"] == {nodes[1]}


def test_a_job_that_waits_in_vain_says_for_what(archive, model, tmp_path):
    with Cluster() as cluster:
        cluster.add(**DECODE)
        stall = (*GROWING, "cluster.no_progress_seconds=30")
        code, told = start(cluster, archive, model, tmp_path / "index", *stall).end()
    assert code == 3, told
    assert "nothing has moved for 30 s (cluster.no_progress_seconds)" in told
    assert "ScoreUnits (" in told
    assert "up to 4 decode actors of 0.99 CPU on nodes of the role decode, 2 model actors" in told
    assert "of the role decode: 2 CPUs, 0 GPUs" in told
    assert "run the same command again" in told


def test_the_work_of_a_node_with_a_spot_notice_is_done_elsewhere(archive, model, clean, tmp_path):
    with Cluster() as cluster:
        going, _ = cluster.add(**DECODE), cluster.add(**DECODE)
        cluster.add(**GPU)
        job = start(cluster, archive, model, tmp_path / "index")
        assert job.wait_for(lambda: len(nodes_of(cluster).get("DecodeVideos", ())) == 2), job.end()
        due = job.commits() + 1
        assert job.wait_for(lambda: job.commits() >= due), job.end()
        assert cluster.drain(going, seconds=5)
        time.sleep(5)
        cluster.kill(going)  # as the cloud does: Ray itself leaves a drained node running
        code, told = job.end()
    assert code == 1, told
    assert lasting_rows(str(tmp_path / "index")) == clean


def test_a_killed_driver_is_submitted_again_to_the_same_cluster(archive, model, clean, tmp_path):
    with Cluster() as cluster:
        for node in (DECODE, GPU):
            cluster.add(**node)
        job = start(cluster, archive, model, tmp_path / "index")
        assert job.wait_for(lambda: job.commits() >= 3), job.end()
        job.kill()
        code, told = start(cluster, archive, model, tmp_path / "index").end()
    assert code in {0, 1}, told  # the unreadable video may have been of the first one
    assert "already done" in told
    assert lasting_rows(str(tmp_path / "index")) == clean
