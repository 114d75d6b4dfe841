"""What `indexer plan` said of a job before it ran, beside what came."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, ValidationError

from indexer.errors import ConfigError
from indexer.metrics import Counts
from indexer.render import clock_text, size_text
from indexer.runtime.forecast import came
from indexer.runtime.pools import Pools
from indexer.storage import read_bytes, redact

_TEXTS: Final[Mapping[str, Callable[[float], str]]] = {
    "hours": lambda hours: clock_text(round(hours * 3600)).removesuffix(".00"),
    "clips": "{:,.0f} clips".format,
    "index_bytes": size_text,
}
"""What one line tells of, and how."""


class Estimate(BaseModel):
    """What a plan said; the names are those of what `indexer plan --format json` prints.

    Attributes:
        model: short name of model and recipe that it was made for.
        todo_bytes: size of the videos that it was made for.
        estimated_hours: that the pipeline takes; None, as the two below, in a plan that measured no
            speed.
        estimated_cpu_hours: of the whole cluster meanwhile.
        estimated_gpu_hours: likewise.
        estimated_video_hours: that are indexed; None, as the two below, where no video of the
            sample could be read.
        estimated_clips: that are indexed.
        estimated_index_bytes: that the tables grow by.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    todo_bytes: NonNegativeInt
    estimated_hours: NonNegativeFloat | None = None
    estimated_cpu_hours: NonNegativeFloat | None = None
    estimated_gpu_hours: NonNegativeFloat | None = None
    estimated_video_hours: NonNegativeFloat | None = None
    estimated_clips: NonNegativeInt | None = None
    estimated_index_bytes: NonNegativeInt | None = None


def read_estimate(uri: str, tag: str) -> Estimate:
    """Reads what `indexer plan --format json` printed.

    Args:
        uri: path or URL of the file.
        tag: short name of model and recipe that it should be about.

    Raises:
        ConfigError: there is no such file, it holds no plan, or one of another model or recipe.
        StorageError: it cannot be read.
    """
    setting = f"plan = {redact(uri)}"
    try:
        made = Estimate.model_validate_json(read_bytes(uri))
    except FileNotFoundError as error:
        message = f"{setting}: there is nothing of this name"
        raise ConfigError(message) from error
    except ValidationError as error:
        message = f"{setting}: this is not what `indexer plan --format json` prints"
        raise ConfigError(message) from error
    if made.model != tag:
        message = (
            f"{setting}: it was made for {made.model}, but this job writes {tag};"
            " plan with the settings of the job"
        )
        raise ConfigError(message)
    return made


def estimate_against_truth(
    made: Estimate, counts: Counts, pools: Pools | None, elapsed_seconds: float
) -> dict[str, Any] | None:
    """What a plan promised of the bytes that are done, beside what has come of them.

    A run may do less than was planned, because it resumes or is stopped, or more: the estimate is
    scaled by bytes, which is what it was made by.

    Args:
        made: the plan's estimate.
        counts: sums over the units that came out.
        pools: how the job is spread; of a cluster that grows nobody knows the CPU-hours.
        elapsed_seconds: since the pipeline started.

    Returns:
        `share` of the planned bytes, and of each measure `estimate` and `came`; None where nothing
        came, or the plan could not say anything.
    """
    if not made.todo_bytes or not counts.listed_bytes:
        return None
    share, hours = counts.listed_bytes / made.todo_bytes, elapsed_seconds / 3600
    truth = {"hours": round(hours, 4), **came(counts)}
    if pools is not None and not pools.growing:
        truth["cpu_hours"] = round(pools.cpus * hours, 4)
        truth["gpu_hours"] = round(pools.gpus * hours, 4)
    told: dict[str, Any] = {"share": round(share, 6)}
    for name, value in truth.items():
        estimate = getattr(made, f"estimated_{name}")
        if estimate is not None:
            told[name] = {"estimate": round(estimate * share, 4), "came": value}
    return told if len(told) > 1 else None


def estimate_text(told: Mapping[str, Any]) -> str:
    """One line about what `estimate_against_truth` tells."""
    planned, truth = (
        ", ".join(text(told[name][side]) for name, text in _TEXTS.items() if name in told)
        for side in ("estimate", "came")
    )
    return f"planned for {told['share']:.0%} of the bytes: {planned}; came: {truth}"
