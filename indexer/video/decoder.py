"""Gives a decoder packets and takes its frames, and keeps account of what did not go well."""

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import Final

import av.error
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from indexer.errors import VideoCorrupt, VideoError, VideoNoFrames
from indexer.video.bitstream import VideoPacket
from indexer.video.feeding import Feed

_MOST_PIXEL_BYTES: Final = 6
"""Of a pixel with 16 bits for each of three colours."""

_MOST_HELD: Final = 16
"""More than a decoder of HEVC may hold for reordering: ITU-T H.265, A.4.2."""


class FrameDecoder:
    """Decodes stretches of packets, passing over those that do not decode.

    Attributes:
        context: FFmpeg's decoder.
        failed: ordinals of the packets that did not decode.
        damaged: timestamps of the frames that came out damaged.
        output: number of frames that came out.
        codec_seconds: CPU time that FFmpeg took, since somebody set it to zero.
    """

    def __init__(self, context: VideoCodecContext) -> None:
        self.context = context
        self.failed = set[int]()
        self.damaged = set[int | None]()
        self.output = 0
        self.codec_seconds = 0.0

    def frames(self, feeds: Iterable[Feed]) -> Generator[VideoFrame]:
        """Every frame of a stretch that begins with a keyframe, in order of presentation.

        Where the last packet codes no picture, FFmpeg repeats the one before, as if the stream
        ended there; in the whole stream that frame is not to be had, and so it is left out.
        """
        arrivals = _Arrivals()
        latest: VideoFrame | None = None
        try:
            for feed in feeds:
                self._tolerate(feed.is_thinned)
                arrivals.expect(feed)
                for frame in self._decoded(feed.ordinal, feed.packet, arrivals):
                    latest = frame
                    yield from arrivals.safe(frame)
                if arrivals.is_lost:
                    return
            for frame in self._decoded(-1, None, arrivals):
                if latest is None or not _same(frame, latest):
                    yield from arrivals.safe(frame)
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

    def _tolerate(self, missing_references: bool) -> None:
        """Whether to decode a picture although some that its header keeps are not there.

        FFmpeg refuses it else, even where the picture does not use them, and marks it as damaged.
        """
        flags = self.context.flags
        tolerant = (
            flags | Flags.output_corrupt if missing_references else flags & ~Flags.output_corrupt
        )
        if tolerant != flags:
            self.context.flags = tolerant

    def _decoded(
        self, ordinal: int, packet: "VideoPacket | None", arrivals: "_Arrivals"
    ) -> Iterator[VideoFrame]:
        began = time.thread_time()  # FFmpeg's decoder has no threads of its own
        try:
            frames = self.context.decode(packet)
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError:
            self.failed.add(ordinal)
            return
        finally:
            self.codec_seconds += time.thread_time() - began
        for frame in frames:
            self.output += 1
            if frame.is_corrupt and not arrivals.explains(frame):
                self.damaged.add(frame.pts)
            yield frame


class _Arrivals:
    """Holds frames of thinned stretches back until nothing that they may need is missing.

    There, FFmpeg does not tell a reference that was left out on purpose from one that it lost. But
    a picture that it could not take up does not come out. So a frame is safe when all that were fed
    before it have come out, which is as soon as the reordering of frames allows.

    Attributes:
        is_lost: whether some frame did not come; those that are held back then never become safe.
    """

    def __init__(self) -> None:
        self.is_lost = False
        self._fed: dict[int | None, Feed] = {}
        self._awaited: dict[int, None] = {}
        self._held: deque[tuple[int, VideoFrame]] = deque()

    def expect(self, feed: Feed) -> None:
        if feed.is_thinned:
            self._fed[feed.packet.pts] = feed
            self._awaited[feed.ordinal] = None

    def explains(self, frame: VideoFrame) -> bool:
        """Whether a frame may seem damaged only because of references that were left out."""
        feed = self._fed.get(frame.pts)
        return feed is not None and not feed.packet.is_corrupt

    def safe(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        """The frames that have become safe with the arrival of this one, in order."""
        feed = self._fed.pop(frame.pts, None)
        if feed is not None:
            del self._awaited[feed.ordinal]
        self._held.append((-1 if feed is None else feed.ordinal, frame))
        while self._held and self._held[0][0] < next(iter(self._awaited), self._held[0][0] + 1):
            yield self._held.popleft()[1]
        self.is_lost = len(self._held) > _MOST_HELD


def _same(frame: VideoFrame, other: VideoFrame) -> bool:
    """Whether two frames are one picture in memory."""
    return [plane.buffer_ptr for plane in frame.planes] == [p.buffer_ptr for p in other.planes]
