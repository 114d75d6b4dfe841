"""What `decode.resize = fast` changes: pixels, scores, and the CPU time of one frame.

    python -m benchmarks.resize --json resize.json

Frames of real videos are rendered both ways. Scores come from a model of your choice, by default
the bundled one, on one clip of each video.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final

import av
import numpy as np
import torch

from benchmarks._footage import Video, real_videos
from indexer.config import Decode, Sampling
from indexer.model.classify import Classifier
from indexer.model.weights import resolve
from indexer.records import DecodedClips, Preprocessing
from indexer.video.decode import decode_clips
from indexer.video.picture import PictureRenderer
from indexer.video.plan import DecodePlan
from indexer.video.probe import open_video_stream

_FORMATS: Final = (*Decode().formats, "avi", "mpeg", "mpegts")
_RECIPE: Final = Preprocessing(224, (224, 224), "bilinear", 1 / 255, (0.45,) * 3, (0.225,) * 3)
"""That of the published TimeSformer checkpoints; pixels and times are of this one."""

_TIMED_FRAMES: Final = 16


@dataclass(frozen=True, slots=True)
class Difference:
    """How the `fast` clip of one video differs from the `exact` one.

    Attributes:
        video: its name.
        size: of its frames, "width x height".
        mean: absolute difference of a colour value, of 255.
        p99: the same, 99th percentile.
        bias: mean of `fast` less `exact`.
        score: largest difference of a label's probability.
        same_label: whether the best label is the same.
        exact_milliseconds: CPU time to render a frame, and the same for `fast`.
    """

    video: str
    size: str
    mean: float
    p99: float
    bias: float
    score: float
    same_label: bool
    exact_milliseconds: float
    fast_milliseconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, and prints a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resize", description=__doc__)
    parser.add_argument("--videos", type=Path, help="folder of real videos")
    parser.add_argument("--model", default="demo", help="whose scores are compared")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = _Model(options.model)
    differences = [_compare(video, model) for video in real_videos(options.videos)]
    sys.stdout.write(_table(differences))
    if options.json is not None:
        found = {"model": options.model, "videos": [asdict(each) for each in differences]}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


class _Model:
    """A checkpoint, ready to score what its own recipe makes of a video."""

    def __init__(self, name: str) -> None:
        self.checkpoint = resolve(name, schemes=("file",))
        self._classifier = Classifier(self.checkpoint, device="cpu", dtype="float32", batch_size=1)

    def probabilities(self, video: Video, decode: Decode) -> np.ndarray:
        clips = _one_clip(video, decode, self.checkpoint.preprocessing, self.checkpoint.num_frames)
        logits = torch.from_numpy(self._classifier.classify(clips.frames_NTHWC).logits_NK[0])
        return torch.softmax(logits, 0).numpy()


def _compare(video: Video, model: _Model) -> Difference:
    exact, fast = (Decode(formats=_FORMATS, resize=resize) for resize in ("exact", "fast"))
    exact_clip, fast_clip = (_one_clip(video, way, _RECIPE, 8) for way in (exact, fast))
    change = fast_clip.frames_NTHWC.astype(int) - exact_clip.frames_NTHWC
    exact_scores, fast_scores = (model.probabilities(video, way) for way in (exact, fast))
    return Difference(
        video=video.name,
        size=f"{exact_clip.info.width} x {exact_clip.info.height}",
        mean=float(np.abs(change).mean()),
        p99=float(np.percentile(np.abs(change), 99)),
        bias=float(change.mean()),
        score=float(np.abs(fast_scores - exact_scores).max()),
        same_label=bool(fast_scores.argmax() == exact_scores.argmax()),
        exact_milliseconds=_milliseconds(video, exact),
        fast_milliseconds=_milliseconds(video, fast),
    )


def _one_clip(video: Video, decode: Decode, recipe: Preprocessing, num_frames: int) -> DecodedClips:
    plan = DecodePlan(Sampling(mode="uniform"), num_frames, 32, recipe, decode)
    with video.path.open("rb") as file:
        (clip,) = decode_clips(file, plan, video_id=video.name)
    if not isinstance(clip, DecodedClips):
        message = f"{video.name}: {clip.code}: {clip.message}"
        raise TypeError(message)
    return clip


def _milliseconds(video: Video, decode: Decode) -> float:
    """Median CPU time of rendering one frame."""
    render = PictureRenderer(_RECIPE, decode.resize)
    times = []
    with video.path.open("rb") as file, open_video_stream(file, decode) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            started = time.process_time()
            render(frame)
            times.append(time.process_time() - started)
            if number == _TIMED_FRAMES:
                break
    return 1000 * median(times[1:] or times)


def _table(differences: Sequence[Difference]) -> str:
    lines = [
        "| video | size | mean | p99 | bias | score | same label | exact ms | fast ms |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {each.video} | {each.size} | {each.mean:.2f} | {each.p99:.0f} | {each.bias:+.2f} "
            f"| {each.score:.3f} | {'yes' if each.same_label else 'no'} "
            f"| {each.exact_milliseconds:.2f} | {each.fast_milliseconds:.2f} |"
            for each in differences
        ),
    ]
    return "\n".join(lines) + f"\n\nPyAV {av.__version__}, torch {torch.__version__}\n"


if __name__ == "__main__":
    sys.exit(main())
