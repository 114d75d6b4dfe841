"""All pairs of clips that look alike, compared block by block in bounded memory.

Axes in array names: N clips, D their dimensions, B rows and C columns of a block, P pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from indexer.table.comparison import Compared, ignored

_BLOCK_CLIPS: Final = 2048
"""Clips on each side of a block: 16 MB of similarities."""

_PAIRS_AT_ONCE: Final = 16 * 1024
"""Whose similarity is computed anew in float64: 200 MB where D is 768."""

_FLOAT32_ERROR: Final = 1e-4
"""More than what a similarity in float32 can be wrong by."""

_DECIMALS: Final = 6
"""To which similarities are rounded, so that they do not depend on the order of any sum."""

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Clips that look alike, each pair once.

    Attributes:
        first_P: the row of the earlier clip.
        second_P: the row of the later one.
        similarity_P: of the two, float64.
    """

    first_P: Rows
    second_P: Rows
    similarity_P: npt.NDArray[np.float64]


def similar_pairs(
    units_ND: npt.NDArray[np.float32],
    videos_N: npt.NDArray[np.int32],
    chosen_N: Mask,
    *,
    min_similarity: float,
    max_neighbours: int,
    observe: Callable[[Compared], None] = ignored,
) -> Pairs:
    """Finds the pairs of clips with at least some similarity.

    Clips that follow each other in a video are alike because little has changed, not because
    anything comes back: of one video, a clip is paired with later ones only from the first on that
    is not like it.

    Args:
        units_ND: vectors of length 1 (or 0, which are like nothing), video by video, in the order
            of time.
        videos_N: the video of each, as a number that never falls.
        chosen_N: clips of which one is to be in each pair.
        min_similarity: cosine that a pair reaches.
        max_neighbours: a clip that is like more others than this is left out of all pairs: what
            looks like everything, such as a black picture, tells nothing.
        observe: is told how far the search is, the last time when it is over.

    Returns:
        The pairs, by rows. Memory: `max_neighbours` pairs a clip at most, and one block.
    """
    search = _Search(units_ND, videos_N, chosen_N, min_similarity, max_neighbours)
    rows_N = np.flatnonzero(chosen_N)
    for start in range(0, len(rows_N), _BLOCK_CLIPS):
        search.compare(rows_N[start : start + _BLOCK_CLIPS])
        left = max(1 - (start + _BLOCK_CLIPS) / len(rows_N), 0.0)
        share = 1 - left * (left if len(rows_N) == len(chosen_N) else 1)
        observe(Compared(share, int(np.count_nonzero(search.hubs_N))))
    return search.pairs()


class _Search:
    """What has been found so far."""

    def __init__(
        self,
        units_ND: npt.NDArray[np.float32],
        videos_N: npt.NDArray[np.int32],
        chosen_N: Mask,
        min_similarity: float,
        max_neighbours: int,
    ) -> None:
        self._units_ND, self._videos_N, self._chosen_N = units_ND, videos_N, chosen_N
        self._min_similarity, self._max_neighbours = min_similarity, max_neighbours
        self._all_chosen = bool(chosen_N.all())
        self._neighbours_N = np.zeros(len(units_ND), np.int64)
        self._found: list[npt.NDArray[np.int32]] = []

    def compare(self, rows_B: Rows) -> None:
        """Compares some chosen clips with all that they have not been compared with."""
        units_BD = self._units_ND[rows_B]
        unbroken_B = np.ones(len(rows_B), np.bool_)
        first = int(rows_B[0]) if self._all_chosen else 0
        for start in range(first, len(self._units_ND), _BLOCK_CLIPS):
            columns_C = np.arange(start, min(start + _BLOCK_CLIPS, len(self._units_ND)))
            similar_BC = units_BD @ self._units_ND[start : start + _BLOCK_CLIPS].T
            alike_BC = similar_BC >= self._min_similarity - _FLOAT32_ERROR
            later_BC = columns_C > rows_B[:, None]
            if self._videos_N[start] <= self._videos_N[rows_B[-1]]:
                ahead_BC = later_BC & (self._videos_N[rows_B, None] == self._videos_N[columns_C])
                unbroken_BC = _unbroken(alike_BC | ~ahead_BC, unbroken_B)
                unbroken_B = unbroken_BC[:, -1]
                alike_BC &= ~(unbroken_BC & ahead_BC)
            alike_BC &= later_BC | ~self._chosen_N[columns_C]
            if alike_BC.any():
                self._keep(alike_BC, rows_B, columns_C)

    def _keep(self, alike_BC: Mask, rows_B: Rows, columns_C: Rows) -> None:
        self._neighbours_N[rows_B] += np.count_nonzero(alike_BC, axis=1)
        self._neighbours_N[columns_C] += np.count_nonzero(alike_BC, axis=0)
        hubs_N = self.hubs_N
        alike_BC &= ~hubs_N[rows_B, None] & ~hubs_N[columns_C]
        at_B, at_C = np.nonzero(alike_BC)
        self._found.append(np.stack([rows_B[at_B], columns_C[at_C]]).astype(np.int32))

    @property
    def hubs_N(self) -> Mask:
        """Clips that have more neighbours than they may."""
        return self._neighbours_N > self._max_neighbours

    def pairs(self) -> Pairs:
        """The pairs of all other clips."""
        found_2P = np.concatenate([np.zeros((2, 0), np.int32), *self._found], axis=1)
        found_2P = np.sort(found_2P[:, ~self.hubs_N[found_2P].any(axis=0)], axis=0)
        found_2P = found_2P[:, np.lexsort(found_2P[::-1])].astype(np.int64)
        similarity_P = np.concatenate(
            [
                np.zeros(0),
                *(
                    self._exactly(*found_2P[:, start : start + _PAIRS_AT_ONCE])
                    for start in range(0, found_2P.shape[1], _PAIRS_AT_ONCE)
                ),
            ]
        )
        enough_P = similarity_P >= self._min_similarity
        first_P, second_P = found_2P[:, enough_P]
        return Pairs(first_P, second_P, similarity_P[enough_P])

    def _exactly(self, first_P: Rows, second_P: Rows) -> npt.NDArray[np.float64]:
        left_PD, right_PD = (
            self._units_ND[rows].astype(np.float64) for rows in (first_P, second_P)
        )
        rounded_P: npt.NDArray[np.float64]
        rounded_P = np.round(np.einsum("PD,PD->P", left_PD, right_PD), _DECIMALS)
        return rounded_P


def _unbroken(holds_BC: Mask, before_B: Mask) -> Mask:
    """Up to where each row has held throughout, if it had up to the block's first column."""
    unbroken_BC: Mask = np.logical_and.accumulate(holds_BC, axis=1) & before_B[:, None]
    return unbroken_BC
