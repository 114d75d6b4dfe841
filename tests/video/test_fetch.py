import io
import os
from pathlib import Path
from types import MappingProxyType

import fsspec
import pytest
from aiohttp import ClientPayloadError
from botocore.exceptions import NoCredentialsError
from fsspec.implementations.memory import MemoryFileSystem
from s3fs.utils import FileExpired

from indexer.config import Decode
from indexer.errors import (
    VideoAccessDenied,
    VideoChanged,
    VideoEmpty,
    VideoMissing,
    VideoNotAVideo,
    VideoOverBudget,
    VideoTransientIO,
    VideoTruncated,
)
from indexer.records import VideoRef
from indexer.video import fetch
from indexer.video.fetch import open_video

DATA = bytes(range(256)) * 40
SECRET = "token=SECRET"  # noqa: S105 - what must not be printed


def local_ref(path, **changes):
    status = path.stat()
    facts = {
        "video_id": "v",
        "uri": str(path),
        "size_bytes": status.st_size,
        "content_key": f"{status.st_size}-{status.st_mtime_ns}",
    }
    return VideoRef(**(facts | changes))


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "video.mp4"
    path.write_bytes(DATA)
    return path


class TestLocal:
    def test_is_read_in_place(self, video):
        with open_video(local_ref(video), Decode()) as file:
            assert file.read() == DATA
            assert file.seek(10) == 10
            assert os.path.samestat(os.fstat(file.fileno()), video.stat())

    def test_gives_ffmpeg_no_name_to_look_around(self, video):
        with open_video(local_ref(video), Decode()) as file:
            assert not isinstance(file.name, str)

    def test_missing(self, video):
        ref = local_ref(video)
        video.unlink()
        with pytest.raises(VideoMissing, match=r"video\.mp4"):
            open_video(ref, Decode())

    def test_changed_size_or_time(self, video):
        ref = local_ref(video)
        os.utime(video, ns=(1, 1))
        with pytest.raises(VideoChanged):
            open_video(ref, Decode())
        video.write_bytes(DATA + b"more")
        with pytest.raises(VideoChanged):
            open_video(ref, Decode())

    def test_empty(self, video):
        video.write_bytes(b"")
        with pytest.raises(VideoEmpty):
            open_video(local_ref(video), Decode())

    def test_over_budget(self, video):
        ref = local_ref(video)
        with pytest.raises(VideoOverBudget, match="max_bytes"):
            open_video(ref, Decode(max_bytes=len(DATA) - 1))
        open_video(ref, Decode(max_bytes=len(DATA))).close()

    def test_access_denied(self, video, monkeypatch):
        ref = local_ref(video)
        video.chmod(0)
        if os.access(video, os.R_OK):  # root reads everything
            monkeypatch.setattr(fetch.os, "open", raising(PermissionError(13, "Permission denied")))
        with pytest.raises(VideoAccessDenied, match="permissions"):
            open_video(ref, Decode())

    def test_a_pipe_does_not_block(self, tmp_path):
        pipe = tmp_path / "pipe.mp4"
        os.mkfifo(pipe)
        with pytest.raises(VideoNotAVideo, match="regular"):
            open_video(local_ref(pipe), Decode())

    def test_refusals_leak_no_descriptor(self, video):
        before = open_descriptors()
        for _ in range(5):
            with pytest.raises(VideoChanged):
                open_video(local_ref(video, content_key="other"), Decode())
        assert open_descriptors() == before


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def raising(error):
    def fail(*_args, **_kwargs):
        raise error

    return fail


class Faulty(MemoryFileSystem):
    """An object store of one object whose first opens fail, each in its own way."""

    protocol = "faulty"
    cachable = False
    data = DATA
    details = MappingProxyType({"size": len(DATA), "ETag": '"e1"'})
    faults = ()
    opens = 0

    def _open(self, path, mode="rb", **kwargs):  # noqa: ARG002
        cls = type(self)
        assert kwargs["cache_type"] == "none"
        fault = cls.faults[cls.opens] if cls.opens < len(cls.faults) else None
        cls.opens += 1
        if isinstance(fault, Exception):
            raise fault
        return Body(self.data, fault, self.details)


class Body(io.BytesIO):
    def __init__(self, data, fault, details):
        super().__init__(data)
        self.fault, self.details = fault, details

    def read(self, size=-1):
        if self.fault is not None and self.tell() >= self.fault[0]:
            if self.fault[1] is None:
                return b""
            raise self.fault[1]
        return super().read(size)


@pytest.fixture
def store(monkeypatch):
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    for name in ("faults", "opens", "data", "details"):
        monkeypatch.setattr(Faulty, name, getattr(Faulty, name))  # put back after the test
    monkeypatch.setattr(fetch, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(fetch, "CHUNK_BYTES", 1000)
    return Faulty


def remote_ref(**changes):
    facts = {
        "video_id": "v",
        "uri": f"faulty://user:password@bucket/video.mp4?{SECRET}",
        "size_bytes": len(DATA),
        "content_key": f"{len(DATA)}-e1",
    }
    return VideoRef(**(facts | changes))


TRANSIENT = [
    OSError(5, f"Input/output error https://x/y?{SECRET}"),
    TimeoutError(SECRET),
    ConnectionResetError(SECRET),
    ClientPayloadError(SECRET),
]


class TestRemote:
    def test_is_copied_whole_and_rewound(self, store):
        with open_video(remote_ref(), Decode()) as file:
            assert file.read() == DATA
            file.seek(5)
            assert file.read(3) == DATA[5:8]
        assert store.opens == 1

    @pytest.mark.usefixtures("store")
    def test_large_objects_go_to_an_unnamed_file(self, monkeypatch, tmp_path):
        monkeypatch.setattr(fetch, "MEMORY_BYTES", 2000)
        monkeypatch.setattr(fetch.tempfile, "tempdir", str(tmp_path))
        with open_video(remote_ref(), Decode()) as file:
            assert os.fstat(file.fileno()).st_size == len(DATA)
            assert list(tmp_path.iterdir()) == []
            assert file.read() == DATA

    @pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize("where", ["open", "body"])
    def test_a_failure_that_passes_is_tried_again(self, store, error, where):
        fault = error if where == "open" else (3000, error)
        store.faults = [fault] * 4
        with open_video(remote_ref(), Decode()) as file:
            assert file.read() == DATA
        assert store.opens == 5

    @pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__)
    def test_a_failure_that_stays_is_transient_io(self, store, error):
        store.faults = [error] * 9
        with pytest.raises(VideoTransientIO, match=type(error).__name__) as caught:
            open_video(remote_ref(), Decode())
        assert store.opens == 5
        assert_silent(caught.value)

    def test_a_short_body_is_tried_again(self, store):
        store.faults = [(3000, None)]
        open_video(remote_ref(), Decode()).close()
        assert store.opens == 2

    def test_a_body_that_stays_short_is_truncated(self, store):
        store.faults = [(3000, None)] * 9
        with pytest.raises(VideoTruncated, match=f"3000 of {len(DATA)} bytes") as caught:
            open_video(remote_ref(), Decode())
        assert store.opens == 5
        assert_silent(caught.value)

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (FileNotFoundError(SECRET), VideoMissing),
            (PermissionError(SECRET), VideoAccessDenied),
            (NoCredentialsError(), VideoAccessDenied),
            (FileExpired(SECRET, "e1"), VideoChanged),
        ],
    )
    @pytest.mark.parametrize("where", ["open", "body"])
    def test_a_failure_that_cannot_pass_is_not_tried_again(self, store, error, expected, where):
        store.faults = [error if where == "open" else (3000, error)]
        with pytest.raises(expected) as caught:
            open_video(remote_ref(), Decode())
        assert store.opens == 1
        assert_silent(caught.value)

    @pytest.mark.parametrize(
        "details",
        [{"size": len(DATA), "ETag": '"e2"'}, {"size": 7, "ETag": '"e1"'}, {"size": 7}],
    )
    def test_another_version_than_the_listed_one(self, store, details):
        store.details = details
        with pytest.raises(VideoChanged):
            open_video(remote_ref(), Decode())

    def test_an_object_that_grows(self, store):
        store.details, store.data = {}, DATA * 2
        with pytest.raises(VideoChanged, match="grown"):
            open_video(remote_ref(), Decode())

    def test_a_store_without_etags(self, store):
        store.details = {}
        open_video(remote_ref(), Decode()).close()

    def test_sizes_are_checked_before_anything_is_read(self, store):
        with pytest.raises(VideoEmpty):
            open_video(remote_ref(size_bytes=0), Decode())
        with pytest.raises(VideoOverBudget):
            open_video(remote_ref(), Decode(max_bytes=100))
        assert store.opens == 0


def assert_silent(error):
    assert "SECRET" not in str(error)
    assert "password" not in str(error)
    assert "bucket/video.mp4" in str(error)
