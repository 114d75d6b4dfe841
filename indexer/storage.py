"""Where bytes lie: turns a URI into a file system and a storage failure into our errors.

Local folders and S3 are first class; whatever else fsspec knows works where the job's `schemes`
list it. Credentials come from the environment only, because arguments of a file system travel with
it to every worker.

fsspec is loaded by what needs it: with what it brings, it takes longer than a question to a local
index, whose objects are read without it.
"""

import errno
import json
import os
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from indexer.errors import ConfigError, StorageError
from indexer.uris import (
    absolute_uri,
    check_public,
    check_scheme,
    join,
    redact,
    s3_endpoint,
    s3_region,
    scheme_of,
)

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

__all__ = [
    "absolute_uri",
    "check_public",
    "check_readable",
    "check_scheme",
    "check_writable",
    "create_bytes",
    "delete",
    "delta_storage_options",
    "exists",
    "filesystem",
    "is_local",
    "is_s3",
    "join",
    "list_folders",
    "list_json",
    "list_names",
    "read_bytes",
    "redact",
    "scheme_of",
    "storage_errors",
    "write_bytes",
]

CHECK_SECONDS: Final = 3.5
"""A check before a job answers, or gives up, within this time."""

_CREATE_TRIES: Final = 5
_READ_THREADS: Final = 8
_LOCAL_REFUSALS: Final = {
    errno.EACCES: "permission denied: check its owner and mode",
    errno.EPERM: "permission denied: check its owner and mode",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
}


def filesystem(uri: str) -> "tuple[AbstractFileSystem, str]":
    """The file system of a URI, and the path to use with it.

    Raises:
        ConfigError: the scheme is unknown, or its package is not installed.
    """
    absolute = absolute_uri(uri)
    scheme = scheme_of(uri)
    if scheme == "file":
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem(), absolute
    if scheme == "s3":
        from indexer.s3 import open_store

        return open_store(), absolute.removeprefix("s3://")
    from fsspec.core import url_to_fs

    try:
        fs, path = url_to_fs(uri)
    except (ImportError, ValueError) as error:
        message = f"{redact(uri)}: the scheme {scheme!r} cannot be used: {error}"
        raise ConfigError(message) from error
    return fs, path


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turns a failure of the storage under `uri` into an error that says what to do.

    A missing object stays a `FileNotFoundError`: only the caller knows what it means.

    Raises:
        StorageError: credentials, permissions, endpoint, bucket, disk.
    """
    local = is_local(uri)
    failures = (OSError,) if local else _remote_failures()
    try:
        yield
    except failures as error:
        reason = None if local else _remote_reason(error)
        if isinstance(error, FileNotFoundError) and reason is None:
            raise
        message = f"{redact(uri)}: {reason or _plain_reason(error)}"
        raise StorageError(message) from error


def read_bytes(uri: str) -> bytes:
    """The content of a small object.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it cannot be read.
    """
    if is_local(uri):
        with storage_errors(uri):
            try:
                return Path(absolute_uri(uri)).read_bytes()
            except NotADirectoryError as error:  # below a file there is nothing
                raise FileNotFoundError(*error.args) from error
    fs, path = filesystem(uri)
    with storage_errors(uri):
        return _read(fs, path)


def write_bytes(uri: str, data: bytes) -> None:
    """Replaces a small object: readers see the old bytes or the new ones, never a part.

    Raises:
        StorageError: it cannot be written.
    """
    fs, path = filesystem(uri)
    with storage_errors(uri):
        if is_local(uri):
            _write_local(Path(path), data, os.replace)
        else:
            fs.pipe_file(path, data)


def create_bytes(uri: str, data: bytes) -> bool:
    """Makes a small object unless there is one: of many writers one wins.

    A store may refuse the retry of a write that had been applied although its reply was lost, so a
    refusal is decided by reading back. Writers who must know whether it was they who won put a
    token of their own into `data`.

    Returns:
        Whether the object now holds exactly `data`.

    Raises:
        StorageError: it cannot be written.
    """
    fs, path = filesystem(uri)
    with storage_errors(uri):
        for _ in range(_CREATE_TRIES):
            try:
                if is_local(uri):
                    _write_local(Path(path), data, os.link)
                else:
                    fs.pipe_file(path, data, mode="create")
            except OSError as error:
                if not _lost_race(error, fs):
                    raise
            try:
                return _read(fs, path) == data
            except FileNotFoundError:
                continue  # the winner has removed it again, or a racing write is still under way
    message = f"{redact(uri)}: the object appears and vanishes; another process is at work on it"
    raise StorageError(message)


def delete(uri: str) -> None:
    """Removes one object; one that is not there is no error.

    Raises:
        StorageError: it cannot be removed.
    """
    fs, path = filesystem(uri)
    with storage_errors(uri):
        try:
            fs.rm_file(path)
        except FileNotFoundError:
            return


def exists(uri: str) -> bool:
    """Whether there is an object, or a folder, of this name.

    Raises:
        StorageError: the storage does not say.
    """
    fs, path = filesystem(uri)
    with storage_errors(uri):
        found = bool(fs.exists(path))
    if not found:
        check_readable(uri)  # s3fs says the same of a missing object and of a missing bucket
    return found


def list_names(uri: str, *, after: str = "") -> list[str]:
    """Names of the objects directly in a folder, sorted; none where there is no folder.

    Args:
        uri: of the folder.
        after: only names that sort after this; S3 does not list the others.

    Raises:
        StorageError: the folder cannot be listed.
    """
    if after and scheme_of(uri) == "s3":
        fs, path = filesystem(uri)
        with storage_errors(uri):
            return sorted(fs.names_after(path, after))
    names = (name for name, kind in _entries(uri) if kind == "file")
    return sorted(name for name in names if name and name > after)


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly in a folder, sorted; none where there is no folder.

    Raises:
        StorageError: the folder cannot be listed.
    """
    own = uri.rstrip("/").rpartition("/")[2]
    names = (name for name, kind in _entries(uri) if kind == "directory")
    return sorted(name for name in names if name and name != own)


def _entries(uri: str) -> list[tuple[str, str]]:
    """Name and kind, "file" or "directory", of what lies directly in a folder."""
    if is_local(uri):
        return _local_entries(uri)
    fs, path = filesystem(uri)
    with storage_errors(uri):
        try:
            entries = fs.ls(path, detail=True)
        except FileNotFoundError:
            check_readable(uri)
            return []
    return [(_last_name(entry), entry["type"]) for entry in entries]


def _local_entries(uri: str) -> list[tuple[str, str]]:
    """The same of a local folder, without a look at each file: a log has thousands."""
    with storage_errors(uri):
        try:
            with os.scandir(absolute_uri(uri)) as found:
                return [(entry.name, _kind(entry)) for entry in found]
        except (FileNotFoundError, NotADirectoryError):
            return []


def _kind(entry: "os.DirEntry[str]") -> str:
    if entry.is_dir():
        return "directory"
    return "file" if entry.is_file() else "other"


def _last_name(entry: dict[str, Any]) -> str:
    """Empty for the object that some tools put in the place of an S3 folder."""
    name: str = entry["name"]
    return (name if entry["type"] == "file" else name.rstrip("/")).rpartition("/")[2]


def list_json(uri: str) -> dict[str, Any]:
    """Every `.json` object directly in a folder, parsed, by name.

    Raises:
        StorageError: the folder or an object cannot be read, or is no JSON.
    """
    names = [name for name in list_names(uri) if name.endswith(".json")]
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        parsed = pool.map(lambda name: _read_json(join(uri, name)), names)
        return {
            name: found[0] for name, found in zip(names, parsed, strict=True) if found is not None
        }


def delta_storage_options(uri: str) -> dict[str, str]:
    """What `deltalake` needs besides the environment, from which it takes the credentials.

    An endpoint that does not answer is given up within five seconds.
    """
    if scheme_of(uri) != "s3":
        return {}
    options = {
        "connect_timeout": "2s",
        "max_retries": "4",
        "retry_timeout": "2500ms",
        "backoff_config.max_backoff": "1s",
    }
    endpoint = s3_endpoint()
    if endpoint:
        options["AWS_ENDPOINT_URL"] = endpoint
        options["AWS_ALLOW_HTTP"] = "true" if endpoint.startswith("http://") else "false"
        options["AWS_REGION"] = s3_region() or "us-east-1"
    return options


def check_writable(uri: str) -> None:
    """Writes and removes a small object in a folder, within five seconds.

    Raises:
        StorageError: the folder cannot be written; the message says why.
    """
    name = f".probe-{uuid.uuid4().hex}.tmp"
    try:
        with storage_errors(uri):
            _write_probe(uri, name)
    except FileNotFoundError as error:
        message = f"{redact(uri)}: nothing can be written there"
        raise StorageError(message) from error


def check_readable(uri: str) -> None:
    """Lists one object below an S3 prefix, within five seconds; other storage is not asked.

    Raises:
        StorageError: the bucket cannot be listed; the message says why.
    """
    fs, path = filesystem(uri)
    if is_s3(fs):
        bucket, prefix, _ = fs.split_path(path)
        request = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": 1}
        with storage_errors(uri):
            _within_deadline(fs, lambda: fs._call_s3("list_objects_v2", **request))  # noqa: SLF001


def _write_probe(uri: str, name: str) -> None:
    from fsspec.asyn import AsyncFileSystem

    fs, path = filesystem(uri)
    if is_local(uri):
        folder = _nearest_folder(Path(path))
        _write_local(folder / name, b"", os.replace)
        (folder / name).unlink()
    elif isinstance(fs, AsyncFileSystem):
        _within_deadline(fs, lambda: _probe(fs, join(path, name)))
    else:
        fs.pipe_file(join(path, name), b"")
        fs.rm_file(join(path, name))


def _within_deadline(fs: "AsyncFileSystem", make: Callable[[], Any]) -> None:
    import asyncio

    from fsspec.asyn import sync

    async def bounded() -> None:
        await asyncio.wait_for(make(), CHECK_SECONDS)

    sync(fs.loop, bounded)


async def _probe(fs: "AsyncFileSystem", path: str) -> None:
    await fs._pipe_file(path, b"")  # noqa: SLF001 - the coroutine, to bound it
    await fs._rm_file(path)  # noqa: SLF001


def _nearest_folder(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _write_local(target: Path, data: bytes, publish: Callable[[Path, Path], None]) -> None:
    """Writes under a hidden name, then publishes it in one step under its own."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _read(fs: "AbstractFileSystem", path: str) -> bytes:
    # s3fs would ask for the size first, to fetch large objects in parts at the same time
    options = {"max_concurrency": 1} if is_s3(fs) else {}
    content: bytes = fs.cat_file(path, **options)
    return content


def _read_json(uri: str) -> tuple[Any] | None:
    try:
        return (json.loads(read_bytes(uri)),)
    except FileNotFoundError:
        return None  # removed since it was listed
    except ValueError as error:
        message = f"{redact(uri)} is not JSON: {error}"
        raise StorageError(message) from error


def is_local(uri: str) -> bool:
    """Whether a URI names something on this machine."""
    return scheme_of(uri) == "file"


def is_s3(fs: "AbstractFileSystem") -> bool:
    """Whether a file system is S3."""
    return "s3" in fs.protocol


def _lost_race(error: OSError, fs: "AbstractFileSystem") -> bool:
    if isinstance(error, FileExistsError) or not is_s3(fs):
        return isinstance(error, FileExistsError)
    from indexer.s3 import lost_race

    return lost_race(error)


def _remote_failures() -> tuple[type[Exception], ...]:
    from indexer.s3 import FAILURES

    return FAILURES


def _remote_reason(error: Exception) -> str | None:
    from indexer.s3 import explain

    return explain(error)


def _plain_reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in _LOCAL_REFUSALS:
        return _LOCAL_REFUSALS[error.errno]
    return f"{type(error).__name__}: {error}"
