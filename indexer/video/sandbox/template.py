"""The process from which decode workers are forked, as its owner sees it.

Starting Python and importing torch takes seconds; forking a process that has done so takes
milliseconds. The template does nothing else: it never sees a byte of a video, so that it is as good
after a thousand crashed workers as before. It lives and dies with its owner: its only input is a
socket whose other end the kernel closes when the owner ends, however it ends.
"""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from indexer.errors import ClusterError
from indexer.video.plan import DecodePlan
from indexer.video.sandbox.wire import Channel, ClosedError, LateError

READY: Final = b"ready"
FORK: Final = b"fork"
FORKED: Final = b"forked"
END: Final = b"end"

START_TRIES: Final = 3
START_SECONDS: Final = 120.0
"""Importing torch from a cold disk that many actors share takes a while."""

REPLY_SECONDS: Final = 10.0
"""For a fork, or the end of a worker; more than the worst of both on a crowded machine."""

_PASSED_ON: Final = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
_ONE_THREAD: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class WorkerEnd:
    """How a worker ended.

    Attributes:
        exit_code: its own, or the number of the signal that killed it, below zero.
        cpu_seconds: that it used in all.
    """

    exit_code: int
    cpu_seconds: float

    @property
    def words(self) -> str:
        """For the user, such as "died of SIGSEGV"."""
        if self.exit_code < 0:
            return f"died of {_signal_name(-self.exit_code)}"
        return f"ended with exit code {self.exit_code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


class Template:
    """One template process; at most one worker at a time.

    Args:
        plan: that the workers decode by.
        module: that the process runs: it calls `indexer.video.sandbox.child.main`.

    Raises:
        ClusterError: `START_TRIES` processes could not make themselves ready.
    """

    def __init__(self, plan: DecodePlan, module: str) -> None:
        for _ in range(START_TRIES):
            self._start(plan, module)
            if self._becomes_ready(plan):
                return
            self.close()
        message = (
            f"the decode process cannot start: {sys.executable} -m {module} ended with exit code "
            f"{self._process.returncode}, {START_TRIES} times; its own message is on stderr, "
            "in the logs of the decode actor"
        )
        raise ClusterError(message)

    def fork(self, frames: int) -> Channel:
        """Forks a worker that writes frames into a memory file; the channel leads to it.

        Raises:
            ClosedError, LateError: the template is gone, or of no more use; close it.
        """
        ours, theirs = socket.socketpair()
        channel = Channel(ours)
        try:
            with theirs:
                self._control.send(FORK, [theirs.fileno(), frames])
            self._control.receive(deadline=time.monotonic() + REPLY_SECONDS)
        except BaseException:  # after a Ctrl-C too, the worker ends when its channel does
            channel.close()
            raise
        return channel

    def end_worker(self) -> WorkerEnd:
        """Kills the worker unless it is dead already, and tells how it ended.

        Raises:
            ClosedError, LateError: as for `fork`.
        """
        self._control.send(END)
        report = self._control.receive(deadline=time.monotonic() + REPLY_SECONDS)
        exit_code, cpu_seconds = json.loads(report)
        return WorkerEnd(exit_code, cpu_seconds)

    def close(self) -> None:
        """Kills the template, and with it its worker."""
        self._control.close()
        self._process.kill()
        self._process.wait()

    def _start(self, plan: DecodePlan, module: str) -> None:
        ours, theirs = socket.socketpair()
        self._control = Channel(ours)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(device=plan.decode.device),
                start_new_session=True,  # Ctrl-C in a terminal is for the owner to deal with
            )

    def _becomes_ready(self, plan: DecodePlan) -> bool:
        deadline = time.monotonic() + START_SECONDS
        try:
            self._control.send(pickle.dumps(plan), deadline=deadline)
            self._control.receive(deadline=deadline)
        except ClosedError:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(REPLY_SECONDS)  # for its own exit code, not the one of our kill
            return False
        except LateError:
            return False
        return True


def _environment(*, device: str) -> dict[str, str]:
    """What a decoder needs to find its libraries, and nothing else: credentials stay here."""
    names = (*_PASSED_ON, "CUDA_VISIBLE_DEVICES") if device == "cuda" else _PASSED_ON
    passed_on = {name: os.environ[name] for name in names if os.environ.get(name)}
    return passed_on | dict.fromkeys(_ONE_THREAD, "1") | {"PYTHONPATH": _import_path()}


def _import_path() -> str:
    """The modules of this process, whoever extended its path; "" is the working folder."""
    entries = (str(Path(entry or ".").absolute()) for entry in sys.path)
    return os.pathsep.join(entry for entry in dict.fromkeys(entries) if Path(entry).exists())
