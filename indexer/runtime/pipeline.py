"""The job: manifest, decoders, model, writers and the one committer, over Ray Data."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext
from ray.exceptions import RayError

from indexer.config import IndexConfig
from indexer.errors import ClusterError, IndexerError
from indexer.metrics import (
    ClusterReady,
    Counts,
    JobFinished,
    JobPlanned,
    Observer,
    Observers,
    Progress,
)
from indexer.model.precision import AUTO, resolve_dtype
from indexer.model.recipe import flops_of
from indexer.runtime.cadence import pause_seconds
from indexer.runtime.cluster import connected, live_nodes
from indexer.runtime.failures import STALLS, explain, explain_stall
from indexer.runtime.forecast import Forecast, forecast, is_early_enough
from indexer.runtime.placement import (
    MAX_FAILED_STARTS,
    decode_options,
    model_options,
    write_options,
)
from indexer.runtime.planned import Estimate, read_estimate
from indexer.runtime.pools import Pools, size_pools
from indexer.runtime.prometheus import MetricsExporter
from indexer.runtime.report import Course, build_report
from indexer.runtime.sharing import most_rows, share_out
from indexer.runtime.tally import Tally
from indexer.runtime.todo import OVERWRITE, JobPlan, check_target, compare, plan_job
from indexer.runtime.verdict import judge
from indexer.runtime.workers import DecodeVideos, ScoreUnits, WriteUnits, receipts
from indexer.table import catalog, lease, recovery
from indexer.table.commit import Committer
from indexer.table.deleted import lift_deletions
from indexer.table.patience import patiently
from indexer.table.resume import videos_version
from indexer.table.rows import RowContext
from indexer.table.write import DataFile

TICK_SECONDS: Final = 1.0
"""Between two looks at the clock while no rows arrive."""

PASSES: Final = 3
"""What a stage that died lost or gave twice is done again, at most so often in all."""

logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plans and hints are not for our users

TYPICAL_BYTES_PER_SECOND: Final = 500_000
"""Of a video: 4 Mbit/s, as streamed and camera footage of full HD often has."""

MAX_VIDEOS_PER_TASK: Final = 16
"""Videos of one decode task: enough to hide a task's cost, few enough to balance the pool."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What became of a job.

    Attributes:
        run_id: of this run; its report is `runs/<run_id>.json` in the index.
        tag: the model's short name in the index.
        status: finished or interrupted.
        videos_indexed: videos of this run with all their units indexed.
        videos_failed: videos of this run that failed.
        skipped_videos: videos that needed no work.
        skipped_failed_videos: of these, the ones whose outcome is a failure.
        counts: sums over the units of this run.
        report: the object written to `runs/<run_id>.json`.
    """

    run_id: str
    tag: str
    status: str
    videos_indexed: int
    videos_failed: int
    skipped_videos: int
    skipped_failed_videos: int
    counts: Counts
    report: Mapping[str, Any]


def run_index(config: IndexConfig, observer: Observer | None = None) -> RunResult:
    """Runs a job to its end; rows are committed every few seconds on the way.

    Raises:
        IndexerError: the job cannot go on; what was committed stands, and the same command resumes.
    """
    check_target(config)
    return run_plan(plan_job(config), observer)


def run_plan(plan: JobPlan, observer: Observer | None = None) -> RunResult:
    """Runs a job that `plan_job` has planned; see `run_index`."""
    uri = plan.config.plan
    estimate = None if uri is None else read_estimate(uri, plan.tag)
    observer = Observers(MetricsExporter(), *([observer] if observer else []))
    catalog.create_index(plan.paths)
    catalog.register_model(plan.paths, plan.tag, plan.fingerprint, plan.checkpoint.labels)
    writer, waiting = plan.shard.writer, observer.on_event
    with lease.held(plan.paths, plan.tag, writer, plan.run_id, waiting=waiting) as held:
        recovered = patiently(recovery.begin, plan.paths, plan.tag, held)
        if recovered.rolled_forward or videos_version(plan.paths) != plan.videos_version:
            plan = compare(plan)  # others have committed since it was made
        if plan.config.if_exists == OVERWRITE:
            listed = plan.todo["video_id"].to_pylist()
            patiently(lift_deletions, plan.paths, plan.tag, listed)
        return _run_leased(replace(plan, lease=held), estimate, observer)


def _run_leased(plan: JobPlan, estimate: Estimate | None, observer: Observer) -> RunResult:
    observer.on_event(
        JobPlanned(
            run_id=plan.run_id,
            tag=plan.tag,
            listed_videos=plan.listed_videos,
            skipped_videos=plan.done_videos,
            todo_videos=plan.todo.num_rows,
            todo_bytes=plan.todo_bytes,
        )
    )
    return _Job(plan, estimate, observer).run()


class _Job:
    """One run of a planned job; lives as long as its `run()`."""

    def __init__(self, plan: JobPlan, estimate: Estimate | None, observer: Observer) -> None:
        self._plan = plan
        self._estimate = estimate
        self._observer = observer
        self._started_at = datetime.now(UTC)
        self._committer = patiently(Committer, plan.paths, plan.tag, plan.run_id, plan.lease)
        self._lock = threading.RLock()  # of all below: the ticker commits while batches are awaited
        self._commit_error: IndexerError | None = None
        self._pending: list[DataFile] = []
        self._pending_units = 0
        self._committed_units = 0
        self._last_commit = time.monotonic()
        self._last_commit_seconds = 0.0  # that it took
        self._commit_seconds = 0.0
        self._pipeline_started: float | None = None
        self._pools: Pools | None = None
        self._forecast: Forecast | None = None
        self._tally = Tally(plan.todo)

    def run(self) -> RunResult:
        """Runs the pipeline if there is anything to do, and writes the report whatever happens."""
        status = "failed"
        self._write_report("running")
        try:
            video_ids = self._plan.changed["video_id"].to_pylist()
            uris = self._plan.changed["uri"].to_pylist()
            patiently(self._committer.remove_videos, video_ids, uris)
            if self._plan.todo.num_rows:
                self._run_pipeline()
            status = "finished"
        except KeyboardInterrupt:
            status = "interrupted"
        finally:
            report = self._write_report(status)
            self._observer.on_event(JobFinished(status, report))
        return RunResult(
            run_id=self._plan.run_id,
            tag=self._plan.tag,
            status=status,
            videos_indexed=self._tally.videos_indexed,
            videos_failed=self._tally.videos_failed,
            skipped_videos=self._plan.done_videos,
            skipped_failed_videos=self._plan.failed_videos,
            counts=self._tally.counts,
            report=report,
        )

    def _run_pipeline(self) -> None:
        config, rows = self._plan.config, most_rows(self._plan.todo)
        with connected(config.cluster) as nodes:
            clip_flops = flops_of(self._plan.checkpoint.architecture)
            pools = size_pools(
                nodes, config.cluster, config.model, todo_rows=rows, clip_flops=clip_flops
            )
            self._pools = pools
            _settle_precision(self._plan, pools)
            self._observer.on_event(
                ClusterReady(
                    pools.cpus,
                    pools.gpus,
                    pools.decode_actors,
                    pools.model_actors,
                    growing=pools.growing,
                )
            )
            self._pipeline_started = time.monotonic()
            try:
                with self._ticking():
                    todo = self._plan.todo
                    for _ in range(PASSES):
                        for batch in _batches(self._plan, todo, pools):
                            self._take(batch)
                        todo = self._tally.left()
                        if not todo.num_rows:
                            break
            finally:
                self._commit()
        self._check_complete()

    def _take(self, batch: pa.Table) -> None:
        with self._lock:
            for receipt in receipts(batch):
                if self._tally.add(receipt):
                    self._pending.extend(receipt.files)
                    self._pending_units += len(receipt.units)
        self._commit_if_due()
        if self._commit_error is not None:
            raise self._commit_error

    @contextmanager
    def _ticking(self) -> Iterator[None]:
        """Commits and tells of progress in the block also while no batch comes."""
        over = threading.Event()

        def tick() -> None:
            while not over.wait(TICK_SECONDS):
                try:
                    self._commit_if_due()
                except IndexerError as error:  # the main thread raises it with the next batch
                    self._commit_error = error

        ticker = threading.Thread(target=tick, name="commit-ticker", daemon=True)
        ticker.start()
        try:
            yield
        finally:
            over.set()
            ticker.join()

    def _commit_if_due(self) -> None:
        with self._lock:
            asked_seconds = self._plan.config.output.commit_seconds
            pause = pause_seconds(asked_seconds, self._last_commit_seconds)
            if time.monotonic() - self._last_commit >= pause:
                self._commit()
            self._report_progress()

    def _commit(self) -> None:
        with self._lock:
            if self._pending:
                started = time.monotonic()
                patiently(self._committer.commit, self._pending)
                self._last_commit_seconds = time.monotonic() - started
                self._commit_seconds += self._last_commit_seconds
                self._committed_units += self._pending_units
                self._pending, self._pending_units = [], 0
                self._report_progress()
            self._last_commit = time.monotonic()

    def _report_progress(self) -> None:
        counts, seconds = self._tally.counts, self._pipeline_seconds()
        made = forecast(counts, self._plan.todo_bytes, seconds)
        if self._forecast is None and made is not None and is_early_enough(made):
            self._forecast = made
        self._observer.on_event(
            Progress(
                videos_indexed=self._tally.videos_indexed,
                videos_failed=self._tally.videos_failed,
                counts=counts,
                committed_units=self._committed_units,
                elapsed_seconds=seconds,
                busy=judge(counts, self._pools, seconds).busy,
                left_seconds=None if made is None else made.seconds - seconds,
            )
        )

    def _pipeline_seconds(self) -> float:
        started = self._pipeline_started
        return 0.0 if started is None else time.monotonic() - started

    def _check_complete(self) -> None:
        if self._tally.videos != self._plan.todo.num_rows:
            message = (
                f"{self._plan.todo.num_rows} videos went in, but {self._tally.videos} came out; "
                "what arrived is committed, run the same command again for the rest"
            )
            raise ClusterError(message)

    def _write_report(self, status: str) -> dict[str, Any]:
        course = Course(
            started_at=self._started_at,
            pools=self._pools,
            pipeline_seconds=self._pipeline_seconds(),
            commit_seconds=self._commit_seconds,
            forecast=self._forecast,
            estimate=self._estimate,
        )
        report = build_report(self._plan, self._tally, course, status=status)
        patiently(catalog.write_run_report, self._plan.paths, self._plan.run_id, report)
        return report


def build_dataset(plan: JobPlan, todo: pa.Table, pools: Pools) -> ray.data.Dataset:
    """The operators of the job on rows of `TODO_SCHEMA`; nothing runs until it is iterated."""
    context = DataContext.get_current().copy()
    clip_bytes = 3 * plan.checkpoint.num_frames * plan.checkpoint.image_size**2
    # A decoder's tables are of about this size, and become a block each; a row stays whole.
    context.target_max_block_size = pools.block_clips * clip_bytes
    context.raise_original_map_exception = True  # else our own errors come without their class
    context.enable_progress_bars = False
    context.verbose_stats_logs = False
    context.print_on_execution_start = False
    context.memory_usage_poll_interval_s = None  # else each task starts a thread to look at it
    context.execution_no_progress_timeout_s = plan.config.cluster.no_progress_seconds
    context.max_consecutive_actor_init_deaths = MAX_FAILED_STARTS
    with DataContext.current(context):
        # map_batches itself refuses a GPU without a number of rows, and how often to start again
        return (
            ray.data.from_arrow(_split(todo, pools.decode_actors))
            .map_batches_internal(
                DecodeVideos,
                fn_constructor_args=(plan.decode_plan, pools.block_clips),
                **decode_options(pools),
            )
            .map_batches_internal(
                ScoreUnits,
                fn_constructor_kwargs=_model_arguments(plan, pools),
                **model_options(pools),
            )
            .map_batches_internal(
                WriteUnits,
                fn_constructor_args=(plan.paths, row_context(plan)),
                **write_options(pools),
            )
        )


def _split(todo: pa.Table, decode_actors: int) -> list[pa.Table]:
    """Input blocks, one decode task each: small at first sight of few videos, so that all share."""
    rows = max(1, min(MAX_VIDEOS_PER_TASK, todo.num_rows // (4 * decode_actors)))
    return [todo.slice(start, rows).combine_chunks() for start in range(0, todo.num_rows, rows)]


def _settle_precision(plan: JobPlan, pools: Pools) -> None:
    """Holds all runs of a tag to what `precision.model = auto` stood for in the first.

    The driver decides it for all workers, by its own processor where they have no GPU.
    """
    if plan.config.precision.model == AUTO:
        dtype = resolve_dtype(AUTO, pools.device)
        patiently(catalog.settle_precision, plan.paths, plan.tag, dtype)


def _model_arguments(plan: JobPlan, pools: Pools) -> dict[str, object]:
    return {
        "checkpoint": plan.checkpoint,
        "device": pools.device,
        "dtype": resolve_dtype(plan.config.precision.model, pools.device),
        "backend": plan.config.model.backend,
        "batch_size": pools.batch_size,
        "expected_clips": expected_clips(plan) // pools.model_actors,
        "threads": pools.model_threads,
        "fusion": plan.config.sampling.fusion,
    }


def expected_clips(plan: JobPlan) -> int:
    """Roughly how many clips a job will score, by the size of its videos; opens none of them."""
    sampling = plan.config.sampling
    clips: int = plan.todo.num_rows
    if sampling.mode == "windows":
        frames = plan.checkpoint.num_frames * plan.decode_plan.frame_rate_divisor
        hop_seconds = sampling.hop_seconds or frames / sampling.target_fps
        clips += int(plan.todo_bytes / TYPICAL_BYTES_PER_SECOND / hop_seconds)
    return clips * plan.decode_plan.views


def row_context(plan: JobPlan) -> RowContext:
    """What the rows of a job have in common."""
    config = plan.config
    return RowContext(
        tag=plan.tag,
        run_id=plan.run_id,
        labels=plan.checkpoint.labels,
        top_k=config.model.top_k,
        min_score=config.model.min_score,
        keep_logits=config.output.logits,
        stored_mantissa_bits=config.precision.stored_mantissa_bits,
        indexed_at=datetime.now(UTC),  # each write task puts its own time here
    )


def _batches(plan: JobPlan, todo: pa.Table, pools: Pools) -> Iterator[pa.Table]:
    """The pipeline's blocks as they come, on this very thread: an interrupt ends the pipeline.

    Raises:
        IndexerError: a stage failed; its own error where it has one, else ClusterError.
    """
    patience_seconds = plan.config.cluster.no_progress_seconds
    try:
        shared = share_out(todo, plan.decode_plan, pools, patience_seconds=patience_seconds)
        for bundle in build_dataset(plan, shared, pools).iter_internal_ref_bundles():
            yield from ray.get(list(bundle.block_refs))
    except STALLS as error:
        raise explain_stall(error, pools, live_nodes(), patience_seconds) from error
    except RayError as error:
        raise explain(error) from error
