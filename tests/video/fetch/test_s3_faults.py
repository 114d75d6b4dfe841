import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from indexer.config import Decode
from indexer.errors import (
    VideoAccessDenied,
    VideoChanged,
    VideoMissing,
    VideoTransientIO,
    VideoTruncated,
)
from indexer.video import transfer
from indexer.video.fetch import open_video
from indexer.video.transfer import TRIES
from tests.video.fetch.stores import (
    DATA,
    KIB,
    MIB,
    SECRET,
    assert_silent,
    content,
    mp4,
    open_files,
    raising,
    s3_ref,
)
from tests.video.objectserver import Fault

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
        cwd=Path(__file__).parents[3],
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
        process.communicate()
    assert list(tmp_path.iterdir()) == []
    assert set(shared.iterdir()) <= before
