"""Takes from the calling process what decoding a video does not need; there is no way back.

This is the second line of defence: the first is that FFmpeg gets a nameless file and closed
options. Linux only.
"""

import contextlib
import ctypes
import fcntl
import math
import os
import resource
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x20080522
_FIRST_FREE: Final = 3
"""Descriptors below are the standard streams."""

_PARKING: Final = 128
"""Descriptors are moved above this number before they get their final ones."""

_libc = ctypes.CDLL(None, use_errno=True)


def die_with(parent: int) -> None:
    """Has the kernel kill this process as soon as the parent process ends, however it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was told
        os._exit(1)


def give_up_privileges() -> None:
    """Drops root's capabilities, and any way to win new ones; leaves no core file behind."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _check(_libc.capset(header, nothing))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)


def volunteer_for_oom() -> None:
    """Where the machine runs out of memory, this process is to go before its neighbours."""
    with contextlib.suppress(OSError):  # a sandboxed kernel may not have it
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def keep_only(descriptors: Sequence[int]) -> tuple[int, ...]:
    """Closes every file but the standard streams and these, which get the lowest numbers.

    Returns:
        Their new numbers, in the same order.
    """
    parked = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _PARKING) for descriptor in descriptors]
    kept = range(_FIRST_FREE, _FIRST_FREE + len(parked))
    for source, target in zip(parked, kept, strict=True):
        os.dup2(source, target, inheritable=False)
    os.closerange(kept.stop, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    return tuple(kept)


def limit_files(more: int) -> None:
    """Lets so many files more be open than are; what would open another one fails.

    The open ones must have the lowest numbers, but for gaps, which count as more.
    """
    listed = sum(1 for _ in Path("/proc/self/fd").iterdir())  # the listing itself among them
    _limit(resource.RLIMIT_NOFILE, listed - 1 + more)


def limit_memory(more_bytes: int) -> None:
    """Lets the address space grow by so much; beyond, allocation fails with `MemoryError`."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + more_bytes)


def forbid_core_files() -> None:
    """A crash writes no core file."""
    _limit(resource.RLIMIT_CORE, 0)


def limit_cpu(more_seconds: int) -> None:
    """Lets the process use so much more CPU time; then the kernel kills it with SIGXCPU.

    It may be called again: what was not used up does not count.
    """
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(time.process_time()) + more_seconds
    soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _limit(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


def _prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
