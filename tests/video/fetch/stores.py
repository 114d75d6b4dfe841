"""Stores that answer as tests want them to, and what is asked of them."""

import io
import os
import random
from pathlib import Path
from types import MappingProxyType

from fsspec.implementations.memory import MemoryFileSystem

from indexer.records import VideoRef
from tests.video.objectserver import URI

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


def remote_ref(**changes):
    facts = {
        "video_id": "v",
        "uri": f"faulty://bucket/video.mp4?{SECRET}",
        "size_bytes": len(DATA),
        "content_key": f"{len(DATA)}-e1",
    }
    return VideoRef(**(facts | changes))


def s3_ref(state, **changes):
    size = len(state.data)
    facts = {
        "video_id": "v",
        "uri": URI,
        "size_bytes": size,
        "content_key": f"{size}-{state.etag}",
    }
    return VideoRef(**(facts | changes))


def random_bytes(size, seed=0):
    return random.Random(seed).randbytes(size)


def mp4(size, seed=0):
    """The first box of an MP4, and noise."""
    return b"\0\0\0\x10ftypisom\0\0\0\0" + random_bytes(size - 16, seed)


def matroska(size):
    return b"\x1a\x45\xdf\xa3" + random_bytes(size - 4)


def content(video):
    return os.pread(video.fileno(), video.size_bytes + 1, 0)


def raising(error):
    def fail(*_args, **_kwargs):
        raise error

    return fail


def open_files():
    """Names of what is open, sockets aside."""
    names = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            names.append(str(each.readlink()))
        except FileNotFoundError:
            continue  # the folder itself
    return sorted(name for name in names if "memfd:video" in name or "/tmp" in name)  # noqa: S108


def assert_silent(error):
    assert "SECRET" not in str(error)
    assert "bucket/video.mp4" in str(error)


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
