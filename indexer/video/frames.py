"""Gives the frames of a stream at chosen ranks, decoding as few packets as they need.

A frame depends on the packets from the keyframe before it; those that no other frame is predicted
from are left out. What comes out is bit for bit what decoding everything would give. Where a frame
does not come, its neighbourhood is decoded in full, and at last its nearest neighbour is taken.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from av.video.frame import PictureType, VideoFrame

from indexer.video.decoder import FrameDecoder
from indexer.video.feeding import Choice, all_packets, choice_for, every_packet
from indexer.video.packets import PacketReader, PacketTable, with_data
from indexer.video.plan import Timeline
from indexer.video.probe import OpenVideo

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
        is_damaged: whether it is not whole.
    """

    wanted: int
    rank: int
    frame: VideoFrame
    is_damaged: bool

    @property
    def exact(self) -> bool:
        """Whether it is the wanted frame, and whole."""
        return self.wanted == self.rank and not self.is_damaged


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
    decoder: FrameDecoder,
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
    choice = choice_for(decoder.context)
    runs = plan_runs(table, ranks)
    reader.require([(run.first, run.last) for run in runs])
    for run in runs:
        missing = set(run.ranks)
        rank_at = {int(timeline.pts[rank]): rank for rank in run.ranks}
        for frame in _decoded(decoder, reader, table, run, choice):
            rank = None if frame.pts is None else rank_at.get(frame.pts)
            if rank in missing:
                missing.remove(rank)
                yield SampledFrame(rank, rank, frame, frame.pts in decoder.damaged)
        if missing:
            for sampled in _repaired(decoder, reader, table, run, sorted(missing)):
                if sampled.rank == sampled.wanted:
                    missing.discard(sampled.wanted)
                yield sampled
        if missing & confirming and not decoder.failed and not decoder.damaged:
            raise TimelineRefutedError


def ordered_frames(
    decoder: FrameDecoder, opened: OpenVideo, timeline: Timeline, ranks: Sequence[int]
) -> Iterator[SampledFrame]:
    """The frames of some ranks, found by counting what comes out of decoding everything."""
    nearest = _Nearest(timeline, ranks)
    for rank, frame in enumerate(decoder.frames(all_packets(with_data(opened)))):
        yield from nearest.offer(rank, frame)
        if not nearest.wants_more:
            return
    yield from nearest.finish()


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
        return SampledFrame(wanted, rank, frame, frame.is_corrupt)


def _decoded(
    decoder: FrameDecoder,
    reader: PacketReader,
    table: PacketTable,
    run: Run,
    choice: Choice = every_packet,
) -> Iterator[VideoFrame]:
    """The frames of a run from its keyframe's on, less those that neither it nor they need.

    Some files call every packet a keyframe. A decoder that begins at one which is none gives no
    frame for it, or says that it predicted it, from frames that it never had. Then decoding begins
    further and further back.
    """
    wanted = frozenset(int(table.shown[rank]) for rank in run.ranks)
    wanted_pts = {int(table.pts[packet]) for packet in wanted}
    first, step = run.first, 1
    while True:
        packets = enumerate(reader.packets(first, run.last), first)
        frames = decoder.frames(choice(packets, wanted | {first}))
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
