"""The clips that look most like some vectors: cosine similarity over all embeddings, exact.

Rows of data files that the sidecar covers are looked at through their codes first. A code proves
between which bounds a cosine lies, so a row is passed over only if its upper bound lies below the
cosines of as many better ones as are asked for; the others are compared as they are stored, from
the highest upper bound down, until no bound reaches the worst of the best. All other rows are
compared as they are stored. Either way the answer is that of comparing everything in float64. Only
who asks for it gets less: the same answer over the rows in some inverted lists.

Axes in array names: N clips, D the model's hidden size, Q queries.
"""

import heapq
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from indexer.errors import QueryError
from indexer.table.codes import Bounds, CodedQueries, directions
from indexer.table.read import rows_in_batches
from indexer.table.sidecar import Batch, Part, matrix

NEIGHBOURS: Final = pa.schema(
    [
        pa.field("similarity", pa.float64()),
        pa.field("clip_id", pa.string()),
        pa.field("video_id", pa.string()),
    ]
)

_BATCH_ROWS: Final = 16 * 1024
"""Embeddings in memory at once: 150 MB where D is 768, of which two thirds are float64."""

_FIRST_LOOK_ROWS: Final = 256
"""Rows that are compared as they are stored before it is asked whether any other may be better."""

_SHORTEST, _LONGEST = 1e-15, 1e15
"""Between these lengths of a vector no square that matters leaves the range of float32."""

_DECIMALS: Final = 12
"""To which similarities are rounded: equal embeddings are equally similar, wherever they lie."""

Vector = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows may be among the answers, and how many answers there are.

    Attributes:
        top: at most this many.
        without: clip ids that are left out.
        videos: ids of the only videos to look at; None looks at all.
        without_video: id of a video that is left out.
        distinct_videos: only the best clip of each video.
        approximate: look only into the nearest inverted lists of parts that have some.
    """

    top: int
    without: tuple[str, ...] = ()
    videos: tuple[str, ...] | None = None
    without_video: str | None = None
    distinct_videos: bool = False
    approximate: bool = False

    def may_be(self, clip_ids: pa.StringArray, video_ids: pa.StringArray) -> pa.BooleanArray:
        """Of each row, whether it may be among the answers."""
        fits = pc.invert(pc.is_in(clip_ids, value_set=pa.array(self.without, pa.string())))
        if self.videos is not None:
            chosen = pa.array(self.videos, pa.string())
            fits = pc.and_(fits, pc.is_in(video_ids, value_set=chosen))
        if self.without_video is not None:
            fits = pc.and_(fits, pc.not_equal(video_ids, self.without_video))
        return fits


def nearest(
    rest: ds.Dataset, parts: Sequence[Part], queries_QD: npt.ArrayLike, choice: Choice
) -> list[pa.Table]:
    """The clips with the highest cosine similarity to each of some vectors, computed in float64.

    Args:
        rest: `clip_id`, `video_id` and `embedding` of the clips that no part covers.
        parts: of the sidecar.
        queries_QD: the vectors.
        choice: which clips, and how many.

    Returns:
        For each vector a table of the columns `NEIGHBOURS`: the best first, of equal ones by clip
        id. Clips whose embedding has no direction, being all zeros, are left out.

    Raises:
        QueryError: a vector has no direction, or another length than the embeddings.
        StorageError: the rows cannot be read.
    """
    units_QD, has_direction_Q = directions(np.atleast_2d(np.asarray(queries_QD, np.float64)))
    if not has_direction_Q.all():
        message = "an embedding of zeros is like nothing"
        raise QueryError(message)
    best = [_Best(choice) for _ in units_QD]
    columns = [*NEIGHBOURS.names[1:], "embedding"]
    if choice.videos is not None:  # a data file's bounds may tell that it holds none of them
        rest = rest.filter(pc.field("video_id").isin(pa.array(choice.videos, pa.string())))
    for rows in rows_in_batches(rest, columns, _BATCH_ROWS):
        may_be_N = _mask(choice.may_be(rows["clip_id"], rows["video_id"]))
        if may_be_N.any():
            vectors_ND = matrix(rows["embedding"])
            rough_QN = _upper_bounds(vectors_ND, units_QD)
            for one, unit_D, upper_N in zip(best, units_QD, rough_QN, strict=True):
                near = np.flatnonzero(may_be_N & (upper_N >= one.worst))
                clip_ids, video_ids = (rows[name].take(near) for name in NEIGHBOURS.names[1:])
                one.take(clip_ids, video_ids, _cosines(vectors_ND[near], unit_D[None])[0])
    if parts:
        _search_parts(parts, units_QD, best, choice)
    return [one.rows for one in best]


class _Best:
    """The best clips so far for one query."""

    def __init__(self, choice: Choice) -> None:
        self.rows = NEIGHBOURS.empty_table()
        self._top, self._distinct_videos = choice.top, choice.distinct_videos

    @property
    def worst(self) -> float:
        """What a clip must reach to be among them."""
        full = self.rows.num_rows == self._top
        return self.rows["similarity"][-1].as_py() if full else -np.inf

    def take(
        self,
        clip_ids: pa.StringArray,
        video_ids: pa.StringArray,
        cosines_N: Vector,
    ) -> None:
        """Compares some clips."""
        near = pa.array(np.flatnonzero((cosines_N >= self.worst) & (cosines_N > -np.inf)))
        if len(near):
            columns = [pa.array(cosines_N).take(near), clip_ids.take(near), video_ids.take(near)]
            order = [("similarity", "descending"), ("clip_id", "ascending")]
            found = pa.table(columns, NEIGHBOURS)
            together = pa.concat_tables([self.rows, found]).sort_by(order)
            self.rows = together.take(self._kept(together)).combine_chunks()

    def _kept(self, rows: pa.Table) -> pa.Array:
        """Of sorted rows, the places of the first ones; where so asked, of different videos."""
        if not self._distinct_videos:
            return pa.array(range(min(self._top, rows.num_rows)))
        videos_N = rows["video_id"].combine_chunks().dictionary_encode().indices.to_numpy()
        _, first = np.unique(videos_N, return_index=True)
        return pa.array(np.sort(first)[: self._top])


class _Shortlist:
    """The rows whose upper bounds reach what so many others are certain to reach."""

    def __init__(self, choice: Choice, least: float) -> None:
        self._wanted = choice
        self._least = max(least, -2.0)  # below any cosine
        self._certain: dict[str, float] = {}
        self._rows: list[tuple[int, Places, Vector]] = []

    def take(self, number: int, batch: Batch, bounds: Bounds, may_be_N: Mask) -> None:
        """Looks at the bounds of the rows of a batch."""
        lower_N, upper_N = (np.where(may_be_N, bound_N, -np.inf) for bound_N in bounds)
        self._raise_least(batch, lower_N)
        near = np.flatnonzero(upper_N >= self._least)
        if len(near):
            self._rows.append((number, near, upper_N[near]))

    def _raise_least(self, batch: Batch, lower_N: Vector) -> None:
        names = batch.video_ids if self._wanted.distinct_videos else batch.clip_ids
        better = np.flatnonzero(lower_N > self._least)
        fresh: dict[str, float] = {}
        for row in better[np.argsort(-lower_N[better])].tolist():
            if len(fresh) == self._wanted.top:
                break
            fresh.setdefault(names[row].as_py(), float(lower_N[row]))
        for name, lower in fresh.items():
            self._certain[name] = max(lower, self._certain.get(name, lower))
        if len(self._certain) >= self._wanted.top:
            best = heapq.nlargest(self._wanted.top, self._certain.items(), key=lambda item: item[1])
            self._certain, self._least = dict(best), max(self._least, best[-1][1])

    def by_upper_bound(self) -> Iterator[tuple[float, Places, Places]]:
        """The rows in pieces that grow: highest bound, numbers of batches, places in them."""
        if not self._rows:
            return
        upper_N = np.concatenate([upper for _, _, upper in self._rows])
        rows_N = np.concatenate([rows for _, rows, _ in self._rows])
        batches_N = np.repeat([n for n, _, _ in self._rows], [len(r) for _, r, _ in self._rows])
        order = np.argsort(-upper_N)
        start, size = 0, max(_FIRST_LOOK_ROWS, 2 * self._wanted.top)
        while start < len(order):
            piece = order[start : start + size]
            yield float(upper_N[piece[0]]), batches_N[piece], rows_N[piece]
            start, size = start + size, min(2 * size, _BATCH_ROWS)


def _search_parts(
    parts: Sequence[Part], units_QD: npt.NDArray[np.float64], best: Sequence[_Best], choice: Choice
) -> None:
    for part in parts[:1]:
        _check_width(part.rows["code"].type.list_size, units_QD.shape[1])
    batches = [
        batch
        for part in parts
        for batch in (part.near(units_QD) if choice.approximate else part.batches)
    ]
    shortlists = [_Shortlist(choice, one.worst) for one in best]
    for number, (batch, may_be_N, bounds) in enumerate(_bounds(batches, units_QD, choice)):
        for shortlist, of_query in zip(shortlists, bounds, strict=False):  # none if none may be
            shortlist.take(number, batch, of_query, may_be_N)
    for one, shortlist, unit_D in zip(best, shortlists, units_QD, strict=True):
        for highest, numbers_N, rows_N in shortlist.by_upper_bound():
            if highest < one.worst:
                break
            clip_ids, video_ids, vectors_ND = _stored(batches, numbers_N, rows_N)
            one.take(clip_ids, video_ids, _cosines(vectors_ND, unit_D[None])[0])


def _bounds(
    batches: Sequence[Batch], units_QD: npt.NDArray[np.float64], choice: Choice
) -> Iterator[tuple[Batch, Mask, list[Bounds]]]:
    """The bounds of all rows for all queries; of a few batches at a time, on all processors."""
    queries = CodedQueries(units_QD)

    def look(batch: Batch) -> tuple[Batch, Mask, list[Bounds]]:
        may_be_N = _mask(choice.may_be(batch.clip_ids, batch.video_ids))
        return batch, may_be_N, queries.bounds(batch.codes) if may_be_N.any() else []

    workers = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(batches), 2 * workers):
            yield from pool.map(look, batches[start : start + 2 * workers])


def _stored(
    batches: Sequence[Batch], numbers_N: Places, rows_N: Places
) -> tuple[pa.StringArray, pa.StringArray, npt.NDArray[np.float32]]:
    """Ids and stored embeddings of some rows."""
    places = [(batches[n], np.sort(rows_N[numbers_N == n])) for n in np.unique(numbers_N).tolist()]
    return (
        pa.concat_arrays([batch.clip_ids.take(pa.array(rows)) for batch, rows in places]),
        pa.concat_arrays([batch.video_ids.take(pa.array(rows)) for batch, rows in places]),
        np.concatenate([batch.vectors(rows) for batch, rows in places]),
    )


def _upper_bounds(
    vectors_ND: npt.NDArray[np.float32], units_QD: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """For each query what the cosines of all vectors are at most, computed in float32.

    A sum of n products is off by n roundings at most, relative to the product of the lengths
    (Higham, Accuracy and Stability of Numerical Algorithms, 3.1): 2^-24 each, and about as many in
    the two lengths. A vector so short or long that a square leaves the range of float32 gets 2.
    """
    _check_width(vectors_ND.shape[1], units_QD.shape[1])
    with np.errstate(all="ignore"):
        lengths_N = np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND))
        bounds_QN: npt.NDArray[np.float32] = units_QD.astype(np.float32) @ vectors_ND.T / lengths_N
    bounds_QN += 4 * (vectors_ND.shape[1] + 1) * 2.0**-24
    bounds_QN[:, ~((lengths_N > _SHORTEST) & (lengths_N < _LONGEST))] = 2
    return bounds_QN


def _cosines(
    vectors_ND: npt.NDArray[np.float32], units_QD: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """For each query the cosines of all vectors; minus infinity for one without direction."""
    _check_width(vectors_ND.shape[1], units_QD.shape[1])
    wide_ND = vectors_ND.astype(np.float64)
    norms_N = np.sqrt(np.einsum("nd,nd->n", wide_ND, wide_ND))
    has_direction_N = norms_N > 0
    norms_N[~has_direction_N] = 1.0
    cosines_QN: npt.NDArray[np.float64] = np.round(units_QD @ wide_ND.T / norms_N, _DECIMALS)
    cosines_QN[:, ~has_direction_N] = -np.inf
    return cosines_QN


def _mask(answers: pa.BooleanArray) -> Mask:
    mask: Mask = answers.to_numpy(zero_copy_only=False)
    return mask


def _check_width(found: int, asked: int) -> None:
    if found != asked:
        message = f"the vector has {asked} numbers, the embeddings of this model have {found}"
        raise QueryError(message)
