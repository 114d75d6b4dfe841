import io

import pytest
from rich.console import Console

from indexer.metrics import (
    ClusterReady,
    Counts,
    JobFinished,
    JobPlanned,
    LeaseAwaited,
    ModelEffort,
    Progress,
)
from indexer.runtime.pipeline import RunResult
from indexer.runtime.progress import ProgressReporter, result_text

PLANNED = JobPlanned("r1", "base-1a2b3c", 1200, 200, 1000, 5_500_000_000)
READY = ClusterReady(16, 1, 12, 1)
GROWING = ClusterReady(0, 0, 40, 8, growing=True)


def progress(videos, seconds=10.0):
    counts = Counts(units=videos, clips=5 * videos, failures={"corrupt": 1}, video_seconds=7200)
    busy = {"decode": 0.25, "model": 0.9}
    return Progress(videos - 1, 1, counts, videos, seconds, busy, left_seconds=3725.0)


def shown(events, *, terminal, times=(0.0,)):
    out = io.StringIO()
    ticks = iter(times)
    last = times[-1]
    console = Console(file=out, force_terminal=terminal, width=100, color_system=None)
    with ProgressReporter(console, clock=lambda: next(ticks, last)) as reporter:
        for event in events:
            reporter.on_event(event)
    return out.getvalue()


def test_a_log_tells_of_plan_and_cluster_once_and_of_progress_now_and_then():
    events = [PLANNED, READY, progress(10), progress(20), progress(30)]
    times = (0.0, 0.0, 0.0, 5.0, 11.0, 11.0, 12.0)
    lines = shown(events, terminal=False, times=times).splitlines()
    assert lines == [
        "run r1, model base-1a2b3c: 1,200 videos listed, 200 already done, 1,000 to index (5.5 GB)",
        "Ray has 16 CPUs and 1 GPUs: 12 decoding, 1 running the model",
        (
            "20 of 1,000 videos, 100 clips, 10.0 clips/s, 2.00 video-hours, 1 failed, "
            "1:02:05.00 left; busy: model 90%, decode 25%"
        ),
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_whoever_waits_for_a_lease_reads_for_whom(terminal):
    event = LeaseAwaited("shard 1/2", "r0", "node-3", "2026-11-22 12:00:00 UTC", 93.6)
    assert (
        "run r0 on node-3 holds shard 1/2 since 2026-11-22 12:00:00 UTC, but gives no sign of life:"
        " it will be taken over in 94 s\n"
    ) in shown([event, PLANNED], terminal=terminal)


def test_a_terminal_shows_a_live_line_for_the_videos_and_one_for_each_stage():
    text = shown([PLANNED, READY, progress(20), JobFinished("finished", {})], terminal=True)
    assert "20/1,000" in text
    assert "busy 90%" in text
    assert "busy 25%" in text
    assert "100 clips, 10.0 clips/s" in text


def test_a_job_with_nothing_to_do_shows_no_bar():
    planned = JobPlanned("r1", "t", 3, 3, 0, 0)
    text = shown([planned, JobFinished("finished", {})], terminal=False)
    assert text == "run r1, model t: 3 videos listed, 3 already done, 0 to index (0 B)\n"


PLAN = {"share": 1.0, "hours": {"estimate": 30 / 3600, "came": 33 / 3600}}


def result(**changes):
    facts = {
        "run_id": "r1", "tag": "t", "status": "finished", "videos_indexed": 8, "videos_failed": 2,
        "skipped_videos": 1, "skipped_failed_videos": 1,
        "report": {"verdict": "decode-bound", "estimate": None},
        "counts": Counts(units=10, clips=40, failures={"empty": 2}, video_seconds=3600),
    }  # fmt: skip
    return RunResult(**facts | changes)


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (
            result(),
            (
                "8 videos indexed, 2 failed (2 empty; see `indexer errors idx`), 1 skipped; "
                "40 clips of 1.00 video-hours are in idx\ndecode-bound"
            ),
        ),
        (
            result(report={"verdict": "in balance", "estimate": PLAN}, counts=Counts(units=8)),
            (
                "8 videos indexed, 2 failed, 1 skipped; 0 clips of 0.00 video-hours are in idx\n"
                "in balance\nplanned for 100% of the bytes: 0:30; came: 0:33"
            ),
        ),
        (
            result(videos_failed=0, counts=Counts(units=8, clips=9)),
            (
                "8 videos indexed, 0 failed, 1 skipped; 9 clips of 0.00 video-hours are in idx\n"
                "decode-bound"
            ),
        ),
        (
            result(
                counts=Counts(
                    units=8, clips=9, model=ModelEffort(problems=frozenset({"it crawls"}))
                )
            ),
            (
                "8 videos indexed, 2 failed, 1 skipped; 9 clips of 0.00 video-hours are in idx"
                "\ndecode-bound\nit crawls"
            ),
        ),
        (
            result(status="interrupted"),
            (
                "interrupted: 10 videos are done and committed to idx; run the same command again "
                "for the rest"
            ),
        ),
        (
            result(counts=Counts(), skipped_videos=5, skipped_failed_videos=0),
            "nothing to do: idx already has the outcome of all 5 videos",
        ),
        (
            result(counts=Counts(), skipped_videos=5),
            (
                "nothing to do: idx already has the outcome of all 5 videos (1 of them failed; "
                "--retry all tries these again)"
            ),
        ),
    ],
)
def test_the_last_line_says_what_happened_and_what_to_do(outcome, text):
    assert result_text(outcome, "idx") == text


def test_a_cluster_that_grows_is_told_with_its_bounds():
    text = "Ray now has 0 CPUs: up to 40 decoding, up to 8 running the model"
    assert text in shown([PLANNED, GROWING], terminal=False)
