import os
from pathlib import Path

import pytest
from aiohttp import ClientPayloadError
from botocore.exceptions import NoCredentialsError
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
from indexer.video import fetch, transfer
from indexer.video.fetch import open_video
from tests.video.fetch.stores import (
    DATA,
    SECRET,
    assert_silent,
    content,
    local_ref,
    raising,
    remote_ref,
)


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
