"""How fast a machine decodes and scores: measured on a few videos of the job itself."""

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import ray

from indexer.errors import VideoError
from indexer.model.recipe import flops_of
from indexer.model.weights import Checkpoint
from indexer.records import DecodedClips
from indexer.runtime import blocks
from indexer.runtime.cluster import connected
from indexer.runtime.placement import model_claim
from indexer.runtime.pools import Node, Pools, size_pools
from indexer.runtime.todo import JobPlan
from indexer.video.fetch import open_video
from indexer.video.plan import DecodePlan
from indexer.video.sandbox import Sandbox

DECODE_SECONDS: Final = 5.0
MODEL_SECONDS: Final = 5.0
"""About as long is measured; one unit is decoded, and one clip scored, however long it takes."""

MOST_BATCHES: Final = 64
"""Enough to measure a model that needs less than that time for them."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What one actor of each stage needs for a clip.

    Attributes:
        clips: that were decoded.
        decode_cpu_seconds: of decoding a clip.
        fetch_seconds: wall time of bringing its share of the video.
        model_seconds: wall time of scoring a clip, views and crops included.
    """

    clips: int
    decode_cpu_seconds: float
    fetch_seconds: float
    model_seconds: float


@dataclass(frozen=True, slots=True)
class Runner:
    """How a model actor would run: device, dtype and, on a CPU, its threads."""

    device: str
    dtype: str
    threads: int


def measured_speed(plan: JobPlan, sample: pa.Table) -> tuple[Speed | None, Pools]:
    """What an actor of each stage needs for a clip, and the pools that the run would have.

    Where the job has a cluster to run on it is measured there, on a node with a GPU if it has any.

    Args:
        plan: the job.
        sample: rows of `TODO_SCHEMA` to measure with.

    Raises:
        ClusterError: the cluster cannot be reached, or is too small.
        ModelError: the model cannot be loaded.
    """
    import torch

    if not (plan.config.cluster.address or os.environ.get("RAY_ADDRESS")):
        here = Node(float(os.cpu_count() or 1), float(torch.cuda.device_count()))
        pools, runner = _spread(plan, [here])
        return measure(sample, plan.decode_plan, plan.checkpoint, runner), pools
    with connected(plan.config.cluster) as nodes:
        pools, runner = _spread(plan, nodes)
        there = ray.remote(**model_claim(pools))(measure)
        return ray.get(there.remote(sample, plan.decode_plan, plan.checkpoint, runner)), pools


def _spread(plan: JobPlan, nodes: Sequence[Node]) -> tuple[Pools, Runner]:
    config = plan.config
    pools = size_pools(
        nodes, config.cluster, config.model,
        todo_rows=plan.todo.num_rows, clip_flops=flops_of(plan.checkpoint.architecture),
    )  # fmt: skip
    return pools, Runner(pools.device, config.precision.model, pools.model_threads)


def measure(
    todo: pa.Table, plan: DecodePlan, checkpoint: Checkpoint, runner: Runner
) -> Speed | None:
    """Decodes the first units of some videos, and scores their clips.

    Args:
        todo: rows of `TODO_SCHEMA`, read in their order as time allows.
        plan: of the decoders.
        checkpoint: of the model.
        runner: of the model.

    Returns:
        None where no video could be decoded.

    Raises:
        ModelError: the model cannot be loaded, or not on this device.
    """
    import torch

    torch.set_num_threads(runner.threads)
    decoded, cpu_seconds, fetch_seconds = [], 0.0, 0.0
    started = time.perf_counter()
    with Sandbox(plan) as sandbox:
        for todo_video in blocks.todos(todo):
            for item, unit_seconds, unit_fetch_seconds in _first_unit(todo_video, plan, sandbox):
                decoded.append(item)
                cpu_seconds += unit_seconds
                fetch_seconds += unit_fetch_seconds
            if time.perf_counter() - started > DECODE_SECONDS:
                break
    clips = sum(len(item.spans) for item in decoded)
    if not clips:
        return None
    return Speed(
        clips=clips,
        decode_cpu_seconds=cpu_seconds / clips,
        fetch_seconds=fetch_seconds / clips,
        model_seconds=plan.views * _view_seconds(decoded, checkpoint, runner),
    )


def _first_unit(
    todo: blocks.Todo, plan: DecodePlan, sandbox: Sandbox
) -> Iterator[tuple[DecodedClips, float, float]]:
    """The first unit that can be decoded of a video, with CPU seconds and seconds of fetching."""
    started = time.perf_counter()
    try:
        video = open_video(todo.ref, plan.decode)
    except VideoError:
        return
    with video:
        fetch_seconds = time.perf_counter() - started
        for item, cpu_seconds in sandbox.decode(video, video_id=todo.ref.video_id):
            if isinstance(item, DecodedClips):
                yield item, cpu_seconds, fetch_seconds / item.units
            return


def _view_seconds(decoded: list[DecodedClips], checkpoint: Checkpoint, runner: Runner) -> float:
    """Wall time of scoring one view of a clip, the model being warm."""
    from indexer.model.classify import Classifier

    classifier = Classifier(checkpoint, device=runner.device, dtype=runner.dtype)
    batches = [
        item.frames_NTHWC[start : start + classifier.batch_size]
        for item in decoded
        for start in range(0, len(item.frames_NTHWC), classifier.batch_size)
    ]
    classifier.classify(batches[0])  # the first one pays for what is made once
    scored, busy_before = 0, classifier.busy_seconds
    for batch_NTHWC in itertools.islice(itertools.cycle(batches), MOST_BATCHES):
        classifier.classify(batch_NTHWC)
        scored += len(batch_NTHWC)
        if classifier.busy_seconds - busy_before > MODEL_SECONDS:
            break
    return (classifier.busy_seconds - busy_before) / scored
