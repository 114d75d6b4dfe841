"""One Ray for the whole session, and small inputs whose every row is known."""

import os
import socket

import pytest
import ray

from tests.model.stress import write_stress_checkpoint
from tests.s3server import weed_binary
from tests.video.synth import Synth


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")


@pytest.fixture(scope="session")
def _metrics_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def metrics_url(_metrics_port, ray_session):
    """Where the session's Ray tells Prometheus of itself."""
    return f"http://127.0.0.1:{_metrics_port}/metrics"


@pytest.fixture(scope="session")
def ray_session(request, _metrics_port):
    if weed_binary() is not None:
        request.getfixturevalue("s3")  # Ray's processes inherit the credentials in the environment
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        _metrics_export_port=_metrics_port,
        _system_config={"metrics_report_interval_ms": 1000},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A seeded stress checkpoint: clips of 4 frames, 4 apart, 0.53 s at 30 frames a second."""
    folder = tmp_path_factory.mktemp("model") / "stress"
    return str(write_stress_checkpoint(folder, num_frames=4, frame_rate_divisor=4))


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """Three good videos, one of them long, and two bad ones."""
    folder = tmp_path_factory.mktemp("archive")
    (folder / "sub folder").mkdir()
    (folder / "a.mp4").write_bytes(Synth(frames=40).encode())
    (folder / "sub folder" / "b #1 é.mkv").write_bytes(
        Synth(frames=33, fps=25, container="matroska").encode()
    )
    (folder / "long.mp4").write_bytes(Synth(frames=200, width=32, height=32).encode())
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 64)
    return folder


ARCHIVE_CLIPS = {"a.mp4": 3, "b #1 é.mkv": 3, "long.mp4": 13}
