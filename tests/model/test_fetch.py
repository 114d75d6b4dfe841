"""Models from elsewhere: fsspec URLs by fsspec's memory file system, the hub by a small server."""

import hashlib
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import huggingface_hub.constants as hub_constants
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from indexer.errors import ConfigError, ModelError
from indexer.model.weights import load_state, resolve
from tests.model.stress import write_stress_checkpoint

COMMIT = "c0ffee" + 34 * "0"
REPO = "someone/tiny-timesformer"


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    use_hub(monkeypatch, "http://127.0.0.1:9")


def use_hub(monkeypatch, endpoint):
    """What HF_ENDPOINT does when it is set before the process starts."""
    monkeypatch.setattr(hub_constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def folder(tmp_path):
    return write_stress_checkpoint(tmp_path / "ck")


@pytest.fixture
def url(folder):
    fs = fsspec.filesystem("memory")
    fs.put(str(folder), "/bucket/models/ck", recursive=True)
    fs.pipe_file("/bucket/models/ck/pytorch_model.bin", b"pickle")
    yield "memory://bucket/models/ck"
    fs.rm("/bucket", recursive=True)


resolve_url = partial(resolve, schemes=("memory",))


def cache_entries(tmp_path):
    return sorted((tmp_path / "cache" / "video-indexer" / "checkpoints").iterdir())


def test_url_is_fetched_once(url, folder, tmp_path):
    checkpoint = resolve_url(url + "/")
    assert (checkpoint.id, checkpoint.short_name) == (url, "ck")
    assert checkpoint.weights_sha256 == resolve(str(folder), schemes=()).weights_sha256
    assert "pytorch_model.bin" not in {file.name for file in checkpoint.folder.iterdir()}
    weights = checkpoint.folder / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert resolve_url(url) == checkpoint
    assert weights.stat().st_mtime_ns == before
    assert cache_entries(tmp_path) == [checkpoint.folder]  # no partial download is left


def test_changed_url_is_fetched_again(url, tmp_path):
    first = resolve_url(url)
    write_stress_checkpoint(tmp_path / "ck", seed=1)
    time.sleep(0.002)
    fsspec.filesystem("memory").put_file(
        str(tmp_path / "ck" / "model.safetensors"), "/bucket/models/ck/model.safetensors"
    )
    second = resolve_url(url)
    assert second.weights_sha256 != first.weights_sha256
    assert second.revision != first.revision


def test_sharded_url(tmp_path, url):
    write_stress_checkpoint(tmp_path / "sharded", shards=2)
    fsspec.filesystem("memory").put(str(tmp_path / "sharded"), "/bucket/sharded", recursive=True)
    assert len(resolve_url("memory://bucket/sharded").weights_files) == 2


def test_a_machine_without_the_files_fetches_them(url):
    checkpoint = resolve_url(url)
    shutil.rmtree(checkpoint.folder)
    assert len(load_state(checkpoint)) > 10


def test_a_machine_that_finds_other_weights_refuses_them(url, tmp_path):
    checkpoint = resolve_url(url)
    shutil.rmtree(checkpoint.folder)
    write_stress_checkpoint(tmp_path / "ck", seed=1)
    fsspec.filesystem("memory").put_file(
        str(tmp_path / "ck" / "model.safetensors"), "/bucket/models/ck/model.safetensors"
    )
    with pytest.raises(ModelError, match="other weights now"):
        load_state(checkpoint)


class ShelfFileSystem(LocalFileSystem):
    """A remote store for many threads, which fsspec's memory is not."""

    protocol = "shelf"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("shelf://"))


def test_workers_that_fetch_at_once_share_one_copy(folder, tmp_path):
    fsspec.register_implementation("shelf", ShelfFileSystem, clobber=True)
    together = threading.Barrier(6)

    def fetch_together(_):
        together.wait()
        return resolve(f"shelf://{folder}", schemes=("shelf",))

    with ThreadPoolExecutor(6) as pool:
        first, *others = pool.map(fetch_together, range(6))
    assert all(other == first for other in others)
    assert cache_entries(tmp_path) == [first.folder]


class ChangingFileSystem(MemoryFileSystem):
    """A store whose files are no longer those that were listed."""

    protocol = "changing"
    vanish = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("changing://"))

    def ls(self, path, detail=True):
        return [entry | {"size": entry["size"] + 1} for entry in super().ls(path, detail=detail)]

    def get_file(self, rpath, lpath, **kwargs):
        super().get_file("/nothing" if self.vanish else rpath, lpath, **kwargs)


@pytest.mark.parametrize("vanish", [False, True])
def test_files_that_change_while_they_are_read_are_refused(url, tmp_path, monkeypatch, vanish):
    fsspec.register_implementation("changing", ChangingFileSystem, clobber=True)
    monkeypatch.setattr(ChangingFileSystem, "vanish", vanish)
    with pytest.raises(ModelError, match="changed while they were read"):
        resolve("changing://bucket/models/ck", schemes=("changing",))
    assert cache_entries(tmp_path) == []


def test_the_bundled_model():
    checkpoint = resolve("demo", schemes=())
    assert (checkpoint.id, checkpoint.short_name, checkpoint.revision) == ("demo", "demo", None)
    assert checkpoint.frame_rate_divisor == 8
    assert len(load_state(checkpoint)) > 10


def test_url_refusals(url):
    with pytest.raises(ConfigError, match="not allowed"):
        resolve(url, schemes=("s3",))
    with pytest.raises(ModelError, match="no such folder"):
        resolve_url("memory://bucket/nothing")
    fs = fsspec.filesystem("memory")
    fs.rm_file("/bucket/models/ck/model.safetensors")
    with pytest.raises(ModelError, match="pickled weights"):
        resolve_url(url)


@pytest.mark.parametrize("path", ["./nothing", "/nothing/here", "~/nothing-here"])
def test_missing_folders_are_not_looked_up_on_the_hub(path):
    with pytest.raises(ModelError, match=r"no such folder$"):
        resolve(path, schemes=())


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as the download of one repository needs."""

    folder = None
    refusal = None
    hidden = ()
    requests = 0

    def do_GET(self):
        type(self).requests += 1
        if self.refusal is not None:
            status, code = self.refusal
            self.reply(b"{}", status=status, headers={"X-Error-Code": code})
        elif self.path.startswith(f"/api/models/{REPO}/tree/"):
            rows = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": oid(file)}
                for file in self.files()
            ]
            self.reply(json.dumps(rows).encode())
        elif self.path.startswith(f"/api/models/{REPO}"):
            siblings = [{"rfilename": file.name} for file in self.files()]
            info = {"id": REPO, "sha": COMMIT, "siblings": siblings}
            self.reply(json.dumps(info).encode())
        else:
            file = self.folder / self.path.rpartition("/")[2]
            self.reply(file.read_bytes(), headers={"ETag": oid(file), "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def files(self):
        return [file for file in sorted(self.folder.iterdir()) if file.name not in self.hidden]

    def reply(self, body, *, status=200, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def oid(file):
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def hub(folder, monkeypatch):
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "modeling.py").write_text("raise SystemExit")
    handler = type("OneHub", (Hub,), {"folder": folder})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        use_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        yield handler
        server.shutdown()
        thread.join()


def test_hub_id_is_fetched_at_its_commit(hub, folder):
    checkpoint = resolve(REPO, schemes=())
    assert (checkpoint.id, checkpoint.revision) == (REPO, COMMIT)
    assert checkpoint.short_name == "tiny-timesformer"
    assert {file.name for file in checkpoint.folder.iterdir()} == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    }
    hub.requests = 0
    assert resolve(REPO, COMMIT, schemes=()) == checkpoint
    assert hub.requests == 0  # a commit never changes: what is cached needs no network


def test_cached_hub_model_works_while_the_hub_is_away(hub, monkeypatch):
    checkpoint = resolve(REPO, "main", schemes=())
    hub.refusal = (500, "")
    assert resolve(REPO, COMMIT, schemes=()) == checkpoint
    use_hub(monkeypatch, "http://127.0.0.1:9")
    assert resolve(REPO, COMMIT, schemes=()).folder == checkpoint.folder
    assert resolve(REPO, "main", schemes=()) == checkpoint


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((401, "RepoNotFound"), "knows no such model"),
        ((404, "RepoNotFound"), "knows no such model"),
        ((403, "GatedRepo"), "is gated; accept its terms"),
        ((404, "RevisionNotFound"), "has no revision 'v9'"),
        ((401, ""), "does not give it .HfHubHTTPError: .*401"),
        ((500, ""), "does not give it"),
    ],
)
def test_refusals_of_the_hub_say_what_to_do(hub, refusal, words):
    hub.refusal = refusal
    with pytest.raises(ModelError, match=words):
        resolve(REPO, "v9", schemes=())


def test_hub_model_without_safetensors_is_refused_before_any_download(hub, tmp_path):
    hub.hidden = ("model.safetensors",)
    with pytest.raises(ModelError, match="pickled weights"):
        resolve(REPO, schemes=())
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_an_unreachable_hub_is_told_within_five_seconds(revision):
    started = time.monotonic()
    with pytest.raises(ModelError, match="--model demo, which needs none"):
        resolve("someone/unknown", revision, schemes=())
    assert time.monotonic() - started < 5


def test_offline_mode_is_told_at_once(monkeypatch):
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="offline mode"):
        resolve("someone/unknown", schemes=())


def test_a_silent_hub_is_given_up_within_five_seconds(hub, monkeypatch):
    stuck = threading.Event()
    monkeypatch.setattr(hub, "do_GET", lambda _: stuck.wait(20))
    started = time.monotonic()
    with pytest.raises(ModelError, match="does not give it"):
        resolve(REPO, schemes=())
    assert time.monotonic() - started < 5
    stuck.set()


def test_what_is_neither_path_nor_id():
    with pytest.raises(ModelError, match="nor a hub id"):
        resolve("a/b/c", schemes=())
