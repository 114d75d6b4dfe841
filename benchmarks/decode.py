"""Measures our decoder against its peers: CPU seconds for the same frames of the same videos.

    python -m benchmarks.decode --repeat 5 --json decode.json

Scenarios: `a` is 8 frames spread evenly over the video, `b` one clip of 8 frames with a stride of
32 at its start, `c32` and `c4` every 32nd and 4th frame of the whole video. `README.md` says how
the peers are installed and how the measuring is done.
"""

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import av
import av.error
import numpy as np
import numpy.typing as npt

from benchmarks._footage import RECIPES, WARM_UP, Truth, Video, made_video, real_videos, truth_of
from benchmarks._methods import CONTESTANTS, SHORT_SIDE, Order
from benchmarks._report import Results, Row, bars, problems, tables, write_json
from benchmarks._server import Outcome, Server
from indexer.config import Decode, Sampling
from indexer.records import Preprocessing
from indexer.video.plan import DecodePlan, units_of

CLIP_FRAMES: Final = 8
STRIDES: Final = {"a": 1, "b": 32, "c32": 32, "c4": 4}
LONGEST_SCENARIOS: Final = {"a", "b"}
"""Of videos with repeated packets: in the others the peers would need gigabytes and minutes."""

ENOUGH_CPU_SECONDS: Final = 40.0
"""A contestant that has used this much on one order is not asked again."""

NEIGHBOURS: Final = 50
ROUNDING: Final = 0.1
STRANGE: Final = 12.0
CLOCK_SECONDS: Final = 1e-6

RECIPE: Final = Preprocessing(
    resize=SHORT_SIDE,
    crop=(SHORT_SIDE, SHORT_SIDE),
    interpolation="bilinear",
    rescale_factor=1 / 255,
    mean=(0.45, 0.45, 0.45),
    std=(0.225, 0.225, 0.225),
)


@dataclass(frozen=True, slots=True)
class Task:
    """One order, and what a right answer to it is.

    Attributes:
        video: on which it is.
        scenario: which frames are wanted.
        order: as the contestants get it.
        our_ranks: of the frames as our decoder returns them, clip by clip.
        truth: what the video's frames look like.
    """

    video: Video
    scenario: str
    order: Order
    our_ranks: tuple[int, ...]
    truth: Truth


def task_of(video: Video, truth: Truth, scenario: str) -> Task:
    """Plans the frames as our decoder will, so that all contestants get the same."""
    sampling = Sampling(
        mode="uniform" if scenario == "a" else "windows",
        target_fps=float(truth.timeline.fps),
        min_seconds=0,
        segment_clips=1 if scenario == "b" else 32,
    )
    decode = Decode(formats=(*Decode().formats, "avi", "mpeg"))
    plan = DecodePlan(sampling, CLIP_FRAMES, STRIDES[scenario], RECIPE, decode)
    clips = plan.clips_of(truth.timeline, video_id="benchmark")
    units = units_of(clips, sampling.segment_clips)
    kept = units[:1] if scenario == "b" else units
    ranks = tuple(rank for unit in kept for clip in unit for rank in clip.frame_ranks)
    skipped = frozenset(range(len(kept), len(units)))
    order = Order(str(video.path), tuple(sorted(set(ranks))), plan, skipped)
    return Task(video, scenario, order, ranks, truth)


def measure(
    task: Task, warm_up: Order, servers: Mapping[str, Server], repeat: int
) -> Iterator[Row]:
    """Asks each contestant in turn, again and again, so that a busy moment hits them all."""
    outcomes: dict[str, list[Outcome]] = {method: [] for method in servers}
    for _ in range(repeat):
        for method, server in servers.items():
            known = outcomes[method]
            if any(outcome.error for outcome in known):
                continue
            if sum(outcome.cpu_seconds for outcome in known) < ENOUGH_CPU_SECONDS:
                known.append(server.measure(warm_up, task.order))
    for method, known in outcomes.items():
        errors = [outcome.error for outcome in known if outcome.error]
        yield Row(
            video=task.video.name,
            is_real=task.video.is_real,
            scenario=task.scenario,
            method=method,
            frames=len(task.order.ranks),
            cpu_seconds=() if errors else tuple(outcome.cpu_seconds for outcome in known),
            wall_seconds=() if errors else tuple(outcome.wall_seconds for outcome in known),
            wrong=None if errors else count_wrong(task, known[0]),
            error=errors[0] if errors else "",
        )


def count_wrong(task: Task, outcome: Outcome) -> int | None:
    """Frames that are not the wanted ones, by their looks and, of ours, also by their times.

    Frames may lie on their side: not every contestant turns them for display. They may all be a
    little brighter, by their scaler; that is no more than half of them have in common.
    """
    if outcome.thumbnails_TKKC is None:
        return None
    ranks = task.order.ranks if outcome.seconds is None else task.our_ranks
    seen_TKKC = outcome.thumbnails_TKKC.astype(np.float32)
    pairs = zip(seen_TKKC, task.truth.thumbnails_NKKC[list(ranks)], strict=False)
    brighter = [float((seen_KKC - own_KKC).mean()) for seen_KKC, own_KKC in pairs]
    seen_TKKC -= np.median(brighter) if brighter else 0.0
    late = _count_late(task, ranks, outcome)
    missing = abs(len(ranks) - len(seen_TKKC))
    turned = (np.rot90(seen_TKKC, quarter, axes=(1, 2)) for quarter in range(4) if len(seen_TKKC))
    strange = min(
        (sum(map(partial(_is_other, task.truth), ranks, seen_TKKC)) for seen_TKKC in turned),
        default=0,
    )
    return max(strange, late) + missing


def _is_other(truth: Truth, rank: int, seen_KKC: npt.NDArray[np.float32]) -> bool:
    """Whether a frame is more than twice as far from the wanted one as from one nearby, or far off.

    Resizing and cropping make a difference of about one level; without them there is none.
    """
    first = max(rank - NEIGHBOURS, 0)
    near_NKKC = truth.thumbnails_NKKC[first : rank + NEIGHBOURS + 1]
    distances = np.abs(near_NKKC - seen_KKC).mean((1, 2, 3))
    own = float(distances[rank - first])
    return own > STRANGE or own > 2 * (float(distances.min()) + ROUNDING)


def _count_late(task: Task, ranks: Sequence[int], outcome: Outcome) -> int:
    """Frames of ours whose time is not the wanted one's, where the video has a clock."""
    if outcome.seconds is None or not task.truth.has_own_clock:
        return 0
    wanted = (float(task.truth.timeline.start_of(rank)) for rank in ranks)
    pairs = zip(outcome.seconds, wanted, strict=False)
    return sum(abs(at - other) > CLOCK_SECONDS for at, other in pairs)


def videos_of(arguments: argparse.Namespace) -> Iterator[Video]:
    """The videos to measure, of which missing ones are made."""
    real = real_videos(arguments.videos)
    only: list[str] = arguments.only
    for video in real:
        if not only or any(part in video.name for part in only):
            yield video
    for name in RECIPES:
        if name != WARM_UP and (not only or any(part in name for part in only)):
            note(f"{name}: made once, then kept in {arguments.cache}")
            try:
                yield made_video(name, real, arguments.cache)
            except ValueError as error:
                note(f"{name}: left out: {error}")


def tasks_of(arguments: argparse.Namespace) -> Iterator[Task]:
    """Videos times scenarios."""
    for video in videos_of(arguments):
        try:
            truth = truth_of(video, arguments.cache)
        except av.error.FFmpegError as error:
            note(f"{video.name}: left out: it does not decode: {error.strerror}")
            continue
        repeated = not video.is_real and RECIPES[video.name].copies > 1
        for scenario in arguments.scenarios:
            if not repeated or scenario in LONGEST_SCENARIOS:
                yield task_of(video, truth, scenario)


def facts(servers: Mapping[str, Server]) -> dict[str, object]:
    """What this was measured on."""
    information = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.split(":", 1)[1].strip() for line in information if "model name" in line]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "pyav_libraries": {
            name: ".".join(map(str, version)) for name, version in av.library_versions.items()
        },
        "methods": {
            name: {"about": CONTESTANTS[name].about, "versions": server.versions}
            for name, server in servers.items()
        },
    }


def note(text: str) -> None:
    """Says on stderr how it is going; the tables have stdout for themselves."""
    print(text, file=sys.stderr, flush=True)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    add = parser.add_argument
    add("--videos", type=Path, help="folder of real videos")
    add("--cache", type=Path, default=cache / "video-indexer-benchmarks", help="for made videos")
    add("--scenarios", nargs="+", choices=STRIDES, default=["a", "b", "c32"])
    add("--methods", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    add("--only", nargs="+", default=[], metavar="PART", help="of the names of the videos")
    add("--repeat", type=int, default=5)
    add("--json", type=Path, metavar="FILE", help="write everything there too")
    add("--check", action="store_true", help="exit with 1 if our decoder misses a bar")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and tells whether the bars were met."""
    arguments = parse(argv)
    sources = real_videos(arguments.videos)
    tiny = made_video(WARM_UP, sources, arguments.cache)
    warm_up = task_of(tiny, truth_of(tiny, arguments.cache), "a").order
    rows: list[Row] = []
    with ExitStack() as stack:
        started = {name: stack.enter_context(Server(name)) for name in arguments.methods}
        for name, server in started.items():
            if server.problem:
                note(f"{name}: not installed: {server.problem}")
        servers = {name: server for name, server in started.items() if not server.problem}
        for task in tasks_of(arguments):
            note(f"{task.video.name}, {task.scenario}: {len(task.order.ranks)} frames")
            rows += measure(task, warm_up, servers, arguments.repeat)
        about = facts(started)
    results = Results(rows)
    found = bars(results)
    print(tables(results, list(servers)))
    print(*("", *lines) if (lines := problems(results)) else (), "", *found, sep="\n")
    if arguments.json:
        write_json(arguments.json, results, found, about)
    return int(arguments.check and any(bar.is_missed for bar in found))


if __name__ == "__main__":
    sys.exit(main())
