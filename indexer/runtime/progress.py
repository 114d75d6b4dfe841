"""Telling people of a running job: live bars in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from indexer.metrics import (
    ClusterReady,
    Event,
    JobFinished,
    JobPlanned,
    LeaseAwaited,
    Progress,
)
from indexer.render import clock_text, size_text, waiting_text
from indexer.runtime.pipeline import RunResult
from indexer.runtime.planned import estimate_text

LOG_INTERVAL_SECONDS: Final = 10.0


def planned_text(event: JobPlanned) -> str:
    """One line about what the run will do."""
    skipped = f", {event.skipped_videos:,} already done" if event.skipped_videos else ""
    return (
        f"run {event.run_id}, model {event.tag}: {event.listed_videos:,} videos listed{skipped}, "
        f"{event.todo_videos:,} to index ({size_text(event.todo_bytes)})"
    )


def cluster_text(event: ClusterReady) -> str:
    """One line about where it runs."""
    gpus = f" and {event.gpus:g} GPUs" if event.gpus else ""
    now, most = ("now ", "up to ") if event.growing else ("", "")
    return (
        f"Ray {now}has {event.cpus:g} CPUs{gpus}: {most}{event.decode_actors} decoding, "
        f"{most}{event.model_actors} running the model"
    )


def progress_text(event: Progress) -> str:
    """Clips, speed and failures so far."""
    rate = event.counts.clips / event.elapsed_seconds if event.elapsed_seconds else 0.0
    hours = event.counts.video_seconds / 3600
    left = "" if event.left_seconds is None else f", {clock_text(event.left_seconds)} left"
    return (
        f"{event.counts.clips:,} clips, {rate:.1f} clips/s, {hours:.2f} video-hours, "
        f"{event.videos_failed:,} failed{left}"
    )


def busy_text(event: Progress) -> str:
    """How busy each stage's actors are, the busiest first."""
    stages = sorted(event.busy.items(), key=lambda item: -item[1])
    return ", ".join(f"{stage} {share:.0%}" for stage, share in stages)


class ProgressReporter:
    """An `Observer` that shows a job on a console; a context manager around the job.

    Args:
        console: where to write; its `is_terminal` chooses between the live line and plain lines.
        clock: seconds that only grow, for the interval between plain lines.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._last_line = clock()
        self._todo_videos = 0
        self._task: TaskID | None = None
        self._stages: dict[str, TaskID] = {}
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def on_event(self, event: Event) -> None:
        """Shows the event."""
        match event:
            case LeaseAwaited():
                self._line(waiting_text(event))
            case JobPlanned():
                self._todo_videos = event.todo_videos
                self._line(planned_text(event))
                if event.todo_videos:
                    self._task = self._bar.add_task(
                        "videos", total=event.todo_videos, text="starting Ray"
                    )
            case ClusterReady():
                self._line(cluster_text(event))
            case Progress():
                self._progress(event)
            case JobFinished():
                self._bar.stop()

    def _progress(self, event: Progress) -> None:
        videos = event.videos_indexed + event.videos_failed
        if self._task is not None:
            text = f"{videos:,}/{self._todo_videos:,} {progress_text(event)}"
            self._bar.update(self._task, completed=videos, text=text)
            self._show_stages(event.busy)
        due = self._clock() - self._last_line >= LOG_INTERVAL_SECONDS
        if not self._console.is_terminal and due:
            busy = f"; busy: {busy_text(event)}" if event.busy else ""
            self._line(f"{videos:,} of {self._todo_videos:,} videos, {progress_text(event)}{busy}")

    def _show_stages(self, busy: Mapping[str, float]) -> None:
        """A bar for each stage: how much of their time its actors work; the longest holds us up."""
        for stage, share in busy.items():
            if stage not in self._stages:
                self._stages[stage] = self._bar.add_task(stage, total=1.0, text="")
            self._bar.update(self._stages[stage], completed=share, text=f"busy {share:.0%}")

    def _line(self, text: str) -> None:
        self._last_line = self._clock()
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def result_text(result: RunResult, index: str) -> str:
    """The last line of a run: what happened, and what to do about it."""
    if result.status == "interrupted":
        return (
            f"interrupted: {result.videos_indexed + result.videos_failed:,} videos are done and "
            f"committed to {index}; run the same command again for the rest"
        )
    if not result.counts.units:
        failed = (
            f" ({result.skipped_failed_videos:,} of them failed; --retry all tries these again)"
            if result.skipped_failed_videos
            else ""
        )
        return (
            f"nothing to do: {index} already has the outcome of all {result.skipped_videos:,} "
            f"videos{failed}"
        )
    told = result.report["estimate"]
    failures = ", ".join(f"{n} {code}" for code, n in sorted(result.counts.failures.items()))
    return (
        f"{result.videos_indexed:,} videos indexed, {result.videos_failed:,} failed"
        + (f" ({failures}; see `indexer errors {index}`)" if failures else "")
        + f", {result.skipped_videos:,} skipped; {result.counts.clips:,} clips of "
        f"{result.counts.video_seconds / 3600:.2f} video-hours are in {index}\n"
        f"{result.report['verdict']}"
        + (f"\n{estimate_text(told)}" if told else "")
        + "".join(f"\n{problem}" for problem in sorted(result.counts.model.problems))
    )
