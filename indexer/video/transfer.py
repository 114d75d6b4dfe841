"""Streams ranges of one version of an S3 object into an unnamed file on this machine."""

import asyncio
import errno
import os
import random
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import Any, BinaryIO, Final, cast

from botocore.exceptions import (  # type: ignore[import-untyped]
    NoCredentialsError,
    PartialCredentialsError,
)
from s3fs.utils import FileExpired  # type: ignore[import-untyped]

from indexer.errors import (
    VideoAccessDenied,
    VideoChanged,
    VideoMissing,
    VideoTransientIO,
    VideoTruncated,
)
from indexer.metrics import FetchEffort
from indexer.records import VideoRef
from indexer.s3 import FAILURES, S3Store, service_code
from indexer.storage import redact
from indexer.uris import s3_endpoint
from indexer.video.ranged import Range, Ranges

MEMORY_BYTES: Final = 256 * 2**20
"""A larger object goes into an unnamed file in the temporary folder."""
PART_BYTES: Final = 8 * 2**20
CHUNK_BYTES: Final = 2**20
PARALLEL: Final = 8
TRIES: Final = 5
PROGRESS_BYTES: Final = 256 * 2**10
"""A try that brought this much was worth it: those that follow count anew."""
STALL_SECONDS: Final = 20.0
FIRST_PAUSE_SECONDS: Final = 0.25

_REFUSED: Final = (PermissionError, NoCredentialsError, PartialCredentialsError)
_REFUSED_CODES: Final = frozenset({"InvalidToken", "TokenRefreshRequired"})
_CHANGED_CODES: Final = frozenset({"PreconditionFailed", "412", "InvalidRange", "416"})
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")


def pause_seconds(failures: int) -> float:
    """How long to wait after the n-th failure in a row, spread so that workers do not meet."""
    return FIRST_PAUSE_SECONDS * float(2 ** (failures - 1)) * random.uniform(0.5, 1.5)  # noqa: S311


@contextmanager
def video_errors(ref: VideoRef) -> Iterator[None]:
    """Turns the errors of every kind of storage into `VideoError`s.

    The text of a foreign error is left out: it may hold a signed address.
    """
    name = redact(ref.uri)
    try:
        yield
    except FileNotFoundError as error:
        message = f"{name} was listed, but is gone"
        raise VideoMissing(message) from error
    except FileExpired as error:
        message = f"{name} was replaced while it was being read"
        raise VideoChanged(message) from error
    except FAILURES as error:
        code = service_code(error)
        if isinstance(error, _REFUSED) or code in _REFUSED_CODES:
            message = f"{name} may not be read: check its permissions and the credentials"
            raise VideoAccessDenied(message) from error
        if code in _CHANGED_CODES:
            raise changed(ref) from error
        reason = f"{type(error).__name__} {code if code.isalnum() else ''}".rstrip()
        message = f"{name} could not be read: {reason}"
        raise VideoTransientIO(message) from error


def changed(ref: VideoRef) -> VideoChanged:
    """The error for a version that is not the listed one."""
    return VideoChanged(f"{redact(ref.uri)} is not the version that was listed")


class Stop:
    """Lets one thread end what another one waits for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._running: Future[None] | None = None

    def pause(self, seconds: float = 0.0) -> None:
        """Sleeps; raises `CancelledError` as soon as the work is no longer wanted."""
        if self._stopped.wait(seconds):
            raise CancelledError

    def wait_for(
        self, start: Callable[[], Coroutine[Any, Any, None]], loop: asyncio.AbstractEventLoop
    ) -> None:
        """Runs a coroutine on a loop of another thread until it is done or no longer wanted."""
        with self._lock:
            self.pause()
            running = self._running = asyncio.run_coroutine_threadsafe(start(), loop)
        try:
            running.result()
        finally:
            running.cancel()  # an interrupted wait must not leave it at work

    def stop(self) -> None:
        """Ends the wait that is going on, and every later one."""
        with self._lock:
            self._stopped.set()
            if self._running is not None:
                self._running.cancel()


class Traffic:
    """Counts what one video's bytes cost, while they come.

    Attributes:
        seconds: wall time so far.
        requests: sent so far.
        fetched_bytes: received so far.
        retries: requests sent again so far, by error code.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.requests = 0
        self.fetched_bytes = 0
        self.retries = Counter[str]()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts the time of the block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started

    def effort(self) -> FetchEffort:
        """All of it so far."""
        return FetchEffort(self.seconds, self.requests, self.fetched_bytes, dict(self.retries))


class Landing:
    """A file for an object's bytes, without a name: it is gone with the process, however that ends.

    Args:
        file: unbuffered, of the object's size.
        present: ranges whose bytes are there.
        traffic: is told of what comes.
    """

    def __init__(self, file: BinaryIO, present: Ranges, traffic: Traffic) -> None:
        self._file = file
        self._lock = threading.Lock()
        self.present = present
        self.traffic = traffic

    @classmethod
    def empty(cls, ref: VideoRef, traffic: Traffic) -> "Landing":
        """A file of the object's size without any of its bytes; in memory, or on disk if large.

        Raises:
            VideoTransientIO: this machine has no room for it.
        """
        try:
            if ref.size_bytes <= MEMORY_BYTES:
                file = cast("BinaryIO", os.fdopen(os.memfd_create("video"), "r+b", buffering=0))
            else:
                file = cast("BinaryIO", tempfile.TemporaryFile(buffering=0))  # noqa: SIM115
            file.truncate(ref.size_bytes)
        except OSError as error:
            raise _no_room(ref, error) from error
        return cls(file, Ranges(), traffic)

    def fileno(self) -> int:
        """The descriptor."""
        return self._file.fileno()

    def write(self, ref: VideoRef, data: bytes, offset: int) -> None:
        """Puts all of `data` at its place; `present` is the caller's to tell.

        Raises:
            VideoTransientIO: this machine has no room for it.
            ValueError: the file has been closed.
        """
        self.traffic.fetched_bytes += len(data)
        rest = memoryview(data)
        with self._lock:  # a number that `close` has freed may already be another file's
            while rest:
                try:
                    written = os.pwrite(self._file.fileno(), rest, offset)
                except OSError as error:
                    raise _no_room(ref, error) from error
                offset += written
                rest = rest[written:]

    def close(self) -> None:
        """Frees the bytes."""
        with self._lock:
            self._file.close()


def _no_room(ref: VideoRef, error: OSError) -> VideoTransientIO:
    size = f"its {ref.size_bytes} bytes ({os.strerror(error.errno or errno.ENOSPC)})"
    if ref.size_bytes <= MEMORY_BYTES:
        reason = f"the memory of this machine cannot hold {size}"
    else:
        reason = f"the temporary folder cannot hold {size}: free some space, or set TMPDIR"
    return VideoTransientIO(f"{redact(ref.uri)}: {reason}")


class _OneTryStore(S3Store):
    """S3 without s3fs' own retries: we go on where a part broke off, and count."""

    retries = 1


class S3Object:
    """One version of one S3 object.

    Args:
        ref: the object as it was listed; its ETag is in the content key.
        fs: the store; neither its retries nor botocore's are used.
        path: bucket and key.
        landing: where the bytes go.
    """

    def __init__(self, ref: VideoRef, fs: S3Store, path: str, landing: Landing) -> None:
        config = {
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "max_pool_connections": 4 * PARALLEL,  # waiting for one must not look like a stall
        }
        # the endpoint is named, because instances with equal arguments are one
        options = {"config_kwargs": config, "endpoint_url": s3_endpoint() or None}
        self._store = _OneTryStore(**(fs.storage_options | options))
        bucket, key, _ = fs.split_path(path)
        self._place = {"Bucket": bucket, "Key": key}
        self._ref = ref
        self._landing = landing
        size, _, etag = ref.content_key.replace('"', "").partition("-")
        self._etag = etag if size == str(ref.size_bytes) else ""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where `bring` must run."""
        return cast("asyncio.AbstractEventLoop", self._store.loop)

    async def bring(self, ranges: Sequence[Range]) -> None:
        """Brings all of the ranges, in parts, several at a time.

        Raises:
            VideoError: the first failure; the other parts are given up.
        """
        slots = asyncio.Semaphore(PARALLEL)
        try:
            async with asyncio.TaskGroup() as group:
                for start, stop in ranges:
                    for part in range(start, stop, PART_BYTES):
                        end = min(part + PART_BYTES, stop)
                        group.create_task(self._bring_part(part, end, slots))
        except ExceptionGroup as failed:
            first = failed.exceptions[0]
            raise first from first.__cause__

    async def _bring_part(self, start: int, stop: int, slots: asyncio.Semaphore) -> None:
        failures = 0
        present = self._landing.present
        while (at := present.stop_of(start)) < stop:
            try:
                async with slots:
                    await self._stream(at, stop)
            except (VideoTransientIO, VideoTruncated) as error:
                progress = present.stop_of(start) - at >= PROGRESS_BYTES
                failures = 1 if progress else failures + 1
                if failures >= TRIES:
                    raise
                self._landing.traffic.retries[error.code] += 1
                await asyncio.sleep(pause_seconds(failures))

    async def _stream(self, start: int, stop: int) -> None:
        with video_errors(self._ref):
            async with asyncio.timeout(STALL_SECONDS):
                answer = await self._ask(start, stop)
            body = answer["Body"]
            try:
                self._check(answer, start)
                while start < stop:
                    async with asyncio.timeout(STALL_SECONDS):
                        chunk = await body.read(min(CHUNK_BYTES, stop - start))
                    self._take(chunk, start, stop)
                    start += len(chunk)
            finally:
                body.close()

    async def _ask(self, start: int, stop: int) -> dict[str, Any]:
        self._landing.traffic.requests += 1
        pin = {"IfMatch": f'"{self._etag}"'} if self._etag else {}
        answer = await self._store._call_s3(  # noqa: SLF001 - the coroutine
            "get_object", **self._place, Range=f"bytes={start}-{stop - 1}", **pin
        )
        return cast("dict[str, Any]", answer)

    def _check(self, answer: dict[str, Any], start: int) -> None:
        """Not every server minds If-Match; and a cache in between may answer another question."""
        etag = answer.get("ETag", "").replace('"', "")
        self._etag = self._etag or etag  # where the manifest has none, the first answer decides
        found = _CONTENT_RANGE.fullmatch(answer.get("ContentRange", ""))
        # a server that knows no ranges sends all of it
        first, total = map(int, found.groups()) if found else (0, answer["ContentLength"])
        if etag not in ("", self._etag) or total != self._ref.size_bytes:
            raise changed(self._ref)
        if first != start:
            message = f"{redact(self._ref.uri)}: the storage sent other bytes than were asked for"
            raise VideoTransientIO(message)

    def _take(self, chunk: bytes, start: int, stop: int) -> None:
        if not chunk:
            sizes = f"of {stop} asked for and {self._ref.size_bytes} listed"
            message = f"{redact(self._ref.uri)}: the bytes end at {start}, {sizes}"
            raise VideoTruncated(message)
        self._landing.write(self._ref, chunk, start)
        self._landing.present.add(start, start + len(chunk))
