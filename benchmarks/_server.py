"""Measures a contestant: one process with its library, and a fresh fork of it for each measurement.

The CPU time is that of the work alone, all threads and children included: imports are done before
the fork, and lazy initialisation by decoding a tiny video first.
"""

import gc
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from benchmarks._methods import CONTESTANTS, Contestant, Order, Pixels, thumbnail

_REPOSITORY: Final = Path(__file__).resolve().parents[1]
_LIMIT_SECONDS: Final = 900
_ONE_THREAD: Final = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "VECLIB")
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One measurement.

    Attributes:
        cpu_seconds: user and system time of the work.
        wall_seconds: the same, by the clock on the wall.
        thumbnails_TKKC: of the frames returned; None where the contestant returns none.
        seconds: of the frames, where the contestant tells them.
        error: why there is no measurement; empty where there is one.
    """

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    thumbnails_TKKC: Pixels | None = None
    seconds: tuple[float, ...] | None = None
    error: str = ""


class Server:
    """A process that has loaded a contestant's library and waits for orders.

    Attributes:
        versions: of what it loaded; empty where that failed.
        problem: why it failed; empty where it did not.
    """

    def __init__(self, name: str) -> None:
        ours, theirs = multiprocessing.Pipe()
        call = f"from benchmarks._server import serve; serve({name!r}, {theirs.fileno()})"
        self._connection = ours
        self._process = subprocess.Popen(  # noqa: S603 - this very interpreter
            [sys.executable, "-c", call],
            cwd=_REPOSITORY,
            env=os.environ | _ONE_THREAD,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # some libraries complain there about every other file
        )
        theirs.close()
        self.versions: dict[str, str] = {}
        self.problem = ""
        try:
            self.versions, self.problem = ours.recv()
        except EOFError:
            self.problem = f"its process ends with code {self._process.wait()}"

    def measure(self, warm_up: Order, order: Order) -> Outcome:
        """Has one order carried out in a fresh process."""
        self._connection.send((warm_up, order))
        outcome: Outcome = self._connection.recv()
        return outcome

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.close()
        self._process.wait()


def serve(name: str, descriptor: int) -> None:
    """Loads a contestant and carries out orders until the other end is closed."""
    contestant = CONTESTANTS[name]
    with Connection(descriptor) as connection:
        try:
            connection.send((contestant.load(), ""))
        except (ImportError, OSError, RuntimeError) as error:
            connection.send(({}, " ".join(str(error).split())[:200]))
            return
        gc.freeze()  # a collection would copy, in each fork, every page that holds an object
        while True:
            try:
                warm_up, order = connection.recv()
            except EOFError:
                return
            connection.send(_in_a_fork(contestant, warm_up, order))


def _in_a_fork(contestant: Contestant, warm_up: Order, order: Order) -> Outcome:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, contestant, warm_up, order))
    process.start()
    sender.close()
    try:
        if not receiver.poll(_LIMIT_SECONDS):
            process.kill()
            return Outcome(error=f"more than {_LIMIT_SECONDS} s")
        outcome: Outcome = receiver.recv()
    except EOFError:
        process.join()
        return Outcome(error=f"its process ends with code {process.exitcode}")
    process.join()
    return outcome


def _measure(sender: Connection, contestant: Contestant, warm_up: Order, order: Order) -> None:
    try:
        contestant.run(contestant.prepare(warm_up))
        outcome = _timed(contestant, order)
    except Exception as error:  # noqa: BLE001 - that a peer fails on a video is a result
        message = " ".join(str(error).split())[:200]
        outcome = Outcome(error=f"{type(error).__name__}: {message}")
    sender.send(outcome)


def _timed(contestant: Contestant, order: Order) -> Outcome:
    prepared = contestant.prepare(order)
    started, used = time.perf_counter(), _cpu_seconds()
    decoded = contestant.run(prepared)
    used, elapsed = _cpu_seconds() - used, time.perf_counter() - started
    thumbnails_TKKC = None
    if decoded.frames_HWC is not None:
        thumbnails = [thumbnail(frame_HWC) for frame_HWC in decoded.frames_HWC]
        thumbnails_TKKC = np.stack(thumbnails) if thumbnails else np.empty((0, 0, 0, 0), np.uint8)
    return Outcome(used, elapsed, thumbnails_TKKC, decoded.seconds)


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
