"""Runs of the pipeline, each in a process of its own that is watched from outside."""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from benchmarks import _null_stages
from benchmarks._processes import Meter, Usage
from indexer.config import IndexConfig
from indexer.metrics import Counts, Event, Progress
from indexer.model.precision import resolve_dtype
from indexer.model.recipe import flops_of
from indexer.runtime import pipeline
from indexer.runtime.decoding import decode_videos
from indexer.runtime.pools import Node, Pools, size_pools
from indexer.runtime.scoring import score_units
from indexer.runtime.sharing import most_rows
from indexer.runtime.todo import JobPlan, plan_job
from indexer.runtime.workers import receipts
from indexer.runtime.writing import write_units

POLL_SECONDS: Final = 0.1
SETTLE_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What Ray is told that there is.

    Attributes:
        cpus: to be shared out.
        gpus: likewise; where no model is run there need not be any.
        store_bytes: of the object store; None for Ray's own choice.
    """

    cpus: int = 2
    gpus: int = 0
    store_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """A job to run.

    Attributes:
        inputs: videos, or a manifest.
        folder: for the index.
        stages: what decodes, scores and writes, of `_null_stages`.
        pixels: height and width of a frame where no model is run; None for the model's own.
        machine: to run it on.
        settings: of the job, by dotted key.
    """

    inputs: str
    folder: str
    stages: tuple[str, str, str] = ("Decode", "Score", "Write")
    pixels: int | None = None
    machine: Machine = field(default_factory=Machine)
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did.

    Attributes:
        started: by the clock, when its stages were about to start.
        counts: sums over its units.
        progress: by the clock, and units so far.
        spilled_bytes: by the object store.
        usage: of its process and all that descend from it.
    """

    started: float
    counts: Counts
    progress: list[tuple[float, int]]
    spilled_bytes: int = 0
    usage: Usage = field(default_factory=Usage)

    @property
    def cpu_seconds(self) -> float:
        """Since its stages started."""
        return self.usage.cpu_seconds(self.started)

    @property
    def clips_per_second(self) -> float:
        """By the clock, from the first units that came out to the last."""
        (first_time, first_units), (last_time, last_units) = self.progress[0], self.progress[-1]
        share = (last_units - first_units) / max(last_units, 1)
        return share * self.counts.clips / max(last_time - first_time, 1e-3)

    @property
    def driver_growth(self) -> float:
        """The driver's memory at the end by that when a tenth of the units were out."""
        tenth = next(at for at, units in self.progress if units * 10 >= self.counts.units)
        return self.usage.driver_bytes(self.progress[-1][0]) / self.usage.driver_bytes(tenth)


Work = Callable[[Order], Outcome]


def watched(work: Work, order: Order) -> Outcome:
    """Does some work in a new process, and says what that and its descendants used."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_tell, args=(work, order, theirs))
    process.start()
    theirs.close()
    with Meter(process.pid or 0) as meter:
        try:
            outcome: Outcome = ours.recv()
        except EOFError:
            process.join()
            message = f"the run died with exit code {process.exitcode}"
            raise RuntimeError(message) from None
    ours.close()  # so that it may end
    process.join()
    return replace(outcome, usage=meter.usage)


def _tell(work: Work, order: Order, pipe: Connection) -> None:
    """Does the work and stays until it was looked at."""
    pipe.send(work(order))
    try:
        pipe.recv()
    except EOFError:
        pipe.close()


class _Log:
    """An observer that remembers how far the job was when."""

    def __init__(self) -> None:
        self.progress: list[tuple[float, int]] = []

    def on_event(self, event: Event) -> None:
        """Takes note of it."""
        if isinstance(event, Progress):
            self.note(event.counts.units)

    def note(self, units: int) -> None:
        """Takes note of so many units having come out."""
        if not self.progress or units > self.progress[-1][1]:
            self.progress.append((time.time(), units))


def run_job(order: Order) -> Outcome:
    """The whole job, as `indexer run` does it."""
    log, plan = _Log(), planned(order)
    with _ready(order, plan) as gate:
        result = pipeline.run_plan(plan, log)
    return Outcome(gate.opened, result.counts, log.progress, _spilled_bytes())


def run_operators(order: Order) -> Outcome:
    """The job's operators alone, with a driver that only takes what they give."""
    log, plan, counts = _Log(), planned(order), Counts()
    with _ready(order, plan) as gate:
        dataset = pipeline.build_dataset(plan, plan.todo, gate.pools)
        for bundle in dataset.iter_internal_ref_bundles():
            for block in ray.get(list(bundle.block_refs)):
                counts = sum((receipt.counts for receipt in receipts(block)), counts)
            log.note(counts.units)
    return Outcome(gate.opened, counts, log.progress, _spilled_bytes())


def run_loop(order: Order) -> Outcome:
    """The plain functions of the job's stages, one after the other, in one process."""
    import torch

    from indexer.model.classify import Classifier
    from indexer.video.sandbox import Sandbox

    log, plan, counts = _Log(), planned(order), Counts()
    dtype = resolve_dtype(plan.config.precision.model, "cpu")
    context, fusion = pipeline.row_context(plan), plan.config.sampling.fusion
    torch.set_num_threads(1)
    classifier = Classifier(plan.checkpoint, dtype=dtype)
    with Sandbox(plan.decode_plan) as sandbox:
        started = time.time()
        for number, decoded in enumerate(decode_videos(plan.todo, plan.decode_plan, sandbox)):
            scored = score_units(decoded, classifier, fusion)
            receipt = write_units(scored, paths=plan.paths, context=context, task=str(number))
            counts += receipt.counts
            log.note(counts.units)
    return Outcome(started, counts, log.progress)


def planned(order: Order) -> JobPlan:
    """The order's job; what it runs no model on has frames of the size that was asked for."""
    own = {"inputs": (order.inputs,), "index": order.folder, "model.id": "demo"}
    overrides = {**own, **order.settings}
    plan = plan_job(IndexConfig.load(overrides=overrides))
    if order.pixels is None:
        return plan
    checkpoint, side = plan.checkpoint, order.pixels
    recipe = replace(checkpoint.preprocessing, resize=side, crop=(side, side))
    shape = replace(checkpoint.architecture, image_size=side)
    return replace(plan, checkpoint=replace(checkpoint, architecture=shape, preprocessing=recipe))


def write_manifest(path: Path, videos: int, clips: int) -> str:
    """A list of videos that are not there, for a decoder that does not look."""
    numbers = range(videos)
    table = pa.table(
        {
            "uri": [
                f"/archive/camera-{number % 97:02}/video-{number:07}.mp4" for number in numbers
            ],
            "size_bytes": [1_000_000] * videos,
            "content_key": [f"1000000-{number}" for number in numbers],
            "clips": [clips] * videos,
        }
    )
    pq.write_table(table, path)
    return str(path)


class _Gate:
    """Gives the start once all actors have said that they are there, and the machine is quiet."""

    def __init__(self, folder: Path, pools: Pools) -> None:
        self.pools = pools
        self.opened = 0.0
        self._folder = folder
        self._actors = pools.decode_actors + pools.model_actors + pools.write_actors
        threading.Thread(target=self._open, daemon=True).start()

    def _open(self) -> None:
        while len(list(self._folder.iterdir())) < self._actors:
            time.sleep(POLL_SECONDS)
        time.sleep(SETTLE_SECONDS)
        self.opened = time.time()
        (self._folder / _null_stages.OPEN).touch()


@contextmanager
def _ready(order: Order, plan: JobPlan) -> Iterator[_Gate]:
    """Ray as the job itself would start it, but with what the order says of machine and stages."""
    rows, config = most_rows(plan.todo), plan.config
    cpus, gpus = order.machine.cpus, order.machine.gpus
    pools = size_pools(
        [Node(cpus, gpus)], config.cluster, config.model,
        todo_rows=rows, clip_flops=flops_of(plan.checkpoint.architecture),
    )  # fmt: skip
    names = ("DecodeVideos", "ScoreUnits", "WriteUnits")
    operators = [getattr(_null_stages, stage) for stage in order.stages]
    with TemporaryDirectory() as folder:
        os.environ[_null_stages.GATE] = folder
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=gpus,
            object_store_memory=order.machine.store_bytes,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        gate = _Gate(Path(folder), pools)
        with patch.multiple(pipeline, **dict(zip(names, operators, strict=True))):
            yield gate


def _spilled_bytes() -> int:
    address = ray.get_runtime_context().gcs_address
    state = get_state_from_address(address)  # type: ignore[no-untyped-call]
    reply: Any = get_memory_info_reply(state)  # type: ignore[no-untyped-call]
    return int(reply.store_stats.spilled_bytes_total)
