"""A whole job without Ray, torch or videos, and a server that forks one for every request.

The job is what `runtime.pipeline` does on the driver, with the real lease, recovery, comparison,
writing and commits; only the scores are made up. `tests.faults.forks` talks to the server.
"""

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from indexer import storage
from indexer.config import IndexConfig
from indexer.errors import IndexerError
from indexer.manifest import MANIFEST_SCHEMA
from indexer.runtime.todo import compare_manifest
from indexer.table import catalog, delta, lease, recovery, relabel
from indexer.table.commit import Committer, TableLogs
from indexer.table.head import Head
from indexer.table.paths import IndexPaths
from indexer.table.patience import patiently
from indexer.table.shard import Shard
from tests.table.make import FINGERPRINT, TAG, VOCABULARY, ref, unit, write_units

RELABELLED: Final = "relabelled"
TAKEOVER_SECONDS: Final = 20.0
OLD, NEW = "10-old", "10-new"
VIDEOS: Final = {
    "a": ("clips", 1),
    "bad": ("corrupt", 1),
    "c": ("clips", 3),
    "d": ("clips", 1),
    "e": ("clips", 2),
}
"""Each video's outcome and its number of units."""

CHANGED: Final = frozenset({"a", "c"})
FIRST: Final = ("a", "c", "d")
"""What the index holds before the job; of these the changed ones get another content."""


def manifest(names: tuple[str, ...], changed: frozenset[str] = frozenset()) -> pa.Table:
    rows = []
    for name in names:
        video = ref(name, NEW if name in changed else OLD)
        fields = (video.video_id, video.uri, video.size_bytes, video.content_key, video.extra)
        rows.append(dict(zip(MANIFEST_SCHEMA.names, fields, strict=True)))
    return pa.Table.from_pylist(rows, MANIFEST_SCHEMA)


def many(number: int) -> pa.Table:
    """A manifest of videos of one unit."""
    return manifest(tuple(f"video-{index}" for index in range(number)))


def run_job(index: str, run_id: str, listed: pa.Table, shard: str = "1/1", tag: str = TAG) -> None:
    """One run to its end."""
    paths, part = IndexPaths(index), Shard.parse(shard)
    patiently(catalog.create_index, paths)
    patiently(catalog.register_model, paths, tag, FINGERPRINT, VOCABULARY)
    with lease.held(
        paths, tag, part.writer, run_id, beat_seconds=5, takeover_seconds=TAKEOVER_SECONDS
    ) as held:
        patiently(recovery.begin, paths, tag, held)
        config = IndexConfig(inputs=("unused",), index=index)
        mine = listed.filter(pa.array(map(part.holds, listed["video_id"].to_pylist()), pa.bool_()))
        found = patiently(compare_manifest, mine, paths, tag, config)
        committer = patiently(Committer, paths, tag, run_id, held)
        changed = (found.changed[name].to_pylist() for name in ("video_id", "uri"))
        patiently(committer.remove_videos, *changed)
        for row in found.todo.to_pylist():
            units = list(_units(row))
            for start in range(0, len(units), 2):  # a long video takes more than one commit
                files = patiently(write_units, paths, run_id, *units[start : start + 2], tag=tag)
                patiently(committer.commit, files)
        patiently(catalog.write_run_report, paths, run_id, {"status": "finished"})


def run_relabel(index: str) -> None:
    """A new head over the clips of the job, a few at a time."""
    relabel.GROUP_CLIPS = 4
    weight_KD = np.random.default_rng(3).normal(size=(4, 8)).astype(np.float32)
    new = Head(weight_KD, np.zeros(4, np.float32), ("one", "two", "three", "four"))
    relabel.relabel(IndexPaths(index), new, source=TAG, tag=RELABELLED)


def _units(row: dict[str, Any]) -> Iterator[Any]:
    outcome, units = VIDEOS.get(row["uri"], ("clips", 1))
    again = 10 if row["content_key"] == NEW else 0  # another content has other clips
    for index in range(units):
        if index not in row["done_units"]:
            yield unit(
                row["uri"],
                [again + 2 * index, again + 2 * index + 1],
                failure=None if outcome == "clips" else outcome,
                unit_index=index,
                units=units,
                attempt=row["attempt"],
                content_key=row["content_key"],
            )


class Counter:
    """Counts what a process does to its storage, and kills it before or after the n-th."""

    def __init__(self, kill_at: int, after: bool) -> None:
        self.number, self._kill_at, self._after = 0, kill_at, after

    def wrap(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.number += 1
            fatal = self.number == self._kill_at
            if fatal and not self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return operation(*arguments, **options)
            finally:
                if fatal:
                    os.kill(os.getpid(), signal.SIGKILL)

        return counted

    def install(self) -> None:
        """Counts what changes a local index: files that get their name, or go, and commits.

        Before a file has its name it lies there half-written under another.
        """
        write = storage._write_local

        def write_local(target: Any, data: bytes, publish: Callable[..., Any]) -> None:
            write(target, data, self.wrap(publish))

        storage._write_local = write_local
        LocalFileSystem.rm_file = self.wrap(LocalFileSystem.rm_file)
        TableLogs._write = self.wrap(TableLogs._write)
        delta.DeltaTable.create = self.wrap(delta.DeltaTable.create)


def serve() -> None:
    """Forks a child for every line of JSON; says its pid, and later how it ended."""
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            _child(order)
        _say({"pid": pid})
        sys.stdin.readline()  # the other side has taken note of the pid
        _, status = os.waitpid(pid, 0)
        _say({"code": os.waitstatus_to_exitcode(status)})


def _child(order: dict[str, Any]) -> None:
    code = 1
    try:
        os.environ |= order.get("env", {})
        counter = Counter(order.get("kill_at", 0), order.get("after", False))
        if order.get("count", True):
            counter.install()
        with contextlib.ExitStack() as stack:
            gate = order.get("gate")
            if gate:
                stack.enter_context(open(gate)).read()  # noqa: PTH123 - a pipe: waits for a writer
            listed = manifest(FIRST) if order["first"] else manifest(tuple(VIDEOS), CHANGED)
            if order.get("many"):
                listed = many(order["many"])
            if order.get("relabel"):
                run_relabel(order["index"])
            else:
                run_job(
                    order["index"],
                    order["run_id"],
                    listed,
                    order.get("shard", "1/1"),
                    order.get("tag", TAG),
                )
        if order.get("count_to"):
            with open(order["count_to"], "w") as file:  # noqa: PTH123
                file.write(str(counter.number))
        code = 0
    except IndexerError as error:
        code = 10 + error.exit_code
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    except BaseException:  # noqa: BLE001 - whatever it is, the fork must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve()
