"""Opens a file object as a video without letting FFmpeg reach past its bytes, and reads its clock.

FFmpeg gets a nameless file object, no protocol, and allowlists of containers and codecs, so that a
playlist, a session description or a picture dressed up as a video is refused, not followed.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from typing import NamedTuple

import av
import av.error
import av.logging
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from indexer.config import Decode
from indexer.errors import (
    VideoCorrupt,
    VideoEmpty,
    VideoError,
    VideoNotAVideo,
    VideoOverBudget,
    VideoTruncated,
    VideoUnsupportedCodec,
)
from indexer.records import VideoInfo
from indexer.video.extent import cut_short, looks_like_container, read_index
from indexer.video.plan import Timeline
from indexer.video.ranged import RangedFile, Readable

av.logging.set_level(None)  # FFmpeg's log would repeat file names and metadata on stderr


class _Nameless:
    """Only what FFmpeg needs of a file: a name would be a folder to look for neighbours in."""

    def __init__(self, file: Readable) -> None:
        self.read = file.read
        self.seek = file.seek
        self.tell = file.tell


class OpenVideo(NamedTuple):
    """A container with the stream in it that is to be decoded; no other stream is read."""

    container: InputContainer
    stream: VideoStream


@contextmanager
def open_video_stream(file: Readable, decode: Decode) -> Iterator[OpenVideo]:
    """Opens the file from its start, with its best video stream ready to decode on one thread.

    Raises:
        VideoEmpty, VideoOverBudget: too small or too large, in bytes or pixels.
        VideoNotAVideo, VideoTruncated, VideoCorrupt: the container cannot be read.
        VideoUnsupportedCodec: the codec is unknown or not allowed, or the stream is encrypted.
    """
    container = open_container(file, decode)
    try:
        stream = _best_stream(container, decode)
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        yield OpenVideo(container, stream)
    finally:
        container.close()


def open_container(file: Readable, decode: Decode) -> InputContainer:
    """Opens the file from its start as one of the allowed containers; the caller closes it.

    Args:
        file: readable and seekable; it stays open when the container is closed.
        decode: allowed formats and codecs, and the budget of bytes.

    Raises:
        VideoEmpty, VideoOverBudget: no bytes, or too many.
        VideoNotAVideo, VideoTruncated, VideoCorrupt: the container cannot be read.
        MemoryError: reading it takes more than there is.
    """
    size_bytes = file.seek(0, 2)
    if size_bytes == 0:
        message = "the file has no bytes"
        raise VideoEmpty(message)
    if size_bytes > decode.max_bytes:
        message = f"{size_bytes} bytes are more than decode.max_bytes = {decode.max_bytes}"
        raise VideoOverBudget(message)
    if isinstance(file, RangedFile) and not file.complete:
        read_index(file)
    file.seek(0)
    try:
        return _open(file, decode)
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError as error:
        raise _unopenable(file, decode, error) from error


def _open(file: Readable, decode: Decode) -> InputContainer:
    """Opens the file, on the GPU if that is wanted and can be had."""
    options = {
        "protocol_whitelist": "none",
        "format_whitelist": ",".join(decode.formats),
        "codec_whitelist": ",".join(decode.codecs),
    }
    nameless = _Nameless(file)
    if decode.device == "cuda":
        accelerator = HWAccel("cuda", allow_software_fallback=True)
        with suppress(av.error.FFmpegError):  # no GPU, no driver, or no such file: see below
            return av.open(
                nameless,
                mode="r",
                metadata_errors="replace",
                container_options=options,
                hwaccel=accelerator,
            )
        file.seek(0)
    return av.open(nameless, mode="r", metadata_errors="replace", container_options=options)


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Width of a stored pixel by its height; 1 where the video does not say."""
    return stream.sample_aspect_ratio or Fraction(1)


def peculiarities(opened: OpenVideo, frame: VideoFrame, decode: Decode) -> tuple[str, ...]:
    """What is unusual about a video's pictures and how they are decoded, in words."""
    found = []
    if decode.device == "cuda" and not opened.stream.codec_context.is_hwaccel:
        found.append("decoded on the CPU: no NVIDIA decoder could be opened for it")
    if (aspect := pixel_aspect(opened.stream)) != 1:
        found.append(f"the pixels are not square: {aspect.numerator}:{aspect.denominator}")
    if frame.interlaced_frame:
        found.append("the frames are interlaced")
    return tuple(found)


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


def _unopenable(file: Readable, decode: Decode, error: av.error.FFmpegError) -> VideoError:
    if cut := cut_short(file):
        return VideoTruncated(cut)
    if isinstance(error, av.error.PatchWelcomeError):
        return VideoUnsupportedCodec(f"FFmpeg cannot read this kind of file: {error.strerror}")
    if looks_like_container(file):
        return VideoCorrupt(f"the container's header cannot be read: {error.strerror}")
    return VideoNotAVideo(f"not one of decode.formats: {', '.join(decode.formats)}")
