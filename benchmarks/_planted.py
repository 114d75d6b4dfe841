"""Videos of several shots, and short clips cut out of some of them, re-encoded and rescaled.

Nothing is shared between two videos but what was planted. The same seed gives the same files.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

import av
import numpy as np

from indexer.video.motion import available_codecs, encode_video, iter_sequence, sample_scene
from indexer.video.motion.encode import Quality
from indexer.video.motion.render import Frame

_Choice = TypeVar("_Choice")

FPS: Final = 10
TRUTH_FILE: Final = "planted.json"

_WIDTH, _HEIGHT = 80, 60
_SHOTS: Final = (4, 6)
_SHOT_SECONDS: Final = (3.0, 5.0)
_CUT_SECONDS: Final = (5.0, 9.0)
_SIZES: Final = ((64, 48), (72, 54), (96, 72), (112, 84))
_QUALITIES: Final[tuple[Quality, ...]] = ("high", "medium", "low")
_SUFFIXES: Final = {
    "libx264": ".mp4",
    "mpeg4": ".mp4",
    "libx265": ".mp4",
    "libvpx-vp9": ".webm",
    "libsvtav1": ".mkv",
}
_SOURCE_CODECS: Final = ("libx264", "mpeg4")


@dataclass(frozen=True, slots=True)
class Planted:
    """A clip, and what it was cut out of.

    Attributes:
        clip: file name of the clip.
        source: file name of the video that it was cut out of.
        start_seconds: where in that video it starts.
        seconds: how long it lasts.
    """

    clip: str
    source: str
    start_seconds: float
    seconds: float


def make_videos(folder: Path, *, videos: int, planted: int, seed: int, jobs: int) -> list[Planted]:
    """Makes the videos and the clips in a folder, unless an earlier call has.

    Args:
        folder: where to.
        videos: how many of several shots.
        planted: how many of these a clip is cut out of.
        seed: of all choices.
        jobs: processes.

    Returns:
        What was planted where.
    """
    truth = folder / TRUTH_FILE
    if not truth.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(jobs) as pool:
            list(pool.map(partial(_make_video, folder, seed), range(videos), chunksize=8))
            chosen = np.random.default_rng([seed, 1]).choice(videos, planted, replace=False)
            cuts = list(pool.map(partial(_cut_clip, folder, seed), sorted(chosen.tolist())))
        truth.write_text(json.dumps([asdict(cut) for cut in cuts], indent=1), encoding="utf-8")
    return [Planted(**cut) for cut in json.loads(truth.read_text(encoding="utf-8"))]


def _video_name(number: int) -> str:
    return f"video-{number:04}.mp4"


def _make_video(folder: Path, seed: int, number: int) -> None:
    rng = np.random.default_rng([seed, 2, number])
    lengths = rng.uniform(*_SHOT_SECONDS, size=int(rng.integers(*_SHOTS)))
    parts = [(sample_scene(rng, seconds=length), length) for length in lengths.tolist()]
    frames = iter_sequence(parts, FPS, _WIDTH, _HEIGHT)
    codec = _SOURCE_CODECS[number % len(_SOURCE_CODECS)]
    encode_video(folder / _video_name(number), frames, FPS, codec)


def _cut_clip(folder: Path, seed: int, number: int) -> Planted:
    """Cuts at any frame, and changes codec, quality and size."""
    rng = np.random.default_rng([seed, 3, number])
    source = folder / _video_name(number)
    with av.open(str(source)) as container:
        frames = container.streams.video[0].frames
    length = round(float(rng.uniform(*_CUT_SECONDS)) * FPS)
    start = int(rng.integers(frames - length))
    others = [
        codec
        for codec in available_codecs()
        if codec in _SUFFIXES and codec != _SOURCE_CODECS[number % len(_SOURCE_CODECS)]
    ]
    codec = _pick(rng, others)
    clip = f"clip-{number:04}{_SUFFIXES[codec]}"
    cut = islice(_scaled(source, _pick(rng, _SIZES)), start, start + length)
    encode_video(folder / clip, cut, FPS, codec, quality=_pick(rng, _QUALITIES))
    return Planted(clip, source.name, start / FPS, length / FPS)


def _scaled(source: Path, size: tuple[int, int]) -> Iterator[Frame]:
    width, height = size
    with av.open(str(source)) as container:
        for frame in container.decode(video=0):
            pixels_HWC = frame.to_ndarray(format="rgb24", width=width, height=height)
            yield pixels_HWC.astype(np.uint8, copy=False)


def _pick(rng: np.random.Generator, choices: Sequence[_Choice]) -> _Choice:
    return choices[int(rng.integers(len(choices)))]
