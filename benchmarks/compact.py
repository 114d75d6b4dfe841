"""Compaction of a large synthetic index: files, time, memory, and the same answers throughout.

    PYTHONPATH=. python benchmarks/compact.py --clips 1000000 --folder /tmp/compact

Makes an index of many small files as a job with several writers would, asks it some questions
before, during and after compaction, compares the answers, and runs `verify` over it. Embeddings and
logits come from a pool of random vectors.
"""

import argparse
import hashlib
import json
import resource
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from indexer.manifest import video_id
from indexer.metrics import FetchEffort
from indexer.records import ClipScores, ClipSpan, UnitOutcome, VideoInfo, VideoRef
from indexer.table import catalog
from indexer.table.commit import Committer
from indexer.table.compact import compact
from indexer.table.delta import live_files, open_table
from indexer.table.lease import held
from indexer.table.paths import IndexPaths
from indexer.table.query import LabelIndex
from indexer.table.rows import RowContext, unit_tables
from indexer.table.schema import TABLES
from indexer.table.shard import Shard
from indexer.table.verify import verify
from indexer.table.write import write_tables

TAG = RUN = "synthetic"
LABEL_NAMES = tuple(f"activity {number:03}" for number in range(400))
CLIPS_A_VIDEO = 10
CLIP_SECONDS = 8.5
VIDEOS_A_COMMIT = 400
WIDTH = 768
POOL = 4096


def outcomes(
    numbers: range, rng: np.random.Generator, pool_PX: np.ndarray
) -> Iterator[UnitOutcome]:
    """Some indexed videos of `CLIPS_A_VIDEO` clips each, without any decoding."""
    info = VideoInfo(640, 360, "h264", 30.0, 0, CLIPS_A_VIDEO * CLIP_SECONDS)
    spans = tuple(
        ClipSpan(
            i, i * CLIP_SECONDS, (i + 1) * CLIP_SECONDS, tuple(i * CLIP_SECONDS + np.arange(8))
        )
        for i in range(CLIPS_A_VIDEO)
    )
    for number in numbers:
        uri = f"s3://archive/videos/{number // 1000:04}/{number:08}.mp4"
        vectors_NX = pool_PX[rng.integers(0, len(pool_PX), CLIPS_A_VIDEO)]
        yield UnitOutcome(
            ref=VideoRef(video_id(uri), uri, 10_000_000, "10000000-abc"),
            attempt=1,
            unit_index=0,
            units=1,
            info=info,
            spans=spans,
            scores=ClipScores(vectors_NX[:, WIDTH:], vectors_NX[:, :WIDTH]),
            failure=None,
            fetch=FetchEffort(0.1),
            decode_seconds=1.0,
            decode_wall_seconds=2.0,
            worker="host:1",
        )


def make_index(paths: IndexPaths, clips: int) -> None:
    """Writes and commits the rows in many small files."""
    rng = np.random.default_rng(0)
    pool_PX = rng.normal(size=(POOL, WIDTH + len(LABEL_NAMES))).astype(np.float32)
    context = RowContext(
        tag=TAG,
        run_id=RUN,
        labels=LABEL_NAMES,
        top_k=5,
        min_score=0.0,
        keep_logits=True,
        stored_mantissa_bits=10,
        indexed_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    catalog.create_index(paths)
    catalog.register_model(paths, TAG, {"model": "synthetic"}, LABEL_NAMES)
    videos = range(clips // CLIPS_A_VIDEO)
    shuffled = rng.permutation(len(videos) // VIDEOS_A_COMMIT)
    with held(paths, TAG, Shard().writer, RUN) as lease:
        committer = Committer(paths, TAG, RUN, lease)
        for task, block in enumerate(shuffled.tolist()):
            numbers = videos[block * VIDEOS_A_COMMIT : (block + 1) * VIDEOS_A_COMMIT]
            rows = unit_tables(list(outcomes(numbers, rng, pool_PX)), context)
            committer.commit(write_tables(rows, paths, TAG, RUN, f"t{task}"))


def answers(paths: IndexPaths) -> str:
    """A digest of what some questions are answered."""
    index = LabelIndex.open(paths.root_uri)
    digest = hashlib.sha256()
    for label in LABEL_NAMES[1:300:60]:
        digest.update(json.dumps(index.search(label, top=500).to_pylist(), default=str).encode())
    digest.update(json.dumps(index.labels().to_pylist(), default=str).encode())
    return digest.hexdigest()


def files_of(paths: IndexPaths) -> Iterator[tuple[str, int, int]]:
    """Files and bytes of each table."""
    for name, spec in TABLES.items():
        table = open_table(paths, spec)
        files = [] if table is None else live_files(table, TAG)
        yield name, len(files), sum(file.size_bytes for file in files)


def main() -> int:
    """Makes the index, compacts it, prints what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--step", choices=["make", "compact", "verify", "all"], default="all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    paths = IndexPaths(str(options.folder))
    facts: dict[str, object] = {"clips": options.clips}
    if options.step in ("make", "all"):
        shutil.rmtree(options.folder, ignore_errors=True)
        begun = time.monotonic()
        make_index(paths, options.clips)
        facts["make_seconds"] = time.monotonic() - begun
    if options.step in ("compact", "all"):
        facts |= measure_compaction(paths)
    if options.step in ("verify", "all"):
        begun = time.monotonic()
        found = verify(paths)
        facts["verify_seconds"] = time.monotonic() - begun
        facts["verify_broken"] = [str(f) for f in found.findings if f.broken][:5]
        facts["verify_rows"] = found.rows
    facts["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    text = json.dumps(facts, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text)
    return 0


def measure_compaction(paths: IndexPaths) -> dict[str, object]:
    """Compacts the index while another thread goes on asking it."""
    before, during = answers(paths), set()
    files_before = list(files_of(paths))
    over = threading.Event()
    asked = 0

    def ask() -> None:
        nonlocal asked
        while not over.is_set():
            during.add(answers(paths))
            asked += 1
            over.wait(2)

    asking = threading.Thread(target=ask)
    asking.start()
    cpu, begun = time.process_time(), time.monotonic()
    try:
        compact(paths, TAG, keep_history=True)
    finally:
        over.set()
        asking.join()
    seconds, cpu_seconds = time.monotonic() - begun, time.process_time() - cpu
    compact(paths, TAG)
    data = list(Path(paths.root_uri).glob("*/model=*/*.parquet"))
    return {
        "files_before": files_before,
        "files_after": list(files_of(paths)),
        "data_files_on_disk": len(data),
        "compact_seconds": seconds,
        "compact_and_asking_cpu_seconds": cpu_seconds,
        "asked_during": asked,
        "answers_agree": {before} == during | {answers(paths)},
    }


if __name__ == "__main__":
    sys.exit(main())
