"""`indexer demo`: videos whose content is known, indexed with the bundled model, then queried."""

import json
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console

from indexer.config import IndexConfig
from indexer.errors import ConfigError
from indexer.render import Format, clock_text, rows_text
from indexer.runtime.pipeline import RunResult, run_index
from indexer.runtime.progress import ProgressReporter, result_text
from indexer.table.query import LabelIndex
from indexer.video.motion import LABELS, encode_video, iter_scene, iter_sequence, sample_scene

CLIP_SECONDS: Final = 32 / 15
"""The bundled model's window: 8 frames, 8 apart, at 30 frames a second."""

VIDEO_SECONDS: Final = 4.5
MIN_SCORE: Final = 0.1
"""Below it a label is not kept: five of only ten labels for every clip would say little."""

SEED: Final = 2026
TRUTH_FILE: Final = "truth.json"
UNFINISHED: Final = ".unfinished"
LONG_VIDEO: Final = "ten-motions-in-a-row.mp4"
BROKEN_VIDEO: Final = "broken-on-purpose.mp4"


@dataclass(frozen=True, slots=True)
class Look:
    """How a demo video is encoded: file name ending, FFmpeg encoder, frames a second, size."""

    suffix: str
    codec: str
    fps: int
    width: int
    height: int


LOOKS: Final = (
    Look(".mp4", "libx264", 30, 320, 240),
    Look(".mkv", "libx264", 25, 480, 270),
    Look(".webm", "libvpx-vp9", 30, 256, 144),
    Look(".mp4", "libx265", 24, 320, 180),
    Look(".mov", "mpeg4", 30, 240, 320),
    Look(".webm", "libvpx", 25, 320, 240),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """The index's best label for a stretch of a video, beside the true one."""

    video: str
    start_seconds: float
    truth: str
    found: str

    @property
    def right(self) -> bool:
        """Whether the index is right."""
        return self.truth == self.found


def run_demo(folder: Path, say: Callable[[str], None]) -> int:
    """Makes the videos (once), indexes them, asks the index, and tells the story.

    Args:
        folder: where the videos and the index go; made if absent.
        say: takes the story, paragraph by paragraph.

    Returns:
        The exit code: 0, since the one broken video is meant to fail.

    Raises:
        ConfigError: the folder holds something else.
    """
    videos, index = folder / "videos", folder / "index"
    truth = make_videos(folder)
    say(
        f"1. {len(list(videos.iterdir()))} videos lie in {videos}: each shows one motion, except "
        f"{LONG_VIDEO}, which shows all ten, and {BROKEN_VIDEO}, which is cut short on purpose."
    )
    say(
        "2. Ray decodes them on CPU actors and runs the bundled TimeSformer on every window of "
        f"{CLIP_SECONDS:.2f} s:\n\n   $ {_command(videos, index)}\n"
    )
    result = _index(videos, index)
    say(result_text(result, str(index)) + "\n")
    _ask(LabelIndex.open(str(index)), index, say)
    _compare(LabelIndex.open(str(index)), truth, say)
    say(_next_steps(videos, index))
    return 0


def make_videos(folder: Path) -> dict[str, list[str]]:
    """Renders and encodes the videos, unless an earlier call has.

    Returns:
        The true labels of each readable video by file name, one for each `VIDEO_SECONDS` of a
        short video, and one for each pair of windows of the long one.

    Raises:
        ConfigError: the folder is not empty and was not made by this function.
    """
    truth_file = folder / TRUTH_FILE
    if truth_file.exists():
        truth: dict[str, list[str]] = json.loads(truth_file.read_text(encoding="utf-8"))
        return truth
    unfinished = folder / UNFINISHED
    if folder.exists() and any(path != unfinished for path in folder.iterdir()):
        message = f"{folder} is not empty and holds no demo; name another folder"
        raise ConfigError(message)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    truth = dict(_make_short_videos(unfinished)) | {LONG_VIDEO: _make_long_video(unfinished)}
    _make_broken_video(unfinished)
    unfinished.rename(folder / "videos")
    truth_file.write_text(json.dumps(truth, indent=2) + "\n", encoding="utf-8")
    return truth


def _make_short_videos(videos: Path) -> Iterator[tuple[str, list[str]]]:
    for number in range(2 * len(LABELS)):
        label, look = LABELS[number % len(LABELS)], LOOKS[number % len(LOOKS)]
        scene = sample_scene(np.random.default_rng([SEED, number]), label, VIDEO_SECONDS)
        name = f"{number + 1:02d}-{label.replace(' ', '-')}{look.suffix}"
        frames = iter_scene(scene, VIDEO_SECONDS, look.fps, look.width, look.height)
        encode_video(videos / name, frames, look.fps, look.codec)
        yield name, [label]


def _make_long_video(videos: Path) -> list[str]:
    """All motions in an order of their own, each for two windows, so that none straddles a cut."""
    rng = np.random.default_rng([SEED, 1000])
    order = [LABELS[int(i)] for i in rng.permutation(len(LABELS))]
    parts = [(sample_scene(rng, label, 2 * CLIP_SECONDS), 2 * CLIP_SECONDS) for label in order]
    encode_video(videos / LONG_VIDEO, iter_sequence(parts, 30, 320, 240), 30, "libx264")
    return order


def _make_broken_video(videos: Path) -> None:
    whole = (videos / LONG_VIDEO).read_bytes()
    (videos / BROKEN_VIDEO).write_bytes(whole[: len(whole) // 3])


def _index(videos: Path, index: Path) -> RunResult:
    config = IndexConfig.load(
        overrides={
            "inputs": (str(videos),),
            "index": str(index),
            "model.id": "demo",
            "model.min_score": MIN_SCORE,
        }
    )
    with ProgressReporter(Console(stderr=True)) as reporter:
        return run_index(config, reporter)


def _ask(labels: LabelIndex, index: Path, say: Callable[[str], None]) -> None:
    say(f"3. Now the index answers, from Parquet files alone.\n\n   $ indexer labels {index}\n")
    table = labels.labels()
    say(_table(table.to_pylist(), ["label", "clips", "videos", "best_score"]))
    say(f'   $ indexer search {index} "rotating clockwise" --top 5\n')
    table = labels.search("rotating clockwise", top=5)
    say(_table(table.to_pylist(), ["score", "start_seconds", "end_seconds", "uri"]))
    say(f"   $ indexer status {index}\n")
    outcome = labels.status()["videos"]
    say(_table([outcome], list(outcome)))
    say(f"   $ indexer errors {index}\n")
    table = labels.errors()
    say(_table(table.to_pylist(), ["error_code", "uri", "error_message"]))


def _compare(
    labels: LabelIndex, truth: Mapping[str, Sequence[str]], say: Callable[[str], None]
) -> None:
    found = answers(labels, truth)
    short = [answer for answer in found if answer.video != LONG_VIDEO]
    long = [answer for answer in found if answer.video == LONG_VIDEO]
    say(
        f"4. The videos' content is known, so the answers can be checked: the best label is right "
        f"for {sum(a.right for a in short)} of {len(short)} short videos, and for "
        f"{sum(a.right for a in long)} of {len(long)} motions of {LONG_VIDEO}:\n"
    )
    rows = [
        {"from": clock_text(a.start_seconds), "truth": a.truth, "index says": a.found}
        for a in [*long, *(a for a in short if not a.right)]
    ]
    say(_table(rows, ["from", "truth", "index says"]))


def answers(labels: LabelIndex, truth: Mapping[str, Sequence[str]]) -> list[Answer]:
    """Compares the labels with the highest summed scores with the true ones.

    Args:
        labels: the index of the demo's videos.
        truth: what `make_videos` returned.
    """
    part_seconds = {
        name: 2 * CLIP_SECONDS if len(parts) > 1 else inf for name, parts in truth.items()
    }
    sums: dict[tuple[str, int], dict[str, float]] = {}
    for label in LABELS:
        for hit in labels.search(label, top=None).to_pylist():
            name = Path(hit["uri"]).name
            part = int((hit["start_seconds"] + 1e-6) // part_seconds[name])
            scores = sums.setdefault((name, part), {})
            scores[label] = scores.get(label, 0.0) + hit["score"]
    return [
        Answer(
            video=name,
            start_seconds=part * part_seconds[name] if part else 0.0,
            truth=truth[name][part],
            found=max(scores, key=scores.__getitem__),
        )
        for (name, part), scores in sorted(sums.items())
    ]


def _table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    text = rows_text(rows, columns, Format.table)
    return "".join(f"   {line}\n" for line in text.splitlines())


def _command(videos: Path, index: Path) -> str:
    options = ["--index", str(index), "--model", "demo", "--set", f"model.min_score={MIN_SCORE}"]
    return shlex.join(["indexer", "run", str(videos), *options])


def _next_steps(videos: Path, index: Path) -> str:
    glob = f"{index}/labels/model=*/**/*.parquet"
    return (
        "5. What to try next:\n\n"
        f"   $ {_command(videos, index)}\n"
        "        once more: nothing is left to do, and it says so\n"
        f'   $ indexer search {index} growing --min-score 0.9 --video "*.mp4" --format json\n'
        f"   $ duckdb -c \"FROM '{glob}' WHERE rank = 1 ORDER BY score LIMIT 5\"\n"
        "        any engine reads the tables; these are the least certain clips\n"
        "   $ indexer run YOUR-VIDEOS --index YOUR-INDEX\n"
        "        the default model knows the 400 labels of Kinetics\n"
    )
