"""The side of the decoder: hands videos to a worker, holds it to its limits, and takes the blame.

What decoding is, `indexer.video.decode` says. A worker has no credentials and no files but the
video's own, the kernel bounds its memory and CPU time, and the deadline is enforced here, by
killing it. The next video gets a fresh worker.
"""

import select
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, Protocol, Self, TypeVar

from indexer.config import Decode
from indexer.errors import (
    ClusterError,
    VideoDecoderCrash,
    VideoError,
    VideoOverBudget,
    VideoTimeout,
)
from indexer.records import DecodedClips, VideoFailure
from indexer.video.plan import DecodePlan
from indexer.video.ranged import Range
from indexer.video.sandbox.ledger import SurveyLedger, UnitLedger
from indexer.video.sandbox.shared import SharedFrames
from indexer.video.sandbox.template import Template, WorkerEnd
from indexer.video.sandbox.wire import (
    Channel,
    ClosedError,
    End,
    Failed,
    Fetched,
    GoOn,
    LateError,
    Need,
    NonsenseError,
    Outcome,
    Request,
    decode_answer,
)
from indexer.video.survey import Survey

RECYCLE_VIDEOS: Final = 200
"""A worker makes way for a fresh one after so many, whatever it may have leaked."""

FORK_TRIES: Final = 3

Item_co = TypeVar("Item_co", covariant=True)


class Video(Protocol):
    """An object's bytes: a file that holds some of them, and a way to the others."""

    @property
    def size_bytes(self) -> int:
        """Size of the whole object."""

    @property
    def present(self) -> tuple[Range, ...]:
        """What of it the file holds."""

    def fileno(self) -> int:
        """Descriptor of the file; each byte lies at its own offset."""

    def fetch(self, ranges: Sequence[Range]) -> None:
        """Brings more of it into the file, or raises `VideoError`."""


class _Ledger(Protocol[Item_co]):
    """What is owed for one request: see `indexer.video.sandbox.ledger`."""

    def accept(self, outcome: Outcome) -> Item_co: ...

    def close(self) -> None: ...


class Sandbox:
    """Decodes one video at a time in a child process; nothing is started until it is needed.

    Not for several threads at once. Closing it, or the end of this process, however it comes, ends
    its children; nothing they use has a name that could be left behind.

    Args:
        plan: sampling, preprocessing and budgets.
        module: that the child runs.
    """

    def __init__(self, plan: DecodePlan, *, module: str = "indexer.video.sandbox.child") -> None:
        self._plan = plan
        self._module = module
        self._frames: SharedFrames | None = None
        self._template: Template | None = None
        self._worker: _Worker | None = None
        self._busy = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child processes; a later call would start them again."""
        self._drop_template()
        if self._frames is not None:
            self._frames.close()
            self._frames = None

    def decode(
        self,
        video: Video,
        *,
        video_id: str,
        skip_units: frozenset[int] = frozenset(),
        moments_seconds: Sequence[float] = (),
    ) -> Iterator[tuple[DecodedClips | VideoFailure, float]]:
        """Decodes the clips of one video, unit by unit, as `decode_clips` does.

        Args:
            video: its bytes.
            video_id: seeds the `random` sampling mode.
            skip_units: units that are already done; nothing is yielded for them.
            moments_seconds: of `DecodePlan`, for this video.

        Yields:
            One item for each unit, in order, with the CPU seconds that the child took for it. Where
            the child dies midway, a failure for each unit left; before the first item, when nobody
            here knows the units, one failure for the whole video.

        Raises:
            ClusterError: the child cannot be started on this machine.
        """
        ledger = UnitLedger(self._plan, skip_units, self._shared_frames())
        request = Request(
            task="decode",
            video_id=video_id,
            size_bytes=video.size_bytes,
            present=video.present,
            skip_units=tuple(sorted(skip_units)),
            moments_seconds=tuple(moments_seconds),
        )
        try:
            yield from self._converse(video, request, ledger)
        except _LostError as lost:
            error, cpu_seconds = lost.error, lost.cpu_seconds
        else:
            return
        for failure in ledger.failures(error):
            yield failure, cpu_seconds
            cpu_seconds = 0.0

    def survey(self, video: Video, *, video_id: str) -> Survey | VideoFailure:
        """Tells how much there is to decode, as `survey_video` does.

        Args:
            video: its bytes.
            video_id: of the video.

        Raises:
            ClusterError: the child cannot be started on this machine.
        """
        request = Request(
            task="survey",
            video_id=video_id,
            size_bytes=video.size_bytes,
            present=video.present,
        )
        try:
            ((survey, _),) = list(self._converse(video, request, SurveyLedger()))
        except _LostError as lost:
            return VideoFailure(lost.error.code, str(lost.error))
        return survey

    def _converse(
        self, video: Video, request: Request, ledger: _Ledger[Item_co]
    ) -> Iterator[tuple[Item_co, float]]:
        """Has a worker serve one request; yields items with their CPU seconds.

        Raises:
            _LostError: the worker died, or had to be killed.
        """
        if self._busy:
            message = "the sandbox is busy: exhaust or close the video before, or use another one"
            raise RuntimeError(message)
        worker = self._ready_worker()
        self._busy, done = True, False
        talk = _Talk(worker.channel, video, self._plan.decode.deadline_seconds)
        try:
            talk.ask(request)
            while not isinstance(answer := talk.answer(), End):
                worker.note(answer)
                yield ledger.accept(answer), answer.cpu_seconds
                talk.go_on()
            ledger.close()
            done = True
        except (ClosedError, LateError, NonsenseError) as error:
            raise self._lost(worker, error) from error
        finally:
            self._busy = False
            worker.videos += 1
            if not done or worker.is_worn:
                self._end(worker)

    def _ready_worker(self) -> "_Worker":
        """The worker that waits, else a new one.

        Raises:
            ClusterError: there is no way to have one.
        """
        if self._worker is not None and not self._worker.is_waiting:
            self._end(self._worker)
        tries = FORK_TRIES
        while self._worker is None:
            self._template = self._template or Template(self._plan, self._module)
            try:
                self._worker = _Worker(self._template.fork(self._shared_frames().fileno()))
            except (ClosedError, LateError) as error:
                self._drop_template()
                tries -= 1
                if not tries:
                    message = f"the decode process cannot be forked, {FORK_TRIES} times: is there "
                    message += "memory left, and are there processes left, on this machine?"
                    raise ClusterError(message) from error
        return self._worker

    def _lost(self, worker: "_Worker", error: Exception) -> "_LostError":
        """Ends a worker that is of no more use, and says what that means for its video."""
        end = self._end(worker)
        cpu_seconds = max(end.cpu_seconds - worker.told_cpu_seconds, 0.0) if end else 0.0
        return _LostError(_verdict(error, end, self._plan.decode), cpu_seconds)

    def _end(self, worker: "_Worker") -> WorkerEnd | None:
        """Kills a worker unless it is dead; None where nobody can tell how it ended."""
        if self._template is None or worker is not self._worker:
            return None
        try:
            end = self._template.end_worker()
        except (ClosedError, LateError):
            self._drop_template()
            return None
        self._worker = None
        worker.channel.close()
        return end

    def _drop_template(self) -> None:
        if self._worker is not None:
            self._worker.channel.close()
            self._worker = None
        if self._template is not None:
            self._template.close()
            self._template = None

    def _shared_frames(self) -> SharedFrames:
        if self._frames is None:
            self._frames = SharedFrames(self._plan)
        return self._frames


class _LostError(Exception):
    """There is no worker any more; the video gets `error`, and what the worker used meanwhile."""

    def __init__(self, error: VideoError, cpu_seconds: float) -> None:
        super().__init__(error, cpu_seconds)
        self.error = error
        self.cpu_seconds = cpu_seconds


class _Worker:
    """A worker as this side sees it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.videos = 0
        self.told_cpu_seconds = 0.0
        self._ran_out = False

    def note(self, outcome: Outcome) -> None:
        """Remembers what an answer says of the worker itself."""
        self.told_cpu_seconds += outcome.cpu_seconds
        if isinstance(outcome, Failed):
            self._ran_out |= outcome.failure.code == VideoOverBudget.code

    @property
    def is_worn(self) -> bool:
        """Whether the next video had better have another one."""
        return self._ran_out or self.videos >= RECYCLE_VIDEOS

    @property
    def is_waiting(self) -> bool:
        """Whether it lives and is silent, as it should be between two videos."""
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        return not poll.poll(0)


class _Talk:
    """One request and its answers; brings what bytes the worker lacks meanwhile.

    The deadline is for one step: up to the next answer, without the time that bringing bytes takes.
    """

    def __init__(self, channel: Channel, video: Video, deadline_seconds: float) -> None:
        self._channel = channel
        self._video = video
        self._deadline_seconds = deadline_seconds
        self._deadline = 0.0
        self._may_ask_bytes = video.size_bytes
        self._fetch_error: VideoError | None = None

    def ask(self, request: Request) -> None:
        self._deadline = time.monotonic() + self._deadline_seconds
        self._channel.send(request.encode(), [self._video.fileno()], deadline=self._deadline)

    def go_on(self) -> None:
        self._deadline = time.monotonic() + self._deadline_seconds
        self._channel.send(GoOn().encode(), deadline=self._deadline)

    def answer(self) -> Outcome | End:
        while isinstance(answer := self._receive(), Need):
            self._fetch(answer.ranges)
        if isinstance(answer, Failed) and self._fetch_error is not None:
            code, message = self._fetch_error.code, str(self._fetch_error)
            failure = replace(answer.failure, code=code, message=message)
            return answer.model_copy(update={"failure": failure})
        return answer

    def _receive(self) -> Outcome | Need | End:
        return decode_answer(self._channel.receive(deadline=self._deadline))

    def _fetch(self, ranges: tuple[Range, ...]) -> None:
        self._check_need(ranges)
        started = time.monotonic()
        try:
            self._video.fetch(ranges)
        except VideoError as error:
            self._fetch_error = error
            fetched = Fetched(code=error.code, message=str(error))
        else:
            fetched = Fetched()
        self._deadline += time.monotonic() - started
        self._channel.send(fetched.encode(), deadline=self._deadline)

    def _check_need(self, ranges: tuple[Range, ...]) -> None:
        """An honest worker asks for each byte once; so there is an end to fetching."""
        inside = all(0 <= start < stop <= self._video.size_bytes for start, stop in ranges)
        self._may_ask_bytes -= sum(stop - start for start, stop in ranges)
        if not ranges or not inside or self._may_ask_bytes < 0:
            message = "bytes that are not there, or for the second time"
            raise NonsenseError(message)


def _verdict(error: Exception, end: WorkerEnd | None, decode: Decode) -> VideoError:
    """What a worker's end means for its video."""
    if isinstance(error, LateError):
        limit = f"decode.deadline_seconds = {decode.deadline_seconds:g}"
        return VideoTimeout(
            f"opening the video, or decoding a unit of it, took longer than {limit}"
        )
    if isinstance(error, NonsenseError):
        return VideoDecoderCrash("the decode process gave an answer that makes no sense")
    if end is None:
        return VideoDecoderCrash("the decode process died with the process that started it")
    if end.exit_code == -signal.SIGXCPU:
        limit = f"decode.max_cpu_seconds = {decode.max_cpu_seconds}"
        return VideoOverBudget(
            f"opening the video, or decoding a unit of it, took more than {limit}"
        )
    if end.exit_code == -signal.SIGKILL:
        cause = "most likely by the kernel, because the machine had no memory left"
        return VideoDecoderCrash(f"the decode process was killed, {cause}")
    return VideoDecoderCrash(f"the decode process {end.words}")
