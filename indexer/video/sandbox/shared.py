"""The memory through which a worker hands over frames: a file without a name, of a fixed size.

The worker maps it. This side never does: it copies out what it wants with reads, which cannot be
made to fault. Seals keep the size as it is, so that the worker can neither shrink the file below
what a message promises nor grow it beyond its budget of memory.
"""

import fcntl
import math
import os
from typing import Final

import numpy as np
import numpy.typing as npt

from indexer.records import Preprocessing
from indexer.video.plan import DecodePlan

_WIDEST: Final = 8
"""Where a recipe does not fix the shape of frames: their longer side in shorter ones, at most."""

_COLOURS: Final = 3
_READ_BYTES: Final = 2**30


class SharedFrames:
    """Room for the frames of one unit; takes memory as it is written to.

    Args:
        plan: tells how large a unit may be.
    """

    def __init__(self, plan: DecodePlan) -> None:
        self._size_bytes = math.prod(largest_shape(plan))
        self._descriptor = os.memfd_create("frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._descriptor, self._size_bytes)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, seals)

    def fileno(self) -> int:
        """Descriptor of the file."""
        return self._descriptor

    def close(self) -> None:
        """Lets go of the memory, once the workers have."""
        os.close(self._descriptor)

    def has_room(self, shape: tuple[int, ...]) -> bool:
        """Whether frames of this shape fit."""
        return math.prod(shape) <= self._size_bytes

    def read(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Copies the frames of this shape, for which there must be room, that begin the memory."""
        frames_NTHWC = np.empty(shape, np.uint8)
        target = frames_NTHWC.data.cast("B")
        for start in range(0, len(target), _READ_BYTES):  # one read gives 2 GiB at most
            os.preadv(self._descriptor, [target[start : start + _READ_BYTES]], start)
        return frames_NTHWC


def largest_shape(plan: DecodePlan) -> tuple[int, int, int, int, int]:
    """NTHWC of the largest unit that a plan allows."""
    height, width = fixed_size(plan.preprocessing) or _loose_size(plan.preprocessing)
    most_clips = plan.sampling.segment_clips if plan.sampling.mode == "windows" else 1
    return most_clips * plan.views, plan.num_frames, height, width, _COLOURS


def fixed_size(recipe: Preprocessing) -> tuple[int, int] | None:
    """(height, width) of every frame; None where they depend on the video."""
    if recipe.crop is not None:
        return recipe.crop
    return None if isinstance(recipe.resize, int) else recipe.resize


def _loose_size(recipe: Preprocessing) -> tuple[int, int]:
    side = recipe.resize if isinstance(recipe.resize, int) else max(recipe.resize)
    return side, side * _WIDEST
