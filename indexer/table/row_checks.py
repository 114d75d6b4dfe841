"""Promises that one data file keeps or breaks by itself: its order, its ids, its numbers."""

import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from indexer.errors import ERROR_CODES
from indexer.table.rows import clip_id
from indexer.table.schema import CLIPS, EMBEDDINGS, FAILED, INDEXED, LABELS, VIDEOS, TableSpec

Fault = tuple[int, str, str]
"""Row of the piece, short name of the promise, what was found."""


class RowChecks:
    """Checks the rows of one file, piece by piece in the file's order."""

    def __init__(self, spec: TableSpec, vocabulary: Sequence[str]) -> None:
        """Begins before the first row.

        Args:
            spec: of the file's table.
            vocabulary: the model's labels, by label id.
        """
        self._spec = spec
        self._vocabulary = pa.array(vocabulary, pa.string())
        self._last: pa.Table | None = None
        self._widths: dict[str, int] = {}
        self._check = _CHECKS[spec.name]

    def faults(self, rows: pa.Table) -> Iterator[Fault]:
        """What is wrong with the next rows, which must not be none."""
        rows = rows.combine_chunks()
        yield from self._order_faults(rows)
        for name in rows.column_names:
            yield from self._number_faults(rows, name)
        yield from self._check(rows, self._vocabulary)

    def _order_faults(self, rows: pa.Table) -> Iterator[Fault]:
        keys = rows.select([name for name, _ in self._spec.order])
        joined = keys if self._last is None else pa.concat_tables([self._last, keys])
        skipped = joined.num_rows - keys.num_rows
        self._last = keys.slice(keys.num_rows - 1)
        order = ", ".join(name for name, _ in self._spec.order)
        bad = pc.invert(_in_order(joined, self._spec.order))
        for row in _indices(bad):
            yield row + 1 - skipped, "sorted", f"the row comes before its predecessor by {order}"

    def _number_faults(self, rows: pa.Table, name: str) -> Iterator[Fault]:
        column = rows[name].combine_chunks()
        kind = column.type
        if pa.types.is_floating(kind):
            for row in _indices(pc.invert(pc.fill_null(pc.is_finite(column), True))):
                yield row, "finite", f"{name} is {column[row].as_py()}"
        elif pa.types.is_list(kind) and pa.types.is_floating(kind.value_type):
            owners, values = pc.list_parent_indices(column), pc.list_flatten(column)
            bad = owners.filter(pc.invert(pc.is_finite(values)))
            for row in pc.unique(bad).to_pylist():
                yield row, "finite", f"{name} holds a value that is not finite"
            if name in ("embedding", "logits"):
                yield from self._width_faults(column, name)

    def _width_faults(self, column: pa.Array, name: str) -> Iterator[Fault]:
        lengths = pc.list_value_length(column)
        known = lengths.drop_null()
        if not len(known):
            return
        width = self._widths.setdefault(name, known[0].as_py())
        for row in _indices(pc.fill_null(pc.not_equal(lengths, width), False)):
            found = lengths[row].as_py()
            yield row, "width", f"{name} has {found} values, the first row of the file {width}"


def video_id(uri: str) -> str:
    """Stable id of a video: `uuid5(NAMESPACE_URL, uri)` in hex."""
    return uuid.uuid5(uuid.NAMESPACE_URL, uri).hex


def _clip_faults(rows: pa.Table, _: pa.Array) -> Iterator[Fault]:
    yield from _video_id_faults(rows)
    columns = (rows[name].to_pylist() for name in ("clip_id", "video_id", "clip_index"))
    for row, (found, owner, index) in enumerate(zip(*columns, strict=True)):
        if not _is_clip_id(found, owner, index):
            yield row, "clip_id", f"{found} is not uuid5({owner}, {index})"
    start, end = rows["start_seconds"], rows["end_seconds"]
    span = pc.and_(pc.greater_equal(start, 0.0), pc.less(start, end))
    yield from _fault_rows(pc.invert(span), "span", "the span is empty or negative")
    lengths = pc.list_value_length(rows["top_labels"])
    paired = pc.equal(lengths, pc.list_value_length(rows["top_scores"]))
    fitting = pc.and_(paired, pc.greater(lengths, 0))
    yield from _fault_rows(pc.invert(fitting), "top_labels", "labels and scores do not pair up")
    owners = pc.list_parent_indices(rows["top_scores"].combine_chunks())
    scores = pc.list_flatten(rows["top_scores"].combine_chunks())
    yield from _score_faults(owners, scores)


def _score_faults(owners: pa.Array, scores: pa.Array) -> Iterator[Fault]:
    outside = pc.invert(_is_probability(scores))
    for row in pc.unique(owners.filter(outside)).to_pylist():
        yield row, "score", "a score is no probability"
    if len(scores) > 1:
        same = pc.equal(owners[1:], owners[:-1])
        rising = pc.and_(same, pc.greater(scores[1:], scores[:-1]))
        for row in pc.unique(owners[1:].filter(rising)).to_pylist():
            yield row, "top_labels", "the best label is not the first"


def _embedding_faults(_: pa.Table, __: pa.Array) -> Iterator[Fault]:
    return iter(())  # its ids are compared with those of its clip


def _label_faults(rows: pa.Table, vocabulary: pa.Array) -> Iterator[Fault]:
    ids = rows["label_id"]
    known = pc.and_(pc.greater_equal(ids, 0), pc.less(ids, len(vocabulary)))
    meant = pc.take(vocabulary, pc.if_else(known, ids, None))
    named = pc.fill_null(pc.equal(meant, rows["label"]), False)
    yield from _fault_rows(pc.invert(named), "label_id", "the model's label of this id is another")
    likely = _is_probability(rows["score"])
    yield from _fault_rows(pc.invert(likely), "score", "the score is no probability")


def _video_faults(rows: pa.Table, _: pa.Array) -> Iterator[Fault]:
    yield from _video_id_faults(rows)
    failed, code = pc.equal(rows["status"], FAILED), rows["error_code"]
    known = pc.is_in(rows["status"], value_set=pa.array([INDEXED, FAILED]))
    told = pc.fill_null(pc.is_in(code, value_set=pa.array(ERROR_CODES)), False)
    agreeing = pc.if_else(failed, told, pc.is_null(code))
    text = "status and error_code do not fit"
    yield from _fault_rows(pc.invert(pc.and_(known, agreeing)), "outcome", text)
    clipless = pc.and_(failed, pc.not_equal(rows["clips"], 0))
    yield from _fault_rows(clipless, "outcome", "a failed unit has clips")
    index = rows["unit_index"]
    within = pc.and_(pc.greater_equal(index, 0), pc.less(index, rows["units"]))
    counted = pc.and_(within, pc.greater(rows["attempt"], 0))
    yield from _fault_rows(pc.invert(counted), "outcome", "unit_index or attempt is impossible")


_CHECKS: Final[dict[str, Callable[[pa.Table, pa.Array], Iterator[Fault]]]] = {
    CLIPS.name: _clip_faults,
    EMBEDDINGS.name: _embedding_faults,
    LABELS.name: _label_faults,
    VIDEOS.name: _video_faults,
}


def _video_id_faults(rows: pa.Table) -> Iterator[Fault]:
    expected: dict[str, str] = {}
    pairs = zip(rows["uri"].to_pylist(), rows["video_id"].to_pylist(), strict=True)
    for row, (uri, found) in enumerate(pairs):
        if uri not in expected:
            expected[uri] = video_id(uri)
        if found != expected[uri]:
            yield row, "video_id", f"{found} is not the uuid5 of the row's uri"


def _is_clip_id(found: str, owner: str, index: int) -> bool:
    try:
        return found == clip_id(owner, index)
    except ValueError:  # the video's id is no uuid
        return False


def _is_probability(scores: pa.ChunkedArray) -> pa.Array:
    return pc.and_(pc.greater_equal(scores, 0.0), pc.less_equal(scores, 1.0))


def _in_order(keys: pa.Table, order: Sequence[tuple[str, str]]) -> pa.Array:
    """For each row but the first, whether it may follow its predecessor."""
    count = keys.num_rows - 1
    sorted_ = pa.array([True] * count, pa.bool_())
    for name, direction in reversed(order):
        column = keys[name].combine_chunks()
        before, after = column.slice(0, count), column.slice(1)
        if direction == "descending":
            before, after = after, before
        ties = pc.and_(pc.equal(before, after), sorted_)
        sorted_ = pc.or_(pc.less(before, after), ties)
    return sorted_


def _fault_rows(bad: pa.Array, promise: str, detail: str) -> Iterator[Fault]:
    for row in _indices(bad):
        yield row, promise, detail


def _indices(mask: pa.Array) -> list[int]:
    if isinstance(mask, pa.ChunkedArray):
        mask = mask.combine_chunks()
    found: list[int] = pc.indices_nonzero(mask).to_pylist()
    return found
