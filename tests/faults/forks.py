"""Starts jobs in processes that may be killed, and compares what they leave behind."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from deltalake import DeltaTable

from indexer import storage
from indexer.table.paths import IndexPaths
from indexer.table.schema import TABLES
from tests.e2e.jobs import VARIES

REPOSITORY = Path(__file__).resolve().parents[2]
KILLED = -9


class Forks:
    """A process that has imported everything and forks one job at a time."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.job"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"TOKIO_WORKER_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(30)
        self._errors.close()

    def run(
        self, index: str, run_id: str, *, started: Callable[[int], None] | None = None, **order: Any
    ):
        """Runs one job; gives its exit code, -9 where it was killed."""
        self._send({"index": index, "run_id": run_id, "first": False} | order)
        pid = self._answer()["pid"]
        if started is not None:
            started(pid)
        self._send({})
        return self._answer()["code"]

    def errors(self) -> str:
        """What the jobs have said on stderr."""
        self._errors.seek(0)
        return self._errors.read()[-4000:]

    def _send(self, message: dict[str, Any]) -> None:
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        assert line, self.errors()
        return json.loads(line)


def lasting_rows(index: str) -> dict[str, list[str]]:
    """The sorted rows of the four tables, without what tells of the run and not of the video."""
    return {name: sorted(map(repr, _rows(index, name))) for name in TABLES}


def _rows(index: str, table: str) -> list[dict[str, Any]]:
    uri = IndexPaths(index).table(table)
    delta = DeltaTable(uri, storage_options=storage.delta_storage_options(uri))
    rows: pa.Table = delta.to_pyarrow_table()
    kept = [name for name in sorted(rows.column_names) if name not in VARIES]
    return rows.select(kept).to_pylist()


def bytes_left_over(index: str) -> set[str]:
    """Data files that lie in the index and that no snapshot names, and lists of removals."""
    paths = IndexPaths(index)
    left = set()
    for name in TABLES:
        delta = DeltaTable(
            paths.table(name), storage_options=storage.delta_storage_options(paths.root_uri)
        )
        named = set(pa.table(delta.get_add_actions(flatten=True))["path"].to_pylist())
        named |= set(delta.vacuum(0, dry_run=True, enforce_retention_duration=False))
        fs, root = storage.filesystem(paths.table(name))
        lying = {path[len(root) + 1 :] for path in fs.find(root)}
        left |= {path for path in lying - named if "_delta_log" not in path}
    fs, root = storage.filesystem(storage.join(paths.root_uri, "removals"))
    lists = set(fs.find(root)) if fs.exists(root) else set()
    return left | {path for path in lists if path.endswith(".json")}
