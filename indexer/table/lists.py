"""Inverted lists (IVF): vectors grouped by the nearest of some centroids, a few groups searched.

Who looks only into the lists whose centroids are nearest to a query looks at a few percent of the
vectors, and misses what lies in other lists. How much that is, is measured on the vectors
themselves: recall@10 is the share of the ten nearest other vectors that lie in the lists looked at.

Centroids are found by spherical k-means (Dhillon and Modha, Machine Learning 42, 2001).

Axes in array names: N vectors, L lists, D dimensions, Q queries.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

PROBES: Final = 16
"""Lists that a query looks into."""

NEAREST: Final = 10
"""Vectors whose share tells the recall."""

_ROWS_PER_LIST: Final = 256
_MOST_LISTS: Final = 1024
_TRAINED_PER_LIST: Final = 64
_ROUNDS: Final = 10
_QUERIES: Final = 100
_CHUNK_ROWS: Final = 8192

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Lists:
    """The centroids of inverted lists.

    Attributes:
        centroids_LD: float32, of length 1.
    """

    centroids_LD: Floats

    def of(self, vectors_ND: npt.NDArray[Any]) -> Numbers:
        """The number of each vector's list, int16; that of a vector of zeros is any."""
        units_ND = unit_vectors(vectors_ND)
        chunks = [units_ND[at : at + _CHUNK_ROWS] for at in range(0, len(units_ND), _CHUNK_ROWS)]
        nearest = [(chunk_ND @ self.centroids_LD.T).argmax(axis=1) for chunk_ND in chunks]
        return np.concatenate([np.zeros(0, np.int16), *nearest]).astype(np.int16)

    def probed(self, queries_QD: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Of each query and list, whether the query looks into it."""
        near_QL = unit_vectors(queries_QD) @ self.centroids_LD.T
        probes = min(PROBES, near_QL.shape[1])
        nearest_QP = np.argpartition(-near_QL, probes - 1, axis=1)[:, :probes]
        looks_QL = np.zeros(near_QL.shape, np.bool_)
        np.put_along_axis(looks_QL, nearest_QP, values=True, axis=1)
        return looks_QL


def unit_vectors(vectors_ND: npt.NDArray[Any]) -> Floats:
    """Vectors of length 1, in float32; those of zeros stay so."""
    wide_ND = np.asarray(vectors_ND, np.float64)
    lengths_N1 = np.linalg.norm(wide_ND, axis=1, keepdims=True)
    units_ND: Floats = (wide_ND / np.where(lengths_N1 > 0, lengths_N1, 1.0)).astype(np.float32)
    return units_ND


def train(pieces: Iterable[npt.NDArray[Any]], rows: int) -> Lists:
    """Finds the lists of some vectors, which come in pieces, by k-means on a sample of them.

    Args:
        pieces: float[N, D] each; read once, a sample is held.
        rows: of all pieces together, at least 1.
    """
    lists = max(1, min(_MOST_LISTS, rows // _ROWS_PER_LIST))
    step = max(1, rows // (lists * _TRAINED_PER_LIST))
    sampled, before = [], 0
    for piece_ND in pieces:
        sampled.append(unit_vectors(piece_ND[-before % step :: step]))
        before += len(piece_ND)
    sample_ND = np.concatenate(sampled)
    generator = np.random.default_rng(0)  # the same vectors always get the same lists
    chosen = generator.choice(len(sample_ND), min(lists, len(sample_ND)), replace=False)
    found = Lists(sample_ND[chosen])
    for _ in range(_ROUNDS):
        found = _moved(found, sample_ND)
    return found


def _moved(lists: Lists, sample_ND: Floats) -> Lists:
    """Each centroid at the mean of its vectors; one that has none stays."""
    numbers_N = lists.of(sample_ND)
    order = np.argsort(numbers_N, kind="stable")
    present, first = np.unique(numbers_N[order], return_index=True)
    means_LD = unit_vectors(np.add.reduceat(sample_ND[order].astype(np.float64), first, axis=0))
    moved = np.abs(means_LD).max(axis=1) > 0
    centroids_LD = lists.centroids_LD.copy()
    centroids_LD[present[moved]] = means_LD[moved]
    return Lists(centroids_LD)


class Recall:
    """Measures recall@10 of vectors that come in pieces, for some of them as queries.

    Args:
        lists: of the vectors.
        queries_QD: some of these vectors.
    """

    def __init__(self, lists: Lists, queries_QD: npt.NDArray[Any]) -> None:
        self._lists = lists
        self._units_QD = unit_vectors(queries_QD)
        self._looks_QL = lists.probed(queries_QD)
        self._best_QN = np.zeros((len(self._units_QD), 0), np.float32)
        self._found_QN = np.zeros((len(self._units_QD), 0), np.bool_)

    def add(self, vectors_ND: npt.NDArray[Any], numbers_N: Numbers) -> None:
        """Compares some vectors, given the numbers of their lists."""
        cosines_QN = self._units_QD @ unit_vectors(vectors_ND).T
        best_QN = np.concatenate([self._best_QN, cosines_QN], axis=1)
        found_QN = np.concatenate([self._found_QN, self._looks_QL[:, numbers_N]], axis=1)
        order_QN = np.argsort(-best_QN, axis=1, kind="stable")[:, : NEAREST + 1]
        self._best_QN = np.take_along_axis(best_QN, order_QN, axis=1)
        self._found_QN = np.take_along_axis(found_QN, order_QN, axis=1)

    @property
    def share(self) -> float:
        """So far; 1 where there is nothing else to find."""
        others_QN = self._found_QN[:, 1:]  # the nearest is the query itself
        return float(others_QN.mean()) if others_QN.size else 1.0


def some_of(pieces: Iterable[npt.NDArray[Any]], rows: int) -> Floats:
    """As many vectors, spread over all pieces, as recall is measured with."""
    step = max(1, rows // _QUERIES)
    chosen, before = [], 0
    for piece_ND in pieces:
        chosen.append(piece_ND[-before % step :: step].astype(np.float32))
        before += len(piece_ND)
    return np.concatenate(chosen)
