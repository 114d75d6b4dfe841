"""Decodes the planned clips of one video, in its own time and within its own units.

Frames are found by their packets' timestamps. Where these cannot be trusted, everything is decoded
and counted first, and frames are found by the order in which they come out.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from typing import TypeAlias

import av.error
import numpy as np
import numpy.typing as npt

from indexer.errors import (
    VideoCorrupt,
    VideoError,
    VideoInternal,
    VideoOverBudget,
    VideoTransientIO,
)
from indexer.records import ClipSpan, DecodedClips, VideoFailure, VideoInfo
from indexer.video.decoder import FrameDecoder
from indexer.video.feeding import all_packets
from indexer.video.frames import (
    SampledFrame,
    TimelineRefutedError,
    ordered_frames,
    sparse_frames,
)
from indexer.video.packets import (
    PacketReader,
    PacketTable,
    scan_packets,
    timeline_of_output,
    with_data,
)
from indexer.video.picture import PictureRenderer
from indexer.video.plan import DecodePlan, PlannedClip, Timeline, units_of
from indexer.video.probe import OpenVideo, describe, open_video_stream, peculiarities, pixel_aspect
from indexer.video.ranged import Readable

Pixels: TypeAlias = npt.NDArray[np.uint8]
Unit: TypeAlias = tuple[PlannedClip, ...]
Allocate: TypeAlias = Callable[[tuple[int, ...]], Pixels]


def new_array(shape: tuple[int, ...]) -> Pixels:
    """Memory for a unit's frames that belongs to nobody else."""
    return np.empty(shape, np.uint8)


def decode_clips(
    file: Readable,
    plan: DecodePlan,
    *,
    video_id: str,
    skip_units: frozenset[int] = frozenset(),
    allocate: Allocate = new_array,
) -> Iterator[DecodedClips | VideoFailure]:
    """Decodes the clips of one video, unit by unit.

    Args:
        file: readable and seekable; read from its start, left open.
        plan: sampling, preprocessing and budgets.
        video_id: seeds the `random` sampling mode.
        skip_units: units that are already done; nothing is yielded for them.
        allocate: gives the uint8 array, of the shape it is asked for, that a unit's frames are put
            in; it may be the same memory each time, once the unit before is done with.

    Yields:
        One item for each unit, in order. No input makes this raise: a video that fails before its
        units are known gives one failure; one that fails midway, a failure for each unit left.
    """
    video = _Video(file, plan, video_id, skip_units, allocate)
    failure: VideoError
    try:
        yield from video.decoded_units()
    except VideoError as error:
        failure = error
    except MemoryError:
        failure = VideoOverBudget("decoding needs more memory than decode.max_memory_bytes")
    except av.error.FFmpegError as error:
        failure = VideoCorrupt(f"FFmpeg gives up: {error.strerror}")
    except OSError as error:
        failure = VideoTransientIO(f"reading the file failed: {error.strerror}")
    except Exception as error:  # noqa: BLE001 - one video must not stop its neighbours
        failure = VideoInternal(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    else:
        return
    yield from video.failures(failure)


class _Video:
    """One video on its way through; knows which units are still owed to the caller."""

    def __init__(
        self,
        file: Readable,
        plan: DecodePlan,
        video_id: str,
        skip_units: frozenset[int],
        allocate: Allocate,
    ) -> None:
        self._file = file
        self._plan = plan
        self._video_id = video_id
        self._skip_units = skip_units
        self._allocate = allocate
        self._units: list[Unit] = []
        self._owed: deque[int] = deque()
        self._info: VideoInfo | None = None

    def decoded_units(self) -> Iterator[DecodedClips | VideoFailure]:
        decode = self._plan.decode
        with open_video_stream(self._file, decode) as opened:
            table = scan_packets(self._file, opened, decode)
            distrust = table.distrust
            if table.timeline is not None:
                try:
                    yield from self._sparse(opened, table, table.timeline)
                except TimelineRefutedError:
                    distrust = "frames come out at other times"
                else:
                    return
        yield from self._ordered(len(table), distrust)

    def failures(self, error: VideoError) -> Iterator[VideoFailure]:
        """One failure for each unit that is still owed, or for the whole video."""
        owed = tuple(self._owed) if self._units else (0,)
        for unit_index in owed:
            units = max(len(self._units), 1)
            yield VideoFailure(error.code, str(error), unit_index, units, self._info)

    def _sparse(
        self, opened: OpenVideo, table: PacketTable, timeline: Timeline
    ) -> Iterator[DecodedClips | VideoFailure]:
        """Decodes the packets that are needed.

        Whether the timeline holds is decided by the first clip, whichever units are owed: two
        workers that share a video must not come to different conclusions.
        """
        self._plan_units(timeline)
        if not self._owed:
            return
        first_clip = frozenset(self._units[0][0].frame_ranks)
        ranks = sorted(first_clip | self._wanted_ranks())
        decoder = FrameDecoder(opened.stream.codec_context)
        with PacketReader(self._file, table, self._plan.decode) as reader:
            frames = sparse_frames(decoder, reader, table, ranks, first_clip)
            yield from self._collect(opened, decoder, timeline, frames)

    def _ordered(self, packets: int, distrust: str) -> Iterator[DecodedClips | VideoFailure]:
        """Decodes everything twice: to learn which frames come out and when, and to pick some."""
        decode = self._plan.decode
        with open_video_stream(self._file, decode) as opened:
            decoder = FrameDecoder(opened.stream.codec_context)
            pts = [frame.pts for frame in decoder.frames(all_packets(with_data(opened)))]
            if not pts:
                raise decoder.nothing_came()
            timeline, own = timeline_of_output(pts, opened.stream)
        warnings = [f"the packets' timestamps are not used: {distrust}"]
        if not own:
            rate = f"{float(timeline.fps):.6g} fps is assumed"
            warnings.append(f"the frames' times are not usable: {rate}")
        if len(pts) < packets:
            warnings.append(f"{packets} packets give {len(pts)} frames")
        self._plan_units(timeline)
        with open_video_stream(self._file, decode) as opened:
            decoder = FrameDecoder(opened.stream.codec_context)
            frames = ordered_frames(decoder, opened, timeline, sorted(self._wanted_ranks()))
            yield from self._collect(opened, decoder, timeline, frames, tuple(warnings))

    def _plan_units(self, timeline: Timeline) -> None:
        clips = self._plan.clips_of(timeline, self._video_id)
        self._units = units_of(clips, self._plan.sampling.segment_clips)
        unit_indices = range(len(self._units))
        self._owed = deque(unit for unit in unit_indices if unit not in self._skip_units)
        self._info = None

    def _wanted_ranks(self) -> set[int]:
        units = (self._units[unit] for unit in self._owed)
        return {rank for unit in units for clip in unit for rank in clip.frame_ranks}

    def _collect(
        self,
        opened: OpenVideo,
        decoder: FrameDecoder,
        timeline: Timeline,
        frames: Iterator[SampledFrame],
        warnings: tuple[str, ...] = (),
    ) -> Iterator[DecodedClips | VideoFailure]:
        """Renders frames as they come, and hands on each unit as soon as it has all of its own."""
        first = next(frames, None)
        if first is None:
            raise decoder.nothing_came()
        warnings += peculiarities(opened, first.frame, self._plan.decode)
        info = describe(opened.stream, timeline, first.frame, warnings)
        renderer = _renderer(opened, self._plan)
        pictures = _Pictures(timeline, self._plan.num_frames)
        for sampled in chain((first,), frames):
            pictures.add(sampled, renderer)
            while self._owed and pictures.has_all_of(self._units[self._owed[0]]):
                yield self._next_unit(pictures, info, decoder)
            if not self._owed:
                return
        while self._owed:
            yield self._next_unit(pictures, info, decoder)

    def _next_unit(
        self, pictures: "_Pictures", info: VideoInfo, decoder: FrameDecoder
    ) -> DecodedClips | VideoFailure:
        """Takes the next unit off the debt, and lets go of frames that no later unit needs."""
        info = replace(info, warnings=info.warnings + decoder.warnings())
        codec_seconds, decoder.codec_seconds = decoder.codec_seconds, 0.0
        self._info = info
        unit_index, units = self._owed.popleft(), len(self._units)
        unit = self._units[unit_index]
        try:
            spans, frames_NTHWC = pictures.take(unit, self._allocate)
        except VideoError as error:
            return VideoFailure(error.code, str(error), unit_index, units, info)
        if self._owed:
            pictures.forget_before(self._units[self._owed[0]][0].frame_ranks[0])
        return DecodedClips(unit_index, units, info, spans, frames_NTHWC, codec_seconds)


def _renderer(opened: OpenVideo, plan: DecodePlan) -> PictureRenderer:
    aspect = pixel_aspect(opened.stream) if plan.decode.square_pixels else Fraction(1)
    crops = plan.sampling.crops
    return PictureRenderer(plan.preprocessing, plan.decode.resize, aspect, crops)


@dataclass(frozen=True, slots=True)
class _Picture:
    """A frame at the model's size; `rank` is the one that was used, not the one asked for."""

    crops_PHWC: Pixels
    rank: int
    exact: bool


class _Pictures:
    """The rendered frames of the units that are not yet complete, by the rank asked for."""

    def __init__(self, timeline: Timeline, num_frames: int) -> None:
        self._timeline = timeline
        self._num_frames = num_frames
        self._pictures: dict[int, _Picture] = {}
        self._latest: tuple[int, Pixels] | None = None

    def add(self, sampled: SampledFrame, render: PictureRenderer) -> None:
        if self._latest is None or self._latest[0] != sampled.rank:
            self._latest = (sampled.rank, render(sampled.frame))
        self._pictures[sampled.wanted] = _Picture(self._latest[1], sampled.rank, sampled.exact)

    def has_all_of(self, unit: Unit) -> bool:
        return unit[-1].frame_ranks[-1] in self._pictures and all(
            rank in self._pictures for clip in unit for rank in clip.frame_ranks
        )

    def take(self, unit: Unit, allocate: Allocate) -> tuple[tuple[ClipSpan, ...], Pixels]:
        """The spans of a unit and uint8[N, T, H, W, C]: of each clip all views, of each all crops.

        Raises:
            VideoCorrupt: most of its frames are missing, or they differ in size.
        """
        chosen = self._choose({rank for clip in unit for rank in clip.frame_ranks})
        shapes = {picture.crops_PHWC.shape for picture in chosen.values()}
        if len(shapes) > 1:
            message = "the shape of the picture changes; a recipe without crop cannot take it"
            raise VideoCorrupt(message)
        frames = self._num_frames
        views = [
            clip.frame_ranks[first : first + frames]
            for clip in unit
            for first in range(0, len(clip.frame_ranks), frames)
        ]
        crops, *shape_HWC = shapes.pop()
        frames_NTHWC = allocate((len(views) * crops, frames, *shape_HWC))
        for view, ranks in enumerate(views):
            of_crops_PTHWC = frames_NTHWC[view * crops : (view + 1) * crops]
            for position, rank in enumerate(ranks):
                of_crops_PTHWC[:, position] = chosen[rank].crops_PHWC
        return tuple(self._span(clip, chosen) for clip in unit), frames_NTHWC

    def forget_before(self, rank: int) -> None:
        for wanted in [wanted for wanted in self._pictures if wanted < rank]:
            del self._pictures[wanted]

    def _choose(self, ranks: set[int]) -> dict[int, _Picture]:
        """A picture for each rank; one of which not even a neighbour came gets the next best."""
        had = sorted(ranks & self._pictures.keys())
        lost = len(ranks) - sum(self._pictures[rank].rank == rank for rank in had)
        if 2 * lost > len(ranks):
            message = f"{lost} of {len(ranks)} sampled frames do not decode"
            raise VideoCorrupt(message)
        chosen = {rank: self._pictures[rank] for rank in had}
        for rank in ranks - chosen.keys():
            nearest = min(
                (self._pictures[r] for r in had), key=lambda p: (abs(p.rank - rank), p.rank)
            )
            chosen[rank] = replace(nearest, exact=False)
        return chosen

    def _span(self, clip: PlannedClip, chosen: Mapping[int, _Picture]) -> ClipSpan:
        pictures = [chosen[rank] for rank in clip.frame_ranks]
        return ClipSpan(
            clip_index=clip.clip_index,
            start_seconds=float(clip.start),
            end_seconds=float(clip.end),
            frame_pts_seconds=tuple(float(self._timeline.start_of(p.rank)) for p in pictures),
            frames_exact=all(picture.exact for picture in pictures),
        )
