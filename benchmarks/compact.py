"""Compaction of a large synthetic index: files, time, memory, and the same answers throughout.

    PYTHONPATH=. python benchmarks/compact.py --clips 1000000 --folder /tmp/compact

Makes an index of many small files as a job with several writers would, asks it some questions
before, during and after compaction, compares the answers, and runs `verify` over it.
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
from pathlib import Path

from benchmarks._index import LABEL_NAMES, TAG, make_index
from indexer.table.compact import compact
from indexer.table.delta import live_files, open_table
from indexer.table.paths import IndexPaths
from indexer.table.query import LabelIndex
from indexer.table.schema import TABLES
from indexer.table.verify import verify

WIDTH = 768


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
        make_index(paths, options.clips, width=WIDTH, keep_logits=True)
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
