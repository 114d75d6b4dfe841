"""How many clips go through the model at once."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

_ENOUGH: Final = 0.97
"""A larger batch must be faster than this share of the time a clip takes in the smaller one."""


def next_batch(remaining: int, batch_size: int) -> tuple[int, int]:
    """The clips of the next batch, and the size to which it is padded.

    A compiled model is compiled for each size, so there are but two: the full batch and, of large
    ones, a quarter of it, so that a small remainder does not cost a full batch.

    Args:
        remaining: clips still to be scored, at least 1.
        batch_size: the full batch.
    """
    quarter = batch_size // 4
    size = quarter if quarter > 1 and remaining <= batch_size - quarter else batch_size
    return min(remaining, size), size


def pieces(
    arrays_NTHWC: Sequence[npt.NDArray[np.uint8]], batch: slice
) -> list[npt.NDArray[np.uint8]]:
    """Views of the clips of a batch, where the arrays are counted through as if they were one."""
    found, first = [], 0
    for array_NTHWC in arrays_NTHWC:
        inside = slice(max(batch.start - first, 0), max(batch.stop - first, 0))
        if len(array_NTHWC[inside]):
            found.append(array_NTHWC[inside])
        first += len(array_NTHWC)
    return found


def calibrate(seconds_of: Callable[[int], float | None], largest: int) -> int:
    """Finds a batch size: doubling it for as long as the clips become noticeably faster.

    Args:
        seconds_of: how long a batch of so many clips takes; None where memory does not suffice.
        largest: batch to try.
    """
    best, best_seconds = 1, float("inf")
    size = 1
    while size <= largest:
        seconds = seconds_of(size)
        if seconds is None:
            break
        if seconds / size < _ENOUGH * best_seconds:
            best, best_seconds = size, seconds / size
        size *= 2
    return best
