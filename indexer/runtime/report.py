"""The report of a run: what `runs/<run_id>.json` and the last lines of `indexer run` say."""

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import ray

import indexer
from indexer.metrics import Counts
from indexer.model.precision import resolve_dtype
from indexer.runtime.cluster import Pools
from indexer.runtime.todo import JobPlan
from indexer.storage import redact


def build_report(
    plan: JobPlan,
    pools: Pools | None,
    counts: Counts,
    *,
    videos_indexed: int,
    videos_failed: int,
    status: str,
    started_at: datetime,
) -> dict[str, Any]:
    """The report as a JSON object.

    Args:
        plan: the job.
        pools: how it was spread; None where the pipeline did not start.
        counts: sums over the units that came out.
        videos_indexed: videos with all their units indexed.
        videos_failed: videos that failed.
        status: running, finished, interrupted or failed.
        started_at: when the run began.
    """
    asked_dtype = plan.config.precision.model
    now = datetime.now(UTC)
    seconds = (now - started_at).total_seconds()
    hours = counts.video_seconds / 3600
    return {
        "run_id": plan.run_id,
        "model": plan.tag,
        "status": status,
        "started_at": started_at.isoformat(),
        "updated_at": now.isoformat(),
        "elapsed_seconds": round(seconds, 3),
        "videos": {
            "listed": plan.listed_videos,
            "skipped": plan.done_videos,
            "todo": plan.todo.num_rows,
            "indexed": videos_indexed,
            "failed": videos_failed,
            "changed": plan.changed.num_rows,
        },
        "failed_units": dict(counts.failures),
        "units": counts.units,
        "clips": counts.clips,
        "video_hours": round(hours, 6),
        "clips_per_second": round(counts.clips / seconds, 3) if seconds else 0.0,
        "video_hours_per_hour": round(hours / (seconds / 3600), 3) if seconds else 0.0,
        "read_bytes": counts.read_bytes,
        "stage_seconds": {
            "fetch": round(counts.fetch_seconds, 3),
            "decode": round(counts.decode_seconds, 3),
            "model": round(counts.model.busy_seconds, 3),
            "model_wait": round(counts.model.wait_seconds, 3),
            "compile": round(counts.model.compile_seconds, 3),
        },
        "recomputed_batches": counts.model.recomputed_batches,
        "problems": sorted(counts.model.problems),
        "bottleneck": bottleneck(counts, pools),
        "dtype": None if pools is None else resolve_dtype(asked_dtype, pools.device),
        "cluster": None if pools is None else _cluster(pools),
        "config": plan.config.model_dump(mode="json")
        | {"inputs": [redact(uri) for uri in plan.config.inputs]},
        "versions": {
            "indexer": indexer.__version__,
            "python": platform.python_version(),
            "ray": ray.__version__,
        },
    }


def bottleneck(counts: Counts, pools: Pools | None) -> str | None:
    """The stage whose actors had the most work each, "decode" or "model"; None before any."""
    if pools is None or not counts.units:
        return None
    load = {
        "decode": (counts.fetch_seconds + counts.decode_seconds) / pools.decode_actors,
        "model": counts.model.busy_seconds / pools.model_actors,
    }
    return max(load, key=lambda stage: load[stage])


def _cluster(pools: Pools) -> Mapping[str, object]:
    return {
        "cpus": pools.cpus,
        "gpus": pools.gpus,
        "device": pools.device,
        "decode_actors": pools.decode_actors,
        "model_actors": pools.model_actors,
        "batch_size": pools.batch_size,
    }
