r"""Measures the whole pipeline on the cluster it runs on, with videos that it makes itself.

    ray job submit --working-dir . -- python jobs/benchmark.py s3://scratch/benchmark --videos 200

Makes videos of synthetic motion in the folder (once; every node must be able to read it), indexes
them into a fresh index beside them, and prints that run's report as JSON: clips a second,
video-hours an hour, the seconds that each stage worked, and which one was the bottleneck. Start-up
is part of the report's elapsed time: give it enough videos for some minutes.

The videos are a few distinct ones under many names. They compress better than camera footage, so
decoding is cheaper and less is read than in an archive: compare clusters and settings by this, and
estimate an archive with `indexer plan` on the archive itself.

Exit codes are those of `indexer run`.
"""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final
from uuid import uuid4

import numpy as np
from rich.console import Console

from indexer.config import IndexConfig
from indexer.errors import IndexerError
from indexer.render import json_text
from indexer.runtime.pipeline import run_index
from indexer.runtime.progress import ProgressReporter
from indexer.storage import create_bytes, join, list_names
from indexer.video.motion import LABELS, encode_video, iter_scene, sample_scene

EXIT_SOME_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
DISTINCT: Final = 8
FPS: Final = 30
SEED: Final = 2026


def main(args: list[str] | None = None) -> int:
    """Makes what is missing, runs the job, prints its report and returns the exit code."""
    arguments = _parser().parse_args(args)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _measure(arguments)
    except IndexerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="folder or URL for the videos and the indexes")
    parser.add_argument("--videos", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each; default: %(default)s")
    parser.add_argument("--width", type=int, default=640, help="default: %(default)s")
    parser.add_argument("--height", type=int, default=360, help="default: %(default)s")
    parser.add_argument("--model", default="demo", help="as in `indexer run`; default: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return parser


def _measure(arguments: argparse.Namespace) -> int:
    videos = make_videos(arguments)
    settings = dict(setting.partition("=")[::2] for setting in arguments.set)
    target = {
        "inputs": (videos,),
        "index": join(arguments.folder, f"index-{uuid4().hex[:8]}"),
        "model.id": arguments.model,
        "limit": arguments.videos,
    }
    config = IndexConfig.load(env=os.environ, overrides=settings | target)
    with ProgressReporter(Console(stderr=True)) as reporter:
        result = run_index(config, reporter)
    print(json_text(result.report), end="")
    if result.status == "interrupted":
        return EXIT_INTERRUPTED
    return EXIT_SOME_FAILED if result.videos_failed else 0


def make_videos(arguments: argparse.Namespace) -> str:
    """Brings the folder of videos of this size and length to their number; returns its URI."""
    shape = f"{arguments.width}x{arguments.height}-{arguments.seconds:g}s"
    folder = join(arguments.folder, f"videos-{shape}")
    there = set(list_names(folder))
    distinct: list[bytes] = []
    for number in range(arguments.videos):
        name = f"{number:06d}.mp4"
        if name not in there:
            distinct = distinct or [_video(arguments, each) for each in range(DISTINCT)]
            create_bytes(join(folder, name), distinct[number % DISTINCT])
    return folder


def _video(arguments: argparse.Namespace, number: int) -> bytes:
    label = LABELS[number % len(LABELS)]
    scene = sample_scene(np.random.default_rng([SEED, number]), label, arguments.seconds)
    frames = iter_scene(scene, arguments.seconds, FPS, arguments.width, arguments.height)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        encode_video(path, frames, FPS)
        return path.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
