"""Which videos a job is about: inputs become one table, one row a video.

Columns: `video_id`, `uri`, `size_bytes` (int64), `content_key`, `extra` (a JSON object).
"""

import csv
import io
import json
import math
import os
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, Final, TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from indexer import storage
from indexer.errors import ManifestError
from indexer.listing import StoredObject, find, is_utf8, stat_all
from indexer.records import VideoRef
from indexer.redaction import redact_credentials

MANIFEST_SCHEMA: Final = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("content_key", pa.string(), nullable=False),
        pa.field("extra", pa.string(), nullable=False),
    ]
)
MANIFEST_SUFFIXES: Final = (".parquet", ".csv", ".jsonl", ".txt")
VIDEO_SUFFIXES: Final = frozenset(
    {
        *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".ivf", ".m1v", ".m2t"),
        *(".m2ts", ".m2v", ".m4v", ".mj2", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg"),
        *(".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm"),
        *(".wmv", ".y4m"),
    }
)
_BATCH_ROWS: Final = 1 << 16
_OWN_COLUMNS: Final = frozenset({"video_id", "uri", "size_bytes", "content_key", "etag", "extra"})

Row: TypeAlias = tuple[StoredObject, str]
Entry: TypeAlias = Mapping[str, Any]
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class ManifestDiff:
    """What happened between two manifests; the tables have the manifest's columns.

    Attributes:
        added: videos that are only in the new one.
        changed: videos of the new one whose content key is another than in the old one.
        removed: videos that are only in the old one.
    """

    added: pa.Table
    changed: pa.Table
    removed: pa.Table


def video_id(uri: str) -> str:
    """The id of a video, from the canonical spelling of its URI."""
    return uuid.uuid5(uuid.NAMESPACE_URL, storage.absolute_uri(uri)).hex


def discover(
    inputs: Sequence[str], *, schemes: Collection[str], limit: int | None = None
) -> pa.Table:
    """Lists the videos of a job, each once, sorted by URI within an input.

    An input is a file of any extension, a folder (its videos by extension, at any depth), an S3
    prefix, a glob, or a manifest: `.parquet`, `.csv` and `.jsonl` with a column `uri`, `.txt` with
    a URI in each line. Relative URIs of a manifest start at its folder. Its columns `size_bytes`
    and `content_key` (or `etag`) are believed; columns that we do not know go into `extra`.

    Args:
        inputs: paths or URIs.
        schemes: what they may use, such as `("file", "s3")`.
        limit: at most this many videos, the first ones.

    Raises:
        ConfigError: a scheme is not allowed.
        ManifestError: an input does not exist, holds no video, or is no manifest.
        StorageError: the storage cannot be listed.
    """
    tables: list[pa.Table] = []
    for source in inputs:
        storage.check_scheme(source, schemes)
        listed = pa.Table.from_batches(map(_batch, _rows(source, schemes)), MANIFEST_SCHEMA)
        table = _each_once(listed)
        for known in tables:
            is_known = pa.compute.is_in(table["uri"], value_set=known["uri"].combine_chunks())
            table = table.filter(pa.compute.invert(is_known))
        tables.append(table)
    return pa.concat_tables(tables).slice(0, limit)


def _each_once(table: pa.Table) -> pa.Table:
    """The rows sorted by URI, of several of one URI the first."""
    order = [("uri", "ascending"), ("place", "ascending")]
    places = table.select(["uri"]).append_column("place", pa.array(range(len(table)), pa.int64()))
    table = table.take(pa.compute.sort_indices(places, order))
    uris = table["uri"]
    is_first = pa.compute.not_equal(uris.slice(1), uris.slice(0, max(len(uris) - 1, 0)))
    return table.filter(pa.chunked_array([pa.array([True] * min(len(uris), 1)), *is_first.chunks]))


def refs(table: pa.Table) -> Iterator[VideoRef]:
    """The rows of a manifest."""
    for batch in table.select(MANIFEST_SCHEMA.names).to_batches():
        for row in batch.to_pylist():
            yield VideoRef(**row)


def write_manifest(table: pa.Table, uri: str) -> None:
    """Writes a manifest as Parquet, CSV or JSON lines, as the extension says.

    Raises:
        ManifestError: the extension is another.
        StorageError: it cannot be written.
    """
    suffix = PurePosixPath(uri).suffix.lower()
    if suffix == ".parquet":
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        storage.write_bytes(uri, sink.getvalue())
    elif suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(table.column_names)
        for batch in table.to_batches():
            writer.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))
        storage.write_bytes(uri, text.getvalue().encode())
    elif suffix == ".jsonl":
        lines = (
            json.dumps(row, ensure_ascii=False) + "\n"
            for batch in table.to_batches()
            for row in batch.to_pylist()
        )
        storage.write_bytes(uri, "".join(lines).encode())
    else:
        message = f"{storage.redact(uri)}: write a manifest as .parquet, .csv or .jsonl"
        raise ManifestError(message)


def diff_manifests(old: pa.Table, new: pa.Table) -> ManifestDiff:
    """Compares two manifests by video and content; each part is sorted by URI."""
    known = old.select(["video_id", "content_key"]).rename_columns(["video_id", "old_key"])
    common = new.join(known, "video_id", join_type="inner")
    changed = common.filter(pa.compute.not_equal(common["content_key"], common["old_key"]))
    return ManifestDiff(
        added=_tidy(new.join(old.select(["video_id"]), "video_id", join_type="left anti")),
        changed=_tidy(changed),
        removed=_tidy(old.join(new.select(["video_id"]), "video_id", join_type="left anti")),
    )


def _tidy(table: pa.Table) -> pa.Table:
    return table.select(MANIFEST_SCHEMA.names).sort_by("uri").cast(MANIFEST_SCHEMA)


def _batch(rows: Sequence[Row]) -> pa.RecordBatch:
    namespace = uuid.NAMESPACE_URL
    return pa.record_batch(
        [
            [uuid.uuid5(namespace, found.uri).hex for found, _ in rows],
            [found.uri for found, _ in rows],
            [found.size_bytes for found, _ in rows],
            [found.content_key for found, _ in rows],
            [extra for _, extra in rows],
        ],
        schema=MANIFEST_SCHEMA,
    )


def _rows(source: str, schemes: Collection[str]) -> Iterator[Sequence[Row]]:
    """The rows of an input, a batch at a time: what is behind a row takes more memory than it."""
    storage.check_public(source)
    uri = storage.absolute_uri(source)
    if not is_utf8(uri):
        message = f"{os.fsencode(uri)!r}: the name is not UTF-8; rename the file"
        raise ManifestError(message)
    if PurePosixPath(uri).suffix.lower() in MANIFEST_SUFFIXES:
        content = _content(uri)
        if content is not None:
            yield from _resolved(uri, content, schemes)
            return
    try:
        found = find(uri, _is_video)
    except FileNotFoundError:
        found = []
    if not found:
        raise ManifestError(_nothing_at(uri))
    for batch in _batched(found):
        yield [(item, "{}") for item in batch]


def _is_video(name: str) -> bool:
    stem, dot, suffix = name.rpartition(".")
    return bool(stem and dot) and f".{suffix.lower()}" in VIDEO_SUFFIXES


def _nothing_at(uri: str) -> str:
    name = storage.redact(uri)
    if not storage.exists(uri):
        return f"{name}: there is nothing of this name"
    endings = " ".join(sorted(VIDEO_SUFFIXES))
    return f"{name}: holds no video; looked for names that end in {endings}"


def _content(uri: str) -> bytes | None:
    """The bytes of a manifest; None where the name is that of no object, but perhaps a folder."""
    if os.path.isdir(uri):  # noqa: PTH112 - of a URI there is no such folder
        return None
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        return None


def _resolved(uri: str, content: bytes, schemes: Collection[str]) -> Iterator[Sequence[Row]]:
    """Rows of a manifest with sizes and content keys, asking the storage where it says neither."""
    readers = {
        ".parquet": _read_parquet,
        ".csv": _read_csv,
        ".jsonl": _read_jsonl,
        ".txt": _read_txt,
    }
    entries = readers[PurePosixPath(uri).suffix.lower()](content)
    first = 1
    while True:
        try:
            batch = list(islice(entries, _BATCH_ROWS))
        except (ValueError, pa.ArrowException, csv.Error) as error:
            message = f"{storage.redact(uri)} is no readable manifest: {error}"
            raise ManifestError(message) from error
        if not batch:
            break
        yield _resolve(uri, batch, schemes, first)
        first += len(batch)
    if first == 1:
        message = f"{storage.redact(uri)}: the manifest is empty"
        raise ManifestError(message)


def _read_parquet(content: bytes) -> Iterator[Entry]:
    for batch in pq.ParquetFile(io.BytesIO(content)).iter_batches(_BATCH_ROWS):
        yield from batch.to_pylist()


def _read_csv(content: bytes) -> Iterator[Entry]:
    csv.field_size_limit(1 << 24)
    yield from csv.DictReader(_text(content, newline=""), strict=True)


def _read_jsonl(content: bytes) -> Iterator[Entry]:
    for number, line in enumerate(_text(content), start=1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                message = f"line {number} is not a JSON object"
                raise ValueError(message)
            yield row


def _read_txt(content: bytes) -> Iterator[Entry]:
    lines = (line.removesuffix("\n").removesuffix("\r") for line in _text(content))
    yield from ({"uri": line} for line in lines if line.strip() and not line.startswith("#"))


def _text(content: bytes, newline: str = "\n") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline=newline)


def _batched(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    return (items[at : at + _BATCH_ROWS] for at in range(0, len(items), _BATCH_ROWS))


def _resolve(
    manifest_uri: str, entries: Sequence[Entry], schemes: Collection[str], first: int
) -> list[Row]:
    """Rows of a part of a manifest, which begins with the entry of this number."""
    uris = [
        _entry_uri(manifest_uri, number, entry, schemes)
        for number, entry in enumerate(entries, start=first)
    ]
    believed = [_believed(uri, entry) for uri, entry in zip(uris, entries, strict=True)]
    asked = dict.fromkeys(uri for uri, item in zip(uris, believed, strict=True) if item is None)
    answers = dict(zip(asked, stat_all(list(asked)), strict=True))
    return [
        (item or answers[uri], _extra(entry))
        for uri, item, entry in zip(uris, believed, entries, strict=True)
    ]


def _entry_uri(
    manifest_uri: str, number: int, entry: Mapping[str, Any], schemes: Collection[str]
) -> str:
    uri = entry.get("uri")
    if not isinstance(uri, str) or not uri:
        message = f"{storage.redact(manifest_uri)}: row {number} has no text in a column 'uri'"
        raise ManifestError(message)
    storage.check_scheme(uri, schemes)
    storage.check_public(uri)
    if "://" not in uri and not uri.startswith("/"):
        uri = storage.join(manifest_uri.rpartition("/")[0], uri)
    return storage.absolute_uri(uri)


def _believed(uri: str, entry: Mapping[str, Any]) -> StoredObject | None:
    size, key, etag = (entry.get(name) for name in ("size_bytes", "content_key", "etag"))
    if size in (None, "") or not (key or etag):
        return None
    try:
        size_bytes = int(size)
    except (TypeError, ValueError) as error:
        message = f"{storage.redact(uri)}: size_bytes = {size!r} is no whole number"
        raise ManifestError(message) from error
    return StoredObject(uri, size_bytes, str(key or f"{size_bytes}-{str(etag).strip(chr(34))}"))


def _extra(entry: Mapping[str, Any]) -> str:
    """The columns that are not ours, without the credentials of addresses in them."""
    values = {name: _plain(value) for name, value in entry.items() if name not in _OWN_COLUMNS}
    given = entry.get("extra")
    if given:
        try:
            nested = json.loads(given) if isinstance(given, str) else given
        except ValueError:
            nested = given
        values = {**values, **nested} if isinstance(nested, dict) else {**values, "extra": nested}
    if not values:
        return "{}"
    return redact_credentials(json.dumps(values, ensure_ascii=False, default=str))


def _plain(value: object) -> object:
    """JSON knows no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
