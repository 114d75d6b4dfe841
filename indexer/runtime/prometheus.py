"""A job's figures as Prometheus metrics, through the exporter that every Ray node has.

Everything is counted on the driver, from the events that it gets anyway; Ray puts `ray_` before
each name. What waits between two operators, Ray Data itself exports.
"""

from collections.abc import Mapping
from typing import Final

from ray.util.metrics import Counter, Gauge

from indexer.metrics import ClusterReady, Counts, Event, JobPlanned, Progress

COUNTERS: Final = {
    "indexer_videos_total": ("Videos with an outcome.", ("outcome",)),
    "indexer_failed_units_total": ("Units that failed, by error code.", ("code",)),
    "indexer_units_total": ("Units with an outcome.", ()),
    "indexer_clips_total": ("Clips that were indexed.", ()),
    "indexer_video_seconds_total": ("Running time of the videos that were indexed.", ()),
    "indexer_fetch_bytes_total": ("Bytes that came from the archive's storage.", ()),
    "indexer_fetch_requests_total": ("Requests to the archive's storage.", ()),
    "indexer_fetch_retries_total": ("Requests that were sent again, by cause.", ("cause",)),
    "indexer_fetch_seconds_total": ("Wall time of fetching, over all workers.", ()),
    "indexer_decode_seconds_total": ("CPU time of decoding, over all workers.", ()),
    "indexer_model_busy_seconds_total": ("Wall time of scoring, over all model actors.", ()),
    "indexer_model_wait_seconds_total": ("Time without clips to score, over model actors.", ()),
    "indexer_write_seconds_total": ("Wall time of writing data files, over all workers.", ()),
}
GAUGES: Final = {
    "indexer_todo_videos": ("Videos that have no outcome yet.", ()),
    "indexer_uncommitted_units": ("Units that are written and wait for their commit.", ()),
    "indexer_stage_busy_ratio": ("Share of their time in which a stage's actors work.", ("stage",)),
    "indexer_left_seconds": ("Until the end, by what came out so far.", ()),
}

Tags = tuple[tuple[str, str], ...]


class MetricsExporter:
    """An `Observer` that feeds Ray's exporter; silent until Ray runs."""

    def __init__(self) -> None:
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._told: dict[tuple[str, Tags], float] = {}
        self._run_tags: dict[str, str] = {}
        self._todo_videos = 0

    def on_event(self, event: Event) -> None:
        """Exports what the event tells."""
        match event:
            case JobPlanned():
                self._todo_videos = event.todo_videos
                self._run_tags = {"run": event.run_id, "model": event.tag}
            case ClusterReady():
                keys = tuple(self._run_tags)
                self._counters = {
                    name: Counter(name, text, (*tags, *keys))
                    for name, (text, tags) in COUNTERS.items()
                }
                self._gauges = {
                    name: Gauge(name, text, (*tags, *keys)) for name, (text, tags) in GAUGES.items()
                }
            case Progress() if self._counters:
                self._export(event)
            case _:
                pass

    def _export(self, event: Progress) -> None:
        for name, series in _totals(event).items():
            for tags, total in series.items():
                grown = total - self._told.get((name, tags), 0.0)
                if grown > 0:
                    self._counters[name].inc(grown, tags=dict(tags) | self._run_tags)
                    self._told[name, tags] = total
        left = self._todo_videos - event.videos_indexed - event.videos_failed
        self._set("indexer_todo_videos", left)
        self._set("indexer_uncommitted_units", event.counts.units - event.committed_units)
        if event.left_seconds is not None:
            self._set("indexer_left_seconds", event.left_seconds)
        for stage, share in event.busy.items():
            self._set("indexer_stage_busy_ratio", share, stage=stage)

    def _set(self, name: str, value: float, **tags: str) -> None:
        self._gauges[name].set(value, tags=tags | self._run_tags)


def _totals(event: Progress) -> Mapping[str, Mapping[Tags, float]]:
    """Each counter's value so far, by its tags."""
    counts = event.counts
    plain: dict[str, Mapping[Tags, float]] = {
        name: {(): value} for name, value in _plain_totals(counts).items()
    }
    return plain | {
        "indexer_videos_total": {
            (("outcome", "indexed"),): event.videos_indexed,
            (("outcome", "failed"),): event.videos_failed,
        },
        "indexer_failed_units_total": _by("code", counts.failures),
        "indexer_fetch_retries_total": _by("cause", counts.fetch.retries),
    }


def _by(key: str, values: Mapping[str, int]) -> Mapping[Tags, float]:
    return {((key, name),): value for name, value in values.items()}


def _plain_totals(counts: Counts) -> Mapping[str, float]:
    return {
        "indexer_units_total": counts.units,
        "indexer_clips_total": counts.clips,
        "indexer_video_seconds_total": counts.video_seconds,
        "indexer_fetch_bytes_total": counts.fetch.fetched_bytes,
        "indexer_fetch_requests_total": counts.fetch.requests,
        "indexer_fetch_seconds_total": counts.fetch.seconds,
        "indexer_decode_seconds_total": counts.decode_seconds,
        "indexer_model_busy_seconds_total": counts.model.busy_seconds,
        "indexer_model_wait_seconds_total": counts.model.wait_seconds,
        "indexer_write_seconds_total": counts.write_seconds,
    }
