"""The similarity sidecar: for each data file of `embeddings` a part that can be searched quickly.

    _similarity/<tag>/part-<sha256 of the data file>-<sha256 of the part>.arrow    (16 digits each)
    _similarity/<tag>/part-<...>-<...>.ivf.arrow                            one with inverted lists

A part is an Arrow IPC file with a row for each of the data file's, in their order: ids, the int8
code of the embedding (`codes`), and the embedding itself, bit for bit. It is memory-mapped, so that
a search holds nothing but what it looks at. A part is written once, in one piece, and belongs to
the data file whose digest it names: when that file has left the table, nobody looks at the part
any more. A data file without a part is searched without one.

A part with inverted lists (`lists`) also says in which list each row is; the centroids, and the
recall that they had on these very rows, are in the metadata of its schema.
"""

import hashlib
import mmap
import os
import re
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, suppress
from copy import copy
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from indexer import storage
from indexer.errors import StorageError
from indexer.table.codes import Codes, encode
from indexer.table.delta import LiveFile, reason
from indexer.table.lists import Lists, Recall, queries, sample, train
from indexer.table.paths import IndexPaths, digest_in_name
from indexer.table.ranges import open_ranged
from indexer.table.read import file_batches
from indexer.table.schema import EMBEDDINGS

_NAME: Final = re.compile(r"^part-([0-9a-f]{16})-([0-9a-f]{16})(\.ivf)?\.arrow$")
_COLUMNS: Final = ["clip_id", "video_id", "code", "scale", "error", "vector"]
_LIST: Final = "list"
_CENTROIDS: Final = b"centroids"
_RECALL: Final = b"recall_at_10"
_BATCH_ROWS: Final = 8 * 1024
_LISTED_BATCH_ROWS: Final = 256 * 1024


def covered_digest(name: str) -> str | None:
    """The digest of the data file to which a part belongs; None where the name is no part's."""
    found = _NAME.match(name)
    return found[1] if found else None


def content_digest(name: str) -> str | None:
    """The beginning of the sha256 of a part's own bytes, from its name."""
    found = _NAME.match(name)
    return found[2] if found else None


def has_lists(name: str) -> bool:
    """Whether a part has inverted lists, by its name."""
    found = _NAME.match(name)
    return bool(found and found[3])


def part_sizes(paths: IndexPaths, tag: str) -> dict[str, int]:
    """Bytes of each object in a model's folder, by its name.

    Raises:
        StorageError: the folder cannot be listed.
    """
    uri = paths.similarity(tag)
    fs, path = storage.filesystem(uri)
    with storage.storage_errors(uri):
        try:
            entries = fs.ls(path, detail=True)
        except FileNotFoundError:
            return {}
    files = (entry for entry in entries if entry["type"] == "file")
    return {entry["name"].rpartition("/")[2]: entry["size"] for entry in files}


def parts_by_digest(names: Iterable[str]) -> dict[str, str]:
    """Names of parts, by the digests of their data files; of two the one with lists."""
    ordered = sorted(names, key=lambda name: (has_lists(name), name))
    return {digest: name for name in ordered if (digest := covered_digest(name))}


def stale_names(names: Iterable[str], files: Iterable[LiveFile]) -> list[str]:
    """Which objects of a model's folder belong to no data file, or to one with a better part."""
    names = list(names)
    digests = {digest_in_name(file.path) for file in files}
    used = {name for digest, name in parts_by_digest(names).items() if digest in digests}
    return [name for name in names if name not in used]


def remove_stale(paths: IndexPaths, tag: str, files: Iterable[LiveFile]) -> None:
    """Removes what belongs to no data file; only for who alone may write parts.

    Args:
        paths: of the index.
        tag: of the model.
        files: of the newest snapshot of `embeddings`.

    Raises:
        StorageError: an object cannot be removed.
    """
    for name in stale_names(part_sizes(paths, tag), files):
        storage.delete(paths.similarity_part(tag, name))


def write_missing(
    paths: IndexPaths, tag: str, files: Iterable[LiveFile], *, lists: bool = False
) -> Iterator[LiveFile]:
    """Writes a part for each data file that has none; holds one data file and twice its part.

    With inverted lists, three times its part.

    Args:
        paths: of the index.
        tag: of the model.
        files: of a snapshot of `embeddings`.
        lists: whether the parts get inverted lists, also where there is one without.

    Yields:
        Each of these data files, once it has its part.

    Raises:
        StorageError: a data file is missing or damaged, or a part cannot be written.
    """
    covered = parts_by_digest(part_sizes(paths, tag))
    for file in files:
        digest = digest_in_name(file.path)
        name = covered.get(digest or "")
        if digest is None or (name is not None and (has_lists(name) or not lists)):
            continue

        def tables(file: LiveFile = file) -> Iterator[pa.Table]:
            return file_batches(paths, EMBEDDINGS, file, _BATCH_ROWS)

        content = listed_part_bytes(tables, file.rows) if lists else part_bytes(tables())
        kind = ".ivf.arrow" if lists else ".arrow"
        name = f"part-{digest}-{hashlib.sha256(content).hexdigest()[:16]}{kind}"
        storage.write_bytes(paths.similarity_part(tag, name), content)
        yield file


def part_bytes(tables: Iterable[pa.Table]) -> bytes:
    """The part for the rows of a data file, which come in pieces.

    Raises:
        StorageError: the embeddings are not all of one length.
    """
    return _file_bytes(_part_rows(table) for table in tables)


def listed_part_bytes(tables: Callable[[], Iterable[pa.Table]], rows: int) -> bytes:
    """The same with inverted lists.

    Args:
        tables: gives the rows of the data file in pieces, each time that it is asked.
        rows: of all pieces; at least 1.

    Raises:
        StorageError: the embeddings are not all of one length.
    """
    sample_ND = sample((matrix(table["embedding"]) for table in tables()), rows)
    lists = train(sample_ND, rows)
    recall = Recall(lists, queries(sample_ND))
    batches = []
    for table in tables():
        vectors_ND = matrix(table["embedding"])
        numbers_N = lists.of(vectors_ND)
        recall.add(vectors_ND, numbers_N)
        batches.append(_part_rows(table).append_column(_LIST, pa.array(numbers_N)))
    metadata = {
        _CENTROIDS: lists.centroids_LD.tobytes(),
        _RECALL: str(recall.share).encode(),
    }
    # few large pieces: a search picks some rows of each, which costs as much as many rows do
    whole = pa.Table.from_batches(batches).replace_schema_metadata(metadata).combine_chunks()
    return _file_bytes(whole.to_batches(max_chunksize=_LISTED_BATCH_ROWS))


def _file_bytes(batches: Iterable[pa.RecordBatch]) -> bytes:
    sink = pa.BufferOutputStream()
    with ExitStack() as stack:
        writer = None
        for batch in batches:
            if writer is None:
                writer = stack.enter_context(pa.ipc.new_file(sink, batch.schema))
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def _part_rows(table: pa.Table) -> pa.RecordBatch:
    vectors_ND = matrix(table["embedding"])
    coded = encode(vectors_ND)
    codes = pa.FixedSizeListArray.from_arrays(
        pa.array(coded.codes_ND.reshape(-1)), vectors_ND.shape[1]
    )
    columns = [
        table["clip_id"].combine_chunks(),
        table["video_id"].combine_chunks(),
        codes,
        pa.array(coded.scales_N),
        pa.array(coded.errors_N),
        pa.array(_packed(vectors_ND), pa.binary()),
    ]
    return pa.RecordBatch.from_arrays(columns, _COLUMNS)


def _packed(vectors_ND: npt.NDArray[np.float32]) -> list[bytes]:
    """The bytes of each vector, of two bytes a number where that keeps every bit.

    float16 holds all that `stored_mantissa_bits` = 10 leaves, but for very small numbers.
    """
    with np.errstate(over="ignore"):
        halves_ND = vectors_ND.astype(np.float16)
    fits_N = (halves_ND.astype(np.float32) == vectors_ND).all(axis=1)
    pairs = zip(halves_ND, vectors_ND, fits_N.tolist(), strict=True)
    return [(half_D if fits else vector_D).tobytes() for half_D, vector_D, fits in pairs]


def matrix(embeddings: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.float32]:
    """A column of lists as an array with a row for each.

    Raises:
        StorageError: they are not all of one length.
    """
    flat = pc.list_flatten(embeddings)
    values = flat.combine_chunks() if isinstance(flat, pa.ChunkedArray) else flat
    try:
        vectors_ND: npt.NDArray[np.float32] = values.to_numpy().reshape(
            len(embeddings), len(values) // len(embeddings)
        )
    except ValueError as error:
        message = "embeddings of the same model differ in length; `indexer verify` says which"
        raise StorageError(message) from error
    return vectors_ND


class Part:
    """A part that is open for searching.

    Attributes:
        covers: digest of the data file whose rows it holds.
        rows: all columns, mapped and not read.
        batches: of the rows.
        lists: its inverted lists; None where it has none.
    """

    def __init__(
        self, covers: str, content: pa.Buffer, name: str, mapped: mmap.mmap | None = None
    ) -> None:
        self.covers = covers
        try:
            self.rows = pa.ipc.open_file(content).read_all()
        except pa.ArrowException as error:
            raise _damaged(name, reason(error)) from error
        listed = self.rows.column_names == [*_COLUMNS, _LIST]
        if self.rows.column_names != _COLUMNS and not listed:
            raise _damaged(name, f"its columns are {self.rows.column_names}")
        self.lists = _inverted(self.rows.schema, name)[0] if listed else None
        pages = None if mapped is None else _Pages(mapped, content.address)
        self.batches = tuple(Batch(batch, pages) for batch in self.rows.to_batches())

    @classmethod
    def open(cls, covers: str, path: Path, name: str) -> Self:
        """Maps a part of this machine's disk.

        Raises:
            FileNotFoundError: it is gone.
            StorageError: it is damaged.
        """
        with path.open("rb") as file:
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:  # it is empty
                raise _damaged(name, str(error)) from error
        return cls(covers, pa.py_buffer(mapped), name, mapped)

    def near(self, queries_QD: npt.NDArray[np.float64]) -> "Iterator[Batch]":
        """The rows in the lists that any of some queries looks into; all, where it has no lists."""
        if self.lists is None:
            yield from self.batches
            return
        looked_into_L = np.logical_or.reduce(self.lists.probed(queries_QD), axis=0)
        for batch in self.batches:
            rows_N = np.flatnonzero(looked_into_L[batch.lists_N])
            if len(rows_N):
                yield batch.some(rows_N)


def _inverted(schema: pa.Schema, name: str) -> tuple[Lists, float]:
    """The inverted lists of a part, and their recall@10.

    Raises:
        StorageError: its schema does not tell.
    """
    told = schema.metadata or {}
    try:
        centroids = np.frombuffer(told[_CENTROIDS], np.float32)
        lists = Lists(centroids.reshape(-1, schema.field("code").type.list_size))
        return lists, float(told[_RECALL])
    except (KeyError, ValueError) as error:
        raise _damaged(name, f"its inverted lists: {error}") from error


def measured_recall(paths: IndexPaths, tag: str, digests: Collection[str]) -> float | None:
    """Recall@10 of the parts with inverted lists that cover some data files; reads footers only.

    Returns:
        The mean, where a part has as much weight as it has bytes; None where there is none.

    Raises:
        StorageError: a part cannot be read, or is damaged.
    """
    sizes = part_sizes(paths, tag)
    listed = parts_by_digest(sizes)
    weighted, weight = 0.0, 0
    for name in sorted(listed[digest] for digest in listed.keys() & set(digests)):
        if not has_lists(name):
            continue
        copied, uri = _cache(paths, tag) / name, paths.similarity_part(tag, name)
        where = str(copied) if copied.exists() else uri
        with suppress(FileNotFoundError), storage.storage_errors(uri):  # removed meanwhile
            with open_ranged(where, sizes[name]) as source:
                recall = _inverted(_schema(source, uri), storage.redact(uri))[1]
            weighted, weight = weighted + recall * sizes[name], weight + sizes[name]
    return weighted / weight if weight else None


def _schema(source: pa.NativeFile, uri: str) -> pa.Schema:
    try:
        return pa.ipc.open_file(source).schema
    except pa.ArrowException as error:
        raise _damaged(storage.redact(uri), reason(error)) from error


class _Pages:
    """The pages of a mapped part, which count as this process's memory once they were looked at."""

    def __init__(self, mapped: mmap.mmap, address: int) -> None:
        self._mapped, self._address = mapped, address

    def let_go(self, content: pa.Buffer) -> None:
        """Gives back the whole pages within a buffer; they are mapped again when needed."""
        begin = content.address - self._address
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (begin + content.size - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if length > 0:
            self._mapped.madvise(mmap.MADV_DONTNEED, first, length)


class Batch:
    """Some rows of a part; nothing is read before it is asked for.

    Attributes:
        clip_ids: of the rows.
        video_ids: of the rows.
        codes: of their embeddings.
        lists_N: int16, numbers of their lists; of length 0 in a part without lists.
    """

    def __init__(self, rows: pa.RecordBatch, pages: _Pages | None = None) -> None:
        self._pages = pages
        self._all_N: npt.NDArray[np.int64] | None = None
        self.clip_ids: pa.StringArray = rows["clip_id"]
        self.video_ids: pa.StringArray = rows["video_id"]
        code = rows["code"]
        self.codes = Codes(
            code.flatten().to_numpy().reshape(len(code), code.type.list_size),
            rows["scale"].to_numpy(),
            rows["error"].to_numpy(),
        )
        listed = _LIST in rows.schema.names
        self.lists_N = rows[_LIST].to_numpy() if listed else np.zeros(0, np.int16)
        self._vectors: pa.BinaryArray = rows["vector"]

    def some(self, rows_N: npt.NDArray[np.int64]) -> "Batch":
        """Some of the rows, in this order; their codes are copied."""
        batch = copy(self)
        batch._all_N = rows_N  # noqa: SLF001 - its own class
        taken = pa.array(rows_N)
        batch.clip_ids, batch.video_ids = self.clip_ids.take(taken), self.video_ids.take(taken)
        codes = self.codes
        batch.codes = Codes(codes.codes_ND[rows_N], codes.scales_N[rows_N], codes.errors_N[rows_N])
        batch.lists_N = self.lists_N[rows_N]
        return batch

    def vectors(self, rows_N: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The stored embeddings of some rows."""
        stored_N = rows_N if self._all_N is None else self._all_N[rows_N]
        width = self.codes.codes_ND.shape[1]
        vectors_ND = np.empty((len(rows_N), width), np.float32)
        for place, row in enumerate(stored_N.tolist()):
            packed = self._vectors[row].as_buffer()
            vectors_ND[place] = np.frombuffer(packed, f"<f{packed.size // width}")
        if self._pages is not None:  # the kernel maps 16 pages around each row
            self._pages.let_go(self._vectors.buffers()[2])
        return vectors_ND


def open_parts(paths: IndexPaths, tag: str, digests: Collection[str]) -> tuple[Part, ...]:
    """Opens the parts that cover some data files; those that there are.

    Parts in remote storage are first copied into this user's cache, once; there they are found
    again by their names, which say what is in them, and leave it when the index has them no more.

    Raises:
        StorageError: a part cannot be read, or is damaged.
    """
    listed = parts_by_digest(part_sizes(paths, tag))
    remote = storage.scheme_of(paths.root_uri) != "file"
    if remote:
        _forget(_cache(paths, tag), listed.values())
    parts = []
    for digest in sorted(listed.keys() & set(digests)):
        uri = paths.similarity_part(tag, listed[digest])
        with suppress(FileNotFoundError):  # removed since it was listed
            local = _fetched(uri, _cache(paths, tag)) if remote else Path(storage.absolute_uri(uri))
            parts.append(Part.open(digest, local, storage.redact(uri)))
    return tuple(parts)


def _cache(paths: IndexPaths, tag: str) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    index = hashlib.sha256(paths.root_uri.encode()).hexdigest()[:16]
    return root / "video-indexer" / "similarity" / index / tag


def _forget(cache: Path, listed: Iterable[str]) -> None:
    kept = set(listed)
    for path in cache.glob("*.arrow"):
        if path.name not in kept:
            path.unlink(missing_ok=True)


def _fetched(uri: str, cache: Path) -> Path:
    target = cache / uri.rpartition("/")[2]
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    fs, path = storage.filesystem(uri)
    partial = cache / f".{uuid.uuid4().hex}.tmp"
    try:
        with storage.storage_errors(uri):
            fs.get_file(path, str(partial))
        with partial.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found[:16] != content_digest(target.name):
            raise _damaged(storage.redact(uri), f"its sha256 is {found}")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _damaged(name: str, why: str) -> StorageError:
    return StorageError(f"{name} is damaged: {why}; `indexer verify --repair` removes it")
