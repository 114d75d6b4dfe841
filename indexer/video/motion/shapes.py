"""Outlines of the moving objects, as signed distances."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Plane: TypeAlias = npt.NDArray[np.float32]

# Each function is a signed distance, negative inside, to an outline within the unit circle. Points
# are in the object's own frame: units of its radius, already turned back by its angle.


def _disc(u: Plane, v: Plane) -> Plane:
    reach: Plane = np.hypot(u, v)
    return reach - np.float32(1.0)


def _ring(u: Plane, v: Plane) -> Plane:
    return np.abs(np.hypot(u, v) - np.float32(0.7)) - np.float32(0.3)


def _box(u: Plane, v: Plane, half_width: float, half_height: float) -> Plane:
    return np.maximum(np.abs(u) - np.float32(half_width), np.abs(v) - np.float32(half_height))


def _square(u: Plane, v: Plane) -> Plane:
    return _box(u, v, 0.85, 0.85)


def _bar(u: Plane, v: Plane) -> Plane:
    return _box(u, v, 1.0, 0.36)


def _cross(u: Plane, v: Plane) -> Plane:
    return np.minimum(_box(u, v, 1.0, 0.32), _box(u, v, 0.32, 1.0))


def _triangle(u: Plane, v: Plane) -> Plane:
    slope = np.float32(0.5) * u + np.float32(math.sqrt(0.75)) * np.abs(v)
    return np.maximum(-u, slope) - np.float32(0.5)


def _arrow(u: Plane, v: Plane) -> Plane:
    shaft = _box(u + np.float32(0.4), v, 0.6, 0.26)
    sides = np.float32(0.64) * (u - np.float32(1.0)) + np.float32(0.768) * np.abs(v)
    head = np.maximum(sides, np.float32(0.05) - u)
    outline: Plane = np.minimum(shaft, head)
    return outline


def _star(u: Plane, v: Plane) -> Plane:
    # One fifth of the star, folded at its tip, holds a single straight edge.
    sector = 2 * math.pi / 5
    turn = np.mod(np.arctan2(v, u) + sector / 2, sector) - sector / 2
    reach = np.hypot(u, v)
    along, across = reach * np.cos(turn), reach * np.abs(np.sin(turn))
    edge = np.float32(0.42) * (along - np.float32(1.0)) + np.float32(0.9075) * across
    return edge.astype(np.float32)


SHAPES: Final[Mapping[str, Callable[[Plane, Plane], Plane]]] = MappingProxyType(
    {
        "disc": _disc,
        "ring": _ring,
        "square": _square,
        "bar": _bar,
        "cross": _cross,
        "triangle": _triangle,
        "arrow": _arrow,
        "star": _star,
    }
)
TURNABLE_SHAPES: Final = ("bar", "cross", "triangle", "arrow")
"""Shapes whose outline shows, even at the size of a thumbnail, which way they turn."""
