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

from indexer.table.codes import directions

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
        return _nearest(unit_vectors(vectors_ND), self.centroids_LD)

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
    return directions(vectors_ND)[0].astype(np.float32)


def _nearest(units_ND: Floats, centroids_LD: Floats) -> Numbers:
    chunks = [units_ND[at : at + _CHUNK_ROWS] for at in range(0, len(units_ND), _CHUNK_ROWS)]
    nearest = [(chunk_ND @ centroids_LD.T).argmax(axis=1) for chunk_ND in chunks]
    return np.concatenate([np.zeros(0, np.int16), *nearest]).astype(np.int16)


def sample(pieces: Iterable[npt.NDArray[Any]], rows: int) -> Floats:
    """Vectors to train with, spread over all pieces.

    Args:
        pieces: float[N, D] each; read once.
        rows: of all pieces together, at least 1.
    """
    step = max(1, rows // (_lists_for(rows) * _TRAINED_PER_LIST))
    chosen, before = [], 0
    for piece_ND in pieces:
        chosen.append(piece_ND[-before % step :: step].astype(np.float32))
        before += len(piece_ND)
    return np.concatenate(chosen)


def queries(sample_ND: Floats) -> Floats:
    """As many of the sampled vectors as recall is measured with."""
    return sample_ND[:: max(1, len(sample_ND) // _QUERIES)]


def train(sample_ND: Floats, rows: int) -> Lists:
    """Finds the lists of so many vectors by k-means on a sample of them."""
    units_ND = unit_vectors(sample_ND)
    generator = np.random.default_rng(0)  # the same vectors always get the same lists
    chosen = generator.choice(len(units_ND), min(_lists_for(rows), len(units_ND)), replace=False)
    centroids_LD = units_ND[chosen]
    for _ in range(_ROUNDS):
        centroids_LD = _moved(centroids_LD, units_ND)
    return Lists(centroids_LD)


def _lists_for(rows: int) -> int:
    return max(1, min(_MOST_LISTS, rows // _ROWS_PER_LIST))


def _moved(centroids_LD: Floats, units_ND: Floats) -> Floats:
    """Each centroid at the mean of its vectors; one that has none stays."""
    numbers_N = _nearest(units_ND, centroids_LD)
    order = np.argsort(numbers_N, kind="stable")
    present, first = np.unique(numbers_N[order], return_index=True)
    means_LD = unit_vectors(np.add.reduceat(units_ND[order].astype(np.float64), first, axis=0))
    moved = np.abs(means_LD).max(axis=1) > 0
    centroids_LD = centroids_LD.copy()
    centroids_LD[present[moved]] = means_LD[moved]
    return centroids_LD


class Recall:
    """Measures recall@10 of vectors that come in pieces, for some of them as queries.

    Args:
        lists: of the vectors.
        queries_QD: some of these vectors.
    """

    def __init__(self, lists: Lists, queries_QD: npt.NDArray[Any]) -> None:
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
