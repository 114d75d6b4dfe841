"""Measures what decoding in a process of its own costs, and how soon a killed one is replaced.

    python -m benchmarks.sandbox --repeat 7 --json sandbox.json

Each video is decoded here and in the sandbox in turn, to the same clips. The figure is CPU time,
user and system: of this process, and of the worker, as it tells for each unit. Then the worker is
killed while it decodes, and the time from there to the first unit of the next video is taken by the
clock.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch

from benchmarks._footage import Video, real_videos
from indexer.config import Decode, Sampling
from indexer.records import DecodedClips, Preprocessing, VideoFailure, VideoRef
from indexer.video.decode import decode_clips
from indexer.video.fetch import open_video
from indexer.video.plan import DecodePlan
from indexer.video.sandbox import Sandbox

_RECIPE: Final = Preprocessing(224, (224, 224), "bilinear", 1 / 255, (0.45,) * 3, (0.225,) * 3)
_PLAN: Final = DecodePlan(Sampling(min_seconds=0, segment_clips=4), 8, 8, _RECIPE, Decode())


@dataclass(frozen=True, slots=True)
class Cost:
    """What one video costs.

    Attributes:
        video: its name.
        units: that it gives.
        here_seconds: CPU seconds in this process, of each repetition.
        sandbox_seconds: the same in the sandbox, both sides together.
    """

    video: str
    units: int
    here_seconds: list[float]
    sandbox_seconds: list[float]

    @property
    def ratio(self) -> float:
        """The sandbox's by this process's, medians of both."""
        return statistics.median(self.sandbox_seconds) / statistics.median(self.here_seconds)


def cost_of(video: Video, sandbox: Sandbox, repeat: int) -> Cost:
    """Decodes a video in both ways, in turn."""
    ref = ref_of(video)
    cost, units = Cost(video.name, 0, [], []), 0
    for _ in range(repeat):
        here, units = _cpu_seconds(partial(_decode_here, ref))
        cost.here_seconds.append(here)
        told = [0.0]
        there, in_sandbox = _cpu_seconds(partial(_decode_there, ref, sandbox, told))
        cost.sandbox_seconds.append(there + told[0])
        if units != in_sandbox:
            message = f"{video.name}: {units} units here, {in_sandbox} in the sandbox"
            raise RuntimeError(message)
    return Cost(video.name, units, cost.here_seconds, cost.sandbox_seconds)


def ref_of(video: Video) -> VideoRef:
    """The file as a manifest would list it."""
    state = video.path.stat()
    key = f"{state.st_size}-{state.st_mtime_ns}"
    return VideoRef("benchmark", str(video.path.resolve()), state.st_size, key)


def _decode_here(ref: VideoRef) -> int:
    with Path(ref.uri).open("rb") as file:
        return _counted(list(decode_clips(file, _PLAN, video_id=ref.video_id)))


def _decode_there(ref: VideoRef, sandbox: Sandbox, told_seconds: list[float]) -> int:
    with open_video(ref, _PLAN.decode) as video:
        pairs = list(sandbox.decode(video, video_id=ref.video_id))
    told_seconds[0] += sum(seconds for _, seconds in pairs)
    return _counted([item for item, _ in pairs])


def _counted(items: Sequence[DecodedClips | VideoFailure]) -> int:
    for item in items:
        if isinstance(item, VideoFailure):
            message = f"{item.code}: {item.message}"
            raise RuntimeError(message)  # noqa: TRY004 - the value is right, the video is not
    return len(items)


def _cpu_seconds(work: Callable[[], int]) -> tuple[float, int]:
    started = time.process_time()
    units = work()
    return time.process_time() - started, units


def restart_seconds(victim: Video, following: Video, sandbox: Sandbox) -> float:
    """From a worker's death, in the middle of one video, to the first unit of the next."""
    with open_video(ref_of(victim), _PLAN.decode) as video:
        items = sandbox.decode(video, video_id="victim")
        next(items)
        template = _children(os.getpid())[-1]
        for worker in _children(template):
            os.kill(worker, signal.SIGKILL)
        killed = time.perf_counter()
        if not any(isinstance(item, VideoFailure) for item, _ in items):
            message = f"{victim.name} was over before its worker was killed"
            raise RuntimeError(message)
    with open_video(ref_of(following), _PLAN.decode) as video:
        items = sandbox.decode(video, video_id="following")
        _counted([next(items)[0]])
        elapsed = time.perf_counter() - killed
        deque(items, maxlen=0)
    return elapsed


def _children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii")
    return [int(child) for child in found.split()]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sandbox", description=__doc__)
    add = parser.add_argument
    add("--videos", type=Path, help="folder of real videos")
    add("--only", nargs="+", metavar="PART", help="of the names of the videos",
        default=["bikes.mp4", "in_person", "px_bangkok", "dj_video3", "tc_bt709"])  # fmt: skip
    add("--repeat", type=int, default=7)
    add("--json", type=Path, metavar="FILE", help="write everything there too")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints."""
    arguments = parse(argv)
    torch.set_num_threads(1)
    videos = [v for v in real_videos(arguments.videos) if any(p in v.name for p in arguments.only)]
    with Sandbox(_PLAN) as sandbox:
        for video in videos:  # whatever is done for the first time only is not counted
            cost_of(video, sandbox, 1)
        costs = [cost_of(video, sandbox, arguments.repeat) for video in videos]
        longest, shortest = (
            next(video for video in videos if video.name == choose(costs, key=_units).video)
            for choose in (max, min)
        )
        restarts = [restart_seconds(longest, shortest, sandbox) for _ in range(arguments.repeat)]
    print("| video | units | here, ms | sandbox, ms | ratio |\n|-|-|-|-|-|")
    for cost in costs:
        medians = (statistics.median(s) for s in (cost.here_seconds, cost.sandbox_seconds))
        here, there = (f"{seconds * 1000:.1f}" for seconds in medians)
        print(f"| {cost.video} | {cost.units} | {here} | {there} | {cost.ratio:.3f} |")
    print(
        f"\nafter a kill, the next video's first unit: {statistics.median(restarts) * 1000:.0f} ms"
    )
    if arguments.json:
        rows = [asdict(cost) | {"ratio": cost.ratio} for cost in costs]
        document = {"videos": rows, "restart_seconds": restarts}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


def _units(cost: Cost) -> int:
    return cost.units


if __name__ == "__main__":
    sys.exit(main())
