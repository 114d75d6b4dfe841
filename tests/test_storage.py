import json
import os
import pickle
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st

from indexer import storage
from indexer.errors import ConfigError, StorageError
from indexer.s3 import S3Store
from tests.s3server import S3Server

ODD_KEYS = [
    "k?versionId=abc",
    "sp ace/%41#x?y",
    "[1].mp4",
    " lead",
    "uni é\u2028ü",
    "new\nline",
    "a::b",
    "x+y&z=1;",
    "_hidden/*",
]


@pytest.fixture
def remote(s3_folder: str) -> str:
    return s3_folder


@pytest.fixture(params=["local", "s3", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "index")
    elif request.param == "s3":
        yield request.getfixturevalue("remote")
    else:
        yield "memory://index"
        fsspec.filesystem("memory").store.clear()


@pytest.fixture
def fresh_s3(s3: S3Server) -> Iterator[None]:
    """File systems made in the test see the environment of the test, and so do those after it."""
    S3Store.clear_instance_cache()
    yield
    S3Store.clear_instance_cache()


class TestSpelling:
    @pytest.mark.parametrize(
        ("uri", "scheme"),
        [
            ("a/b.mp4", "file"),
            ("/a/b.mp4", "file"),
            ("file:///a", "file"),
            ("local:///a", "file"),
            ("S3://b/k", "s3"),
            ("s3a://b/k", "s3"),
            ("s3://b/a::b", "s3"),
            ("https://h/x", "https"),
            ("C:/x", "file"),
        ],
    )
    def test_scheme(self, uri: str, scheme: str) -> None:
        assert storage.scheme_of(uri) == scheme

    @pytest.mark.parametrize(
        "uri",
        [
            "simplecache::s3://b/k",
            "filecache::file:///etc/passwd",
            "https://h/x.zip::file:///etc/passwd",
            "zip://a.mp4::s3://b/x.zip",
        ],
    )
    def test_chains_are_refused(self, uri: str) -> None:
        with pytest.raises(ConfigError, match="chained"):
            storage.filesystem(uri)

    def test_scheme_outside_the_list_says_how_to_allow_it(self) -> None:
        storage.check_scheme("s3://b/k", ("file", "s3"))
        with pytest.raises(ConfigError) as caught:
            storage.check_scheme("https://user:pw@h/x?token=1", ("file", "s3"))
        message = str(caught.value)
        assert 'schemes = ["file", "s3", "https"]' in message
        assert "--set schemes=file,s3,https" in message
        assert "pw" not in message
        assert "token" not in message

    @pytest.mark.parametrize(
        ("uri", "absolute"),
        [
            ("/a/b/../c", "/a/c"),
            ("file:///a/%41 b", "/a/%41 b"),
            ("s3a://b/k", "s3://b/k"),
            ("s3://b/a//b/../c?x#y/", "s3://b/a//b/../c?x#y/"),
            ("s3://b", "s3://b"),
            ("https://h/x?y=1", "https://h/x?y=1"),
        ],
    )
    def test_absolute(self, uri: str, absolute: str) -> None:
        assert storage.absolute_uri(uri) == absolute

    def test_relative_paths_start_at_the_working_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert storage.absolute_uri("a/b.mp4") == f"{tmp_path}/a/b.mp4"

    @given(st.text(min_size=1))
    def test_absolute_is_idempotent_for_any_key(self, key: str) -> None:
        uri = storage.absolute_uri(f"s3://bucket/{key}")
        assert storage.absolute_uri(uri) == uri == f"s3://bucket/{key}"

    @pytest.mark.parametrize("uri", ["s3://", "s3:///key"])
    def test_no_bucket(self, uri: str) -> None:
        with pytest.raises(ConfigError, match="names no bucket"):
            storage.absolute_uri(uri)

    def test_credentials_in_a_uri_are_refused_and_not_repeated(self) -> None:
        with pytest.raises(ConfigError, match="credentials do not belong") as caught:
            storage.filesystem("s3://user:hunter2@bucket/key")
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize(
        ("uri", "shown"),
        [
            ("https://u:p@h/a.mp4?sig=1#f", "https://h/a.mp4"),
            ("s3://b/a?b#c@d", "s3://b/a?b#c@d"),
            ("s3://K:S@b/k", "s3://b/k"),
            ("/a?b", "/a?b"),
            ("file:///a?b", "file:///a?b"),
        ],
    )
    def test_redact(self, uri: str, shown: str) -> None:
        assert storage.redact(uri) == shown

    def test_join(self) -> None:
        assert storage.join("s3://b/p/", "a", "b.json") == "s3://b/p/a/b.json"
        assert storage.join("/", "a") == "/a"

    @pytest.mark.parametrize("uri", ["nosuchscheme://a/b", "dropbox://a/b"])
    def test_unusable_scheme(self, uri: str) -> None:
        with pytest.raises(ConfigError, match="cannot be used"):
            storage.filesystem(uri)


class TestSmallObjects:
    """One contract, every store."""

    def test_write_then_read_then_delete(self, root: str) -> None:
        uri = storage.join(root, "runs", "a.json")
        storage.write_bytes(uri, b"1")
        storage.write_bytes(uri, b"2")
        assert storage.read_bytes(uri) == b"2"
        assert storage.exists(uri)
        storage.delete(uri)
        storage.delete(uri)
        assert not storage.exists(uri)
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(uri)

    def test_create_lets_one_content_win(self, root: str) -> None:
        uri = storage.join(root, "lease.json")
        assert storage.create_bytes(uri, b"first")
        assert not storage.create_bytes(uri, b"second")
        assert storage.read_bytes(uri) == b"first"

    def test_create_recognises_its_own_content(self, root: str) -> None:
        """As after a write that was applied although its reply was lost."""
        uri = storage.join(root, "lease.json")
        assert storage.create_bytes(uri, b"mine")
        assert storage.create_bytes(uri, b"mine")

    def test_names_and_json_of_a_folder(self, root: str) -> None:
        for name in ("b.json", "a.json", "c.txt", "below/d.json"):
            storage.write_bytes(storage.join(root, name), b'{"n": 1}')
        assert storage.list_names(root) == ["a.json", "b.json", "c.txt"]
        assert storage.list_json(root) == {"a.json": {"n": 1}, "b.json": {"n": 1}}
        assert storage.list_names(storage.join(root, "none")) == []
        assert storage.list_json(storage.join(root, "none")) == {}

    def test_damaged_json_is_named(self, root: str) -> None:
        storage.write_bytes(storage.join(root, "bad.json"), b"{")
        with pytest.raises(StorageError, match=r"bad\.json is not JSON"):
            storage.list_json(root)

    def test_check_writable_leaves_nothing(self, root: str) -> None:
        storage.check_writable(root)
        assert storage.list_names(root) == []
        storage.check_readable(root)


class TestLocal:
    def test_many_creators_one_winner(self, tmp_path: Path) -> None:
        for number in range(20):
            _race(str(tmp_path / f"{number}.json"))

    def test_no_temporary_is_left(self, tmp_path: Path) -> None:
        uri = str(tmp_path / "a.json")
        storage.create_bytes(uri, b"1")
        storage.create_bytes(uri, b"2")
        storage.write_bytes(uri, b"3")
        assert os.listdir(tmp_path) == ["a.json"]  # noqa: PTH208

    def test_a_reader_never_sees_a_part(self, tmp_path: Path) -> None:
        uri, sizes = str(tmp_path / "a.bin"), set[int]()
        storage.write_bytes(uri, b"x" * 1_000_000)
        writer = threading.Thread(
            target=lambda: [storage.write_bytes(uri, b"y" * 1_000_000) for _ in range(10)]
        )
        writer.start()
        while writer.is_alive():
            sizes.add(len(storage.read_bytes(uri)))
        writer.join()
        assert sizes <= {1_000_000}

    def test_check_writable_makes_no_folder(self, tmp_path: Path) -> None:
        storage.check_writable(str(tmp_path / "new" / "index"))
        assert not any(tmp_path.iterdir())

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="file"):
            storage.check_writable(str(tmp_path / "file" / "index"))
        with pytest.raises(StorageError, match="file"):
            storage.write_bytes(str(tmp_path / "file" / "a.json"), b"")

    @pytest.mark.skipif(not Path("/proc/1").exists(), reason="needs /proc")
    def test_a_folder_that_cannot_be_written(self) -> None:
        with pytest.raises(StorageError, match="nothing can be written there"):
            storage.check_writable("/proc/1")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_read_only_folder(self, tmp_path: Path) -> None:
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        with pytest.raises(StorageError, match="permission denied: check its owner and mode"):
            storage.check_writable(str(tmp_path))

    def test_full_disk_is_said_plainly(self) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("needs /dev/full")
        with (
            pytest.raises(StorageError, match="the disk is full"),
            storage.storage_errors("/index"),
            open("/dev/full", "wb", buffering=0) as full,  # noqa: PTH123
        ):
            full.write(b"x")

    def test_no_delta_options(self, tmp_path: Path) -> None:
        assert storage.delta_storage_options(str(tmp_path)) == {}


class TestS3:
    def test_many_creators_one_winner(self, remote: str) -> None:
        _race(storage.join(remote, "lease.json"), writers=4)

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_odd_keys(self, remote: str, key: str) -> None:
        uri = storage.join(remote, key)
        storage.write_bytes(uri, key.encode())
        storage.write_bytes(storage.join(remote, "k"), b"the key without what follows '?'")
        assert storage.read_bytes(uri) == key.encode()
        assert storage.exists(uri)
        fs, path = storage.filesystem(uri)
        with fs.open(path) as file:
            assert file.read() == key.encode()

    def test_credentials_do_not_travel(self, s3: S3Server, remote: str) -> None:
        fs, path = storage.filesystem(remote)
        fs.exists(path)
        shipped = pickle.dumps(fs)
        assert s3.secret_key.encode() not in shipped
        assert s3.access_key.encode() not in shipped
        assert s3.secret_key not in fs.to_json()
        assert pickle.loads(shipped).ls(path.partition("/")[0])

    def test_reading_a_part_fetches_that_part(self, remote: str) -> None:
        uri = storage.join(remote, "large.bin")
        storage.write_bytes(uri, bytes(200_000))
        fs, path = storage.filesystem(uri)
        ranges: list[str] = []

        def note(params, **_kwargs) -> None:
            ranges.append(params["headers"].get("Range", "all"))

        fs.s3.meta.events.register("before-call.s3.GetObject", note)
        try:
            with fs.open(path) as file:
                file.seek(1000)
                assert len(file.read(10)) == 10
        finally:
            fs.s3.meta.events.unregister("before-call.s3.GetObject", note)
        assert ranges == ["bytes=1000-1009"]

    def test_another_writer_is_seen_at_once(self, s3: S3Server, remote: str) -> None:
        storage.write_bytes(storage.join(remote, "a.json"), b"1")
        assert storage.list_names(remote) == ["a.json"]
        _, _, bucket, key = remote.split("/", 3)
        s3.put(bucket, f"{key}/b.json", b"1")
        assert storage.list_names(remote) == ["a.json", "b.json"]

    @pytest.mark.usefixtures("s3")
    def test_missing_bucket(self) -> None:
        uri = "s3://no-such-bucket/index"
        for attempt in (
            storage.check_writable,
            storage.check_readable,
            storage.read_bytes,
            storage.exists,
            storage.list_names,
            lambda uri: storage.write_bytes(uri, b""),
            lambda uri: storage.create_bytes(uri, b""),
        ):
            _fails_fast(lambda attempt=attempt: attempt(uri), "the bucket does not exist")

    @pytest.mark.parametrize(
        ("name", "code"),
        [
            ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"),
            ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"),
        ],
    )
    @pytest.mark.usefixtures("fresh_s3")
    def test_wrong_credentials(
        self, remote: str, monkeypatch: pytest.MonkeyPatch, name: str, code: str
    ) -> None:
        monkeypatch.setenv(name, "wrong")
        for check in (storage.check_writable, storage.check_readable, storage.list_names):
            _fails_fast(lambda check=check: check(remote), f"check AWS_ACCESS_KEY_ID.*{code}")
        _fails_fast(lambda: storage.read_bytes(remote + "/x"), code)
        _fails_fast(lambda: storage.exists(remote + "/x"), "AWS_ACCESS_KEY_ID")

    @pytest.mark.usefixtures("fresh_s3")
    def test_no_credentials(self, remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        _fails_fast(lambda: storage.check_writable(remote), "no credentials were found")

    @pytest.mark.usefixtures("fresh_s3")
    def test_refused_connection(self, remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        expected = "cannot reach the storage service .AWS_ENDPOINT_URL=http://127.0.0.1:9"
        _fails_fast(lambda: storage.check_writable(remote), expected)
        options = storage.delta_storage_options(remote)
        _fails_fast(lambda: DeltaTable(remote, storage_options=options), "onnect", error=OSError)

    @pytest.mark.usefixtures("fresh_s3")
    def test_silent_server(self, remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            port = listener.getsockname()[1]
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            _fails_fast(lambda: storage.check_readable(remote), "cannot reach")

    @pytest.mark.usefixtures("fresh_s3")
    def test_specific_endpoint_wins(
        self, remote: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.endpoint)
        storage.check_writable(remote)
        assert storage.delta_storage_options(remote)["AWS_ENDPOINT_URL"] == s3.endpoint

    def test_delta_region_falls_back_only_with_an_endpoint(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.delenv(name, raising=False)
        assert "AWS_REGION" not in storage.delta_storage_options("s3://b/i")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://h")
        options = storage.delta_storage_options("s3://b/i")
        assert (options["AWS_REGION"], options["AWS_ALLOW_HTTP"]) == ("us-east-1", "true")
        monkeypatch.setenv("AWS_REGION", "eu-west-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "https://h")
        options = storage.delta_storage_options("s3://b/i")
        assert (options["AWS_REGION"], options["AWS_ALLOW_HTTP"]) == ("eu-west-1", "false")


def _race(uri: str, writers: int = 8) -> None:
    barrier, wins = threading.Barrier(writers), list[int]()

    def create(number: int) -> None:
        barrier.wait()
        if storage.create_bytes(uri, json.dumps(number).encode()):
            wins.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert json.loads(storage.read_bytes(uri)) == wins[0]


def _fails_fast(attempt, match: str, error: type[Exception] = StorageError) -> None:
    started = time.monotonic()
    with pytest.raises(error, match=match):
        attempt()
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("root", ["tmp_path", "s3_folder"])
def test_folders_are_listed_without_files_and_without_themselves(request, root):
    folder = str(request.getfixturevalue(root))
    assert storage.list_folders(storage.join(folder, "missing")) == []
    for name in ("b/x", "a/x", "a/y/z", "file"):
        storage.write_bytes(storage.join(folder, name), b"1")
    assert storage.list_folders(folder) == ["a", "b"]
    assert storage.list_folders(storage.join(folder, "a")) == ["y"]
    assert storage.list_names(folder) == ["file"]
