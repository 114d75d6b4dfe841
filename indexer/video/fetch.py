"""Brings one listed video's bytes to this machine, and makes sure that they are the listed ones.

open_video(ref) -> FetchedVideo   a descriptor over an unnamed file
    local file      in place
    S3              parts in parallel, pinned to the listed ETag; of a large MP4 only the head,
                    and then what `fetch` is asked for
    other storage   whole
prefetched(refs)                  the same, one video ahead of its reader
"""

import itertools
import os
import stat
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from indexer.config import Decode
from indexer.errors import (
    VideoEmpty,
    VideoError,
    VideoNotAVideo,
    VideoOverBudget,
    VideoTransientIO,
    VideoTruncated,
)
from indexer.records import VideoRef
from indexer.s3 import S3Store
from indexer.storage import filesystem, redact
from indexer.video.extent import looks_like_container
from indexer.video.ranged import Range, RangedFile, Ranges
from indexer.video.transfer import (
    CHUNK_BYTES,
    TRIES,
    Landing,
    S3Object,
    Stop,
    Traffic,
    changed,
    pause_seconds,
    video_errors,
)

HEAD_BYTES: Final = 256 * 2**10
"""Of a large object this much comes first; it tells what is needed of the rest."""
WHOLE_BYTES: Final = 16 * 2**20
"""Up to this size an object is fetched whole: asking again costs more than its bytes."""
GAP_BYTES: Final = 128 * 2**10
"""Missing parts that are nearer to each other come with one request."""

_EBML: Final = b"\x1a\x45\xdf\xa3"


class FetchedVideo:
    """A video's bytes on this machine: a descriptor over an unnamed file that may still have holes.

    A context manager; one thread at a time.
    """

    def __init__(
        self, ref: VideoRef, landing: Landing, stop: Stop, remote: S3Object | None = None
    ) -> None:
        self.size_bytes = ref.size_bytes
        self._landing = landing
        self._stop = stop
        self._remote = remote

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the bytes and ends what is still on its way."""
        self._stop.stop()
        self._landing.close()

    def fileno(self) -> int:
        """The descriptor, for `os.pread`: of `size_bytes` bytes, zeros where they are missing."""
        return self._landing.fileno()

    @property
    def present(self) -> tuple[Range, ...]:
        """The ranges that are here, in order."""
        return tuple(self._landing.present)

    @property
    def complete(self) -> bool:
        """Whether every byte is here."""
        return self._landing.present.stop_of(0) >= self.size_bytes

    @property
    def requests(self) -> int:
        """Requests that were sent to the storage, failed ones too."""
        return self._landing.traffic.requests

    @property
    def fetched_bytes(self) -> int:
        """Bytes that came from the storage; those that came twice count twice."""
        return self._landing.traffic.fetched_bytes

    def fetch(self, ranges: Sequence[Range]) -> None:
        """Brings what of these ranges is not here; what lies near each other, in one request.

        Raises:
            VideoError: some of it cannot be had.
        """
        missing = _joined(self._landing.present, ranges, self.size_bytes)
        if missing and self._remote is not None:
            remote = self._remote
            with self._landing.traffic.timed():
                self._stop.wait_for(lambda: remote.bring(missing), remote.loop)

    def as_file(self) -> RangedFile:
        """The bytes as a file for this process; it does not outlive this object."""
        return RangedFile(self.fileno(), self.size_bytes, self.present, self.fetch)


@dataclass(frozen=True, slots=True)
class Opened:
    """What became of opening one video.

    Attributes:
        ref: the video.
        video: its bytes, which the receiver closes; or why there are none.
        traffic: what it costs to bring them; grows while the video is read.
    """

    ref: VideoRef
    video: FetchedVideo | VideoError
    traffic: Traffic


def open_video(ref: VideoRef, decode: Decode) -> FetchedVideo:
    """Opens a video's bytes; the caller closes them.

    A local file is read in place. An object goes into memory, or if it is large into an unnamed
    temporary file; every request is pinned to one version of it. A large MP4 on S3 comes with its
    head only, and brings the rest when it is asked to.

    Args:
        ref: the video as it was listed.
        decode: the budget of bytes.

    Raises:
        VideoMissing, VideoAccessDenied: it is gone, or may not be read.
        VideoChanged: it is not the version that was listed.
        VideoEmpty, VideoOverBudget: no bytes, or more than `decode.max_bytes`.
        VideoNotAVideo: a local path that is no regular file.
        VideoTruncated: the store sends fewer bytes than it lists.
        VideoTransientIO: reading failed `TRIES` times, or this machine has no room.
    """
    return _open(ref, decode, *filesystem(ref.uri), Stop(), Traffic())


def prefetched(refs: Iterable[VideoRef], decode: Decode) -> Generator[Opened, None, None]:
    """Opens videos in order, each while its predecessor is in use; never more than one ahead.

    Who stops early closes the generator, which ends and frees what is still on its way.

    Args:
        refs: the videos; asked for one ahead, in the caller's thread.
        decode: the budget of bytes.

    Yields:
        An outcome for each video, a `VideoError` included.
    """
    waiting: deque[_Opening] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="fetch") as pool:
        try:
            for ref in refs:
                waiting.append(_Opening(pool, ref, decode))
                if len(waiting) > 1:
                    yield _first(waiting)
            while waiting:
                yield _first(waiting)
        finally:
            for opening in waiting:
                opening.abandon()


class _Opening:
    """A video that another thread opens."""

    def __init__(self, pool: ThreadPoolExecutor, ref: VideoRef, decode: Decode) -> None:
        self._stop = Stop()
        # looked up here: s3fs may keep an instance, with a client, for each thread
        place = filesystem(ref.uri)
        self.outcome = pool.submit(_outcome, ref, decode, *place, self._stop)

    def abandon(self) -> None:
        self._stop.stop()
        if not self.outcome.cancel():
            self.outcome.add_done_callback(_discard)


def _first(waiting: deque[_Opening]) -> Opened:
    opened = waiting[0].outcome.result()  # while it is waited for it stays ours to abandon
    waiting.popleft()
    return opened


def _discard(outcome: "Future[Opened]") -> None:
    if outcome.exception() is None and isinstance(video := outcome.result().video, FetchedVideo):
        video.close()


def _outcome(
    ref: VideoRef, decode: Decode, fs: fsspec.AbstractFileSystem, path: str, stop: Stop
) -> Opened:
    traffic = Traffic()
    video: FetchedVideo | VideoError
    try:
        video = _open(ref, decode, fs, path, stop, traffic)
    except VideoError as error:
        video = error
    return Opened(ref, video, traffic)


def _open(
    ref: VideoRef,
    decode: Decode,
    fs: fsspec.AbstractFileSystem,
    path: str,
    stop: Stop,
    traffic: Traffic,
) -> FetchedVideo:
    if isinstance(fs, LocalFileSystem):
        with video_errors(ref), traffic.timed():
            file, everything = _open_local(ref, path, decode), Ranges([(0, ref.size_bytes)])
            return FetchedVideo(ref, Landing(file, everything, traffic), stop)
    _check_size(ref, decode)
    landing = Landing.empty(ref, traffic)
    try:
        if isinstance(fs, S3Store):
            return _open_s3(ref, S3Object(ref, fs, path, landing), landing, stop)
        with traffic.timed():
            _copy_whole(ref, fs, path, landing, stop)
        return FetchedVideo(ref, landing, stop)
    except BaseException:  # a Ctrl-C too would leave the memory or the disk taken
        landing.close()
        raise


def _open_local(ref: VideoRef, path: str, decode: Decode) -> BinaryIO:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not block
    try:
        status = os.fstat(descriptor)
        _check_regular(ref, status)
        _check_key(ref, f"{status.st_size}-{status.st_mtime_ns}")
        _check_size(ref, decode)
        return cast("BinaryIO", os.fdopen(descriptor, "rb", buffering=0))
    except BaseException:  # nobody else knows of the descriptor, whatever ends this
        os.close(descriptor)
        raise


def _open_s3(ref: VideoRef, remote: S3Object, landing: Landing, stop: Stop) -> FetchedVideo:
    video = FetchedVideo(ref, landing, stop, remote)
    if ref.size_bytes > WHOLE_BYTES:
        video.fetch([(0, HEAD_BYTES)])
        if _is_mp4(video):
            return video
    video.fetch([(0, ref.size_bytes)])
    return video


def _is_mp4(video: FetchedVideo) -> bool:
    """Whether the container has an index, which tells what is needed."""
    file = video.as_file()
    return looks_like_container(file) and os.pread(video.fileno(), 4, 0) != _EBML


def _joined(present: Ranges, ranges: Iterable[Range], size_bytes: int) -> list[Range]:
    """What is missing of some ranges, with the gaps between that are not worth a request."""
    wanted = Ranges((start, min(stop, size_bytes)) for start, stop in ranges)
    missing = [gap for start, stop in wanted for gap in present.missing(start, stop)]
    joined: list[Range] = []
    for start, stop in missing:
        if joined and start - joined[-1][1] < GAP_BYTES:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


def _copy_whole(
    ref: VideoRef, fs: fsspec.AbstractFileSystem, path: str, landing: Landing, stop: Stop
) -> None:
    for failures in itertools.count(1):
        try:
            with video_errors(ref):
                _copy(ref, fs, path, landing, stop)
        except (VideoTransientIO, VideoTruncated) as error:
            if failures == TRIES:
                raise
            landing.traffic.retries[error.code] += 1
            stop.pause(pause_seconds(failures))
        else:
            return


def _copy(
    ref: VideoRef, fs: fsspec.AbstractFileSystem, path: str, landing: Landing, stop: Stop
) -> None:
    received_bytes = 0
    landing.traffic.requests += 1
    with fs.open(path, "rb", cache_type="none") as source:
        _check_version(ref, getattr(source, "details", {}))
        while chunk := source.read(CHUNK_BYTES):
            stop.pause()
            received_bytes += len(chunk)
            if received_bytes > ref.size_bytes:
                break
            landing.write(ref, chunk, received_bytes - len(chunk))
    _check_received(ref, received_bytes)
    landing.present.add(0, ref.size_bytes)


def _check_regular(ref: VideoRef, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        message = f"{redact(ref.uri)} is not a regular file"
        raise VideoNotAVideo(message)


def _check_version(ref: VideoRef, details: dict[str, Any]) -> None:
    """Compares what a store says of an opened object with what it said in the listing."""
    size_bytes = details.get("size", ref.size_bytes)
    if size_bytes != ref.size_bytes:
        raise changed(ref)
    if etag := details.get("ETag"):
        _check_key(ref, f"{size_bytes}-{etag}")


def _check_key(ref: VideoRef, content_key: str) -> None:
    if content_key.replace('"', "") != ref.content_key.replace('"', ""):
        raise changed(ref)


def _check_received(ref: VideoRef, received_bytes: int) -> None:
    if received_bytes < ref.size_bytes:
        message = f"{redact(ref.uri)}: {received_bytes} of {ref.size_bytes} bytes arrived"
        raise VideoTruncated(message)
    if received_bytes > ref.size_bytes:
        raise changed(ref)


def _check_size(ref: VideoRef, decode: Decode) -> None:
    if ref.size_bytes == 0:
        message = f"{redact(ref.uri)} has no bytes"
        raise VideoEmpty(message)
    if ref.size_bytes > decode.max_bytes:
        size = f"{redact(ref.uri)} has {ref.size_bytes} bytes"
        message = f"{size}, more than decode.max_bytes = {decode.max_bytes}"
        raise VideoOverBudget(message)
