"""The real command on Ray, and the processes of its stages."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from indexer.table.paths import IndexPaths
from tests.faults.forks import REPOSITORY
from tests.ray_env import own_ray_env
from tests.video.synth import Synth

PATIENCE_SECONDS = 300  # two cores may be busy with much else


def write_archive(folder, videos):
    """Videos of 13 clips in 4 units each, and a file that is none."""
    long = Synth(frames=200, width=32, height=32).encode()
    for number in range(videos):
        (folder / f"{number:02}.mp4").write_bytes(long)
    (folder / "bad.mp4").write_bytes(b"junk" * 100)
    return folder


class Job:
    """The real command, in a process of its own."""

    def __init__(self, archive, index, model, *, module="indexer", env=None, options=()):
        self.index = index
        options = (
            *options,
            "sampling.min_seconds=0.1", "sampling.segment_clips=4", "cluster.block_clips=1",
            "output.commit_seconds=0.01",
        )  # fmt: skip
        settings = [part for option in options for part in ("--set", option)]
        run = ["run", archive, "--index", index, "--model", model]
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, run), *settings],
            cwd=REPOSITORY,
            env=env or own_ray_env(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, condition):
        """Whether the condition held before the job ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.02)
        return False

    def commits(self):
        log = Path(IndexPaths(str(self.index)).table("videos"), "_delta_log")
        return len(list(log.glob("*.json"))) - 1 if log.is_dir() else 0

    def end(self):
        try:
            answer, told = self.process.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert not answer, answer  # of dead workers too is told on stderr
        return self.process.returncode, told

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        assert self.end()[0] == -signal.SIGKILL


def workers(stage, driver):
    """Process ids of the actors of a stage, of the Ray below a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                title = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if f"({stage})" in title and driver in _ancestors(int(entry.name)):
                found.append(int(entry.name))
    return found


def _ancestors(pid):
    found = []
    while pid > 1:
        found.append(pid)
        try:
            status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            break
        pid = int(status.rpartition(")")[2].split()[1])
    return found


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
