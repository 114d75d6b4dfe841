"""What a motion video shows: its labels, its scenes, and how a scene is drawn from a generator."""

import math
from dataclasses import dataclass
from itertools import permutations
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from indexer.video.motion.shapes import SHAPES, TURNABLE_SHAPES

Colour: TypeAlias = tuple[int, int, int]

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
