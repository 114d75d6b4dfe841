"""From a file object to the clips of its units: exact frames, bounded memory, typed failures.

A first pass reads the packets' timestamps and plans; a second one decodes linearly and keeps, of
what comes out, the planned frames only, already at the model's size. A unit is handed on as soon as
its last frame is there. Where the packets cannot be trusted, a pass that counts the decoded frames
takes the place of the first.

Axes: N clips, T frames, H height, W width, C colour (RGB).
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import BinaryIO, TypeAlias

import av.error
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from indexer.errors import (
    VideoCorrupt,
    VideoError,
    VideoInternal,
    VideoNoFrames,
    VideoOverBudget,
    VideoTransientIO,
)
from indexer.records import ClipSpan, DecodedClips, Preprocessing, VideoFailure, VideoInfo
from indexer.video.plan import DecodePlan, PlannedClip, Timeline, plan_clips, units_of
from indexer.video.preprocess import preprocess_frame
from indexer.video.probe import (
    clockwise_rotation,
    describe,
    open_video_stream,
    scan_packets,
    timeline_of_output,
)

Pixels: TypeAlias = npt.NDArray[np.uint8]
Unit: TypeAlias = tuple[PlannedClip, ...]


def decode_clips(
    file: BinaryIO,
    plan: DecodePlan,
    *,
    video_id: str,
    skip_units: frozenset[int] = frozenset(),
) -> Iterator[DecodedClips | VideoFailure]:
    """Decodes the clips of one video, unit by unit.

    Args:
        file: readable and seekable; read from its start, left open.
        plan: sampling, preprocessing and budgets.
        video_id: seeds the `random` sampling mode.
        skip_units: units that are already done; nothing is yielded for them.

    Yields:
        One item for each unit, in order. No input makes this raise: a video that fails before its
        units are known gives one failure; one that fails midway, a failure for each unit left.
    """
    video = _Video(file, plan, video_id, skip_units)
    failure: VideoError
    try:
        yield from video.decoded_units()
    except VideoError as error:
        failure = error
    except av.error.FFmpegError as error:
        failure = VideoCorrupt(f"FFmpeg gives up: {error.strerror}")
    except MemoryError:
        failure = VideoOverBudget("decoding needs more memory than this process may use")
    except OSError as error:
        failure = VideoTransientIO(f"reading the file failed: {error.strerror}")
    except Exception as error:  # noqa: BLE001 - one video must not stop its neighbours
        failure = VideoInternal(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    else:
        return
    yield from video.failures(failure)


class _TimelineRefutedError(Exception):
    """What comes out of the decoder is not what the packets' timestamps promised."""


class _Video:
    """One video on its way through; knows which units are still owed to the caller."""

    def __init__(
        self, file: BinaryIO, plan: DecodePlan, video_id: str, skip_units: frozenset[int]
    ) -> None:
        self._file = file
        self._plan = plan
        self._video_id = video_id
        self._skip_units = skip_units
        self._units: list[Unit] = []
        self._owed: deque[int] = deque()
        self._info: VideoInfo | None = None

    def decoded_units(self) -> Iterator[DecodedClips | VideoFailure]:
        with open_video_stream(self._file, self._plan.decode) as (container, stream):
            scan = scan_packets(self._file, container, stream, self._plan.decode)
        distrust = scan.distrust
        if scan.timeline is not None:
            self._plan_units(scan.timeline)
            try:
                yield from self._decode(scan.timeline, by_pts=True, warnings=())
            except _TimelineRefutedError:
                distrust = "frames come out at other times"
            else:
                return
        timeline, warnings = self._count(scan.packets, distrust)
        self._plan_units(timeline)
        yield from self._decode(timeline, by_pts=False, warnings=warnings)

    def failures(self, error: VideoError) -> Iterator[VideoFailure]:
        """One failure for each unit that is still owed, or for the whole video."""
        owed = tuple(self._owed) if self._units else (0,)
        for unit_index in owed:
            units = max(len(self._units), 1)
            yield VideoFailure(error.code, str(error), unit_index, units, self._info)

    def _plan_units(self, timeline: Timeline) -> None:
        clips = plan_clips(
            timeline,
            self._plan.sampling,
            num_frames=self._plan.num_frames,
            frame_rate_divisor=self._plan.frame_rate_divisor,
            video_id=self._video_id,
        )
        self._units = units_of(clips, self._plan.sampling.segment_clips)
        unit_indices = range(len(self._units))
        self._owed = deque(unit for unit in unit_indices if unit not in self._skip_units)
        self._info = None

    def _count(self, packets: int, distrust: str) -> tuple[Timeline, tuple[str, ...]]:
        """Decodes everything once, to learn which frames come out and when."""
        with open_video_stream(self._file, self._plan.decode) as (container, stream):
            decoder = _LinearDecoder(container, stream)
            pts = [frame.pts for frame in decoder.frames()]
            if not pts:
                raise decoder.nothing_came()
            timeline, own = timeline_of_output(pts, stream)
        warnings = [f"the packets' timestamps are not used: {distrust}"]
        if not own:
            rate = f"{float(timeline.fps):.6g} fps is assumed"
            warnings.append(f"the frames' times are not usable: {rate}")
        if len(pts) < packets:
            warnings.append(f"{packets} packets give {len(pts)} frames")
        return timeline, tuple(warnings)

    def _decode(
        self, timeline: Timeline, *, by_pts: bool, warnings: tuple[str, ...]
    ) -> Iterator[DecodedClips | VideoFailure]:
        """Decodes once more and hands the units on.

        Args:
            timeline: the clock that the units were planned with.
            by_pts: a frame's rank follows from its timestamp, else from the order of output.
            warnings: of the passes before.

        Raises:
            _TimelineRefutedError: before the first unit, where the timeline proves wrong.
        """
        if not self._owed:
            return
        picker = _Picker(timeline, self._wanted_ranks(), self._plan.preprocessing)
        with open_video_stream(self._file, self._plan.decode) as (container, stream):
            decoder = _LinearDecoder(container, stream)
            frames = decoder.frames()
            first = next(frames, None)
            if first is None:
                raise decoder.nothing_came()
            self._info = info = describe(stream, timeline, first, warnings)
            confirmed = not by_pts
            for frame in chain((first,), frames):
                rank = _rank_of(frame, timeline) if by_pts else decoder.output - 1
                if rank is None:
                    continue
                picker.offer(rank, frame)
                while self._owed and picker.has_settled(self._units[self._owed[0]]):
                    confirmed = confirmed or decoder.confirms(rank + 1)
                    yield self._next_unit(picker, info, warnings + decoder.warnings())
                if not self._owed:
                    return
            confirmed = confirmed or decoder.confirms(len(timeline))
        picker.finish()
        while self._owed:
            yield self._next_unit(picker, info, warnings + decoder.warnings())

    def _wanted_ranks(self) -> list[int]:
        units = (self._units[unit] for unit in self._owed)
        return sorted({rank for unit in units for clip in unit for rank in clip.frame_ranks})

    def _next_unit(
        self, picker: "_Picker", info: VideoInfo, warnings: tuple[str, ...]
    ) -> DecodedClips | VideoFailure:
        """Takes the next unit off the debt, and lets go of frames that no later unit needs."""
        unit_index, units = self._owed.popleft(), len(self._units)
        unit = self._units[unit_index]
        self._info = info = replace(info, warnings=warnings)
        try:
            spans, frames_NTHWC = picker.take(unit)
        except VideoError as error:
            return VideoFailure(error.code, str(error), unit_index, units, info)
        if self._owed:
            picker.forget_before(self._units[self._owed[0]][0].frame_ranks[0])
        return DecodedClips(unit_index, units, info, spans, frames_NTHWC)


class _LinearDecoder:
    """Decodes a stream from its first packet to its last, passing over what does not decode."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.output = 0
        self._container = container
        self._stream = stream
        self._packets = 0
        self._failed = 0
        self._damaged = 0

    def frames(self) -> Iterator[VideoFrame]:
        for packet in self._container.demux(self._stream):
            if packet.size:
                self._packets += 1
                yield from self._feed(packet)
        yield from self._feed(None)

    def confirms(self, expected: int) -> bool:
        """Checks that as many frames came out as the timeline promised, but for known losses."""
        if self.output != expected and not self._failed:
            raise _TimelineRefutedError
        return True

    def warnings(self) -> tuple[str, ...]:
        warnings = []
        if self._failed:
            warnings.append(f"{self._failed} of {self._packets} packets failed to decode")
        if self._damaged:
            warnings.append(f"{self._damaged} of {self.output} frames are damaged")
        return tuple(warnings)

    def nothing_came(self) -> VideoError:
        if self._failed:
            return VideoCorrupt(f"none of {self._packets} packets decodes")
        return VideoNoFrames(f"{self._packets} packets decode to no frame")

    def _feed(self, packet: "Packet[VideoStream] | None") -> Iterator[VideoFrame]:
        try:
            frames = self._stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            self._failed += 1
            return
        for frame in frames:
            self.output += 1
            self._damaged += frame.is_corrupt
            yield frame


@dataclass(frozen=True, slots=True)
class _Picture:
    """A frame at the model's size; `rank` is the one that was used, not the one asked for."""

    pixels_HWC: Pixels
    rank: int
    exact: bool


class _Picker:
    """Keeps, of the frames offered in presentation order, those that a plan asks for.

    For a frame that is never offered the nearer of its neighbours is kept, of two the earlier.
    """

    def __init__(self, timeline: Timeline, wanted: list[int], recipe: Preprocessing) -> None:
        self._timeline = timeline
        self._wanted = wanted
        self._recipe = recipe
        self._position = 0
        self._kept: dict[int, _Picture] = {}
        self._previous: tuple[int, VideoFrame] | None = None
        self._rendered: tuple[int, Pixels] | None = None
        self._reformatter = VideoReformatter()

    def offer(self, rank: int, frame: VideoFrame) -> None:
        if self._previous is not None and rank <= self._previous[0]:
            return
        while (wanted := self._next_wanted()) is not None and wanted < rank:
            self._keep(wanted, *self._nearer(wanted, (rank, frame)))
        if wanted == rank:
            self._keep(rank, rank, frame)
        self._previous = (rank, frame)

    def finish(self) -> None:
        """No more frames come: the last one stands in for the rest."""
        while self._previous is not None and (wanted := self._next_wanted()) is not None:
            self._keep(wanted, *self._previous)

    def has_settled(self, unit: Unit) -> bool:
        wanted = self._next_wanted()
        return wanted is None or wanted > max(clip.frame_ranks[-1] for clip in unit)

    def take(self, unit: Unit) -> tuple[tuple[ClipSpan, ...], Pixels]:
        """The spans of a unit and uint8[N, T, H, W, C].

        Raises:
            VideoCorrupt: most of its frames are missing, or they differ in size.
        """
        ranks = {rank for clip in unit for rank in clip.frame_ranks}
        found = sum(rank in self._kept and self._kept[rank].rank == rank for rank in ranks)
        if found < len(ranks) - found:
            message = f"{len(ranks) - found} of {len(ranks)} sampled frames do not decode"
            raise VideoCorrupt(message)
        if len({self._kept[rank].pixels_HWC.shape for rank in ranks}) > 1:
            message = "the shape of the picture changes; a recipe without crop cannot take it"
            raise VideoCorrupt(message)
        clips_THWC = [
            np.stack([self._kept[rank].pixels_HWC for rank in clip.frame_ranks]) for clip in unit
        ]
        return tuple(self._span(clip) for clip in unit), np.stack(clips_THWC)

    def forget_before(self, rank: int) -> None:
        for kept in [kept for kept in self._kept if kept < rank]:
            del self._kept[kept]

    def _next_wanted(self) -> int | None:
        return self._wanted[self._position] if self._position < len(self._wanted) else None

    def _nearer(self, wanted: int, after: tuple[int, VideoFrame]) -> tuple[int, VideoFrame]:
        if self._previous is None:
            return after
        pts = self._timeline.pts
        to_previous = int(pts[wanted]) - int(pts[self._previous[0]])
        return self._previous if to_previous <= int(pts[after[0]]) - int(pts[wanted]) else after

    def _keep(self, wanted: int, rank: int, frame: VideoFrame) -> None:
        if self._rendered is None or self._rendered[0] != rank:
            self._rendered = (rank, self._render(frame))
        exact = wanted == rank and not frame.is_corrupt
        self._kept[wanted] = _Picture(self._rendered[1], rank, exact)
        self._position += 1

    def _render(self, frame: VideoFrame) -> Pixels:
        """RGB as `frame.to_ndarray(format="rgb24")` gives it, turned for display, at model size."""
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
        frame_HWC = rgb.to_ndarray().astype(np.uint8, copy=False)
        upright_HWC = np.rot90(frame_HWC, -clockwise_rotation(frame) // 90)
        return preprocess_frame(upright_HWC, self._recipe)

    def _span(self, clip: PlannedClip) -> ClipSpan:
        pictures: Sequence[_Picture] = [self._kept[rank] for rank in clip.frame_ranks]
        return ClipSpan(
            clip_index=clip.clip_index,
            start_seconds=float(clip.start),
            end_seconds=float(clip.end),
            frame_pts_seconds=tuple(float(self._timeline.start_of(p.rank)) for p in pictures),
            frames_exact=all(picture.exact for picture in pictures),
        )


def _rank_of(frame: VideoFrame, timeline: Timeline) -> int | None:
    if frame.pts is None:
        return None
    rank = int(np.searchsorted(timeline.pts, frame.pts))
    return rank if rank < len(timeline) and timeline.pts[rank] == frame.pts else None
