"""What a job exports, and that the dashboard asks for nothing else."""

import json
import re
from pathlib import Path

import pytest

from indexer.metrics import ClusterReady, Counts, FetchEffort, JobPlanned, ModelEffort, Progress
from indexer.runtime import prometheus
from indexer.runtime.prometheus import COUNTERS, GAUGES, MetricsExporter

DASHBOARD = Path(__file__).resolve().parents[2] / "deploy" / "grafana.json"


class Recorded:
    """In place of Ray's metrics, which need a cluster: sums of counters, last values of gauges."""

    def __init__(self, values):
        self.values = values

    def __call__(self, name, _description, tag_keys):
        def note(value, tags, *, add):
            assert set(tags) == set(tag_keys)
            key = (name, *(tags[key] for key in tag_keys))
            self.values[key] = value + (self.values.get(key, 0) if add else 0)

        metric = type("Metric", (), {})()
        metric.inc = lambda value, tags: note(value, tags, add=True)
        metric.set = lambda value, tags: note(value, tags, add=False)
        return metric


@pytest.fixture
def values(monkeypatch):
    values = {}
    monkeypatch.setattr(prometheus, "Counter", Recorded(values))
    monkeypatch.setattr(prometheus, "Gauge", Recorded(values))
    return values


def progress(units):
    counts = Counts(
        units=units,
        clips=3 * units,
        failures={"corrupt": 1},
        fetch=FetchEffort(1.5 * units, units, 100 * units, {"transient_io": 2}),
        decode_seconds=2.0 * units,
        model=ModelEffort(busy_seconds=4.0 * units),
    )
    return Progress(units - 1, 1, counts, units - 2, 10.0, {"decode": 0.5}, left_seconds=7.0)


def test_totals_grow_by_what_came_since(values):
    exporter = MetricsExporter()
    for event in (
        JobPlanned("r1", "t", 12, 2, 10, 1000), ClusterReady(4, 0, 1, 1), progress(4), progress(6)
    ):  # fmt: skip
        exporter.on_event(event)
    assert values["indexer_videos_total", "indexed", "r1", "t"] == 5
    assert values["indexer_videos_total", "failed", "r1", "t"] == 1
    assert values["indexer_failed_units_total", "corrupt", "r1", "t"] == 1
    assert values["indexer_fetch_retries_total", "transient_io", "r1", "t"] == 2
    assert values["indexer_clips_total", "r1", "t"] == 18
    assert values["indexer_fetch_bytes_total", "r1", "t"] == 600
    assert values["indexer_model_busy_seconds_total", "r1", "t"] == 24
    assert values["indexer_todo_videos", "r1", "t"] == 4
    assert values["indexer_uncommitted_units", "r1", "t"] == 2
    assert values["indexer_stage_busy_ratio", "decode", "r1", "t"] == 0.5
    assert values["indexer_left_seconds", "r1", "t"] == 7.0


def test_nothing_is_exported_before_ray_runs(values):
    exporter = MetricsExporter()
    exporter.on_event(JobPlanned("r1", "t", 12, 2, 10, 1000))
    exporter.on_event(progress(4))
    assert values == {}


def test_the_dashboard_asks_for_all_that_is_exported_and_for_nothing_else():
    dashboard = json.loads(DASHBOARD.read_text())
    asked = " ".join(t["expr"] for panel in dashboard["panels"] for t in panel["targets"])
    named = set(re.findall(r"ray_(indexer_\w+)", asked))
    assert named == COUNTERS.keys() | GAUGES.keys()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
