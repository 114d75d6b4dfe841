"""How a running job will end, from the part of it that is done."""

from dataclasses import dataclass
from typing import Final

from indexer.metrics import Counts

EARLY_SHARE: Final = 0.05
"""Of the bytes: what came out of so many tells of the rest, if the list is in no special order."""
EARLY_SECONDS: Final = 30.0
"""Before that, starting actors is most of the time."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a part of a job promises of the whole.

    Attributes:
        after_seconds: of the pipeline, when it was made.
        share: of the bytes that were done by then.
        seconds: that the pipeline will take.
        video_hours: that will be indexed.
        clips: that will be indexed.
        index_bytes: that the tables will grow by.
    """

    after_seconds: float
    share: float
    seconds: float
    video_hours: float
    clips: int
    index_bytes: int


def forecast(counts: Counts, todo_bytes: int, elapsed_seconds: float) -> Forecast | None:
    """Extrapolates by bytes; None while there is nothing to extrapolate from."""
    if not todo_bytes or not counts.listed_bytes:
        return None
    share = min(1.0, counts.listed_bytes / todo_bytes)
    return Forecast(
        after_seconds=round(elapsed_seconds, 1),
        share=round(share, 6),
        seconds=round(elapsed_seconds / share, 1),
        video_hours=round(counts.video_seconds / 3600 / share, 3),
        clips=round(counts.clips / share),
        index_bytes=round(counts.written_bytes / share),
    )


def against_truth(
    made: Forecast, counts: Counts, elapsed_seconds: float
) -> dict[str, dict[str, float]]:
    """What a forecast promised beside what has come, by its fields."""
    truth = {"seconds": round(elapsed_seconds, 1), **came(counts)}
    return {name: {"forecast": getattr(made, name), "came": truth[name]} for name in truth}


def came(counts: Counts) -> dict[str, float]:
    """What has come, by the names of what forecasts and plans promise."""
    return {
        "video_hours": round(counts.video_seconds / 3600, 3),
        "clips": counts.clips,
        "index_bytes": counts.written_bytes,
    }


def is_early_enough(made: Forecast) -> bool:
    """Whether a forecast rests on enough, so that it is worth being held against the end."""
    return made.share >= EARLY_SHARE and made.after_seconds >= EARLY_SECONDS
