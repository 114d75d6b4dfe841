import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from contextlib import closing
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
from indexer.manifest import discover, refs
from indexer.records import VideoRef
from indexer.s3 import S3Store
from indexer.video import fetch, transfer
from indexer.video.fetch import FetchedVideo, open_video, prefetched
from indexer.video.transfer import TRIES
from tests.video.objectserver import URI, Fault, run_object_server

KIB, MIB = 2**10, 2**20
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
        with open_video(local_ref(video), Decode()) as fetched:
            assert os.path.samestat(os.fstat(fetched.fileno()), video.stat())
            assert fetched.size_bytes == len(DATA)
            assert fetched.complete
            assert fetched.present == ((0, len(DATA)),)
            assert fetched.as_file().read() == DATA
            fetched.fetch([(0, len(DATA))])
            assert (fetched.requests, fetched.fetched_bytes) == (0, 0)

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


def content(video):
    return os.pread(video.fileno(), video.size_bytes + 1, 0)


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
    monkeypatch.setattr(transfer, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(fetch, "CHUNK_BYTES", 1000)
    return Faulty


def remote_ref(**changes):
    facts = {
        "video_id": "v",
        "uri": f"faulty://bucket/video.mp4?{SECRET}",
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
    def test_is_copied_whole(self, store):
        with open_video(remote_ref(), Decode()) as video:
            assert content(video) == DATA
            assert video.complete
            assert (video.requests, video.fetched_bytes) == (1, len(DATA))
        assert store.opens == 1

    @pytest.mark.usefixtures("store")
    def test_large_objects_go_to_an_unnamed_file(self, monkeypatch, tmp_path):
        monkeypatch.setattr(transfer, "MEMORY_BYTES", 2000)
        monkeypatch.setattr(transfer.tempfile, "tempdir", str(tmp_path))
        with open_video(remote_ref(), Decode()) as video:
            assert os.fstat(video.fileno()).st_dev == tmp_path.stat().st_dev
            assert list(tmp_path.iterdir()) == []
            assert content(video) == DATA

    @pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize("where", ["open", "body"])
    def test_a_failure_that_passes_is_tried_again(self, store, error, where):
        fault = error if where == "open" else (3000, error)
        store.faults = [fault] * 4
        with open_video(remote_ref(), Decode()) as video:
            assert content(video) == DATA
            assert video.requests == store.opens == 5

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
        with pytest.raises(VideoChanged):
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
    assert "bucket/video.mp4" in str(error)


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


def random_bytes(size, seed=0):
    return random.Random(seed).randbytes(size)


def mp4(size, seed=0):
    """The first box of an MP4, and noise."""
    return b"\0\0\0\x10ftypisom\0\0\0\0" + random_bytes(size - 16, seed)


def matroska(size):
    return b"\x1a\x45\xdf\xa3" + random_bytes(size - 4)


def s3_ref(state, **changes):
    size = len(state.data)
    facts = {
        "video_id": "v",
        "uri": URI,
        "size_bytes": size,
        "content_key": f"{size}-{state.etag}",
    }
    return VideoRef(**(facts | changes))


class TestS3:
    """Against a real server."""

    def listed(self, s3, s3_folder, data):
        bucket, _, prefix = s3_folder.removeprefix("s3://").partition("/")
        uri = s3.put(bucket, f"{prefix}/video.mp4", data)
        (ref,) = refs(discover([uri], schemes=("s3",)))
        return ref

    def overwrite(self, s3, ref, data):
        bucket, _, key = ref.uri.removeprefix("s3://").partition("/")
        s3.put(bucket, key, data)

    @pytest.mark.parametrize("size", [1, 256 * KIB, 5 * MIB])
    def test_a_small_object_costs_one_request(self, s3, s3_folder, size):
        data = random_bytes(size)
        with open_video(self.listed(s3, s3_folder, data), Decode()) as video:
            assert content(video) == data
            assert video.complete
            assert (video.requests, video.fetched_bytes) == (1, size)

    def test_a_large_object_comes_in_parts(self, s3, s3_folder):
        data = matroska(21 * MIB + 12345)
        with open_video(self.listed(s3, s3_folder, data), Decode()) as video:
            assert content(video) == data
            assert video.complete
            assert (video.requests, video.fetched_bytes) == (4, len(data))

    def test_a_large_mp4_comes_as_it_is_asked_for(self, s3, s3_folder):
        data = mp4(17 * MIB)
        with open_video(self.listed(s3, s3_folder, data), Decode()) as video:
            assert video.present == ((0, 256 * KIB),)
            assert not video.complete
            assert video.requests == 1
            video.fetch([(10 * MIB, 10 * MIB + 1000), (17 * MIB - 500, 18 * MIB)])
            assert os.pread(video.fileno(), 1000, 10 * MIB) == data[10 * MIB :][:1000]
            assert os.pread(video.fileno(), 1000, 17 * MIB - 500) == data[-500:]
            assert (video.requests, video.fetched_bytes) == (3, 256 * KIB + 1500)
            video.fetch([(0, 17 * MIB)])
            assert content(video) == data
            assert video.complete
            assert video.fetched_bytes == len(data) + 1000  # in a gap that is no request worth

    def test_an_overwritten_object(self, s3, s3_folder):
        ref = self.listed(s3, s3_folder, mp4(17 * MIB))
        with open_video(ref, Decode()) as video:
            self.overwrite(s3, ref, mp4(17 * MIB, seed=1))
            with pytest.raises(VideoChanged):
                video.fetch([(MIB, 2 * MIB)])
            assert video.requests == 2
        for data in (mp4(17 * MIB, seed=1), b"shorter", mp4(18 * MIB)):
            self.overwrite(s3, ref, data)
            with pytest.raises(VideoChanged):
                open_video(ref, Decode())

    def test_a_removed_object(self, s3, s3_folder):
        ref = self.listed(s3, s3_folder, DATA)
        bucket, _, key = ref.uri.removeprefix("s3://").partition("/")
        s3.client.delete_object(Bucket=bucket, Key=key)
        with pytest.raises(VideoMissing):
            open_video(ref, Decode())

    def test_refused_credentials(self, s3, s3_folder, monkeypatch):
        ref = self.listed(s3, s3_folder, DATA)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        monkeypatch.setattr(transfer._OneTryStore, "_cache", {})
        with pytest.raises(VideoAccessDenied):
            open_video(ref, Decode())


class TestS3Requests:
    def test_every_request_is_pinned_to_the_listed_version(self, server):
        server.data = mp4(17 * MIB)
        with open_video(s3_ref(server), Decode()) as video:
            video.fetch([(MIB, MIB + 1)])
        assert server.conditions_asked == ['"e1"', '"e1"']

    def test_without_a_listed_etag_the_first_answer_decides(self, server):
        server.data = mp4(17 * MIB)
        with open_video(s3_ref(server, content_key="made by hand"), Decode()) as video:
            server.etag = "e2"
            with pytest.raises(VideoChanged):
                video.fetch([(MIB, MIB + 1)])
        assert server.conditions_asked == [None, '"e1"']

    def test_a_server_without_etags(self, server):
        server.etag = None
        with open_video(s3_ref(server, content_key="made by hand"), Decode()) as video:
            assert content(video) == DATA

    def test_a_version_that_the_server_does_not_mind(self, server):
        server.conditions, server.etag = False, "e2"
        with pytest.raises(VideoChanged):
            open_video(s3_ref(server, content_key=f"{len(DATA)}-e1"), Decode())
        assert len(server.asked) == 1

    @pytest.mark.parametrize("listed", [len(DATA) - 1, len(DATA) + 1])
    def test_another_size_than_the_listed_one(self, server, listed):
        with pytest.raises(VideoChanged):
            open_video(s3_ref(server, size_bytes=listed), Decode())
        assert len(server.asked) == 1

    def test_parts_come_at_the_same_time(self, server, monkeypatch):
        monkeypatch.setattr(transfer, "PART_BYTES", 1000)
        monkeypatch.setattr(transfer, "PARALLEL", 3)
        server.latency_seconds = 0.05
        with open_video(s3_ref(server), Decode()) as video:
            assert content(video) == DATA
            assert video.requests == -(-len(DATA) // 1000)
        assert 2 <= server.busiest <= 3
        assert server.connections <= 3

    def test_near_ranges_are_joined_and_far_ones_are_not(self, server):
        server.data = mp4(17 * MIB)
        gap = fetch.GAP_BYTES
        with open_video(s3_ref(server), Decode()) as video:
            server.asked.clear()
            near = [(2 * MIB + 100 + gap - 1, 3 * MIB), (2 * MIB, 2 * MIB + 100)]
            video.fetch([*near, (3 * MIB + gap, 4 * MIB), (2 * MIB + 50, 2 * MIB + 70), (7, 7)])
            assert sorted(server.asked) == [(2 * MIB, 3 * MIB), (3 * MIB + gap, 4 * MIB)]
            assert content(video)[2 * MIB : 3 * MIB] == server.data[2 * MIB : 3 * MIB]
            server.asked.clear()
            video.fetch([(2 * MIB, 4 * MIB)])
            assert server.asked == [(3 * MIB, 3 * MIB + gap)]
            video.fetch([(0, 100), (2 * MIB, 4 * MIB)])
            assert len(server.asked) == 1

    def test_reading_it_as_a_file_brings_what_is_read(self, server):
        server.data = mp4(17 * MIB)
        with open_video(s3_ref(server), Decode()) as video:
            file = video.as_file()
            file.seek(9 * MIB)
            assert file.read(10) == server.data[9 * MIB :][:10]
            assert video.present == ((0, 256 * KIB), (9 * MIB, 9 * MIB + 256 * KIB))

    def test_sizes_are_checked_before_anything_is_asked(self, server):
        with pytest.raises(VideoEmpty):
            open_video(s3_ref(server, size_bytes=0), Decode())
        with pytest.raises(VideoOverBudget):
            open_video(s3_ref(server), Decode(max_bytes=100))
        assert server.asked == []

    def test_a_server_that_knows_no_ranges(self, server):
        server.ranges = False
        with open_video(s3_ref(server), Decode()) as video:
            assert content(video) == DATA
        server.data = mp4(17 * MIB)
        with (
            open_video(s3_ref(server), Decode()) as video,
            pytest.raises(VideoTransientIO, match="other bytes"),
        ):
            video.fetch([(MIB, MIB + 1)])

    def test_no_part_is_held_in_memory(self, server):
        server.data = matroska(40 * MIB)
        ref = s3_ref(server)
        tracemalloc.start()
        try:
            with open_video(ref, Decode()) as video:
                assert video.complete
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 16 * MIB


PASSING = {
    "reset before": Fault(0, "reset"),
    "reset": Fault(3000, "reset"),
    "hangup": Fault(3000, "hangup"),
    "stall": Fault(3000, "stall"),
    "stall before": Fault(0, "stall"),
    "silence": Fault(then="silence"),
    "short": Fault(3000),
    "500": Fault(status=500, code="InternalError"),
    "503": Fault(status=503, code="SlowDown"),
    "503 without a body": Fault(status=503),
    "garbage": Fault(status=500, code="<"),
    "other bytes": Fault(headers={"Content-Range": f"bytes 5-9/{len(DATA)}"}),
}
STAYING = {
    "404": (Fault(status=404, code="NoSuchKey"), VideoMissing),
    "404 without a body": (Fault(status=404), VideoMissing),
    "403": (Fault(status=403, code="AccessDenied"), VideoAccessDenied),
    "expired": (Fault(status=400, code="ExpiredToken"), VideoAccessDenied),
    "token": (Fault(status=400, code="InvalidToken"), VideoAccessDenied),
    "412": (Fault(status=412, code="PreconditionFailed"), VideoChanged),
    "416": (Fault(status=416), VideoChanged),
    "etag": (Fault(headers={"ETag": '"e2"'}), VideoChanged),
    "total": (Fault(headers={"Content-Range": "bytes 0-10239/10241"}), VideoChanged),
}


class TestS3Faults:
    @pytest.fixture(autouse=True)
    def _impatient(self, server, monkeypatch):
        open_video(s3_ref(server), Decode()).close()  # making a client takes a while
        server.asked.clear()
        monkeypatch.setattr(transfer, "STALL_SECONDS", 0.3)

    @pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
    def test_what_passes_is_tried_again(self, server, fault):
        server.faults = [fault, fault, None]
        with open_video(s3_ref(server), Decode()) as video:
            assert content(video) == DATA
            assert video.requests == len(server.asked) == 3

    @pytest.mark.parametrize("name", ["reset before", "silence", "500", "503", "garbage"])
    def test_what_stays_is_transient_io(self, server, name):
        server.always = PASSING[name]
        with pytest.raises(VideoTransientIO) as caught:
            open_video(s3_ref(server), Decode())
        assert len(server.asked) == TRIES
        assert_silent(caught.value)

    def test_bodies_that_stay_short_are_truncated(self, server):
        server.always = Fault(1)
        with pytest.raises(VideoTruncated, match=f"end at 5, of {len(DATA)} asked") as caught:
            open_video(s3_ref(server), Decode())
        assert len(server.asked) == TRIES
        assert_silent(caught.value)

    @pytest.mark.parametrize(("fault", "expected"), STAYING.values(), ids=STAYING)
    def test_what_cannot_pass_is_not_tried_again(self, server, fault, expected):
        server.always = fault
        with pytest.raises(expected) as caught:
            open_video(s3_ref(server), Decode())
        assert len(server.asked) == 1
        assert_silent(caught.value)

    @pytest.mark.parametrize("how", ["hangup", "short"])
    def test_goes_on_where_it_broke_off(self, server, how):
        server.faults = [Fault(3000, how), Fault(2000, how)]
        with open_video(s3_ref(server), Decode()) as video:
            assert content(video) == DATA
            assert video.fetched_bytes == len(DATA)
        assert server.asked == [(0, len(DATA)), (3000, len(DATA)), (5000, len(DATA))]

    def test_progress_earns_more_tries(self, server, monkeypatch):
        monkeypatch.setattr(transfer, "PROGRESS_BYTES", 1000)
        server.always = Fault(1000, "hangup")
        with open_video(s3_ref(server), Decode()) as video:
            assert content(video) == DATA
            assert video.requests == -(-len(DATA) // 1000) > TRIES

    def test_one_bad_part_ends_the_others(self, server, monkeypatch):
        monkeypatch.setattr(transfer, "PART_BYTES", 1000)
        monkeypatch.setattr(transfer, "PARALLEL", 2)
        server.latency_seconds = 0.05
        server.faults = [None, Fault(status=404, code="NoSuchKey")]
        with pytest.raises(VideoMissing):
            open_video(s3_ref(server), Decode())
        assert len(server.asked) < 6  # of eleven parts

    def test_parts_that_came_are_kept_when_another_fails(self, server):
        server.data = mp4(17 * MIB)
        with open_video(s3_ref(server), Decode()) as video:
            server.always = Fault(1000, "hangup")
            with pytest.raises(VideoTransientIO):
                video.fetch([(MIB, 2 * MIB)])
            assert video.present == ((0, 256 * KIB), (MIB, MIB + TRIES * 1000))
            server.always = None
            video.fetch([(MIB, 2 * MIB)])
            assert content(video)[MIB : 2 * MIB] == server.data[MIB : 2 * MIB]

    def test_a_trickle_is_no_stall(self, server):
        server.always = Fault(5000, "trickle")
        started = time.perf_counter()
        with open_video(s3_ref(server), Decode()) as video:
            assert content(video) == DATA
            assert video.requests == 1
        assert time.perf_counter() - started > transfer.STALL_SECONDS

    def test_nothing_answers(self, server, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        with pytest.raises(VideoTransientIO, match="ConnectionError") as caught:
            open_video(s3_ref(server), Decode())
        assert_silent(caught.value)

    def test_failures_leak_no_descriptor(self, server):
        server.always = Fault(0, "reset")
        before = open_files()
        for _ in range(3):
            with pytest.raises(VideoTransientIO):
                open_video(s3_ref(server), Decode())
        assert open_files() == before

    def test_a_full_disk_is_not_the_videos_fault(self, server, monkeypatch):
        monkeypatch.setattr(transfer.os, "pwrite", raising(OSError(28, SECRET)))
        with pytest.raises(VideoTransientIO, match=r"memory of this machine.*No space") as caught:
            open_video(s3_ref(server), Decode())
        assert_silent(caught.value)
        monkeypatch.setattr(transfer, "MEMORY_BYTES", 100)
        with pytest.raises(VideoTransientIO, match=r"folder.*No space.*TMPDIR"):
            open_video(s3_ref(server), Decode())
        monkeypatch.setattr(transfer.tempfile, "tempdir", "/nowhere")  # no folder at all
        with pytest.raises(VideoTransientIO, match=r"No such file.*TMPDIR"):
            open_video(s3_ref(server), Decode())

    def test_an_interrupted_fetch_is_over(self, server, monkeypatch):
        server.data = mp4(17 * MIB)
        with open_video(s3_ref(server), Decode()) as video:
            monkeypatch.setattr(transfer, "STALL_SECONDS", 0.6)
            server.always = Fault(0, "stall")
            previous = signal.signal(signal.SIGUSR1, raising(KeyboardInterrupt))
            timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
            try:
                timer.start()
                with pytest.raises(KeyboardInterrupt):
                    video.fetch([(MIB, 2 * MIB)])
            finally:
                timer.join()
                signal.signal(signal.SIGUSR1, previous)
            time.sleep(0.6)
            assert len(server.asked) == 2  # nobody has tried again
            server.always = None
            video.fetch([(MIB, 2 * MIB)])
            assert video.present == ((0, 256 * KIB), (MIB, 2 * MIB))


SCRIPT = """
import sys, time
from indexer.config import Decode
from indexer.records import VideoRef
from indexer.video import fetch, transfer
transfer.MEMORY_BYTES = int(sys.argv[1])
video = fetch.open_video(VideoRef("v", sys.argv[2], int(sys.argv[3]), sys.argv[4]), Decode())
assert video.complete
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("memory_bytes", [0, 2**30])
def test_a_killed_process_leaves_nothing_behind(server, tmp_path, memory_bytes):
    ref = s3_ref(server)
    shared = Path("/dev/shm")  # noqa: S108
    before = set(shared.iterdir())
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            SCRIPT,
            str(memory_bytes),
            ref.uri,
            str(ref.size_bytes),
            ref.content_key,
        ],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
        process.communicate()
    assert list(tmp_path.iterdir()) == []
    assert set(shared.iterdir()) <= before


def open_files():
    """Names of what is open, sockets aside."""
    names = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            names.append(str(each.readlink()))
        except FileNotFoundError:
            continue  # the folder itself
    return sorted(name for name in names if "memfd:video" in name or "/tmp" in name)  # noqa: S108


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestPrefetched:
    def some(self, count, **changes):
        return [remote_ref(video_id=f"v{index}", **changes) for index in range(count)]

    def test_gives_every_video_in_order(self, store):
        store.faults = [None, FileNotFoundError(), None]
        listed = self.some(3)
        found = list(prefetched(iter(listed), Decode()))
        assert [opened.ref for opened in found] == listed
        assert isinstance(found[1].video, VideoMissing)
        assert all(0 < opened.traffic.seconds < 5 for opened in found)
        for opened in (found[0], found[2]):
            assert content(opened.video) == DATA
            opened.video.close()

    def test_of_nothing_is_nothing(self):
        assert list(prefetched([], Decode())) == []

    def test_opens_the_next_one_meanwhile_and_no_more(self, store):
        with closing(prefetched(self.some(4), Decode())) as stream:
            assert store.opens == 0
            with next(stream).video:
                wait_until(lambda: store.opens == 2)
                time.sleep(0.1)
                assert store.opens == 2
            with next(stream).video:
                wait_until(lambda: store.opens == 3)

    @pytest.mark.usefixtures("store")
    def test_frees_what_was_never_handed_out(self):
        before = open_files()
        stream = prefetched(self.some(3), Decode())
        first = next(stream)
        wait_until(lambda: len(open_files()) == len(before) + 2)
        with warnings.catch_warnings(record=True) as left_to_the_collector:
            warnings.simplefilter("always", ResourceWarning)
            stream.close()
        assert not [each for each in left_to_the_collector if "FileIO" in str(each.message)]
        assert len(open_files()) == len(before) + 1
        assert content(first.video) == DATA
        first.video.close()
        assert open_files() == before

    @pytest.mark.usefixtures("store")
    def test_a_failing_list_frees_too(self):
        def listed():
            yield from self.some(1)
            time.sleep(0.1)
            raise KeyboardInterrupt

        before = open_files()
        with pytest.raises(KeyboardInterrupt):
            list(prefetched(listed(), Decode()))
        assert open_files() == before

    def test_an_unforeseen_error_is_not_hidden(self, store):
        store.faults = [ZeroDivisionError()]
        with pytest.raises(ZeroDivisionError):
            next(prefetched(self.some(2), Decode()))

    @pytest.mark.parametrize("fault", [Fault(0, "stall"), Fault(status=503, code="SlowDown")])
    def test_stopping_does_not_wait_for_the_next_one(self, server, monkeypatch, fault):
        monkeypatch.setattr(transfer, "FIRST_PAUSE_SECONDS", 5)
        server.faults = [None]
        server.always = fault
        before = open_files()
        stream = prefetched([s3_ref(server)] * 3, Decode())
        with next(stream).video as video:
            assert isinstance(video, FetchedVideo)
            wait_until(lambda: len(server.asked) == 2)
            started = time.perf_counter()
            stream.close()
            assert time.perf_counter() - started < 2
            assert content(video) == DATA
        assert open_files() == before
        assert len(server.asked) == 2

    def test_stopping_ends_the_pauses_of_other_stores(self, store, monkeypatch):
        monkeypatch.setattr(transfer, "FIRST_PAUSE_SECONDS", 60)
        store.faults = [None, TimeoutError()]
        stream = prefetched(self.some(2), Decode())
        next(stream).video.close()
        wait_until(lambda: store.opens == 2)
        started = time.perf_counter()
        stream.close()
        assert time.perf_counter() - started < 2
