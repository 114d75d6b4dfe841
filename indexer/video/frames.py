"""Gives the frames of a stream at chosen ranks, decoding as few packets as they need.

A frame depends on the packets from the keyframe before it; those that no other frame is predicted
from are left out. What comes out is bit for bit what decoding everything would give. Where a frame
does not come, its neighbourhood is decoded in full, and at last its nearest neighbour is taken.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final, NamedTuple

import av.error
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame

from indexer.errors import VideoCorrupt, VideoError, VideoNoFrames
from indexer.video.bitstream import PacketTest, VideoPacket, disposable_test
from indexer.video.packets import PacketReader, PacketTable, with_data
from indexer.video.plan import Timeline
from indexer.video.probe import OpenVideo

_MOST_PIXEL_BYTES: Final = 6
"""Of a pixel with 16 bits for each of three colours."""


_PREDICTED: Final = frozenset({PictureType.P, PictureType.B, PictureType.S})


class TimelineRefutedError(Exception):
    """What comes out of the decoder is not what the packets' timestamps promised."""


@dataclass(frozen=True, slots=True)
class SampledFrame:
    """The frame for a rank that was asked for.

    Attributes:
        wanted: the rank that was asked for.
        rank: of the frame; another one where the wanted frame does not come out.
        frame: as the decoder gives it.
    """

    wanted: int
    rank: int
    frame: VideoFrame

    @property
    def exact(self) -> bool:
        """Whether it is the wanted frame, and whole."""
        return self.wanted == self.rank and not self.frame.is_corrupt


class Run(NamedTuple):
    """Packets to be decoded in one go.

    Attributes:
        first: a keyframe's packet.
        last: the packet of the last wanted frame.
        ranks: the wanted frames, in order.
    """

    first: int
    last: int
    ranks: tuple[int, ...]


def plan_runs(table: PacketTable, ranks: Iterable[int]) -> list[Run]:
    """The stretches of packets that the frames of these ranks need, disjoint and in order."""
    rank_of = {int(table.shown[rank]): rank for rank in ranks}
    runs: list[Run] = []
    for packet in sorted(rank_of):
        run = Run(_keyframe_before(table, packet), packet, (rank_of[packet],))
        while runs and run.first <= runs[-1].last + 1:
            before = runs.pop()
            run = Run(min(before.first, run.first), packet, before.ranks + run.ranks)
        runs.append(run)
    return [run._replace(ranks=tuple(sorted(run.ranks))) for run in runs]


def sparse_frames(
    decoder: "FrameDecoder",
    reader: PacketReader,
    table: PacketTable,
    ranks: Sequence[int],
    confirming: frozenset[int],
) -> Iterator[SampledFrame]:
    """The frames of some ranks, found by their timestamps.

    Args:
        decoder: of the stream.
        reader: of its packets.
        table: of its packets; its `timeline` is not None.
        ranks: of the wanted frames, in order.
        confirming: ranks whose frames must come out as the timeline promises, or be damaged.

    Yields:
        One item for each rank of which anything can be had, roughly in order.

    Raises:
        TimelineRefutedError: a confirming frame does not come, for no visible reason.
    """
    timeline = _known(table.timeline)
    is_disposable = disposable_test(decoder.context)
    runs = plan_runs(table, ranks)
    reader.require([(run.first, run.last) for run in runs])
    for run in runs:
        missing = set(run.ranks)
        rank_at = {int(timeline.pts[rank]): rank for rank in run.ranks}
        for frame in _decoded(decoder, reader, table, run, is_disposable):
            rank = None if frame.pts is None else rank_at.get(frame.pts)
            if rank in missing:
                missing.remove(rank)
                yield SampledFrame(rank, rank, frame)
        if missing:
            for sampled in _repaired(decoder, reader, table, run, sorted(missing)):
                if sampled.rank == sampled.wanted:
                    missing.discard(sampled.wanted)
                yield sampled
        if missing & confirming and not decoder.failed and not decoder.damaged:
            raise TimelineRefutedError


def ordered_frames(
    decoder: "FrameDecoder", opened: OpenVideo, timeline: Timeline, ranks: Sequence[int]
) -> Iterator[SampledFrame]:
    """The frames of some ranks, found by counting what comes out of decoding everything."""
    nearest = _Nearest(timeline, ranks)
    for rank, frame in enumerate(decoder.frames(enumerate(with_data(opened)))):
        yield from nearest.offer(rank, frame)
        if not nearest.wants_more:
            return
    yield from nearest.finish()


class FrameDecoder:
    """Decodes stretches of packets, passing over those that do not decode.

    Attributes:
        context: FFmpeg's decoder.
        failed: ordinals of the packets that did not decode.
        damaged: timestamps of the frames that came out damaged.
        output: number of frames that came out.
    """

    def __init__(self, context: VideoCodecContext) -> None:
        self.context = context
        self.failed = set[int]()
        self.damaged = set[int | None]()
        self.output = 0

    def frames(self, packets: Iterable[tuple[int, VideoPacket]]) -> Generator[VideoFrame]:
        """Every frame of a stretch that begins with a keyframe, in order of presentation.

        Where the last packet codes no picture, FFmpeg repeats the one before, as if the stream
        ended there; in the whole stream that frame is not to be had, and so it is left out.
        """
        latest: VideoFrame | None = None
        try:
            for ordinal, packet in packets:
                for frame in self._feed(ordinal, packet):
                    latest = frame
                    yield frame
            yield from (f for f in self._feed(-1, None) if latest is None or not _same(f, latest))
        finally:
            self.context.flush_buffers()

    def warnings(self) -> tuple[str, ...]:
        """What went wrong so far, in words."""
        warnings = []
        if self.failed:
            warnings.append(f"packets that failed to decode: {len(self.failed)}")
        if self.damaged:
            warnings.append(f"decoded frames that are damaged: {len(self.damaged)}")
        return tuple(warnings)

    def nothing_came(self) -> VideoError:
        """Why there is no frame.

        Raises:
            MemoryError: what is left of it would not hold a frame. FFmpeg may call that bad data.
        """
        if self.failed:
            bytearray(_MOST_PIXEL_BYTES * self.context.width * self.context.height)
            return VideoCorrupt("none of the packets decodes")
        return VideoNoFrames("the packets decode to no frame")

    def _feed(self, ordinal: int, packet: "VideoPacket | None") -> Iterator[VideoFrame]:
        try:
            frames = self.context.decode(packet)
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError:
            self.failed.add(ordinal)
            return
        for frame in frames:
            self.output += 1
            if frame.is_corrupt:
                self.damaged.add(frame.pts)
            yield frame


class _Nearest:
    """Gives each wanted rank, of frames that are offered in order, the nearest; of two, the first.

    A rank itself is of course nearest to itself.
    """

    def __init__(self, timeline: Timeline, wanted: Sequence[int]) -> None:
        self._timeline = timeline
        self._wanted = wanted
        self._position = 0
        self._previous: tuple[int, VideoFrame] | None = None

    @property
    def wants_more(self) -> bool:
        return self._position < len(self._wanted)

    def offer(self, rank: int, frame: VideoFrame) -> Iterator[SampledFrame]:
        if self._previous is not None and rank <= self._previous[0]:
            return
        while self.wants_more and self._wanted[self._position] <= rank:
            yield self._take(*self._nearer(self._wanted[self._position], (rank, frame)))
        self._previous = (rank, frame)

    def finish(self) -> Iterator[SampledFrame]:
        """No more frames come: the last one stands in for the rest."""
        while self.wants_more and self._previous is not None:
            yield self._take(*self._previous)

    def _nearer(self, wanted: int, after: tuple[int, VideoFrame]) -> tuple[int, VideoFrame]:
        if self._previous is None:
            return after
        pts = self._timeline.pts
        to_previous = int(pts[wanted]) - int(pts[self._previous[0]])
        return self._previous if to_previous <= int(pts[after[0]]) - int(pts[wanted]) else after

    def _take(self, rank: int, frame: VideoFrame) -> SampledFrame:
        wanted = self._wanted[self._position]
        self._position += 1
        return SampledFrame(wanted, rank, frame)


def _decoded(
    decoder: FrameDecoder,
    reader: PacketReader,
    table: PacketTable,
    run: Run,
    is_disposable: PacketTest | None = None,
) -> Iterator[VideoFrame]:
    """The frames of a run from its keyframe's on, less those that neither it nor they need.

    Some files call every packet a keyframe. A decoder that begins at one which is none gives no
    frame for it, or says that it predicted it, from frames that it never had. Then decoding begins
    further and further back.
    """
    wanted = {int(table.shown[rank]) for rank in run.ranks}
    wanted_pts = {int(table.pts[packet]) for packet in wanted}
    first, step = run.first, 1
    while True:
        frames = decoder.frames(
            (ordinal, packet)
            for ordinal, packet in enumerate(reader.packets(first, run.last), first)
            if is_disposable is None or ordinal in wanted or not is_disposable(packet)
        )
        with closing(frames):
            start_pts = int(table.pts[first]) if first else None
            is_all = yield from _sound(frames, start_pts, wanted_pts)
        if is_all or first in decoder.failed:
            return
        key = int(np.searchsorted(table.keyframes, first))
        first, step = int(table.keyframes[max(key - step, 0)]), 2 * step


def _sound(
    frames: Iterator[VideoFrame], start_pts: int | None, wanted_pts: Iterable[int]
) -> Generator[VideoFrame, None, bool]:
    """The frames from a true keyframe on, up to a wanted one that comes before any such.

    Args:
        frames: of a stretch of packets, in order of presentation.
        start_pts: of the packet that it begins with; None for the start of the stream.
        wanted_pts: of the wanted frames.

    Returns:
        Whether an earlier start would give no more of the wanted frames.
    """
    missing = set(wanted_pts)
    is_started, is_sound = start_pts is None, True
    for frame in frames:
        if start_pts is not None and frame.pts is not None:
            if frame.pts < start_pts:
                continue  # predicted from frames before the keyframe
            if frame.pts == start_pts:
                is_started, is_sound = True, frame.pict_type not in _PREDICTED
        is_sound = is_sound or frame.key_frame
        if is_sound:
            missing.discard(frame.pts)
            yield frame
        elif frame.pts in missing:
            return False
    return is_started or not missing


def _repaired(
    decoder: FrameDecoder,
    reader: PacketReader,
    table: PacketTable,
    run: Run,
    missing: Sequence[int],
) -> Iterator[SampledFrame]:
    """Decodes everything around a run, from a keyframe earlier to a keyframe later."""
    timeline = _known(table.timeline)
    keys = table.keyframes
    last_wanted = max(int(table.shown[rank]) for rank in missing)
    first = _keyframe_before(table, max(run.first - 1, 0))
    following = int(np.searchsorted(keys, last_wanted, "right"))
    last = int(keys[following]) if following < len(keys) else len(table) - 1
    nearest = _Nearest(timeline, missing)
    for frame in _decoded(decoder, reader, table, Run(first, last, tuple(missing))):
        if (rank := _rank_of(frame, timeline)) is not None:
            yield from nearest.offer(rank, frame)
    yield from nearest.finish()


def _keyframe_before(table: PacketTable, packet: int) -> int:
    """The last keyframe from which a packet can be decoded; the first packet where there is none.

    Frames may follow a keyframe in the file and precede it on display; these need the one before.
    """
    keys, pts = table.keyframes, table.pts
    index = int(np.searchsorted(keys, packet, "right")) - 1
    while index > 0 and pts[keys[index]] > pts[packet]:
        index -= 1
    return int(keys[index]) if index >= 0 else 0


def _same(frame: VideoFrame, other: VideoFrame) -> bool:
    """Whether two frames are one picture in memory."""
    return [plane.buffer_ptr for plane in frame.planes] == [p.buffer_ptr for p in other.planes]


def _rank_of(frame: VideoFrame, timeline: Timeline) -> int | None:
    if frame.pts is None:
        return None
    rank = int(np.searchsorted(timeline.pts, frame.pts))
    return rank if rank < len(timeline) and timeline.pts[rank] == frame.pts else None


def _known(timeline: Timeline | None) -> Timeline:
    if timeline is None:
        message = "packets without a timeline cannot be sampled by timestamp"
        raise ValueError(message)
    return timeline
