"""Vectors as int8 codes, and what the codes prove about their cosines.

A vector's direction u is near `scale * code`: their distance is stored as `error`, so that the
cosine of u and a query lies provably within `error` of what the code says, and a code that says too
little need not be looked at. What the query loses by being coded itself is added.

Axes in array names: N vectors, D dimensions, Q queries.
"""

from dataclasses import dataclass
from typing import Any, Final

import numkong
import numpy as np
import numpy.typing as npt

SLACK: Final = 1e-9
"""More than float64 arithmetic adds to a cosine, here or in the comparison with the stored ones."""

_MOST: Final = 127

Bounds = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Codes:
    """Coded vectors.

    Attributes:
        codes_ND: int8.
        scales_N: float32, by which a code is multiplied to be near the direction; 0 for a vector
            without direction.
        errors_N: float32, at least the distance that is left.
    """

    codes_ND: npt.NDArray[np.int8]
    scales_N: npt.NDArray[np.float32]
    errors_N: npt.NDArray[np.float32]


def encode(vectors_ND: npt.NDArray[Any]) -> Codes:
    """Codes vectors of any finite numbers."""
    directions_ND, has_direction_N = directions(vectors_ND)
    largest_N = np.abs(directions_ND).max(axis=1, initial=0.0)
    largest_N[~has_direction_N] = 1.0
    codes_ND = np.rint(directions_ND * (_MOST / largest_N)[:, None]).astype(np.int8)
    scales_N = np.where(has_direction_N, _best_scales(directions_ND, codes_ND), 0).astype(
        np.float32
    )
    distances_N = distances(directions_ND, codes_ND, scales_N)
    errors_N = np.nextafter(distances_N.astype(np.float32), np.float32(np.inf))
    return Codes(codes_ND, scales_N, errors_N)


def directions(
    vectors_ND: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Vectors of length 1, and which of them have a direction; the others are left as zeros."""
    vectors_ND = np.asarray(vectors_ND, np.float64)
    norms_N = np.linalg.norm(vectors_ND, axis=1)
    has_direction_N = norms_N > 0
    norms_N[~has_direction_N] = 1.0
    return vectors_ND / norms_N[:, None], has_direction_N


def distances(
    directions_ND: npt.NDArray[np.float64],
    codes_ND: npt.NDArray[np.int8],
    scales_N: npt.NDArray[np.float32],
) -> npt.NDArray[np.float64]:
    """How far directions are from what their codes say."""
    coded_ND = codes_ND * scales_N[:, None].astype(np.float64)
    distances_N: npt.NDArray[np.float64] = np.linalg.norm(directions_ND - coded_ND, axis=1)
    return distances_N


def _best_scales(
    directions_ND: npt.NDArray[np.float64], codes_ND: npt.NDArray[np.int8]
) -> npt.NDArray[np.float64]:
    coded_ND = codes_ND.astype(np.float64)
    lengths_N = np.einsum("nd,nd->n", coded_ND, coded_ND)
    lengths_N[lengths_N == 0] = 1.0
    scales_N: npt.NDArray[np.float64] = np.einsum("nd,nd->n", coded_ND, directions_ND) / lengths_N
    return scales_N


class CodedQueries:
    """Queries that are compared with coded vectors.

    Args:
        units_QD: float64, each of length 1.
    """

    def __init__(self, units_QD: npt.NDArray[np.float64]) -> None:
        self._coded = encode(units_QD)
        self._packed = numkong.dots_pack(self._coded.codes_ND) if len(units_QD) > 1 else None

    def bounds(self, vectors: Codes) -> list[Bounds]:
        """For each query, what its cosine with each vector is at least and at most.

        Of a vector without direction the cosine is at most minus infinity.
        """
        dots_QN = self._dots(vectors.codes_ND)
        scales_N = vectors.scales_N.astype(np.float64)
        no_direction_N = scales_N == 0
        errors_N = vectors.errors_N.astype(np.float64)
        found = []
        for query, dots_N in enumerate(dots_QN):
            near_N = dots_N * (scales_N * float(self._coded.scales_N[query]))
            near_N[no_direction_N] = -np.inf
            margins_N = errors_N + (1 + errors_N) * float(self._coded.errors_N[query]) + SLACK
            found.append((near_N - margins_N, near_N + margins_N))
        return found

    def _dots(self, codes_ND: npt.NDArray[np.int8]) -> npt.NDArray[Any]:
        """Integers; the kernel for one query is three times as fast, for many four times slower."""
        if self._packed is None:
            return np.asarray(numkong.cdist(self._coded.codes_ND, codes_ND, "dot"))
        return np.asarray(numkong.dots_packed(codes_ND, self._packed)).T
