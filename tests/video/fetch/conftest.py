import fsspec
import pytest

from indexer.s3 import S3Store
from indexer.video import fetch, transfer
from tests.video.fetch.stores import DATA, Faulty
from tests.video.objectserver import run_object_server


@pytest.fixture
def store(monkeypatch):
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    for name in ("faults", "opens", "data", "details"):
        monkeypatch.setattr(Faulty, name, getattr(Faulty, name))  # put back after the test
    monkeypatch.setattr(transfer, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(fetch, "CHUNK_BYTES", 1000)
    return Faulty


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(transfer, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture(scope="module")
def _object_server():
    with run_object_server() as serve:
        yield serve


@pytest.fixture
def server(_object_server, monkeypatch, quick):
    state = _object_server(DATA)
    for name, value in {
        "AWS_ENDPOINT_URL": state.endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "SECRET",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    S3Store.clear_instance_cache()
    yield state
    state.closing.set()
    S3Store.clear_instance_cache()
