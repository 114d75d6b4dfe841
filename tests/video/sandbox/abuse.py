"""What the tests of the sandbox do with it, and how they look at what it does."""

import io
import os
import time
from pathlib import Path

import numpy as np

from indexer.config import Decode, Sampling
from indexer.records import Preprocessing, VideoFailure
from indexer.video.decode import decode_clips
from indexer.video.plan import DecodePlan

REPOSITORY = Path(__file__).resolve().parents[3]
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - nothing may be left there
HOSTILE = "tests.video.hostile_child"
RECIPE = Preprocessing(32, (32, 32), "bilinear", 1 / 255, (0.45,) * 3, (0.225,) * 3)
SHAPE = (2, 4, 32, 32, 3)
SECRET = "the secret of the store"  # noqa: S105 - of no store
PATIENT = Decode(deadline_seconds=60.0)
THRIFTY = Decode(deadline_seconds=60.0, max_cpu_seconds=1)
HASTY = Decode(deadline_seconds=2.0)
FRAMES = 120
UNITS = 4


def plan_of(recipe=RECIPE, num_frames=4, decode=PATIENT, **sampling):
    sampling = {"min_seconds": 0.1, "segment_clips": 2} | sampling
    return DecodePlan(Sampling(**sampling), num_frames, 4, recipe, decode)


class Bytes:
    """A video whose bytes lie in a nameless file, or arrive there when they are asked for."""

    def __init__(self, data, present=None, error=None, fetch_seconds=0.0):
        self._file = os.fdopen(os.memfd_create("video"), "r+b", buffering=0)
        self._data = data
        self._error = error
        self._fetch_seconds = fetch_seconds
        self.size_bytes = len(data)
        self.present = ((0, len(data)),) if present is None else present
        self.asked = []
        self._file.truncate(len(data))
        for start, stop in self.present:
            os.pwrite(self.fileno(), data[start:stop], start)

    def fileno(self):
        return self._file.fileno()

    def fetch(self, ranges):
        self.asked.extend(ranges)
        time.sleep(self._fetch_seconds)
        if self._error and len(self.asked) > 1:
            raise self._error
        for start, stop in ranges:
            os.pwrite(self.fileno(), self._data[start:stop], start)


def items_of(sandbox, video, video_id="v", **more):
    return [item for item, _ in sandbox.decode(video, video_id=video_id, **more)]


def codes(items):
    return [item.code if isinstance(item, VideoFailure) else "" for item in items]


def in_process(data, plan, **more):
    return list(decode_clips(io.BytesIO(data), plan, video_id="v", **more))


def assert_same(items, expected):
    assert len(items) == len(expected) > 0
    for item, other in zip(items, expected, strict=True):
        assert type(item) is type(other)
        if isinstance(item, VideoFailure):
            assert item == other
            continue
        facts = ("unit_index", "units", "info", "spans")
        assert [getattr(item, name) for name in facts] == [getattr(other, name) for name in facts]
        np.testing.assert_array_equal(item.frames_NTHWC, other.frames_NTHWC)


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def children(pid):
    """Children of a process that are not zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def template_and_worker(sandbox):
    """Their process ids."""
    template = sandbox._template._process.pid
    return template, *children(template)


def is_gone(pid):
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
