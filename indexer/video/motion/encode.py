"""Frames to video files, with any of the common codecs; equal input gives equal bytes."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, cast

import av
from av.video.stream import VideoStream

from indexer.video.motion.render import Frame, Rate

Quality: TypeAlias = Literal["high", "medium", "low"]


@dataclass(frozen=True, slots=True)
class _Encoder:
    """How to drive one encoder: its quality knob, and options that keep it quick and repeatable."""

    knob: str
    levels: Mapping[Quality, str]
    options: Mapping[str, str]
    suffixes: frozenset[str]


_ISO: Final = frozenset({".mp4", ".mov", ".mkv"})
_WEB: Final = frozenset({".webm", ".mkv"})
_ENCODERS: Final[Mapping[str, _Encoder]] = MappingProxyType(
    {
        "libx264": _Encoder(
            "crf",
            {"high": "18", "medium": "23", "low": "30"},
            # x264's macroblock tree gives slightly different files from run to run.
            {"preset": "veryfast", "mbtree": "0"},
            _ISO | {".avi"},
        ),
        "libx265": _Encoder(
            "crf",
            {"high": "20", "medium": "26", "low": "32"},
            {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"},
            _ISO,
        ),
        "libvpx-vp9": _Encoder(
            "crf",
            {"high": "24", "medium": "33", "low": "43"},
            {"b": "0", "deadline": "realtime", "cpu-used": "8"},
            _WEB | {".mp4"},
        ),
        "libvpx": _Encoder(
            "crf",
            {"high": "8", "medium": "16", "low": "30"},
            # Not the real-time deadline: it watches the clock, and its output varies with the load.
            {"b": "2M", "deadline": "good", "cpu-used": "5"},
            _WEB,
        ),
        "mpeg4": _Encoder(
            "qmin",
            {"high": "3", "medium": "5", "low": "9"},
            {},
            _ISO | {".avi"},
        ),
        "libsvtav1": _Encoder(
            "crf",
            {"high": "26", "medium": "35", "low": "45"},
            {"preset": "10", "svtav1-params": "lp=1"},
            _WEB | {".mp4"},
        ),
    }
)
CODECS: Final = tuple(_ENCODERS)
"""Encoders that `encode_video` knows; `available_codecs` says which of them are installed."""


def available_codecs() -> tuple[str, ...]:
    """Returns those of `CODECS` that the installed FFmpeg libraries contain."""
    return tuple(codec for codec in CODECS if codec in av.codecs_available)


def container_suffixes(codec: str) -> frozenset[str]:
    """Returns the file name endings, with their dot, that `codec` may be written to."""
    return _ENCODERS[codec].suffixes


def encode_video(
    path: str | Path,
    frames: Iterable[Frame],
    fps: Rate,
    codec: str = "libx264",
    *,
    quality: Quality = "medium",
    keyframe_interval: int | None = None,
) -> None:
    """Writes frames as a video; equal frames and settings give an equal file.

    Args:
        path: Where to; the name's ending chooses the container.
        frames: RGB frames of one even height and width; consumed one at a time.
        fps: Frames per second.
        codec: One of `available_codecs()`.
        quality: How much the encoder may lose.
        keyframe_interval: Frames between key frames; the encoder's own choice if not given.

    Raises:
        ValueError: If the container cannot hold the codec, or there is no frame, or a side is odd.
    """
    path = Path(path)
    if codec not in _ENCODERS or path.suffix.lower() not in _ENCODERS[codec].suffixes:
        msg = f"cannot write {codec} into a {path.suffix or 'nameless'} file"
        raise ValueError(msg)
    remaining = iter(frames)
    first = next(remaining, None)
    if first is None or first.shape[0] % 2 or first.shape[1] % 2:
        msg = "a video needs at least one frame, and even sides"
        raise ValueError(msg)
    # SVT-AV1 listens to nothing else when it decides how much to write to standard error.
    os.environ.setdefault("SVT_LOG", "1")
    # `bitexact` keeps dates, random ids and library versions out of the file.
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        stream = cast("VideoStream", container.add_stream(codec, rate=fps))
        _configure(stream, first, _options(codec, quality, keyframe_interval))
        for frame_HWC in _chain(first, remaining):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode(None))


def _options(codec: str, quality: Quality, keyframe_interval: int | None) -> dict[str, object]:
    encoder = _ENCODERS[codec]
    options: dict[str, object] = {**encoder.options, encoder.knob: encoder.levels[quality]}
    if keyframe_interval is not None:
        options["g"] = str(keyframe_interval)
    return options


def _configure(stream: VideoStream, first_HWC: Frame, options: dict[str, object]) -> None:
    stream.height, stream.width = first_HWC.shape[:2]
    stream.pix_fmt = "yuv420p"
    # Encoders divide the work by thread, so their output depends on the number of threads.
    stream.codec_context.thread_count = 1
    stream.options = options


def _chain(first: Frame, remaining: Iterator[Frame]) -> Iterator[Frame]:
    yield first
    yield from remaining
