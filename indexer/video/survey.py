"""What a video would take: read from its packets, and borne out by its first clip."""

from collections import deque
from dataclasses import dataclass
from typing import Final

from indexer.video.decoder import FrameDecoder
from indexer.video.frames import TimelineRefutedError, sparse_frames
from indexer.video.packets import PacketReader, scan_packets
from indexer.video.plan import DecodePlan, units_of
from indexer.video.probe import open_video_stream
from indexer.video.ranged import Readable


@dataclass(frozen=True, slots=True)
class Survey:
    """The extent of a video.

    Attributes:
        duration_seconds: from the first frame's start to the last frame's end.
        clips: that would be made.
        units: that they make up.
        trusted: whether the packets tell all this; where they do not, the numbers are zeros.
    """

    duration_seconds: float
    clips: int
    units: int
    trusted: bool


_UNKNOWN: Final = Survey(0.0, 0, 0, trusted=False)


def survey_video(file: Readable, plan: DecodePlan, *, video_id: str) -> Survey:
    """Reads a video's packets, or its index, and decodes no more than its first clip.

    That clip decides whether `decode_clips` believes the packets, so that what is told here is what
    it will do.

    Args:
        file: readable and seekable; left open.
        plan: sampling and budgets.
        video_id: seeds the `random` sampling mode.

    Raises:
        VideoError: the video cannot be read.
    """
    with open_video_stream(file, plan.decode) as opened:
        table = scan_packets(file, opened, plan.decode)
        if table.timeline is None:
            return _UNKNOWN
        clips = plan.clips_of(table.timeline, video_id)
        first_clip = frozenset(clips[0].frame_ranks)
        decoder = FrameDecoder(opened.stream.codec_context)
        with PacketReader(file, table, plan.decode) as reader:
            frames = sparse_frames(decoder, reader, table, sorted(first_clip), first_clip)
            try:
                deque(frames, maxlen=0)
            except TimelineRefutedError:
                return _UNKNOWN
    units = len(units_of(clips, plan.sampling.segment_clips))
    return Survey(float(table.timeline.duration), len(clips), units, trusted=True)
