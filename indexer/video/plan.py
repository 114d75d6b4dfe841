"""Which frames of a video make its clips: a plan in exact numbers, made before anything is decoded.

Times are `Fraction`s of a second from the start of the first frame; frames are named by their rank
in presentation order, from 0. No decision here is taken in floating point.
"""

import bisect
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from indexer.config import Decode, Sampling
from indexer.errors import VideoOverBudget
from indexer.records import Preprocessing

MAX_CLIPS: Final = 100_000
"""A plan with more clips is refused: a lying clock must not cost memory (9.9 days of windows)."""

_TARGET_FPS_KINETICS: Final = 30
"""The clock of the Kinetics test rule in the paper's code, whatever `sampling.target_fps` says."""


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """When each frame of a stream is displayed.

    Attributes:
        pts: int64[n], presentation timestamps of the displayed frames in ticks, increasing.
        time_base: seconds per tick.
        end_pts: end of the last frame in ticks, exclusive.
        fps: average frames per second.
    """

    pts: npt.NDArray[np.int64]
    time_base: Fraction
    end_pts: int
    fps: Fraction

    def __post_init__(self) -> None:
        if self.pts.ndim != 1 or self.pts.dtype != np.int64 or not len(self.pts):
            message = f"a timeline needs int64[n > 0], not {self.pts.dtype}{self.pts.shape}"
            raise ValueError(message)
        if np.any(self.pts[1:] <= self.pts[:-1]) or self.end_pts <= self.pts[-1]:
            message = "timestamps do not increase"
            raise ValueError(message)
        if self.time_base <= 0 or self.fps <= 0:
            message = f"time base {self.time_base} and rate {self.fps} must be positive"
            raise ValueError(message)

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame's start to the last frame's end."""
        return (self.end_pts - int(self.pts[0])) * self.time_base

    def start_of(self, rank: int) -> Fraction:
        """Seconds at which a frame appears."""
        return (int(self.pts[rank]) - int(self.pts[0])) * self.time_base

    def end_of(self, rank: int) -> Fraction:
        """Seconds at which a frame gives way to the next one, or the video ends."""
        return self.start_of(rank + 1) if rank + 1 < len(self) else self.duration


@dataclass(frozen=True, slots=True)
class PlannedClip:
    """One clip to be made.

    Attributes:
        clip_index: ordinal of the clip within the video, from 0.
        start: of its span, in seconds.
        end: of its span, in seconds, exclusive.
        frame_ranks: the frames, view by view, never decreasing within one.
    """

    clip_index: int
    start: Fraction
    end: Fraction
    frame_ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """What to do with every video of a job.

    Attributes:
        sampling: which frames are wanted.
        num_frames: frames of a clip, as the model wants them.
        frame_rate_divisor: source frames from one frame of a clip to the next.
        preprocessing: from a decoded frame to the model's pixels.
        decode: what is accepted, and its budgets.
        moments_seconds: if any, what is wanted instead of what the sampling says; see `clips_at`.
    """

    sampling: Sampling
    num_frames: int
    frame_rate_divisor: int
    preprocessing: Preprocessing
    decode: Decode
    moments_seconds: tuple[float, ...] = ()

    @property
    def views(self) -> int:
        """Looks at one clip, whose scores are fused: stretches of the video times crops."""
        return self.sampling.views * self.sampling.crops

    def clips_of(self, timeline: Timeline, video_id: str) -> list[PlannedClip]:
        """The clips of a video: see `plan_clips`."""
        if self.moments_seconds:
            return clips_at(timeline, self.moments_seconds)
        return plan_clips(
            timeline,
            self.sampling,
            num_frames=self.num_frames,
            frame_rate_divisor=self.frame_rate_divisor,
            video_id=video_id,
        )


def plan_clips(
    timeline: Timeline,
    sampling: Sampling,
    *,
    num_frames: int,
    frame_rate_divisor: int,
    video_id: str,
) -> list[PlannedClip]:
    """Chooses the clips of a video and their frames.

    `windows` takes, at each instant of a window, the frame whose timestamp is nearest (of two, the
    earlier), and not the frame on display: containers with a millisecond clock round timestamps
    both ways, so the frame meant for an instant may seem to begin just after it.

    Args:
        timeline: the video's clock.
        sampling: the mode and its numbers.
        num_frames: frames of a clip.
        frame_rate_divisor: source frames, at the sampling's clock, from one frame to the next.
        video_id: seeds the `random` mode.

    Returns:
        At least one clip, in order of `clip_index`.

    Raises:
        VideoOverBudget: there would be more than `MAX_CLIPS` clips.
    """
    match sampling.mode:
        case "windows":
            return list(_windows(timeline, sampling, num_frames, frame_rate_divisor))
        case "uniform":
            ranks = _uniform_ranks(len(timeline), num_frames)
            return [PlannedClip(0, Fraction(0), timeline.duration, ranks)]
        case "kinetics":
            clip_frames = frame_rate_divisor * num_frames * timeline.fps / _TARGET_FPS_KINETICS
            views = (
                _kinetics_ranks(len(timeline), num_frames, clip_frames, view, sampling.views)
                for view in range(sampling.views)
            )
            return [_spanning(timeline, 0, tuple(chain.from_iterable(views)))]
        case "random":
            seed = (sampling.seed + zlib.crc32(video_id.encode())) % 2**32
            ranks = _random_ranks(len(timeline), num_frames, frame_rate_divisor, seed)
            return [_spanning(timeline, 0, ranks)]


def clips_at(timeline: Timeline, moments_seconds: Sequence[float]) -> list[PlannedClip]:
    """A clip of one frame for each moment: the frame that begins nearest to it.

    Args:
        timeline: the video's clock.
        moments_seconds: in order, such as some `ClipSpan.frame_pts_seconds` of the same video.
    """
    nearest = _NearestFrame(timeline)
    ranks = [nearest(Fraction(seconds)) for seconds in moments_seconds]
    return [
        PlannedClip(index, timeline.start_of(rank), timeline.end_of(rank), (rank,))
        for index, rank in enumerate(ranks)
    ]


def units_of(clips: Sequence[PlannedClip], segment_clips: int) -> list[tuple[PlannedClip, ...]]:
    """Cuts a video's clips into units of at most `segment_clips`, in order."""
    starts = range(0, len(clips), segment_clips)
    return [tuple(clips[start : start + segment_clips]) for start in starts]


def _windows(
    timeline: Timeline, sampling: Sampling, num_frames: int, frame_rate_divisor: int
) -> Iterator[PlannedClip]:
    step = frame_rate_divisor / Fraction(str(sampling.target_fps))
    window = num_frames * step
    hop = window if sampling.hop_seconds is None else Fraction(str(sampling.hop_seconds))
    least = Fraction(str(sampling.min_seconds))
    duration = timeline.duration
    last = max(math.ceil((duration - window) / hop), 0)
    remainder = duration - last * hop
    if last and (remainder <= 0 or remainder < min(window, least)):
        last -= 1
    if last >= MAX_CLIPS:
        message = f"the video would have more than {MAX_CLIPS} clips; raise hop_seconds"
        raise VideoOverBudget(message)
    nearest = _NearestFrame(timeline)
    for index in range(last + 1):
        start = index * hop
        ranks = tuple(nearest(start + i * step) for i in range(num_frames))
        yield PlannedClip(index, start, min(start + window, duration), ranks)


class _NearestFrame:
    """Finds the frame whose timestamp is nearest to an instant; of two, the earlier."""

    def __init__(self, timeline: Timeline) -> None:
        self._pts = timeline.pts
        self._first = int(timeline.pts[0])
        self._time_base = timeline.time_base

    def __call__(self, seconds: Fraction) -> int:
        ticks = seconds / self._time_base + self._first
        after = bisect.bisect_right(self._pts, math.floor(ticks))
        if after == 0 or after == len(self._pts):
            return max(after - 1, 0)
        middle = Fraction(int(self._pts[after - 1]) + int(self._pts[after]), 2)
        return after - 1 if ticks <= middle else after


def _uniform_ranks(frames: int, num_frames: int) -> tuple[int, ...]:
    """The middle of each of `num_frames` equal segments: the Something-Something v2 test rule."""
    segment = Fraction(frames - 1, num_frames)
    edges = [round(segment * i) for i in range(num_frames + 1)]
    return tuple((low + high) // 2 for low, high in pairwise(edges))


def _kinetics_ranks(
    frames: int, num_frames: int, clip_frames: Fraction, view: int, views: int
) -> tuple[int, ...]:
    """Frames evenly spaced over one of `views` stretches: the TimeSformer code's Kinetics test.

    The first view starts at frame 0, so that a single view does not lie in the middle of the
    video. The code computes in float32; its integers differ from these only where an exact value
    is a whole number that float32 misses from below.
    """
    start = max(frames - clip_frames, Fraction(0)) * view / views
    exact = _linspace(start, start + max(clip_frames - 1, Fraction(0)), num_frames)
    return tuple(math.floor(min(max(value, Fraction(0)), Fraction(frames - 1))) for value in exact)


def _random_ranks(
    frames: int, num_frames: int, frame_rate_divisor: int, seed: int
) -> tuple[int, ...]:
    """Frames evenly spaced over a random stretch: the Hugging Face document's example.

    A video no longer than the stretch is taken whole; the document's code fails on it.
    """
    length = num_frames * frame_rate_divisor
    if frames > length:
        end = int(np.random.RandomState(seed).randint(length, frames))
        start = end - length
    else:
        start, end = 0, frames
    exact = _linspace(Fraction(start), Fraction(end), num_frames)
    return tuple(min(math.floor(value), end - 1) for value in exact)


def _linspace(start: Fraction, end: Fraction, number: int) -> list[Fraction]:
    step = (end - start) / (number - 1) if number > 1 else Fraction(0)
    return [start + i * step for i in range(number)]


def _spanning(timeline: Timeline, index: int, ranks: tuple[int, ...]) -> PlannedClip:
    return PlannedClip(index, timeline.start_of(ranks[0]), timeline.end_of(ranks[-1]), ranks)
