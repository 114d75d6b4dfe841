"""Opens a file object as a video without letting FFmpeg reach past its bytes, and reads its clock.

FFmpeg gets a nameless file object, no protocol, and allowlists of containers and codecs, so that a
playlist, a session description or a picture dressed up as a video is refused, not followed.
"""

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO, Final

import av
import av.error
import av.logging
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from indexer.config import Decode
from indexer.errors import (
    VideoCorrupt,
    VideoEmpty,
    VideoError,
    VideoNoFrames,
    VideoNotAVideo,
    VideoOverBudget,
    VideoTruncated,
    VideoUnsupportedCodec,
)
from indexer.records import VideoInfo
from indexer.video.extent import cut_short, looks_like_container
from indexer.video.plan import Timeline

_CLOCKLESS_FORMATS: Final = frozenset({"avi", "h264", "hevc"})
"""Containers without presentation times; FFmpeg guesses wrongly where frames are reordered."""

_DEFAULT_RATE: Final = Fraction(25)

av.logging.set_level(None)  # FFmpeg's log would repeat file names and metadata on stderr


class _Nameless:
    """Only what FFmpeg needs of a file: a name would be a folder to look for neighbours in."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read
        self.seek = file.seek
        self.tell = file.tell


@dataclass(frozen=True, slots=True)
class Scan:
    """What the packets of a stream tell before any is decoded.

    Attributes:
        timeline: the displayed frames' clock; None where the packets cannot be trusted for it.
        distrust: why there is no timeline; empty where there is one.
        packets: number of packets with data.
    """

    timeline: Timeline | None
    distrust: str
    packets: int


@contextmanager
def open_video_stream(
    file: BinaryIO, decode: Decode
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens the file from its start, with its best video stream ready to decode on one thread.

    Raises:
        VideoEmpty, VideoOverBudget: too small or too large, in bytes or pixels.
        VideoNotAVideo, VideoTruncated, VideoCorrupt: the container cannot be read.
        VideoUnsupportedCodec: the codec is unknown or not allowed, or the stream is encrypted.
    """
    container = open_container(file, decode)
    try:
        yield container, _best_stream(container, decode)
    finally:
        container.close()


def open_container(file: BinaryIO, decode: Decode) -> InputContainer:
    """Opens the file from its start as one of the allowed containers; the caller closes it.

    Args:
        file: readable and seekable; it stays open when the container is closed.
        decode: allowed formats and codecs, and the budget of bytes.

    Raises:
        VideoEmpty, VideoOverBudget: no bytes, or too many.
        VideoNotAVideo, VideoTruncated, VideoCorrupt: the container cannot be read.
    """
    size_bytes = file.seek(0, 2)
    if size_bytes == 0:
        message = "the file has no bytes"
        raise VideoEmpty(message)
    if size_bytes > decode.max_bytes:
        message = f"{size_bytes} bytes are more than decode.max_bytes = {decode.max_bytes}"
        raise VideoOverBudget(message)
    file.seek(0)
    try:
        return av.open(
            _Nameless(file),
            mode="r",
            metadata_errors="replace",
            container_options={
                "protocol_whitelist": "none",
                "format_whitelist": ",".join(decode.formats),
                "codec_whitelist": ",".join(decode.codecs),
            },
        )
    except av.error.FFmpegError as error:
        raise _unopenable(file, decode, error) from error


def scan_packets(
    file: BinaryIO, container: InputContainer, stream: VideoStream, decode: Decode
) -> Scan:
    """Reads every packet of a stream, decodes none, and makes the clock of its frames.

    Raises:
        VideoOverBudget: more packets than `decode.max_frames`.
        VideoNoFrames: there is no packet, or none that is displayed.
        VideoTruncated: the bytes end before the container says so.
        VideoUnsupportedCodec: the packets are encrypted.
    """
    log = _PacketLog(decode.max_frames)
    try:
        for packet in container.demux(stream):
            log.add(packet)
    except av.error.FFmpegError as error:
        message = f"reading stops after {log.packets} packets: {error.strerror}"
        raise VideoTruncated(message) from error
    complete = 0 < stream.frames <= log.packets and not log.last_is_corrupt
    if not complete and (cut := cut_short(file)):
        raise VideoTruncated(cut)
    if not log.shown_pts and not log.missing_pts:
        message = f"the stream has {log.packets} packets, and displays none of them"
        raise VideoNoFrames(message)
    distrust = log.distrust(container.format.name, reordered=stream.codec_context.has_b_frames)
    timeline = None if distrust else _timeline(log.shown_pts, log.last_duration, stream)
    return Scan(timeline, distrust, log.packets)


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
        return _timeline(known, 0, stream), True
    rate = _constant_rate(len(pts), stream)
    return Timeline(np.arange(len(pts), dtype=np.int64), 1 / rate, len(pts), rate), False


def clockwise_rotation(frame: VideoFrame) -> int:
    """Degrees clockwise by which a frame is to be turned, to the nearest quarter turn."""
    return round(-frame.rotation / 90) * 90 % 360


def describe(
    stream: VideoStream, timeline: Timeline, frame: VideoFrame, warnings: tuple[str, ...]
) -> VideoInfo:
    """The facts of a video, of which the size and rotation are those of a decoded frame."""
    rotation = clockwise_rotation(frame)
    upright = rotation % 180 == 0
    return VideoInfo(
        width=frame.width if upright else frame.height,
        height=frame.height if upright else frame.width,
        codec=stream.codec_context.codec.canonical_name,
        fps=float(timeline.fps),
        rotation=rotation,
        duration_seconds=float(timeline.duration),
        warnings=warnings,
    )


class _PacketLog:
    """Timestamps of a stream's packets in the order of the file, and what is wrong with them."""

    def __init__(self, max_frames: int) -> None:
        self.shown_pts = array("q")
        self.last_duration = 0
        self.packets = 0
        self.missing_pts = 0
        self.last_is_corrupt = False
        self._max_frames = max_frames
        self._starts_with_key = False
        self._last_key_pts: int | None = None
        self._highest = 0
        self._goes_back = False

    def add(self, packet: "Packet[VideoStream]") -> None:
        if not packet.size:
            return
        if self.packets == 0:
            _refuse_encrypted(packet)
            self._starts_with_key = packet.is_keyframe
        self.packets += 1
        if self.packets > self._max_frames:
            message = f"more than decode.max_frames = {self._max_frames} frames"
            raise VideoOverBudget(message)
        self.last_is_corrupt = packet.is_corrupt
        if not packet.is_discard:
            self._add_shown(packet)

    def _add_shown(self, packet: "Packet[VideoStream]") -> None:
        if packet.pts is None:
            self.missing_pts += 1
            return
        if not self.shown_pts or packet.pts >= self._highest:
            self._highest = packet.pts
            self.last_duration = packet.duration or 0
        self.shown_pts.append(packet.pts)
        if packet.is_keyframe:
            if self._last_key_pts is not None and packet.pts <= self._last_key_pts:
                self._goes_back = True
            self._last_key_pts = packet.pts

    def distrust(self, container_format: str, *, reordered: bool) -> str:
        """Why the packets do not tell which frames come out, and when; empty where they do."""
        ticks = np.sort(np.array(self.shown_pts, np.int64))
        reasons = {
            "packets without a timestamp": self.missing_pts > 0,
            "the container has no presentation times": reordered
            and container_format in _CLOCKLESS_FORMATS,
            "two frames with one timestamp": bool(np.any(ticks[1:] == ticks[:-1])),
            "no keyframe at the start": not self._starts_with_key,
            "timestamps that go back": self._goes_back,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")


def _refuse_encrypted(packet: "Packet[VideoStream]") -> None:
    if packet.has_sidedata("encryption_info"):
        message = "the video is encrypted"
        raise VideoUnsupportedCodec(message)


def _best_stream(container: InputContainer, decode: Decode) -> VideoStream:
    """The default stream if there is one, and of several the largest; cover art is no video."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        message = "the file holds no video stream"
        raise VideoNotAVideo(message)
    # FFmpeg has no decoder, and PyAV no context, for a codec that it does not know
    known = [s for s in streams if getattr(s, "codec_context", None)]
    allowed = [s for s in known if s.codec_context.name in decode.codecs]
    if not allowed:
        names = ", ".join(s.codec_context.name for s in known) or "unknown"
        message = f"codec {names} is not one of decode.codecs: {', '.join(decode.codecs)}"
        raise VideoUnsupportedCodec(message)
    stream = max(allowed, key=_preference)
    context = stream.codec_context
    if context.width * context.height > decode.max_pixels:
        size = f"{context.width}x{context.height}"
        message = f"frames of {size} are larger than decode.max_pixels = {decode.max_pixels}"
        raise VideoOverBudget(message)
    context.thread_count = 1
    context.options = {"max_pixels": str(decode.max_pixels)}  # the size may grow along the way
    return stream


def _preference(stream: VideoStream) -> tuple[bool, int]:
    context = stream.codec_context
    return bool(stream.disposition & Disposition.default), context.width * context.height


def _timeline(pts: "array[int]", last_duration: int, stream: VideoStream) -> Timeline:
    """Sorts timestamps; a last frame of unknown duration lasts as long as the average one."""
    if not stream.time_base:
        message = "the stream has no clock"
        raise VideoCorrupt(message)
    ticks = np.sort(np.array(pts, np.int64))
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


def _unopenable(file: BinaryIO, decode: Decode, error: av.error.FFmpegError) -> VideoError:
    if cut := cut_short(file):
        return VideoTruncated(cut)
    if isinstance(error, av.error.PatchWelcomeError):
        return VideoUnsupportedCodec(f"FFmpeg cannot read this kind of file: {error.strerror}")
    if looks_like_container(file):
        return VideoCorrupt(f"the container's header cannot be read: {error.strerror}")
    return VideoNotAVideo(f"not one of decode.formats: {', '.join(decode.formats)}")
