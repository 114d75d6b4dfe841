"""What a process and all that descend from it use: CPU seconds and peak memory, from `/proc`."""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

LOOK_SECONDS: Final = 0.2
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class _Seen:
    """The last that was seen of a process."""

    role: str
    cpu_seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """What the processes of a tree used.

    Attributes:
        moments: by the clock (`time.time`), CPU seconds of the whole tree up to then by role.
        driver: by the clock, the resident set of the first process in bytes.
        peak_bytes: the largest resident set of any process of a role, shared memory included.
    """

    moments: list[tuple[float, Mapping[str, float]]] = field(default_factory=list)
    driver: list[tuple[float, int]] = field(default_factory=list)
    peak_bytes: Mapping[str, int] = field(default_factory=dict)

    def driver_bytes(self, at: float) -> int:
        """Resident set of the first process at a time by the clock."""
        return next((size for when, size in reversed(self.driver) if when <= at and size), 1)

    def cpu_seconds(self, since: float = 0.0) -> float:
        """Of the whole tree, from a time by the clock to the end."""
        return sum(self.by_role(since).values())

    def by_role(self, since: float = 0.0) -> dict[str, float]:
        """The same by role; a role that processes have given up for another has less than none."""
        before = next((cpu for at, cpu in reversed(self.moments) if at <= since), {})
        last = self.moments[-1][1]
        roles = last.keys() | before.keys()
        return {role: last.get(role, 0.0) - before.get(role, 0.0) for role in roles}


class Meter:
    """Watches a process and its descendants while its block runs, from outside of it.

    What a process used after it was looked at last is not seen: a fifth of a second at most.
    """

    def __init__(self, root: int) -> None:
        self.usage = Usage()
        self._root = root
        self._seen: dict[int, _Seen] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        parents = _parents()
        for process in _descendants(self._root, parents):
            role = "driver" if process == self._root else _role(process)
            seen = self._seen.setdefault(process, _Seen(role))
            seen.role = role or seen.role
            seen.cpu_seconds = max(seen.cpu_seconds, parents[process][1])
            seen.peak_bytes = max(seen.peak_bytes, _status_bytes(process, "VmHWM"))
        cpu, peak = defaultdict[str, float](float), defaultdict[str, int](int)
        for seen in self._seen.values():
            cpu[seen.role] += seen.cpu_seconds
            peak[seen.role] = max(peak[seen.role], seen.peak_bytes)
        self.usage.moments.append((time.time(), dict(cpu)))
        self.usage.driver.append((time.time(), _status_bytes(self._root, "VmRSS")))
        self.usage = replace(self.usage, peak_bytes=dict(peak))


def _parents() -> dict[int, tuple[int, float]]:
    """Of each process its parent, and the CPU seconds that it used itself."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            ticks = int(fields[11]) + int(fields[12])
            found[int(entry.name)] = int(fields[1]), ticks / _TICKS_PER_SECOND
    return found


def _descendants(root: int, parents: Mapping[int, tuple[int, float]]) -> list[int]:
    children = defaultdict[int, list[int]](list)
    for process, (parent, _) in parents.items():
        children[parent].append(process)
    found, waiting = [], [root] if root in parents else []
    while waiting:
        process = waiting.pop()
        found.append(process)
        waiting += children[process]
    return found


def _role(process: int) -> str:
    """What a process is for, by its name: that of a Ray actor names its operator."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    name = words[0]
    if name.startswith("ray::"):
        return name.removeprefix("ray::").split()[0]
    program = Path(name).name
    return next((Path(word).stem for word in words[1:4] if word.endswith(".py")), program)


def _status_bytes(process: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)
