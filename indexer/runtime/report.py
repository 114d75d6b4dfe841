"""The report of a run: what `runs/<run_id>.json` and the last lines of `indexer run` say."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import ray

import indexer
from indexer.config import Cluster
from indexer.metrics import Counts
from indexer.model.precision import resolve_dtype
from indexer.runtime.forecast import Forecast, against_truth
from indexer.runtime.planned import Estimate, estimate_against_truth
from indexer.runtime.pools import Pools
from indexer.runtime.tally import Tally
from indexer.runtime.todo import JobPlan
from indexer.runtime.verdict import judge
from indexer.storage import redact


@dataclass(frozen=True, slots=True)
class Course:
    """How the run went so far, on the driver.

    Attributes:
        started_at: when the run began.
        pools: how it is spread; None where the pipeline did not start.
        pipeline_seconds: since the pipeline started; 0 where it did not.
        commit_seconds: that commits took.
        forecast: what an early part of the run promised; None where it was too short for one.
        estimate: what `indexer plan` said of it before; None where nobody handed it over.
    """

    started_at: datetime
    pools: Pools | None
    pipeline_seconds: float
    commit_seconds: float
    forecast: Forecast | None
    estimate: Estimate | None


def build_report(plan: JobPlan, tally: Tally, course: Course, *, status: str) -> dict[str, Any]:
    """The report as a JSON object.

    Args:
        plan: the job.
        tally: what came out.
        course: how it went.
        status: running, finished, interrupted or failed.
    """
    asked_dtype = plan.config.precision.model
    now = datetime.now(UTC)
    counts, seconds = tally.counts, (now - course.started_at).total_seconds()
    hours = counts.video_seconds / 3600
    verdict = judge(counts, course.pools, course.pipeline_seconds)
    return {
        "run_id": plan.run_id,
        "model": plan.tag,
        "status": status,
        "started_at": course.started_at.isoformat(),
        "updated_at": now.isoformat(),
        "elapsed_seconds": round(seconds, 3),
        "videos": {
            "listed": plan.listed_videos,
            "skipped": plan.done_videos,
            "todo": plan.todo.num_rows,
            "indexed": tally.videos_indexed,
            "failed": tally.videos_failed,
            "changed": plan.changed.num_rows,
        },
        "failed_units": dict(counts.failures),
        "units": counts.units,
        "clips": counts.clips,
        "index_bytes": counts.written_bytes,
        "video_hours": round(hours, 6),
        "clips_per_second": round(counts.clips / seconds, 3) if seconds else 0.0,
        "video_hours_per_hour": round(hours / (seconds / 3600), 3) if seconds else 0.0,
        "listed_bytes": counts.listed_bytes,
        "fetched_bytes": counts.fetch.fetched_bytes,
        "requests": counts.fetch.requests,
        "retries": dict(counts.fetch.retries),
        "stage_seconds": _stage_seconds(counts, course),
        "decoded_frames_per_cpu_second": _frames_per_second(plan, counts, counts.decode_seconds),
        "codec_frames_per_cpu_second": _frames_per_second(plan, counts, counts.codec_seconds),
        "recomputed_batches": counts.model.recomputed_batches,
        "problems": sorted(counts.model.problems),
        "bottleneck": verdict.bottleneck,
        "busy": dict(verdict.busy),
        "verdict": verdict.text,
        "slowest_videos": [
            {"uri": redact(uri), "seconds": round(seconds, 3)} for seconds, uri in tally.slowest
        ],
        "forecast": _forecast(counts, course),
        "estimate": _estimate(counts, course),
        "dtype": None if course.pools is None else resolve_dtype(asked_dtype, course.pools.device),
        "cluster": None if course.pools is None else _cluster(course.pools),
        "cost": _cost(course.pools, plan.config.cluster, seconds),
        "config": plan.config.model_dump(mode="json")
        | {"inputs": [redact(uri) for uri in plan.config.inputs]},
        "versions": {
            "indexer": indexer.__version__,
            "python": platform.python_version(),
            "ray": ray.__version__,
        },
    }


def _stage_seconds(counts: Counts, course: Course) -> dict[str, float]:
    seconds = {
        "fetch": counts.fetch.seconds,
        "decode": counts.decode_wall_seconds,
        "decode_cpu": counts.decode_seconds,
        "codec_cpu": counts.codec_seconds,
        "model": counts.model.busy_seconds,
        "model_wait": counts.model.wait_seconds,
        "compile": counts.model.compile_seconds,
        "write": counts.write_seconds,
        "commit": course.commit_seconds,
    }
    return {stage: round(value, 3) for stage, value in seconds.items()}


def _frames_per_second(plan: JobPlan, counts: Counts, cpu_seconds: float) -> float | None:
    """Frames that the model saw, for each of these seconds."""
    if not cpu_seconds:
        return None
    frames = counts.clips * plan.decode_plan.views * plan.checkpoint.num_frames
    return round(frames / cpu_seconds, 1)


def _forecast(counts: Counts, course: Course) -> dict[str, object] | None:
    made = course.forecast
    if made is None:
        return None
    told = against_truth(made, counts, course.pipeline_seconds)
    return {"after_seconds": made.after_seconds, "share": made.share, **told}


def _estimate(counts: Counts, course: Course) -> dict[str, object] | None:
    if course.estimate is None:
        return None
    return estimate_against_truth(course.estimate, counts, course.pools, course.pipeline_seconds)


def _cluster(pools: Pools) -> Mapping[str, object]:
    return {
        "cpus": pools.cpus,
        "gpus": pools.gpus,
        "device": pools.device,
        "decode_actors": pools.decode_actors,
        "model_actors": pools.model_actors,
        "batch_size": pools.batch_size,
    }


def _cost(
    pools: Pools | None, prices: Cluster, seconds: float
) -> Mapping[str, float | None] | None:
    """What the whole cluster was for as long as the run took; the price where it is known.

    None where nobody knows how large the cluster was: it was not reached, or it grew.
    """
    if pools is None or pools.growing:
        return None
    cpu_hours, gpu_hours = pools.cpus * seconds / 3600, pools.gpus * seconds / 3600
    known = prices.cpu_hour_price is not None or prices.gpu_hour_price is not None
    price = cpu_hours * (prices.cpu_hour_price or 0) + gpu_hours * (prices.gpu_hour_price or 0)
    return {
        "cpu_hours": round(cpu_hours, 4),
        "gpu_hours": round(gpu_hours, 4),
        "price": round(price, 4) if known else None,
    }
