"""What a planned job would cost, from listings and a sample of the videos themselves."""

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from indexer.render import size_text
from indexer.runtime.decoding import survey_videos
from indexer.runtime.todo import TODO_REASONS, JobPlan
from indexer.video.plan import DecodePlan
from indexer.video.sandbox import Sandbox
from indexer.video.survey import Survey

SAMPLE_VIDEOS: Final = 8
_TODO_REASONS: Final = frozenset(TODO_REASONS.to_pylist())
SAMPLE_BYTES: Final = 256 * 2**20
"""A plan reads at most about this much of the archive."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the sampled videos add up to.

    Attributes:
        videos: that were read, readable or not.
        size_bytes: their size.
        video_seconds: running time of the readable ones.
        clips: of the readable ones.
        unreadable: how many were not.
    """

    videos: int = 0
    size_bytes: int = 0
    video_seconds: float = 0.0
    clips: int = 0
    unreadable: int = 0


def describe_plan(plan: JobPlan, *, measured: bool = False) -> dict[str, object]:
    """What the run would do, as names and values for people and programs.

    Args:
        plan: the job.
        measured: decode and score some clips too, on this machine or on the job's cluster, for how
            long the run will take; else only headers are read.
    """
    sample = take_sample(plan.todo, plan.decode_plan)
    scale = plan.todo_bytes / sample.size_bytes if sample.size_bytes else 0.0
    hours = sample.video_seconds / 3600 * scale
    clips = sample.clips * scale
    facts: dict[str, object] = {
        "model": plan.tag,
        "listed_videos": plan.listed_videos,
        "skipped_videos": plan.done_videos,
        "skipped_because": _skipped_because(plan),
        "reasons": plan.reason_counts(),
        "todo_videos": plan.todo.num_rows,
        "todo_bytes": plan.todo_bytes,
        "todo_size": size_text(plan.todo_bytes),
        "changed_videos": plan.changed.num_rows,
        "sampled_videos": sample.videos,
        "unreadable_in_sample": sample.unreadable,
    }
    if scale:
        facts |= {
            "estimated_video_hours": round(hours, 3),
            "estimated_clips": round(clips),
            "estimated_index_bytes": round(clips * _row_bytes(plan)),
        }
    if clips and measured:
        facts |= _duration(plan, clips)
    return facts


def _duration(plan: JobPlan, clips: float) -> dict[str, object]:
    """How long the run will take, from the speed of the machines that it will run on."""
    from indexer.runtime.speed import measured_speed

    speed, pools = measured_speed(plan, _sampled(plan.todo))
    if speed is None:
        return {}
    hours = {
        "storage": speed.fetch_seconds * clips / pools.decode_actors / 3600,
        "decode": speed.decode_cpu_seconds * clips / pools.decode_actors / 3600,
        "model": speed.model_seconds * clips / pools.model_actors / 3600,
    }
    longest = max(hours, key=lambda stage: hours[stage])
    return {
        "measured_clips": speed.clips,
        "decode_cpu_seconds_per_clip": round(speed.decode_cpu_seconds, 5),
        "model_seconds_per_clip": round(speed.model_seconds, 5),
        "estimated_hours": round(hours[longest], 4),
        "estimated_cpu_hours": round(hours[longest] * pools.cpus, 4),
        "estimated_gpu_hours": round(hours[longest] * pools.gpus, 4),
        "estimated_bottleneck": longest,
    }


def take_sample(todo: pa.Table, plan: DecodePlan) -> Sample:
    """Surveys some videos, spread evenly over the list."""
    some, sample = _sampled(todo), Sample()
    with Sandbox(plan) as sandbox:
        for row in range(some.num_rows):
            one = some.slice(row, 1)
            size_bytes = one.column("size_bytes")[0].as_py()
            if sample.size_bytes + size_bytes <= SAMPLE_BYTES:
                (survey,) = survey_videos(one, plan, sandbox)
                sample = _add(sample, size_bytes, survey)
    return sample


def _sampled(todo: pa.Table) -> pa.Table:
    number = min(SAMPLE_VIDEOS, todo.num_rows)
    rows = [index * todo.num_rows // number for index in range(number)]
    return todo.take(pa.array(rows, pa.int64()))


def _add(sample: Sample, size_bytes: int, survey: Survey | None) -> Sample:
    return Sample(
        videos=sample.videos + 1,
        size_bytes=sample.size_bytes + size_bytes,
        video_seconds=sample.video_seconds + (survey.duration_seconds if survey else 0.0),
        clips=sample.clips + (survey.clips if survey else 0),
        unreadable=sample.unreadable + (survey is None),
    )


def _skipped_because(plan: JobPlan) -> str:
    counts = plan.reason_counts()
    parts = [
        f"{number:,} {reason}" for reason, number in counts.items() if reason not in _TODO_REASONS
    ]
    retry = " (--retry all tries failed ones again)" if plan.failed_videos else ""
    return ", ".join(parts) + retry


def _row_bytes(plan: JobPlan) -> float:
    """Bytes of a clip in the tables: what float lists of 10 bits of mantissa take, and the rest."""
    bits = 9 + plan.config.precision.stored_mantissa_bits  # and sign and exponent
    floats = plan.checkpoint.hidden_size
    floats += plan.checkpoint.num_labels if plan.config.output.logits else 0
    return floats * bits / 8 + 150
