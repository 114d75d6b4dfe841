"""What a video would take, read from its packets alone."""

from dataclasses import dataclass

from indexer.video.packets import scan_packets
from indexer.video.plan import DecodePlan, plan_clips, units_of
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


def survey_video(file: Readable, plan: DecodePlan, *, video_id: str) -> Survey:
    """Reads a video's packets, or its index, and decodes nothing.

    Args:
        file: readable and seekable; left open.
        plan: sampling and budgets.
        video_id: seeds the `random` sampling mode.

    Raises:
        VideoError: the video cannot be read.
    """
    with open_video_stream(file, plan.decode) as opened:
        timeline = scan_packets(file, opened, plan.decode).timeline
    if timeline is None:
        return Survey(0.0, 0, 0, trusted=False)
    clips = plan_clips(
        timeline,
        plan.sampling,
        num_frames=plan.num_frames,
        frame_rate_divisor=plan.frame_rate_divisor,
        video_id=video_id,
    )
    units = len(units_of(clips, plan.sampling.segment_clips))
    return Survey(float(timeline.duration), len(clips), units, trusted=True)
