"""Postings of labels: read in the order of their scores, and no further than an answer needs.

The log says which files may hold a label; a file's footer, which row groups, and how high the best
score in each is. Files of a compacted index are sorted by label and falling score, so that the best
clips of a label take one or two row groups, one after the other. Footers are kept: a data file
never changes.
"""

import contextlib
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from indexer.errors import StorageError
from indexer.table.answers import HITS
from indexer.table.delta import LiveFile, delta_errors, live_files
from indexer.table.globs import glob_pattern
from indexer.table.paths import IndexPaths
from indexer.table.ranges import open_ranged
from indexer.table.read import unreadable
from indexer.table.schema import LABELS

_THREADS: Final = 8
_Bound = TypeVar("_Bound", str, float)
_LAST_CHARACTER: Final = "\U0010ffff"
_ORDER_OF_EQUALS: Final = ("uri", "clip_index", "rank")
_MOST_EQUALS: Final = 500
"""So many pairs of neighbours are compared before pyarrow's functions are worth loading."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which postings a question is about.

    Attributes:
        labels: of which one has to match.
        min_score: lowest probability.
        before: the clip ends at or before this second.
        after: the clip starts at or after this second.
        video: the uri, or a glob over uris.
        source: what the uri begins with.
        without: clip ids that are left out.
    """

    labels: tuple[str, ...]
    min_score: float
    before: float | None = None
    after: float | None = None
    video: str | None = None
    source: str | None = None
    without: pa.ChunkedArray | None = None

    @property
    def least(self) -> float:
        """The lowest probability as the files hold it: 0.7 is to mean the same on both sides."""
        return float(np.float32(self.min_score))


@dataclass(frozen=True, slots=True)
class _Group:
    """A row group: its labels lie between two, its scores too."""

    number: int
    first: str
    last: str
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A row group to read, in which no wanted posting scores above `best`."""

    file: LiveFile
    number: int
    best: float


@dataclass(frozen=True, slots=True)
class _Footer:
    metadata: pq.FileMetaData
    groups: tuple[_Group, ...]


class Postings:
    """The `labels` table of one model in a snapshot."""

    def __init__(self, paths: IndexPaths, table: DeltaTable, tag: str) -> None:
        with delta_errors(table.table_uri):
            self._files = live_files(table, tag)
        self._paths = paths
        self._footers: dict[str, _Footer] = {}

    def best(self, wanted: Wanted, *, top: int | None) -> pa.Table:
        """The wanted postings, the best first; equal scores by uri, clip and rank.

        Args:
            wanted: which.
            top: at most this many; None for all of them.

        Returns:
            Columns `HITS`.

        Raises:
            StorageError: a file cannot be read.
        """
        files = [file for file in self._files if _may_hold(file, wanted)]
        found = pa.Table.from_batches([], HITS)  # empty_table() would import pandas
        with ThreadPoolExecutor(_THREADS) as pool:
            footers = pool.map(self._footer, files)
            groups = [
                one
                for file, footer in zip(files, footers, strict=True)
                for one in _chosen(file, footer, wanted)
            ]
            groups.sort(key=lambda one: -one.best)
            wave = len(groups) if top is None else 1
            read = 0
            while groups and not _is_settled(found, top, groups[0].best):
                now, groups = groups[:wave], groups[wave:]
                parts = pool.map(lambda one: self._read(one[0], one[1], wanted), _by_file(now))
                found = pa.concat_tables([found, *parts])
                found = _best_rows(found, top)
                read += len(now)
                wave = read  # so that at most twice as much is read as has to be
        return found

    def _open(self, file: LiveFile) -> pa.NativeFile:
        uri = self._paths.data_file(LABELS.name, file.path)
        return open_ranged(uri, file.size_bytes)

    def _footer(self, file: LiveFile) -> _Footer:
        if file.path not in self._footers:
            with _read_errors(), self._open(file) as source:
                metadata = pq.read_metadata(source)
            self._footers[file.path] = _Footer(metadata, tuple(_groups(metadata)))
        return self._footers[file.path]

    def _read(self, file: LiveFile, numbers: Sequence[int], wanted: Wanted) -> pa.Table:
        with _read_errors(), self._open(file) as source:
            metadata = self._footers[file.path].metadata
            parquet = pq.ParquetFile(
                source, metadata=metadata, pre_buffer=True, read_dictionary=["label"]
            )
            rows = parquet.read_row_groups(numbers, columns=HITS.names, use_threads=False)
            runs = [run for batch in rows.to_batches() for run in _runs(batch, wanted)]
            return _matching(pa.Table.from_batches(runs, HITS), wanted)


def _may_hold(file: LiveFile, wanted: Wanted) -> bool:
    """Whether the log leaves it open that the file has a wanted posting."""
    lower, upper = file.lower, file.upper
    first, last = lower.get("label", ""), upper.get("label", _LAST_CHARACTER)
    return (
        any(first <= label <= last for label in wanted.labels)
        and upper.get("score", inf) >= wanted.least
    )


def _chosen(file: LiveFile, footer: _Footer, wanted: Wanted) -> Iterator[_Chosen]:
    """The row groups that may have a wanted posting, and what none of these scores above."""
    for before, group in zip((None, *footer.groups), footer.groups, strict=False):
        labels = {label for label in wanted.labels if group.first <= label <= group.last}
        best = group.highest
        if before is not None and before.first == before.last and labels == {before.last}:
            best = min(best, before.lowest)  # the label goes on, with lower scores
        if labels and best >= wanted.least:
            yield _Chosen(file, group.number, best)


def _groups(metadata: pq.FileMetaData) -> Iterator[_Group]:
    names = metadata.schema.to_arrow_schema().names
    label, score = names.index("label"), names.index("score")
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        first, last = _bounds(group.column(label), ("", _LAST_CHARACTER))
        yield _Group(number, first, last, *_bounds(group.column(score), (inf, inf)))


def _bounds(
    column: pq.ColumnChunkMetaData, default: tuple[_Bound, _Bound]
) -> tuple[_Bound, _Bound]:
    """The lowest and the highest value; the default where the file does not tell."""
    statistics = column.statistics
    if statistics is None or not statistics.has_min_max:
        return default
    return statistics.min, statistics.max


def _by_file(groups: Sequence[_Chosen]) -> list[tuple[LiveFile, list[int]]]:
    found: dict[str, tuple[LiveFile, list[int]]] = {}
    for group in groups:
        found.setdefault(group.file.path, (group.file, []))[1].append(group.number)
    return list(found.values())


def _is_settled(found: pa.Table, top: int | None, best: float) -> bool:
    """Whether no posting that scores at most `best` can enter the answer."""
    return top is not None and found.num_rows == top and best < found["score"][-1].as_py()


def _runs(rows: pa.RecordBatch, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    """The rows of wanted labels and scores.

    Rows are sorted by label and score, so that those of one label follow each other. Slices need
    no function of pyarrow's, and `from_dlpack` no pandas, as `to_numpy` does: either takes longer
    to load than a search takes.
    """
    labels = rows.column("label")
    named = enumerate(labels.dictionary.to_pylist())
    texts = {code: text for code, text in named if text in wanted.labels}
    codes_N = np.from_dlpack(labels.indices)
    high_N = np.from_dlpack(rows.column("score")) >= np.float32(wanted.min_score)
    codes_N = np.where(np.isin(codes_N, list(texts)) & high_N, codes_N, -1)
    edges = np.flatnonzero(np.diff(codes_N, prepend=-1, append=-1)).tolist()
    for start, stop in pairwise(edges):
        if (code := int(codes_N[start])) in texts:
            run = rows.slice(start, stop - start)
            columns = {name: run.column(name) for name in HITS.names}
            columns["label"] = _repeated(texts[code], stop - start)
            yield pa.RecordBatch.from_arrays(list(columns.values()), schema=HITS)


def _repeated(text: str, times: int) -> pa.Array:
    """The same as `pa.repeat`, which would import pandas."""
    encoded = text.encode()
    offsets = pa.py_buffer(np.arange(times + 1, dtype=np.int32) * np.int32(len(encoded)))
    return pa.StringArray.from_buffers(times, offsets, pa.py_buffer(encoded * times))


def _number(data_type: pa.DataType, code: str, value: float) -> pa.Scalar:
    """The same as `pa.scalar`, which would import pandas."""
    packed = pa.py_buffer(struct.pack(f"={code}", value))
    return pa.Array.from_buffers(data_type, 1, [None, packed])[0]


def _seconds(value: float) -> pa.Scalar:
    return _number(pa.float64(), "d", value)


def _matching(rows: pa.Table, wanted: Wanted) -> pa.Table:
    """The rows that pass the filters beside label and score."""
    filters = wanted.after, wanted.before, wanted.source, wanted.video, wanted.without
    if all(value is None for value in filters):
        return rows
    import pyarrow.compute as pc

    if wanted.after is not None:
        rows = rows.filter(pc.greater_equal(rows["start_seconds"], _seconds(wanted.after)))
    if wanted.before is not None:
        rows = rows.filter(pc.less_equal(rows["end_seconds"], _seconds(wanted.before)))
    if wanted.source is not None:
        rows = rows.filter(pc.starts_with(rows["uri"], wanted.source))
    if wanted.video is not None:
        pattern = rf"\A(?:{glob_pattern(wanted.video)})\z"
        matches = pc.match_substring_regex(rows["uri"], pattern)
        is_named = pc.equal(rows["uri"], _repeated(wanted.video, 1)[0])
        rows = rows.filter(pc.or_(is_named, matches))
    if wanted.without is not None:
        rows = rows.filter(pc.invert(pc.is_in(rows["clip_id"], value_set=wanted.without)))
    return rows


def _best_rows(rows: pa.Table, top: int | None) -> pa.Table:
    if _is_sorted(rows, top):  # one run of one file, as a rule
        return rows.slice(0, top)
    import pyarrow.compute as pc

    if top is not None and rows.num_rows > top:  # most rows need no sorting
        least = _number(pa.float32(), "f", float(np.partition(_scores(rows), -top)[-top]))
        rows = rows.filter(pc.greater_equal(rows["score"], least))
    order = [("score", "descending"), *((name, "ascending") for name in _ORDER_OF_EQUALS)]
    return rows.take(pc.sort_indices(rows, sort_keys=order)).slice(0, top)


def _is_sorted(rows: pa.Table, top: int | None) -> bool:
    """Whether the first rows are the best, in order; False also where that takes long to tell."""
    scores_N = _scores(rows)
    if not np.all(scores_N[:-1] >= scores_N[1:]):
        return False
    least = scores_N[top - 1] if top is not None and len(scores_N) > top else -inf
    equal = np.flatnonzero((scores_N[:-1] == scores_N[1:]) & (scores_N[:-1] >= least)).tolist()
    if len(equal) > _MOST_EQUALS:
        return False
    keys = [rows[name] for name in _ORDER_OF_EQUALS]
    return all(
        [key[at].as_py() for key in keys] < [key[at + 1].as_py() for key in keys] for at in equal
    )


def _scores(rows: pa.Table) -> npt.NDArray[np.float32]:
    none = np.zeros(0, np.float32)
    return np.concatenate([none, *map(np.from_dlpack, rows["score"].chunks)])


@contextlib.contextmanager
def _read_errors() -> Iterator[None]:
    """Turns a file that cannot be read into our error.

    Raises:
        StorageError: in place of the library's errors.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise StorageError(unreadable(error)) from error
