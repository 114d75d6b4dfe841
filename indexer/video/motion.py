"""Synthetic videos of one labelled motion, with every fact about them known.

They serve three readers: `indexer demo` indexes them, the tests check answers against them, and
`jobs/train_demo_model.py` trains the bundled model on them. A `MotionScene` is a frozen
description, `sample_scene` draws one from a seeded generator, `render_scene` turns it into frames,
and `encode_video` writes frames with any of the common codecs. Equal input gives equal bytes.

Geometry: lengths are in units of the picture's *short side*, the origin is the middle of the
picture, x points right and y points down. The object keeps to the central square, which is all
that a centre-cropping preprocessor keeps. Times are in seconds from the scene's first frame.

Axes: T frames, H rows, W columns, C colour channels (RGB).
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, cast

import av
import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

Colour: TypeAlias = tuple[int, int, int]
Frame: TypeAlias = npt.NDArray[np.uint8]
Plane: TypeAlias = npt.NDArray[np.float32]
Rate: TypeAlias = int | Fraction
Quality: TypeAlias = Literal["high", "medium", "low"]

LABELS: Final = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "growing",
    "shrinking",
    "rotating clockwise",
    "rotating counter-clockwise",
    "standing still",
    "blinking",
)

# Moderately bright to bright; whatever the backdrop, several of these stand out against it.
PALETTE: Final[tuple[Colour, ...]] = (
    (236, 64, 52),
    (250, 140, 30),
    (252, 214, 48),
    (92, 196, 74),
    (38, 166, 154),
    (66, 165, 245),
    (38, 70, 180),
    (126, 60, 190),
    (233, 90, 160),
    (250, 250, 250),
    (18, 18, 22),
    (110, 20, 30),
)
BACKDROPS: Final = ("plain", "gradient", "stripes", "checker", "blotches")
LUMA_WEIGHTS: Final = (0.299, 0.587, 0.114)
MIN_CONTRAST: Final = 60.0
"""Least difference in luma levels between the object and any part of its backdrop."""
MIN_ACCENT_CONTRAST: Final = 50.0
"""Least difference in luma levels between the two halves of an object, where they differ."""

_NOISE_TILE_MARGIN: Final = 64


# --- Shapes -------------------------------------------------------------------------------------
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


# --- Scenes -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Backdrop:
    """What lies behind the object; it never moves.

    Attributes:
        kind: One of `BACKDROPS`.
        dark: The colour at the pattern's lowest points.
        light: The colour at its highest points.
        waves: Repetitions of the pattern per short side.
        angle_radians: The direction in which the pattern varies.
    """

    kind: str
    dark: Colour
    light: Colour
    waves: float
    angle_radians: float


@dataclass(frozen=True, slots=True)
class ObjectState:
    """Where the object is at one moment, in the units of the module's geometry."""

    x: float
    y: float
    radius: float
    angle_radians: float
    visible: bool


@dataclass(frozen=True, slots=True)
class MotionScene:
    """One object, one motion, one backdrop.

    Attributes:
        label: One of `LABELS`.
        seconds: How long the motion lasts; the object stays in view until then.
        shape: A key of `SHAPES`.
        colour: The object's colour.
        accent: The colour of one half of the object, or its own colour once more.
        start: The object's centre at time 0.
        velocity: Short sides per second, rightwards and downwards.
        radius: The radius at time 0.
        growth_rate: The radius multiplies by `exp(growth_rate)` each second.
        angle_radians: Clockwise turn at time 0.
        spin: Clockwise radians per second.
        blink_period_seconds: One on and off cycle; 0 for an object that is always visible.
        blink_phase: The part of a cycle already over at time 0.
        backdrop: What lies behind.
        noise_levels: Standard deviation of the sensor noise, in levels of 255.
        seed: Seed of the noise and of the backdrop's irregular patterns.
    """

    label: str
    seconds: float
    shape: str
    colour: Colour
    accent: Colour
    start: tuple[float, float]
    velocity: tuple[float, float]
    radius: float
    growth_rate: float
    angle_radians: float
    spin: float
    blink_period_seconds: float
    blink_phase: float
    backdrop: Backdrop
    noise_levels: float
    seed: int

    def state_at(self, seconds: float) -> ObjectState:
        """Says where the object is `seconds` after the scene's start."""
        cycle = self.blink_phase
        if self.blink_period_seconds:
            cycle += seconds / self.blink_period_seconds
        return ObjectState(
            x=self.start[0] + self.velocity[0] * seconds,
            y=self.start[1] + self.velocity[1] * seconds,
            radius=self.radius * math.exp(self.growth_rate * seconds),
            angle_radians=self.angle_radians + self.spin * seconds,
            visible=cycle % 1.0 < 0.5,  # noqa: PLR2004 - on for half of each cycle
        )


@dataclass(frozen=True, slots=True)
class _Motion:
    """The part of a scene that its label decides."""

    start: tuple[float, float]
    radius: float
    velocity: tuple[float, float] = (0.0, 0.0)
    growth_rate: float = 0.0
    spin: float = 0.0
    blink_period_seconds: float = 0.0


def sample_scene(
    rng: np.random.Generator, label: str | None = None, seconds: float = 5.0
) -> MotionScene:
    """Draws a scene.

    Speeds follow from `seconds`: a slide crosses most of the central square, and a growing object
    becomes about four times as wide, in just that time. Up to about 6.5 seconds, the motion is
    plain to see in every stretch of two seconds.

    Args:
        rng: The source of all choices.
        label: One of `LABELS`; drawn too if not given.
        seconds: The duration that the scene has to fill.

    Returns:
        The scene.

    Raises:
        ValueError: If the label is unknown or the duration is not positive.
    """
    if label is None:
        label = LABELS[int(rng.integers(len(LABELS)))]
    if label not in LABELS or not seconds > 0:
        msg = f"no scene of {label!r} that lasts {seconds} s"
        raise ValueError(msg)
    motion = _sample_motion(rng, label, seconds)
    backdrop = _sample_backdrop(rng)
    shape, halved = _sample_shape(rng, must_show_turning=motion.spin != 0)
    pairs = colour_pairs(backdrop)
    colour, accent = pairs[int(rng.integers(len(pairs)))]
    return MotionScene(
        label=label,
        seconds=seconds,
        shape=shape,
        colour=colour,
        accent=accent if halved else colour,
        start=motion.start,
        velocity=motion.velocity,
        radius=motion.radius,
        growth_rate=motion.growth_rate,
        angle_radians=float(rng.uniform(0, 2 * math.pi)),
        spin=motion.spin,
        blink_period_seconds=motion.blink_period_seconds,
        blink_phase=float(rng.uniform()) if motion.blink_period_seconds else 0.0,
        backdrop=backdrop,
        noise_levels=float(rng.uniform(0, 4)),
        seed=int(rng.integers(2**31)),
    )


def _sample_motion(rng: np.random.Generator, label: str, seconds: float) -> _Motion:
    match label.split():
        case ["moving", direction]:
            return _sample_slide(rng, direction, seconds)
        case ["growing" | "shrinking" as change]:
            return _sample_growth(rng, seconds, grows=change == "growing")
        case ["rotating", sense]:
            sign = 1 if sense == "clockwise" else -1
            radius = float(rng.uniform(0.26, 0.40))
            # Fast enough to see in two seconds, too slow for a cross to look as if it turned back
            # when frames are a quarter of a second apart.
            spin = sign * math.radians(float(rng.uniform(45, 90)))
            return _Motion(_sample_place(rng, radius), radius, spin=spin)
        case _:
            radius = float(rng.uniform(0.12, 0.38))
            # Both halves of a cycle outlast the gap between frames a quarter of a second apart.
            period = float(rng.uniform(0.9, 1.4)) if label == "blinking" else 0.0
            return _Motion(_sample_place(rng, radius), radius, blink_period_seconds=period)


def _sample_slide(rng: np.random.Generator, direction: str, seconds: float) -> _Motion:
    radius = float(rng.uniform(0.12, 0.19))
    distance = float(rng.uniform(0.66, 0.76))
    along = -distance / 2 + float(rng.uniform(-0.03, 0.03))
    across = float(rng.uniform(-0.26, 0.26))
    speed = distance / seconds
    drift = speed * float(rng.uniform(-0.08, 0.08))
    match direction:
        case "left":
            return _Motion((-along, across), radius, (-speed, drift))
        case "right":
            return _Motion((along, across), radius, (speed, drift))
        case "up":
            return _Motion((across, -along), radius, (drift, -speed))
        case _:
            return _Motion((across, along), radius, (drift, speed))


def _sample_growth(rng: np.random.Generator, seconds: float, *, grows: bool) -> _Motion:
    small, large = float(rng.uniform(0.09, 0.12)), float(rng.uniform(0.38, 0.46))
    rate = math.log(large / small) / seconds
    place = _sample_place(rng, large)
    if grows:
        return _Motion(place, small, growth_rate=rate)
    return _Motion(place, large, growth_rate=-rate)


def _sample_place(rng: np.random.Generator, radius: float) -> tuple[float, float]:
    room = max(0.48 - radius, 0.02)
    x, y = rng.uniform(-room, room, size=2)
    return float(x), float(y)


def _sample_shape(rng: np.random.Generator, *, must_show_turning: bool) -> tuple[str, bool]:
    """Draws a shape and whether one half of it has the accent colour."""
    halved = bool(rng.uniform() < 0.5)  # noqa: PLR2004 - a coin
    choices = TURNABLE_SHAPES if must_show_turning else tuple(SHAPES)
    return choices[int(rng.integers(len(choices)))], halved


def _sample_backdrop(rng: np.random.Generator) -> Backdrop:
    # Dark or light, and nothing between: two colours have to stand out from it.
    level = rng.uniform(30, 60) if rng.uniform() < 0.5 else rng.uniform(170, 215)  # noqa: PLR2004
    tint = rng.uniform(-16, 16, size=3)
    step = rng.uniform(4, 14)
    dark, light = level + tint - step, level + tint + step
    return Backdrop(
        kind=BACKDROPS[int(rng.integers(len(BACKDROPS)))],
        dark=_as_colour(dark),
        light=_as_colour(light),
        waves=float(rng.uniform(1.5, 6.0)),
        angle_radians=float(rng.uniform(0, math.pi)),
    )


def _as_colour(levels: npt.NDArray[np.float64]) -> Colour:
    red, green, blue = (int(level) for level in np.clip(np.rint(levels), 0, 255))
    return red, green, blue


def luma(colour: Colour) -> float:
    """Returns how bright a colour looks, from 0 to 255."""
    return sum(weight * level for weight, level in zip(LUMA_WEIGHTS, colour, strict=True))


def colour_pairs(backdrop: Backdrop) -> tuple[tuple[Colour, Colour], ...]:
    """Returns the pairs from `PALETTE` that stand out from a backdrop and from each other."""
    low, high = luma(backdrop.dark) - MIN_CONTRAST, luma(backdrop.light) + MIN_CONTRAST
    visible = [colour for colour in PALETTE if not low < luma(colour) < high]
    return tuple(
        (one, other)
        for one, other in permutations(visible, 2)
        if abs(luma(one) - luma(other)) >= MIN_ACCENT_CONTRAST
    )


# --- Rendering ----------------------------------------------------------------------------------


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


# --- Encoding -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Encoder:
    """How to drive one encoder: its quality knob, and options that keep it quick and repeatable."""

    knob: str
    levels: Mapping[Quality, str]
    options: Mapping[str, str]
    suffixes: frozenset[str]


_ISO: Final = frozenset({".mp4", ".mov", ".mkv"})
_WEB: Final = frozenset({".webm", ".mkv"})
_ENCODERS: Final[Mapping[str, _Encoder]] = MappingProxyType(
    {
        "libx264": _Encoder(
            "crf",
            {"high": "18", "medium": "23", "low": "30"},
            # x264's macroblock tree gives slightly different files from run to run.
            {"preset": "veryfast", "mbtree": "0"},
            _ISO | {".avi"},
        ),
        "libx265": _Encoder(
            "crf",
            {"high": "20", "medium": "26", "low": "32"},
            {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"},
            _ISO,
        ),
        "libvpx-vp9": _Encoder(
            "crf",
            {"high": "24", "medium": "33", "low": "43"},
            {"b": "0", "deadline": "realtime", "cpu-used": "8"},
            _WEB | {".mp4"},
        ),
        "libvpx": _Encoder(
            "crf",
            {"high": "8", "medium": "16", "low": "30"},
            # Not the real-time deadline: it watches the clock, and its output varies with the load.
            {"b": "2M", "deadline": "good", "cpu-used": "5"},
            _WEB,
        ),
        "mpeg4": _Encoder(
            "qmin",
            {"high": "3", "medium": "5", "low": "9"},
            {},
            _ISO | {".avi"},
        ),
        "libsvtav1": _Encoder(
            "crf",
            {"high": "26", "medium": "35", "low": "45"},
            {"preset": "10", "svtav1-params": "lp=1"},
            _WEB | {".mp4"},
        ),
    }
)
CODECS: Final = tuple(_ENCODERS)
"""Encoders that `encode_video` knows; `available_codecs` says which of them are installed."""


def available_codecs() -> tuple[str, ...]:
    """Returns those of `CODECS` that the installed FFmpeg libraries contain."""
    return tuple(codec for codec in CODECS if codec in av.codecs_available)


def container_suffixes(codec: str) -> frozenset[str]:
    """Returns the file name endings, with their dot, that `codec` may be written to."""
    return _ENCODERS[codec].suffixes


def encode_video(
    path: str | Path,
    frames: Iterable[Frame],
    fps: Rate,
    codec: str = "libx264",
    *,
    quality: Quality = "medium",
    keyframe_interval: int | None = None,
) -> None:
    """Writes frames as a video; equal frames and settings give an equal file.

    Args:
        path: Where to; the name's ending chooses the container.
        frames: RGB frames of one even height and width; consumed one at a time.
        fps: Frames per second.
        codec: One of `available_codecs()`.
        quality: How much the encoder may lose.
        keyframe_interval: Frames between key frames; the encoder's own choice if not given.

    Raises:
        ValueError: If the container cannot hold the codec, or there is no frame, or a side is odd.
    """
    path = Path(path)
    if codec not in _ENCODERS or path.suffix.lower() not in _ENCODERS[codec].suffixes:
        msg = f"cannot write {codec} into a {path.suffix or 'nameless'} file"
        raise ValueError(msg)
    remaining = iter(frames)
    first = next(remaining, None)
    if first is None or first.shape[0] % 2 or first.shape[1] % 2:
        msg = "a video needs at least one frame, and even sides"
        raise ValueError(msg)
    # SVT-AV1 listens to nothing else when it decides how much to write to standard error.
    os.environ.setdefault("SVT_LOG", "1")
    # `bitexact` keeps dates, random ids and library versions out of the file.
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        stream = cast("VideoStream", container.add_stream(codec, rate=fps))
        _configure(stream, first, _options(codec, quality, keyframe_interval))
        for frame_HWC in _chain(first, remaining):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode(None))


def _options(codec: str, quality: Quality, keyframe_interval: int | None) -> dict[str, object]:
    encoder = _ENCODERS[codec]
    options: dict[str, object] = {**encoder.options, encoder.knob: encoder.levels[quality]}
    if keyframe_interval is not None:
        options["g"] = str(keyframe_interval)
    return options


def _configure(stream: VideoStream, first_HWC: Frame, options: dict[str, object]) -> None:
    stream.height, stream.width = first_HWC.shape[:2]
    stream.pix_fmt = "yuv420p"
    # Encoders divide the work by thread, so their output depends on the number of threads.
    stream.codec_context.thread_count = 1
    stream.options = options


def _chain(first: Frame, remaining: Iterator[Frame]) -> Iterator[Frame]:
    yield first
    yield from remaining
