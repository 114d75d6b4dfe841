"""Lists what lies below a URI, with size and content key in the same pass.

One request lists a thousand S3 objects, so nothing here asks for an object by itself unless a
manifest names objects that are scattered.
"""

import glob
import itertools
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from indexer.storage import check_readable, filesystem, is_s3, storage_errors
from indexer.uris import scheme_of

if TYPE_CHECKING:
    from indexer.s3 import S3Store  # loads botocore, which local paths do without

UNKNOWN: Final = "unknown"
"""Content key of an object that a manifest names but that cannot be seen; its size is 0."""

Wanted = Callable[[str], bool]

_LOGGER = logging.getLogger(__name__)
_MAGIC: Final = re.compile(r"[*?[]")
_HIDDEN: Final = re.compile(r"(?:\A|/)\.")
_STAT_THREADS: Final = 16
_HEADS_PER_PAGE: Final = 20
_FREE_PAGES: Final = 2


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One listed object.

    Attributes:
        uri: its canonical name.
        size_bytes: its size.
        content_key: size and ETag (S3), size and mtime_ns (local), size and what there is (others).
    """

    uri: str
    size_bytes: int
    content_key: str


def find(uri: str, wanted: Wanted) -> list[StoredObject]:
    """The object of this name; else the wanted ones below this folder; else those a glob matches.

    An S3 prefix need not end at a `/`. Names are tried literally before they are read as globs.
    Hidden files and folders are passed over, and so are loops of links.

    Args:
        uri: canonical name of an object or folder, an S3 prefix, or a glob.
        wanted: says of a file's name whether it is taken; not asked of an object named outright,
            nor where a glob ends in an extension.

    Raises:
        StorageError: the storage cannot be listed.
    """
    fs, path = filesystem(uri)
    with storage_errors(uri):
        if isinstance(fs, LocalFileSystem):
            return _find_local(path, wanted)
        if is_s3(fs):
            return _find_s3(fs, path, wanted)
        return _find_other(fs, uri, path, wanted)


def stat_all(uris: Sequence[str]) -> list[StoredObject]:
    """Size and content key of each object, in order; `UNKNOWN` of one that cannot be seen.

    Raises:
        StorageError: a whole bucket cannot be seen.
    """
    groups = defaultdict(list)
    for uri in uris:
        scheme = scheme_of(uri)
        groups[scheme, uri.split("/", 3)[2] if scheme == "s3" else ""].append(uri)
    found: dict[str, StoredObject] = {}
    for (scheme, bucket), members in groups.items():
        seen = _stat_bucket(members) if scheme == "s3" else _stat_each(members)
        if scheme == "s3" and not seen:
            check_readable(f"s3://{bucket}")
        found.update(seen)
    return [found.get(uri) or StoredObject(uri, 0, UNKNOWN) for uri in uris]


def _find_local(path: str, wanted: Wanted) -> list[StoredObject]:
    if os.path.isfile(path):  # noqa: PTH113 - paths stay the strings that were given
        return [_local_object(path, os.stat(path))]  # noqa: PTH116
    if os.path.isdir(path):  # noqa: PTH112
        found = _walk_local(path, wanted)
    else:
        found = _glob_local(path, wanted) if _MAGIC.search(path) else iter(())
    storable, skipped = [], 0
    for item in found:
        if is_utf8(item.uri):
            storable.append(item)
        else:
            skipped += 1
    if skipped:
        _LOGGER.warning("%s: skipped %d files whose names are not UTF-8", path, skipped)
    return storable


def _glob_local(pattern: str, wanted: Wanted) -> Iterator[StoredObject]:
    takes = _glob_filter(pattern, wanted)
    walked: str | None = None
    for match in glob.iglob(_escape_existing(pattern), recursive=True):  # noqa: PTH207
        if walked is not None and match.startswith(walked):
            continue  # "**" names what is below a folder again
        if os.path.isdir(match):  # noqa: PTH112
            walked = match.rstrip("/") + "/"
            yield from _walk_local(match.rstrip("/"), takes)
        elif takes(os.path.basename(match)) and os.path.isfile(match):  # noqa: PTH113, PTH119
            yield _local_object(match, os.stat(match))  # noqa: PTH116


def _walk_local(root: str, wanted: Wanted) -> Iterator[StoredObject]:
    """Real folders are entered before links to folders, so that a file keeps its real name."""
    seen: set[tuple[int, int]] = set()
    folders, links = [root], list[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        status, entries = _scan(folder)
        if status is None or (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            kind = _kind(entry)
            if kind == "folder":
                (links if entry.is_symlink() else folders).append(entry.path)
            elif kind == "file" and wanted(entry.name):
                yield _local_object(entry.path, entry.stat())


def _scan(folder: str) -> tuple[os.stat_result | None, list[os.DirEntry[str]]]:
    try:
        with storage_errors(folder), os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
            return os.stat(folder), sorted(visible, key=lambda entry: entry.name)  # noqa: PTH116
    except FileNotFoundError:
        return None, []  # removed since its parent was read


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            entry.stat()  # kept by the entry
            return "file"
    except OSError:
        return "broken"  # removed meanwhile, or a link to itself
    return "other"


def _local_object(path: str, status: os.stat_result) -> StoredObject:
    return StoredObject(path, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def is_utf8(path: str) -> bool:
    """Whether a name can be stored as text; on disk any bytes make a name."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escape_existing(pattern: str) -> str:
    """Takes the leading folders that exist literally out of the pattern."""
    literal, rest = "/", [part for part in pattern.split("/") if part]
    while rest and os.path.isdir(os.path.join(literal, rest[0])):  # noqa: PTH112, PTH118
        literal = os.path.join(literal, rest.pop(0))  # noqa: PTH118
    return os.path.join(glob.escape(literal), *rest)  # noqa: PTH118


def _glob_filter(pattern: str, wanted: Wanted) -> Wanted:
    """A glob that ends in an extension takes whatever it matches."""
    extension = os.path.splitext(pattern)[1]  # noqa: PTH122
    if extension and not _MAGIC.search(extension):
        return lambda name: name.endswith(extension) or wanted(name)
    return wanted


def _find_s3(fs: "S3Store", path: str, wanted: Wanted) -> list[StoredObject]:
    bucket, key, _ = fs.split_path(path)
    check_readable(f"s3://{bucket}/{key}")
    first = _first(fs, bucket, key)
    if first is None:
        return _glob_s3(fs, bucket, key, wanted) if _MAGIC.search(key) else []
    if key and not key.endswith("/"):
        if first["Key"] == key:
            return [_s3_object(bucket, first)]
        if _first(fs, bucket, f"{key}/") is not None:
            key = f"{key}/"
    return _below(fs, bucket, key, wanted)


def _glob_s3(fs: "S3Store", bucket: str, pattern: str, wanted: Wanted) -> list[StoredObject]:
    start = _MAGIC.search(pattern)
    literal = pattern[: start.start()] if start else pattern
    matches = glob_regex(pattern).match
    found = _below(fs, bucket, literal, _glob_filter(pattern, wanted))
    offset = len(f"s3://{bucket}/")
    return [item for item in found if matches(item.uri[offset:])]


def _below(fs: "S3Store", bucket: str, prefix: str, wanted: Wanted) -> list[StoredObject]:
    offset = prefix.rfind("/") + 1
    found = []
    for page in _pages(fs, bucket, prefix):
        for entry in page:
            key = entry["Key"]
            if wanted(key[key.rfind("/") + 1 :]) and not _HIDDEN.search(key[offset:]):
                found.append(_s3_object(bucket, entry))
    return found


def glob_regex(pattern: str) -> re.Pattern[str]:
    """A glob over keys: `*` stays within a folder, `**` does not; so does all below a match."""
    tokens = re.finditer(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", pattern.rstrip("/"), re.DOTALL)
    body = "".join(_glob_token(token[0]) for token in tokens)
    return re.compile(rf"{body}(?:/.*)?\Z", re.DOTALL)


def _glob_token(token: str) -> str:
    fixed = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    if token in fixed:
        return fixed[token]
    if len(token) > 1:
        members = token[1:-1].replace("\\", r"\\").replace("[", r"\[")
        return f"[^/{members[1:]}]" if members.startswith("!") else f"[{members}]"
    return re.escape(token)


def _pages(fs: "S3Store", bucket: str, prefix: str, **more: str) -> Iterator[list[dict[str, Any]]]:
    request: dict[str, str] = {"Bucket": bucket, "Prefix": prefix, **more}
    while True:
        page = fs.call_s3("list_objects_v2", **request)
        yield page.get("Contents", [])
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _first(fs: "S3Store", bucket: str, prefix: str) -> dict[str, Any] | None:
    page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
    return next(iter(page.get("Contents", [])), None)


def _s3_object(bucket: str, entry: Mapping[str, Any]) -> StoredObject:
    size, etag = entry["Size"], entry["ETag"].strip('"')
    return StoredObject(f"s3://{bucket}/{entry['Key']}", size, f"{size}-{etag}")


def _find_other(
    fs: fsspec.AbstractFileSystem, uri: str, path: str, wanted: Wanted
) -> list[StoredObject]:
    if scheme_of(uri) in {"http", "https"} or fs.isfile(path):  # a web server lists nothing
        return [_other_object(uri, fs.info(path))]
    takes = wanted
    if _MAGIC.search(path) and not fs.exists(path):
        matches, takes = fs.glob(path), _glob_filter(path, wanted)
    else:
        matches = [path]
    infos = [info for match in matches for info in fs.find(match, detail=True).values()]
    return [
        _other_object(fs.unstrip_protocol(info["name"]), info)
        for info in infos
        if takes(info["name"].rpartition("/")[2]) and "/." not in info["name"].removeprefix(path)
    ]


def _other_object(uri: str, info: Mapping[str, Any]) -> StoredObject:
    size = int(info.get("size") or 0)
    names = ("etag", "ETag", "md5Hash", "content_md5", "mtime", "last_modified", "updated")
    version = next((info[name] for name in (*names, "created") if info.get(name)), "")
    return StoredObject(uri, size, f"{size}-{str(version).strip(chr(34))}")


def _stat_bucket(uris: Iterable[str]) -> dict[str, StoredObject]:
    folders = defaultdict(set)
    for uri in uris:
        folders[uri.rpartition("/")[0] + "/"].add(uri)
    found: dict[str, StoredObject] = {}
    for folder, members in folders.items():
        found.update(_stat_by_listing(folder, members))
    return found | _stat_each(uri for uri in uris if uri not in found)


def _stat_by_listing(folder: str, wanted: set[str]) -> dict[str, StoredObject]:
    """Reads pages of a folder's list for as long as that may be cheaper than asking for each."""
    budget = len(wanted) // _HEADS_PER_PAGE
    found: dict[str, StoredObject] = {}
    if budget == 0:
        return found
    fs, path = filesystem(folder)
    bucket, prefix, _ = fs.split_path(path)
    with storage_errors(folder):
        try:
            pages = _pages(fs, bucket, prefix, Delimiter="/")
            for page in itertools.islice(pages, budget + _FREE_PAGES):
                items = (_s3_object(bucket, entry) for entry in page)
                found.update((item.uri, item) for item in items if item.uri in wanted)
                if len(found) == len(wanted):
                    break
        except PermissionError:
            return found  # objects may be readable although their folder may not be listed
    return found


def _stat_each(uris: Iterable[str]) -> dict[str, StoredObject]:
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        return {item.uri: item for item in pool.map(_stat_one, uris) if item is not None}


def _stat_one(uri: str) -> StoredObject | None:
    fs, path = filesystem(uri)
    with storage_errors(uri):
        try:
            if isinstance(fs, LocalFileSystem):
                return _local_object(path, os.stat(path))  # noqa: PTH116
            if is_s3(fs):
                bucket, key, _ = fs.split_path(path)
                head = fs.call_s3("head_object", Bucket=bucket, Key=key)
                return _s3_object(bucket, {**head, "Key": key, "Size": head["ContentLength"]})
            return _other_object(uri, fs.info(path))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
