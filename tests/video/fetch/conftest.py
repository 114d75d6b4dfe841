import fsspec
import pytest

from indexer.video import fetch, transfer
from tests.video.fetch.stores import DATA, Faulty
from tests.video.objectserver import run_object_server, used_for_s3


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
    with used_for_s3(state, monkeypatch):
        yield state
