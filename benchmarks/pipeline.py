"""Measures what Ray costs a job: CPU time, memory and the object store.

    python -m benchmarks.pipeline --only job plumbing memory spill archive --json pipeline.json

Scenarios:

- `job`: generated videos of 20 s through the bundled model, as a job and as the plain functions of
  its stages in one loop, in turn.
- `plumbing`: decoders, a model and writers that do nothing, with clips of the base model's size.
- `memory`: peak memory of each kind of process for few and for many tiny videos.
- `spill`: a slow model behind a fast decoder, with a small object store.
- `archive`: tiny videos that nothing decodes through the whole of a job's driver, few and many.

Every run has a process of its own, which is watched from outside; figures are of that process and
all that descend from it, Ray's included. Decoders begin once all actors are there: what starting
takes is not counted.
"""

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from benchmarks._null_stages import SLOW_CLIPS_PER_SECOND
from benchmarks._pipeline_runs import (
    Machine,
    Order,
    Outcome,
    Work,
    run_job,
    run_loop,
    run_operators,
    watched,
    write_manifest,
)
from benchmarks._report import Bar
from indexer.video.motion import LABELS, encode_video, iter_scene, sample_scene

VIDEO_SECONDS: Final = 20.0
BASE_PIXELS: Final = 224
"""Height and width of the base model's frames: 1.2 MB a clip."""

CLIPS: Final = 8
"""Of each video that is not there: a minute of it."""

LONG_CLIPS: Final = 256
"""Of half an hour: eight units of the largest size."""

TINY_SECONDS: Final = 1.0
TINY_PIXELS: Final = 48
COPIES: Final = 10
SMALL_ARCHIVE: Final = 1000
STORE_BYTES: Final = 1 << 30
NULL: Final = ("NullDecode", "NullScore", "NullWrite")
SLOW: Final = ("NullDecode", "SlowScore", "NullWrite")
NULL_BUT_WRITE: Final = ("NullDecode", "NullScore", "Write")


@dataclass(slots=True)
class Report:
    """What was found out.

    Attributes:
        lines: rows of a table, for people.
        rows: the same with more, for programs.
        bars: what is promised, with the figures of this run.
    """

    lines: list[str] = field(default_factory=list)
    rows: list[dict[str, object]] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)

    def run(self, name: str, work: Work, order: Order) -> Outcome:
        """Does a run, and takes down what it used."""
        outcome = watched(work, order)
        units, clips = outcome.counts.units, outcome.counts.clips
        cpu_seconds = outcome.cpu_seconds
        self.lines.append(
            f"| {name} | {units} | {clips} | {cpu_seconds:.1f} | {1000 * cpu_seconds / clips:.2f}"
            f" | {outcome.clips_per_second:.0f} | {outcome.spilled_bytes / 1e6:.0f} |"
        )
        self.rows.append(
            {
                "run": name,
                "units": units,
                "clips": clips,
                "cpu_seconds": round(cpu_seconds, 3),
                "cpu_seconds_by_role": outcome.usage.by_role(outcome.started),
                "clips_per_second": round(outcome.clips_per_second, 1),
                "peak_bytes": dict(outcome.usage.peak_bytes),
                "spilled_bytes": outcome.spilled_bytes,
                "model_wait_seconds": outcome.counts.model.wait_seconds,
            }
        )
        print(self.lines[-1], file=sys.stderr, flush=True)
        return outcome


def measure_job(report: Report, folder: Path, options: argparse.Namespace) -> None:
    """The whole job against the loop."""
    videos = make_videos(folder / f"videos-{options.videos}", options.videos)
    ratios = []
    for repetition in range(options.repeat):
        costs = []
        for name, work in (("job", run_job), ("loop", run_loop)):
            index = str(folder / f"{name}-{repetition}")
            outcome = report.run(f"job: {name}", work, Order(str(videos), index))
            costs.append(outcome.cpu_seconds / outcome.counts.clips)
        ratios.append(costs[0] / costs[1])
    report.bars.append(Bar("CPU of the job / of the loop", 1.10, statistics.median(ratios)))


def measure_plumbing(report: Report, folder: Path, options: argparse.Namespace) -> None:
    """Blocks as on a GPU, as on CPUs, and of one clip each."""
    gpu, cpus = Machine(cpus=4, gpus=1), Machine(cpus=2)
    for name, machine, block_clips, clips, limit in (
        ("blocks of 64, as on a GPU", gpu, None, options.clips, 2.2),
        ("blocks of 8, as of a large model on CPUs", cpus, 8, options.clips // 4, None),
        ("blocks of one clip", cpus, 1, options.clips // 16, None),
    ):
        each = min(CLIPS, block_clips or CLIPS)
        manifest = write_manifest(folder / f"{clips}-{each}.parquet", clips // each, each)
        settings = {"cluster.block_clips": block_clips}
        order = Order(manifest, str(folder / name), NULL, BASE_PIXELS, machine, settings)
        outcome = report.run(f"plumbing: {name}", run_operators, order)
        if limit is not None:
            cost = 1000 * outcome.cpu_seconds / outcome.counts.clips
            report.bars.append(Bar(f"CPU milliseconds a clip of 1.2 MB, {name}", limit, cost))


def measure_memory(report: Report, folder: Path, options: argparse.Namespace) -> None:
    """Few and many tiny videos, decoded and scored for real."""
    few, many = (
        report.run(
            f"memory: {videos} videos",
            run_job,
            Order(str(tiny_videos(folder / f"tiny-{videos}", videos)), str(folder / f"m{videos}")),
        )
        for videos in (options.videos, 10 * options.videos)
    )
    for role, peak_bytes in many.usage.peak_bytes.items():
        if role == "driver" or role.startswith("MapWorker"):
            growth = peak_bytes / few.usage.peak_bytes[role]
            report.bars.append(Bar(f"peak memory of {role}, ten times as many videos", 1.1, growth))


def measure_spill(report: Report, folder: Path, options: argparse.Namespace) -> None:
    """A model that is slower than the decoders, before a small object store and one of Ray's size.

    In a small store Ray hands the model two blocks at most, and is slow to bring the next.
    """
    clips = int(options.seconds * SLOW_CLIPS_PER_SECOND)
    for name, each, store_bytes in (
        ("short videos, 1 GiB", CLIPS, STORE_BYTES),
        ("long videos, 1 GiB", LONG_CLIPS, STORE_BYTES),
        ("short videos, Ray's own store", CLIPS, None),
    ):
        machine = Machine(cpus=4, gpus=1, store_bytes=store_bytes)
        manifest = write_manifest(folder / f"s{each}.parquet", clips // each, each)
        order = Order(manifest, str(folder / name), SLOW, BASE_PIXELS, machine)
        outcome = report.run(f"spill: {name}", run_operators, order)
        model = outcome.counts.model
        waiting = model.wait_seconds / (model.busy_seconds + model.wait_seconds)
        report.bars.append(Bar(f"bytes spilled, {name}", 0, float(outcome.spilled_bytes)))
        if store_bytes is None:
            report.bars.append(
                Bar(f"share of its time that a slow model waits, {name}", 0.01, waiting)
            )


def measure_archive(report: Report, folder: Path, options: argparse.Namespace) -> None:
    """A small and a large archive through listing, tally, commits and report."""
    outcomes = []
    for videos in (SMALL_ARCHIVE, options.archive):
        manifest = write_manifest(folder / f"a{videos}.parquet", videos, 1)
        settings = {"cluster.block_clips": 64}
        index = str(folder / f"a{videos}")
        order = Order(manifest, index, NULL_BUT_WRITE, TINY_PIXELS, settings=settings)
        outcome = report.run(f"archive: {videos} videos", run_job, order)
        outcomes.append(outcome)
    small, large = (outcome.cpu_seconds / outcome.counts.units for outcome in outcomes)
    report.bars += [
        Bar(f"CPU a video of {options.archive} / of {SMALL_ARCHIVE}", 1 / 0.95, large / small),
        Bar("driver's memory, at the end / at a tenth", 1.1, outcomes[1].driver_growth),
    ]


SCENARIOS: Final[dict[str, Callable[[Report, Path, argparse.Namespace], None]]] = {
    "job": measure_job,
    "plumbing": measure_plumbing,
    "memory": measure_memory,
    "spill": measure_spill,
    "archive": measure_archive,
}


def make_videos(folder: Path, videos: int) -> Path:
    """Videos of moving shapes; a tenth of them are rendered, and the others are copies."""
    if not folder.exists():
        made = folder.with_suffix(".unfinished")
        made.mkdir(parents=True, exist_ok=True)
        for number in range(videos):
            path = made / f"{number:05}.mp4"
            if number % COPIES:
                shutil.copyfile(made / f"{number - number % COPIES:05}.mp4", path)
                continue
            label = LABELS[number // COPIES % len(LABELS)]
            scene = sample_scene(np.random.default_rng(number), label, VIDEO_SECONDS)
            encode_video(path, iter_scene(scene, VIDEO_SECONDS, 30, 320, 240), 30, "libx264")
        made.rename(folder)
    return folder


def tiny_videos(folder: Path, videos: int) -> Path:
    """One video of a clip under many names."""
    folder.mkdir(parents=True)
    first = folder / "00000.mp4"
    scene = sample_scene(np.random.default_rng(0), LABELS[0], TINY_SECONDS)
    encode_video(first, iter_scene(scene, TINY_SECONDS, 30, 96, 64), 30, "libx264")
    for number in range(1, videos):
        shutil.copyfile(first, folder / f"{number:05}.mp4")
    return folder


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    add("--videos", type=int, default=200, help="of `job`, and the fewer of `memory`")
    add("--repeat", type=int, default=3, help="of `job`")
    add("--clips", type=int, default=16_384, help="of `plumbing`, with the largest blocks")
    add("--seconds", type=float, default=60, help="of work for the slow model of `spill`")
    add("--archive", type=int, default=100_000, help="videos of the larger one of `archive`")
    add("--json", type=Path, metavar="FILE", help="write everything there too")
    add("--check", action="store_true", help="exit with 1 if a bar is missed")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and tells whether the bars were met."""
    options = parse(argv)
    report = Report()
    with TemporaryDirectory() as folder:
        for name in options.only:
            known = len(report.bars)
            SCENARIOS[name](report, Path(folder), options)
            print(*report.bars[known:], sep="\n", file=sys.stderr, flush=True)
    print("| run | units | clips | CPU s | CPU ms a clip | clips/s | spilled MB |")
    print("|---|---|---|---|---|---|---|", *report.lines, "", *report.bars, sep="\n")
    if options.json:
        document = {
            "rows": report.rows,
            "bars": [asdict(bar) | {"missed": bar.is_missed} for bar in report.bars],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(options.check and any(bar.is_missed for bar in report.bars))


if __name__ == "__main__":
    sys.exit(main())
