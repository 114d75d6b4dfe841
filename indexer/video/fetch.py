"""Brings one listed video's bytes to this machine, and makes sure that they are the listed ones."""

import os
import random
import stat
import tempfile
import time
from collections.abc import Callable
from typing import Any, BinaryIO, Final, cast

import aiohttp
import fsspec
from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from fsspec.implementations.local import LocalFileSystem
from s3fs.utils import FileExpired  # type: ignore[import-untyped]

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
from indexer.storage import filesystem, redact

CHUNK_BYTES: Final = 8 * 2**20
MEMORY_BYTES: Final = 256 * 2**20
"""A larger object goes through an unnamed file in the temporary folder."""
TRIES: Final = 5
FIRST_PAUSE_SECONDS: Final = 0.25

_REFUSED: Final = (PermissionError, NoCredentialsError, PartialCredentialsError)
_MAY_PASS: Final = (OSError, BotoCoreError, ClientError, aiohttp.ClientError)


def open_video(ref: VideoRef, decode: Decode) -> BinaryIO:
    """Opens a video's bytes for seeking and reading; the caller closes the file.

    A local file is read in place. A remote object is streamed once into memory, or beyond
    `MEMORY_BYTES` into an unnamed temporary file; every read is pinned to one version of it.

    Args:
        ref: the video as it was listed.
        decode: the budget of bytes.

    Raises:
        VideoMissing, VideoAccessDenied: it is gone, or may not be read.
        VideoChanged: it is not the version that was listed.
        VideoEmpty, VideoOverBudget: no bytes, or more than `decode.max_bytes`.
        VideoTruncated: the store sends fewer bytes than it lists.
        VideoTransientIO: reading failed `TRIES` times.
    """
    fs, path = filesystem(ref.uri)
    if isinstance(fs, LocalFileSystem):
        return _translated(ref, lambda: _open_local(ref, path, decode))
    _check_size(ref, decode)
    for attempt in range(TRIES - 1):
        try:
            return _translated(ref, lambda: _download(ref, fs, path))
        except (VideoTransientIO, VideoTruncated):
            jitter = random.uniform(0.5, 1.5)  # noqa: S311 - spreads the workers' retries
            time.sleep(FIRST_PAUSE_SECONDS * 2**attempt * jitter)
    return _translated(ref, lambda: _download(ref, fs, path))


def _open_local(ref: VideoRef, path: str, decode: Decode) -> BinaryIO:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not block
    try:
        status = os.fstat(descriptor)
        _check_regular(ref, status)
        _check_key(ref, f"{status.st_size}-{status.st_mtime_ns}")
        _check_size(ref, decode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _download(ref: VideoRef, fs: fsspec.AbstractFileSystem, path: str) -> BinaryIO:
    target = cast("BinaryIO", tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES))  # noqa: SIM115
    try:
        with fs.open(path, "rb", cache_type="none") as source:
            _check_version(ref, getattr(source, "details", {}))
            while chunk := source.read(CHUNK_BYTES):
                target.write(chunk)
                if target.tell() > ref.size_bytes:
                    break
        _check_received(ref, target.tell())
        target.seek(0)
    except BaseException:
        target.close()
        raise
    return target


def _check_regular(ref: VideoRef, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        message = f"{redact(ref.uri)} is not a regular file"
        raise VideoNotAVideo(message)


def _check_version(ref: VideoRef, details: dict[str, Any]) -> None:
    """Compares what a store says of an opened object with what it said in the listing."""
    size_bytes = details.get("size", ref.size_bytes)
    if size_bytes != ref.size_bytes:
        _check_key(ref, f"{size_bytes}-")
    if etag := details.get("ETag"):
        _check_key(ref, f"{size_bytes}-{etag}")


def _check_key(ref: VideoRef, content_key: str) -> None:
    if content_key.replace('"', "") != ref.content_key.replace('"', ""):
        message = f"{redact(ref.uri)} is not the version that was listed"
        raise VideoChanged(message)


def _check_received(ref: VideoRef, received_bytes: int) -> None:
    if received_bytes < ref.size_bytes:
        message = f"{redact(ref.uri)}: {received_bytes} of {ref.size_bytes} bytes arrived"
        raise VideoTruncated(message)
    if received_bytes > ref.size_bytes:
        message = f"{redact(ref.uri)} has grown beyond its {ref.size_bytes} listed bytes"
        raise VideoChanged(message)


def _check_size(ref: VideoRef, decode: Decode) -> None:
    if ref.size_bytes == 0:
        message = f"{redact(ref.uri)} has no bytes"
        raise VideoEmpty(message)
    if ref.size_bytes > decode.max_bytes:
        size = f"{redact(ref.uri)} has {ref.size_bytes} bytes"
        message = f"{size}, more than decode.max_bytes = {decode.max_bytes}"
        raise VideoOverBudget(message)


def _translated(ref: VideoRef, fetch: Callable[[], BinaryIO]) -> BinaryIO:
    """Runs `fetch` with the errors of every kind of storage as `VideoError`s.

    The text of a foreign error is left out: it may hold a signed address.
    """
    name = redact(ref.uri)
    try:
        return fetch()
    except FileNotFoundError as error:
        message = f"{name} was listed, but is gone"
        raise VideoMissing(message) from error
    except _REFUSED as error:
        message = f"{name} may not be read: check its permissions and the credentials"
        raise VideoAccessDenied(message) from error
    except FileExpired as error:
        message = f"{name} was replaced while it was being read"
        raise VideoChanged(message) from error
    except _MAY_PASS as error:
        message = f"{name} could not be read: {type(error).__name__}"
        raise VideoTransientIO(message) from error
