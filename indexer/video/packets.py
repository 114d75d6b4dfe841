"""The packets of a stream: their clock and their places, read once before anything is decoded.

Of an MP4 whose bytes are mostly elsewhere, the index alone is read: FFmpeg walks over zeros where
the frames would be, and reports the same packets.
"""

from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Final, Self

import av.error
import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

from indexer.config import Decode
from indexer.errors import (
    VideoCorrupt,
    VideoNoFrames,
    VideoOverBudget,
    VideoTruncated,
    VideoUnsupportedCodec,
)
from indexer.video.bitstream import VideoPacket, hidden_test
from indexer.video.extent import cut_short, single_index
from indexer.video.plan import Timeline
from indexer.video.probe import OpenVideo, open_video_stream
from indexer.video.ranged import RangedFile, Ranges, Readable

KEPT_BYTES: Final = 64 * 2**20
"""Packets of a smaller file stay in memory, so that it is read once."""

_SEEK_BYTES: Final = 2**20
"""Less than this far ahead, reading on is cheaper than seeking."""

_CLOCKLESS_FORMATS: Final = frozenset({"avi", "h264", "hevc"})
"""Containers without presentation times; FFmpeg guesses wrongly where frames are reordered."""

_CHUNK_PACKETS: Final = 1024
_CHUNK_BYTES: Final = 2**22
"""Of packets that are held until their facts are noted."""

_DEFAULT_RATE: Final = Fraction(25)


@dataclass(frozen=True, slots=True, eq=False)
class PacketTable:
    """All packets of a stream, in the order of the file, which is that of decoding.

    Attributes:
        timeline: the displayed frames' clock; None where the packets cannot be trusted for it.
        distrust: why there is no timeline; empty where there is one.
        pts: int64[n], presentation timestamps in ticks; without meaning where `timeline` is None.
        dts: int64[n], decoding timestamps in ticks, likewise.
        keyframes: int64[k], packets at which decoding can begin.
        shown: int64[m], the packet of each displayed frame, in the timeline's order.
        offsets: int64[n], where each packet's bytes begin in the file; -1 where unknown.
        sizes: int64[n], how many they are.
        kept: the packets themselves, where the file is small; else None.
    """

    timeline: Timeline | None
    distrust: str
    pts: npt.NDArray[np.int64]
    dts: npt.NDArray[np.int64]
    keyframes: npt.NDArray[np.int64]
    shown: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    kept: tuple[VideoPacket, ...] | None

    def __len__(self) -> int:
        return len(self.pts)


def scan_packets(file: Readable, opened: OpenVideo, decode: Decode) -> PacketTable:
    """Reads every packet of a stream, decodes none, and makes the clock of its frames.

    Args:
        file: what the container was opened from; of a `RangedFile` with holes everything is
            brought here, unless its index says enough.
        opened: a container at its start.
        decode: the budget of frames.

    Raises:
        VideoOverBudget: more packets than `decode.max_frames`.
        VideoNoFrames: there is no packet, or none that is displayed.
        VideoTruncated: the bytes end before the container says so.
        VideoUnsupportedCodec: the packets are encrypted.
    """
    keeps = _size_bytes(file) <= KEPT_BYTES
    log = _PacketLog(opened.stream, decode.max_frames, keeps=keeps)
    if isinstance(file, RangedFile) and not file.complete:
        if single_index(file) and log.read_index(file, opened):
            return log.table(opened)
        file.require([(0, file.size_bytes)])
        with open_video_stream(file, decode) as again:
            return scan_packets(file, again, decode)
    try:
        log.read(opened)
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError as error:
        message = f"reading stops after {len(log.pts)} packets: {error.strerror}"
        raise VideoTruncated(message) from error
    complete = 0 < opened.stream.frames <= len(log.pts) and not log.last_is_corrupt
    if not complete and (cut := cut_short(file)):
        raise VideoTruncated(cut)
    return log.table(opened)


def timeline_of_output(pts: Sequence[int | None], stream: VideoStream) -> tuple[Timeline, bool]:
    """The clock of frames that were decoded to be counted, in the order of their output.

    Args:
        pts: one timestamp, or None, per frame.
        stream: where they come from.

    Returns:
        The timeline, and whether it is the frames' own. Timestamps that are missing or go back
        are replaced by a constant rate: the declared duration shared out, else the declared rate.
    """
    known = array("q", [tick for tick in pts if tick is not None])
    ticks = np.array(known, np.int64)
    if len(known) == len(pts) and not np.any(ticks[1:] <= ticks[:-1]):
        return _timeline(ticks, 0, stream), True
    rate = _constant_rate(len(pts), stream)
    return Timeline(np.arange(len(pts), dtype=np.int64), 1 / rate, len(pts), rate), False


class PacketReader:
    """Gives stretches of a stream's packets, in any order; cheapest in that of the file.

    Args:
        file: what the stream lies in.
        table: of the stream.
        decode: to open the file again, where the packets were not kept.
    """

    def __init__(self, file: Readable, table: PacketTable, decode: Decode) -> None:
        self._file = file
        self._table = table
        self._decode = decode
        self._ends = np.cumsum(table.sizes)
        self._resources = ExitStack()
        self._opened: OpenVideo | None = None
        self._packets: Iterator[VideoPacket] = iter(())
        self._position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def require(self, stretches: Sequence[tuple[int, int]]) -> None:
        """Brings the bytes of all packets of these stretches, first and last included."""
        if not isinstance(self._file, RangedFile) or self._file.complete:
            return
        starts, stops = self._table.offsets, self._table.offsets + self._table.sizes
        needed = Ranges(
            (int(starts[ordinal]), int(stops[ordinal]))
            for first, last in stretches
            for ordinal in range(first, last + 1)
        )
        self._file.require(needed)

    def packets(self, first: int, last: int) -> Iterator[VideoPacket]:
        """The packets from one ordinal to another, both included.

        Raises:
            VideoCorrupt: the file does not give the packets that it gave before.
        """
        if self._table.kept is not None:
            yield from self._table.kept[first : last + 1]
            return
        self.require([(first, last)])
        self._go_to(first)
        for ordinal in range(first, last + 1):
            yield self._next(ordinal)

    def _go_to(self, ordinal: int) -> None:
        if self._opened is None or ordinal < self._position:
            self._begin()
        skipped = self._ends[ordinal] - self._ends[self._position]
        if self._opened is not None and skipped > _SEEK_BYTES and can_seek(self._opened):
            self._seek(self._opened, ordinal)
        while self._position < ordinal:
            self._next(self._position)

    def _begin(self) -> OpenVideo:
        self._resources.close()
        self._opened = self._resources.enter_context(open_video_stream(self._file, self._decode))
        if isinstance(self._file, RangedFile):
            self._resources.enter_context(self._file.hollow())  # what is needed has been brought
        self._packets, self._position = with_data(self._opened), 0
        return self._opened

    def _seek(self, opened: OpenVideo, ordinal: int) -> None:
        """Goes to a keyframe at or before a packet; where FFmpeg lands elsewhere, to the start."""
        keys = self._table.keyframes
        following = int(np.searchsorted(keys, ordinal, "right"))
        end = int(keys[following]) if following < len(keys) else len(self._table)
        # FFmpeg seeks by presentation time: the middle of what a keyframe begins is surely its own
        target = int(self._table.dts[(ordinal + end) // 2])
        opened.container.seek(target, stream=opened.stream)
        packets = with_data(opened)
        landed = next(packets, None)
        found = -1 if landed is None else self._ordinal_at(landed.pos)
        if landed is None or not 0 <= found <= ordinal:
            self._begin()
            return
        self._packets, self._position = chain((landed,), packets), found

    def _ordinal_at(self, offset: int | None) -> int:
        found = np.flatnonzero(self._table.offsets == offset)
        return int(found[0]) if len(found) == 1 else -1

    def _next(self, ordinal: int) -> VideoPacket:
        packet = next(self._packets, None)
        if packet is None or packet.size != self._table.sizes[ordinal]:
            message = f"packet {ordinal} is not the same when it is read again"
            raise VideoCorrupt(message)
        self._position = ordinal + 1
        return packet


def can_seek(opened: OpenVideo) -> bool:
    """Whether packets after a seek are the same as without: those with an index of them all."""
    return "mov" in opened.container.format.name and len(opened.stream.index_entries) > 0


class _PacketLog:
    """What the packets of a stream say, in the order of the file, and what is wrong with it."""

    def __init__(self, stream: VideoStream, max_frames: int, *, keeps: bool) -> None:
        self.pts = array("q")
        self.last_is_corrupt = False
        self._dts, self._offsets, self._sizes = array("q"), array("q"), array("q")
        self._durations = array("q")
        self._keys, self._shown = bytearray(), bytearray()
        self._missing_pts = 0
        self._kept: list[VideoPacket] | None = [] if keeps else None
        self._max_frames = max_frames
        self._is_hidden = hidden_test(stream.codec_context)

    def read(self, opened: OpenVideo) -> None:
        """Reads all packets, a few at a time: in lists, each costs a third."""
        chunk: list[VideoPacket] = []
        chunk_bytes = 0
        try:
            for packet in with_data(opened):
                chunk.append(packet)
                chunk_bytes += packet.size
                if chunk_bytes >= _CHUNK_BYTES or len(chunk) == _CHUNK_PACKETS:
                    self._add(chunk)
                    chunk, chunk_bytes = [], 0
        finally:
            self._add(chunk)

    def read_index(self, file: RangedFile, opened: OpenVideo) -> bool:
        """Reads packets whose bytes may be missing; whether that is sure to have worked."""
        self._kept = self._is_hidden = None
        with file.hollow():
            self.read(opened)
        entries = list(opened.stream.index_entries)
        self._keys = bytearray(entry.is_keyframe for entry in entries)
        return [(entry.pos, entry.size) for entry in entries] == list(
            zip(self._offsets, self._sizes, strict=True)
        )

    def table(self, opened: OpenVideo) -> PacketTable:
        pts = np.array(self.pts, np.int64)
        keyframes = np.flatnonzero(np.frombuffer(self._keys, bool))
        shown = np.flatnonzero(np.frombuffer(self._shown, bool))
        if not len(shown):
            message = f"the stream has {len(pts)} packets, and displays none of them"
            raise VideoNoFrames(message)
        shown = shown[np.argsort(pts[shown], kind="stable")]
        distrust = self._distrust(opened, pts[shown], keyframes)
        return PacketTable(
            timeline=None
            if distrust
            else _timeline(pts[shown], self._durations[shown[-1]], opened.stream),
            distrust=distrust,
            pts=pts,
            dts=np.array(self._dts, np.int64),
            keyframes=keyframes,
            shown=shown,
            offsets=np.array(self._offsets, np.int64),
            sizes=np.array(self._sizes, np.int64),
            kept=None if self._kept is None else tuple(self._kept),
        )

    def _add(self, packets: Sequence[VideoPacket]) -> None:
        if not packets:
            return
        if not self.pts:
            _refuse_encrypted(packets[0])
        if len(self.pts) + len(packets) > self._max_frames:
            message = f"more than decode.max_frames = {self._max_frames} frames"
            raise VideoOverBudget(message)
        is_hidden, pts = self._is_hidden, [packet.pts for packet in packets]
        shown = [not packet.is_discard for packet in packets]
        if is_hidden is not None:
            shown = [
                not is_hidden(packet) and is_shown
                for packet, is_shown in zip(packets, shown, strict=True)
            ]
        if None in pts:
            self._missing_pts += sum(
                at is None for at, is_shown in zip(pts, shown, strict=True) if is_shown
            )
        ticks = [0 if at is None else at for at in pts]
        dts = [packet.dts for packet in packets]
        self.pts.extend(ticks)
        self._dts.extend([tick if at is None else at for at, tick in zip(dts, ticks, strict=True)])
        self._durations.extend([packet.duration or 0 for packet in packets])
        self._offsets.extend([-1 if packet.pos is None else packet.pos for packet in packets])
        self._sizes.extend([packet.size for packet in packets])
        self._keys.extend([packet.is_keyframe for packet in packets])
        self._shown.extend(shown)
        self.last_is_corrupt = packets[-1].is_corrupt
        if self._kept is not None:
            self._kept.extend(packets)

    def _distrust(
        self, opened: OpenVideo, shown_pts: npt.NDArray[np.int64], keyframes: npt.NDArray[np.int64]
    ) -> str:
        """Why the packets do not tell which frames come out, and when; empty where they do."""
        key_pts = np.array([self.pts[key] for key in keyframes if self._shown[key]], np.int64)
        reordered = bool(opened.stream.codec_context.has_b_frames)
        clockless = opened.container.format.name in _CLOCKLESS_FORMATS
        reasons = {
            "packets without a timestamp": self._missing_pts > 0,
            "the container has no presentation times": reordered and clockless,
            "two frames with one timestamp": bool(np.any(shown_pts[1:] == shown_pts[:-1])),
            "no keyframe at the start": not self._keys[0],
            "timestamps that go back": bool(np.any(key_pts[1:] <= key_pts[:-1])),
        }
        return next((reason for reason, holds in reasons.items() if holds), "")


def _size_bytes(file: Readable) -> int:
    """Its size; its position, where FFmpeg left it, stays."""
    position = file.tell()
    size_bytes = file.seek(0, 2)
    file.seek(position)
    return size_bytes


def with_data(opened: OpenVideo) -> Iterator[VideoPacket]:
    """The packets from here to the end of the file, but for those that only mark the end."""
    try:
        for packet in opened.container.demux(opened.stream):
            if packet.size:
                yield packet
    except IndexError:
        # PyAV marks the end of each stream, and may stumble over streams that FFmpeg met on the
        # way; by then every packet has been given
        return


def _refuse_encrypted(packet: VideoPacket) -> None:
    if packet.has_sidedata("encryption_info"):
        message = "the video is encrypted"
        raise VideoUnsupportedCodec(message)


def _timeline(ticks: npt.NDArray[np.int64], last_duration: int, stream: VideoStream) -> Timeline:
    """A clock from timestamps in order; a last frame of unknown duration lasts the average."""
    if not stream.time_base:
        message = "the stream has no clock"
        raise VideoCorrupt(message)
    first, last, frames = int(ticks[0]), int(ticks[-1]), len(ticks)
    if last_duration <= 0 and frames > 1:
        last_duration = round((last - first) / (frames - 1))
    elif last_duration <= 0:
        last_duration = round(1 / ((stream.average_rate or _DEFAULT_RATE) * stream.time_base))
    end = last + max(last_duration, 1)
    measured = frames / ((end - first) * stream.time_base)
    return Timeline(ticks, stream.time_base, end, _agreed_rate(stream.average_rate, measured))


def _agreed_rate(declared: Fraction | None, measured: Fraction) -> Fraction:
    """The declared rate is free of the timestamps' rounding, but may be a lie."""
    if declared and abs(declared - measured) * 100 <= measured:
        return declared
    return measured


def _constant_rate(frames: int, stream: VideoStream) -> Fraction:
    if stream.duration and stream.duration > 0 and stream.time_base:
        return frames / (stream.duration * stream.time_base)
    return stream.average_rate or _DEFAULT_RATE
