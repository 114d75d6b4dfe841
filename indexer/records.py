"""The values that pass between the stages: frozen, checked, without behaviour.

Axes in array names: N clips, T frames of a clip, H height, W width, C colour (RGB), K labels,
D the model's hidden size.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from indexer.metrics import FetchEffort


@dataclass(frozen=True, slots=True)
class VideoRef:
    """One listed video.

    Attributes:
        video_id: `uuid5(NAMESPACE_URL, uri)` in hex.
        uri: where it lies, as the user's tools would name it.
        size_bytes: its size when it was listed.
        content_key: changes whenever the content may have: size and ETag, or size and mtime.
        extra: the manifest's other columns as a JSON object, or "{}".
    """

    video_id: str
    uri: str
    size_bytes: int
    content_key: str
    extra: str = "{}"


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What the container and the decoder say about a video.

    Attributes:
        width: displayed width in pixels, after rotation.
        height: displayed height in pixels, after rotation.
        codec: FFmpeg's name of the codec, such as "h264".
        fps: average frames per second; 0.0 where the stream does not tell.
        rotation: degrees clockwise by which frames are turned for display: 0, 90, 180 or 270.
        duration_seconds: from the first frame's start to the last frame's end.
        warnings: what a careful reader should know, such as "12 packets failed to decode".
    """

    width: int
    height: int
    codec: str
    fps: float
    rotation: int
    duration_seconds: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClipSpan:
    """Where one clip lies in its video, on the container's clock (first frame = 0).

    Attributes:
        clip_index: ordinal of the clip within the video, from 0, over all units.
        start_seconds: start of the span.
        end_seconds: end of the span, exclusive.
        frame_pts_seconds: presentation times of the frames really used, in the clip's order.
        frames_exact: whether every frame used is the one that was asked for.
    """

    clip_index: int
    start_seconds: float
    end_seconds: float
    frame_pts_seconds: tuple[float, ...]
    frames_exact: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.start_seconds < self.end_seconds:
            message = f"clip span {self.start_seconds}..{self.end_seconds} is empty or negative"
            raise ValueError(message)


@dataclass(frozen=True, slots=True)
class DecodedClips:
    """All clips of one unit, preprocessed but not normalised.

    Attributes:
        unit_index: ordinal of the unit within its video.
        units: number of units of the video.
        info: facts of the whole video.
        spans: one per clip, in order.
        frames_NTHWC: uint8 RGB frames at the model's input size: of each span one view, or as many
            as its scores are fused from.
        codec_seconds: CPU time of FFmpeg's decoder alone.
    """

    unit_index: int
    units: int
    info: VideoInfo
    spans: tuple[ClipSpan, ...]
    frames_NTHWC: npt.NDArray[np.uint8]
    codec_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.frames_NTHWC.ndim != 5 or self.frames_NTHWC.dtype != np.uint8:  # noqa: PLR2004 - NTHWC
            found = f"{self.frames_NTHWC.dtype} {self.frames_NTHWC.shape}"
            message = f"frames must be uint8 NTHWC, not {found}"
            raise ValueError(message)
        if not self.spans or len(self.frames_NTHWC) % len(self.spans):
            message = f"{len(self.spans)} spans for {len(self.frames_NTHWC)} views"
            raise ValueError(message)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a checkpoint wants its frames, read from its own preprocessor configuration.

    Attributes:
        resize: length of the shorter side in pixels, or (height, width) of the whole frame.
        crop: (height, width) cut from the middle after resizing; None where nothing is cut.
        interpolation: of the resize; antialiased, on uint8.
        rescale_factor: multiplies the uint8 values before normalisation.
        mean: subtracted from each colour after rescaling.
        std: divides each colour after that.
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int] | None
    interpolation: Literal["bilinear", "bicubic"]
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class VideoFailure:
    """Why a unit, or a whole video when `units` is 1, could not be indexed.

    Attributes:
        code: one of `indexer.errors.ERROR_CODES`.
        message: one line for the user, without credentials or query strings.
        unit_index: the unit that failed.
        units: number of units of the video as far as it is known.
        info: facts of the video where it could be opened.
    """

    code: str
    message: str
    unit_index: int = 0
    units: int = 1
    info: VideoInfo | None = None


@dataclass(frozen=True, slots=True)
class ClipScores:
    """What the model says about a batch of clips.

    Attributes:
        logits_NK: float32, before softmax.
        embeddings_ND: float32, the final-LayerNorm CLS vector, the classifier's own input.
    """

    logits_NK: npt.NDArray[np.float32]
    embeddings_ND: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class UnitOutcome:
    """The one outcome of one unit: its clips with their scores, or a failure.

    Attributes:
        ref: the video.
        attempt: 1 for the first time that the video is tried, and so on.
        unit_index: ordinal of the unit within its video.
        units: number of units of the video.
        info: facts of the video, None where it could not be opened.
        spans: the unit's clips; empty where it failed.
        scores: one row per span; None where it failed.
        failure: why it failed; None where it did not.
        fetch: what it took to get the video's bytes, counted once per video.
        decode_seconds: CPU time of decoding this unit.
        codec_seconds: of that, the CPU time of FFmpeg's decoder alone.
        decode_wall_seconds: wall time of decoding, without fetching.
        worker: the process that decoded it, as "host:pid".
        decode_wait_seconds: wall time in which that process had nothing to decode, or nobody to
            hand it to, since its unit before; 0 where nobody measures.
    """

    ref: VideoRef
    attempt: int
    unit_index: int
    units: int
    info: VideoInfo | None
    spans: tuple[ClipSpan, ...]
    scores: ClipScores | None
    failure: VideoFailure | None
    fetch: FetchEffort
    decode_seconds: float
    codec_seconds: float
    decode_wall_seconds: float
    worker: str
    decode_wait_seconds: float = 0.0

    def __post_init__(self) -> None:
        if (self.failure is None) == (self.scores is None):
            message = "a unit has either scores or a failure"
            raise ValueError(message)
        if self.scores is not None and len(self.scores.logits_NK) != len(self.spans):
            message = f"{len(self.spans)} clips, but {len(self.scores.logits_NK)} rows of scores"
            raise ValueError(message)
