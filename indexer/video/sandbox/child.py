"""The decode child: a template process, and the workers forked from it that decode.

`python -m indexer.video.sandbox.child N` is started by `indexer.video.sandbox.template` only; N is
the descriptor of its control socket. A worker serves video after video until it is killed, crashes,
or its template ends. What it may use is taken away before it sees the first byte.
"""

import gc
import importlib
import io
import json
import mmap
import os
import pickle
import pkgutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

import av
import numpy as np

from indexer.errors import VideoError, VideoInternal, VideoOverBudget
from indexer.records import DecodedClips, VideoFailure
from indexer.video.decode import Allocate, Pixels, decode_clips, new_array
from indexer.video.plan import DecodePlan
from indexer.video.preprocess import preprocess_frame
from indexer.video.ranged import Range, RangedFile, Readable
from indexer.video.sandbox import confine
from indexer.video.sandbox.template import FORKED, READY
from indexer.video.sandbox.wire import (
    MAX_TEXT,
    Channel,
    ClosedError,
    DecodedUnit,
    End,
    Failed,
    Fetched,
    Need,
    Request,
    Surveyed,
)
from indexer.video.survey import Survey, survey_video

_ERRORS: Final = {error.code: error for error in VideoError.__subclasses__()}


class DecodeClips(Protocol):
    """`indexer.video.decode.decode_clips`."""

    def __call__(
        self,
        file: Readable,
        plan: DecodePlan,
        *,
        video_id: str,
        skip_units: frozenset[int],
        allocate: Allocate,
    ) -> Iterator[DecodedClips | VideoFailure]:
        """Decodes one video."""


class SurveyVideo(Protocol):
    """`indexer.video.survey.survey_video`."""

    def __call__(self, file: Readable, plan: DecodePlan, *, video_id: str) -> Survey:
        """Surveys one video."""


def main(decode: DecodeClips = decode_clips, survey: SurveyVideo = survey_video) -> None:
    """Runs the template, and, in the processes forked from it, the workers."""
    control = Channel(socket.socket(fileno=int(sys.argv[1])))
    plan = pickle.loads(control.receive())  # noqa: S301 - from the process that started this one
    _warm_up(plan, decode)
    _check_single_threaded()
    gc.collect()
    gc.freeze()  # the collector would write to, and so copy, every page shared with the workers
    control.send(READY)
    template = os.getpid()
    inherited = _fork_workers(control)
    if inherited is None:
        return
    confine.die_with(template)
    channel, frames = _confined(inherited, plan)
    with suppress(ClosedError):  # nobody asks any more
        _Worker(channel, frames, plan, decode, survey).serve()


def _fork_workers(control: Channel) -> list[int] | None:
    """Forks a worker whenever one is asked for, and kills it when its end is.

    Returns:
        In a worker, the descriptors of its socket and its frames; None in the template, at its end.
    """
    while True:
        try:
            _, descriptors = control.receive_with_files(2)
        except ClosedError:
            return None
        worker = os.fork()
        if not worker:
            return descriptors
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(FORKED)
        try:
            control.receive()
        except ClosedError:
            return None
        os.kill(worker, signal.SIGKILL)  # one that is dead already stays dead of what it died of
        _, status, usage = os.wait4(worker, 0)
        cpu_seconds = usage.ru_utime + usage.ru_stime
        control.send(json.dumps([os.waitstatus_to_exitcode(status), cpu_seconds]).encode())


def _confined(inherited: list[int], plan: DecodePlan) -> tuple[Channel, mmap.mmap]:
    """Takes from this worker everything but its socket and the memory for its frames."""
    confine.volunteer_for_oom()
    confine.forbid_core_files()
    socket_descriptor, frames_descriptor = confine.keep_only(inherited)
    channel = Channel(socket.socket(fileno=socket_descriptor))
    frames = mmap.mmap(frames_descriptor, 0)
    os.close(frames_descriptor)
    if plan.decode.device == "cpu":  # CUDA reserves terabytes of addresses and opens its devices
        confine.limit_files(1)  # the video
        confine.limit_memory(plan.decode.max_memory_bytes)
    confine.give_up_privileges()
    return channel, frames


class _Worker:
    """Serves one request after the other."""

    def __init__(
        self,
        channel: Channel,
        frames: mmap.mmap,
        plan: DecodePlan,
        decode: DecodeClips,
        survey: SurveyVideo,
    ) -> None:
        self._channel = channel
        self._frames = frames
        self._plan = plan
        self._decode_clips = decode
        self._survey_video = survey
        self._told_cpu_seconds = 0.0

    def serve(self) -> None:
        """Goes on until nobody asks any more: until `ClosedError`."""
        tasks = {"decode": self._decode, "survey": self._survey}
        while True:
            message, (descriptor,) = self._channel.receive_with_files(1)
            request = Request.model_validate_json(message)
            self._begin_step()
            try:
                file = RangedFile(descriptor, request.size_bytes, request.present, self._fetch)
                tasks[request.task](file, request)
            finally:
                os.close(descriptor)
            self._channel.send(End().encode())

    def _decode(self, file: Readable, request: Request) -> None:
        items = self._decode_clips(
            file,
            replace(self._plan, moments_seconds=request.moments_seconds),
            video_id=request.video_id,
            skip_units=frozenset(request.skip_units),
            allocate=self._allocate,
        )
        for item in items:
            if isinstance(item, VideoFailure):
                self._tell_failure(item)
            else:
                self._tell_unit(item)
            self._channel.receive()
            self._begin_step()

    def _survey(self, file: Readable, request: Request) -> None:
        try:
            survey = self._survey_video(file, self._plan, video_id=request.video_id)
        except VideoError as error:
            self._tell_failure(VideoFailure(error.code, str(error)))
        except MemoryError:
            message = "surveying needs more memory than this process may use"
            self._tell_failure(VideoFailure(VideoOverBudget.code, message))
        else:
            answer = Surveyed(survey=survey, cpu_seconds=self._step_cpu_seconds())
            self._channel.send(answer.encode())
        self._channel.receive()

    def _fetch(self, ranges: Sequence[Range]) -> None:
        self._channel.send(Need(ranges=tuple(ranges)).encode())
        fetched = Fetched.model_validate_json(self._channel.receive())
        if fetched.code:
            raise _ERRORS.get(fetched.code, VideoInternal)(fetched.message)

    def _allocate(self, shape: tuple[int, ...]) -> Pixels:
        """Gives the shared memory, always from its start: one unit is under way at a time."""
        wanted_bytes = int(np.prod(shape))
        if wanted_bytes > len(self._frames):
            message = f"{wanted_bytes} bytes of frames in a unit, but room for {len(self._frames)}"
            raise VideoOverBudget(message)
        return np.ndarray(shape, np.uint8, self._frames)

    def _tell_unit(self, item: DecodedClips) -> None:
        room_NTHWC = self._allocate(item.frames_NTHWC.shape)
        if item.frames_NTHWC.ctypes.data != room_NTHWC.ctypes.data:
            message = "decode_clips yields frames that do not lie where they were allocated"
            raise AssertionError(message)
        answer = DecodedUnit(
            unit_index=item.unit_index,
            units=item.units,
            info=item.info,
            spans=item.spans,
            shape=room_NTHWC.shape,
            cpu_seconds=self._step_cpu_seconds(),
            codec_seconds=item.codec_seconds,
        )
        self._channel.send(answer.encode())

    def _tell_failure(self, failure: VideoFailure) -> None:
        failure = replace(failure, message=failure.message[:MAX_TEXT])
        answer = Failed(failure=failure, cpu_seconds=self._step_cpu_seconds())
        self._channel.send(answer.encode())

    def _begin_step(self) -> None:
        confine.limit_cpu(self._plan.decode.max_cpu_seconds)

    def _step_cpu_seconds(self) -> float:
        now = time.process_time()
        seconds, self._told_cpu_seconds = now - self._told_cpu_seconds, now
        return seconds


def _warm_up(plan: DecodePlan, decode: DecodeClips) -> None:
    """Does once what workers do, so that they find loaded what they could not load any more.

    This is not only for speed. PyAV loads a module when it meets the first stream with subtitles;
    torch reads the processor's features when it resizes for the first time, and where it cannot,
    takes other kernels that give other pixels.
    """
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if module.name != "av.__main__":
            importlib.import_module(module.name)
    if plan.decode.resize == "exact":
        for side in (7, 8):  # one of them is not the size that the recipe asks for
            preprocess_frame(np.zeros((side, side, 3), np.uint8), plan.preprocessing)
    on_cpu = replace(plan, decode=plan.decode.model_copy(update={"device": "cpu"}))
    file = io.BytesIO(_small_video())
    for _ in decode(file, on_cpu, video_id="", skip_units=frozenset(), allocate=new_array):
        pass  # a failure is of no interest here: the first real video will meet it, and tell
    np.random.RandomState(0)  # a module of its own, which only one sampling mode needs


def _small_video() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width = stream.height = 64
        stream.codec_context.thread_count = 1
        for number in range(4):
            picture_HWC = np.full((64, 64, 3), 60 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture_HWC, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def _check_single_threaded() -> None:
    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    if threads > 1:
        message = f"the decode template has {threads} threads, and so cannot be forked safely"
        raise RuntimeError(message)


if __name__ == "__main__":
    main()
