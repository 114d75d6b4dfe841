"""Scenes to frames."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from indexer.video.motion.scene import Backdrop, MotionScene, ObjectState
from indexer.video.motion.shapes import SHAPES, Plane

Frame: TypeAlias = npt.NDArray[np.uint8]
Rate: TypeAlias = int | Fraction

_NOISE_TILE_MARGIN: Final = 64


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a long video that shows one motion, half open, in seconds."""

    label: str
    start_seconds: float
    end_seconds: float


def render_scene(
    scene: MotionScene, seconds: float, fps: Rate, width: int, height: int
) -> npt.NDArray[np.uint8]:
    """Renders a scene, from its start.

    Args:
        scene: What to show.
        seconds: How much of it, at most `scene.seconds`.
        fps: Frames per second.
        width: Columns.
        height: Rows.

    Returns:
        frames_THWC: uint8 RGB in [0, 255]; frame `i` shows the moment `i / fps`.
    """
    return np.stack(list(iter_scene(scene, seconds, fps, width, height)))


def iter_scene(
    scene: MotionScene, seconds: float, fps: Rate, width: int, height: int
) -> Iterator[Frame]:
    """Yields the frames of `render_scene` one by one.

    Raises:
        ValueError: If the scene does not last that long, or no frame fits.
    """
    count = frame_count(seconds, fps)
    if seconds > scene.seconds + 1e-9 or count < 1:
        msg = f"a scene of {scene.seconds} s cannot fill {count} frames in {seconds} s"
        raise ValueError(msg)
    rng = np.random.default_rng(scene.seed)
    canvas_HWC = _paint_backdrop(scene.backdrop, rng, width, height)
    noise_HW = _noise_tile(scene.noise_levels, rng, width, height)
    for index in range(count):
        frame_HWC = canvas_HWC.copy()
        _paint_object(frame_HWC, scene, scene.state_at(float(index / fps)))
        top, left = rng.integers(_NOISE_TILE_MARGIN, size=2)
        frame_HWC += noise_HW[top : top + height, left : left + width, None]
        yield np.clip(frame_HWC, 0, 255, out=frame_HWC).astype(np.uint8)


def iter_sequence(
    parts: Sequence[tuple[MotionScene, float]], fps: Rate, width: int, height: int
) -> Iterator[Frame]:
    """Yields the frames of several scenes one after the other, cutting hard between them.

    Args:
        parts: Scenes with the seconds to show of each.
        fps: Frames per second.
        width: Columns.
        height: Rows.

    Yields:
        RGB frames, height by width by 3.
    """
    for scene, seconds in parts:
        yield from iter_scene(scene, seconds, fps, width, height)


def sequence_segments(parts: Sequence[tuple[MotionScene, float]], fps: Rate) -> tuple[Segment, ...]:
    """Says which motion `iter_sequence` shows when, exact to the frame."""
    segments: list[Segment] = []
    first = 0
    for scene, seconds in parts:
        after = first + frame_count(seconds, fps)
        segments.append(Segment(scene.label, float(first / fps), float(after / fps)))
        first = after
    return tuple(segments)


def frame_count(seconds: float, fps: Rate) -> int:
    """Returns the number of frames that fill `seconds`."""
    return round(seconds * fps)


def _paint_backdrop(backdrop: Backdrop, rng: np.random.Generator, width: int, height: int) -> Plane:
    x_HW, y_HW = _pixel_grid(width, height, slice(0, height), slice(0, width))
    mix_HW = _pattern(backdrop, rng, x_HW, y_HW)[..., None]
    dark, light = np.array(backdrop.dark), np.array(backdrop.light)
    # Half a level up, so that the final truncation to uint8 rounds to nearest.
    canvas_HWC: Plane = (dark + mix_HW * (light - dark) + 0.5).astype(np.float32)
    return canvas_HWC


def _pixel_grid(width: int, height: int, rows: slice, columns: slice) -> tuple[Plane, Plane]:
    """Returns the centres of some pixels, in short sides from the middle of the picture."""
    side = min(width, height)
    y_H = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5 - height / 2) / side
    x_W = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5 - width / 2) / side
    x_HW, y_HW = np.meshgrid(x_W, y_H)
    return x_HW.astype(np.float32), y_HW.astype(np.float32)


def _pattern(backdrop: Backdrop, rng: np.random.Generator, x_HW: Plane, y_HW: Plane) -> Plane:
    """Returns where the backdrop is light (1) and dark (0)."""
    cosine, sine = math.cos(backdrop.angle_radians), math.sin(backdrop.angle_radians)
    along, across = x_HW * cosine + y_HW * sine, y_HW * cosine - x_HW * sine
    turn = 2 * math.pi * backdrop.waves
    match backdrop.kind:
        case "plain":
            mix: npt.NDArray[np.floating] = np.full_like(x_HW, 0.5)
        case "gradient":
            mix = along / (2 * np.abs(along).max()) + 0.5
        case "stripes":
            mix = np.sin(turn * along) / 2 + 0.5
        case "checker":
            mix = np.clip(4 * np.sin(turn * along) * np.sin(turn * across), -1, 1) / 2 + 0.5
        case _:
            mix = _blotches(rng, turn * x_HW, turn * y_HW)
    return mix.astype(np.float32)


def _blotches(rng: np.random.Generator, x_HW: Plane, y_HW: Plane) -> npt.NDArray[np.floating]:
    waves = [
        np.cos(x_HW * kx + y_HW * ky + phase)
        for kx, ky, phase in rng.uniform((-1, -1, 0), (1, 1, 2 * math.pi), size=(5, 3))
    ]
    total: npt.NDArray[np.float64] = np.sum(waves, axis=0)
    return total / (2 * len(waves)) + 0.5


def _noise_tile(levels: float, rng: np.random.Generator, width: int, height: int) -> Plane:
    # Drawing fresh noise for every frame would take longer than all the rest: each frame takes
    # another cut out of one tile instead.
    shape = (height + _NOISE_TILE_MARGIN, width + _NOISE_TILE_MARGIN)
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(levels)


def _paint_object(frame_HWC: Plane, scene: MotionScene, state: ObjectState) -> None:
    """Draws the object into the frame, with soft edges one pixel wide."""
    if not state.visible:
        return
    height, width = frame_HWC.shape[:2]
    side = min(height, width)
    rows = _reach(state.y, state.radius, side, height)
    columns = _reach(state.x, state.radius, side, width)
    x_HW, y_HW = _pixel_grid(width, height, rows, columns)
    u_HW, v_HW = _object_axes(state, x_HW, y_HW)
    radius_pixels = np.float32(state.radius * side)
    cover_HW1 = _cover(SHAPES[scene.shape](u_HW, v_HW) * radius_pixels)
    half_HW1 = _cover(u_HW * radius_pixels)
    colour, accent = (np.array(rgb, np.float32) for rgb in (scene.colour, scene.accent))
    patch_HWC = frame_HWC[rows, columns]
    patch_HWC += cover_HW1 * (colour + half_HW1 * (accent - colour) - patch_HWC)


def _reach(centre: float, radius: float, side: int, size: int) -> slice:
    """Returns the rows or columns that an object can touch, within the picture."""
    middle = size / 2 + centre * side
    margin = radius * side * math.sqrt(2) + 1
    first, after = math.floor(middle - margin), math.ceil(middle + margin)
    return slice(min(max(first, 0), size), min(max(after, 0), size))


def _object_axes(state: ObjectState, x_HW: Plane, y_HW: Plane) -> tuple[Plane, Plane]:
    cosine = np.float32(math.cos(state.angle_radians) / state.radius)
    sine = np.float32(math.sin(state.angle_radians) / state.radius)
    dx_HW, dy_HW = x_HW - np.float32(state.x), y_HW - np.float32(state.y)
    return dx_HW * cosine + dy_HW * sine, dy_HW * cosine - dx_HW * sine


def _cover(distance_pixels: Plane) -> Plane:
    """Turns a signed distance into the share of a pixel that is inside, with a channel axis."""
    cover: Plane = np.clip(np.float32(0.5) - distance_pixels, 0, 1)
    return cover[..., None]
