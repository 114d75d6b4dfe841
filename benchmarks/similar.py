"""The clips like one among a million: our sidecar and our scan beside DuckDB and LanceDB.

    python -m benchmarks.similar --clips 1000000 --folder /tmp/similar --json similar.json

Makes an index through the project's own writer, whose embeddings are a label's centroid, a part of
rank 64 that the clips of a video share, and noise; asks it before and after `compact`, and, after
`compact --ivf`, approximately; holds the answers against numpy in float64. A peer that is not
installed is left out.
"""

import argparse
import importlib.util
import json
import multiprocessing
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from indexer.manifest import video_id
from indexer.metrics import FetchEffort
from indexer.records import ClipScores, ClipSpan, UnitOutcome, VideoInfo, VideoRef
from indexer.table import catalog
from indexer.table.commit import Committer
from indexer.table.compact import compact
from indexer.table.lease import held
from indexer.table.paths import IndexPaths
from indexer.table.query import LabelIndex
from indexer.table.rows import RowContext, unit_tables
from indexer.table.shard import Shard
from indexer.table.write import write_tables

TAG = RUN = "synthetic"
LABEL_NAMES = tuple(f"activity {number:03}" for number in range(400))
CLIPS_A_VIDEO = 10
CLIP_SECONDS = 8.5
VIDEOS_A_COMMIT = 2000
WIDTH = 768
RANK = 64
TOP = 10

Result = TypeVar("Result")


class Archive:
    """Draws the embeddings of video after video."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        labels = len(LABEL_NAMES)
        self._centroids_KD = self._rng.normal(size=(labels, WIDTH)).astype(np.float32)
        self._basis_RD = self._rng.normal(size=(RANK, WIDTH)).astype(np.float32) / RANK**0.5
        weights_K = 1 / np.arange(1, labels + 1)
        self._shares_K = weights_K / weights_K.sum()

    def video(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Logits and embeddings of its clips."""
        label = self._rng.choice(len(LABEL_NAMES), p=self._shares_K)
        shared_D = self._rng.normal(size=RANK).astype(np.float32) @ self._basis_RD
        noise_ND = self._rng.standard_normal((CLIPS_A_VIDEO, WIDTH), np.float32)
        logits_NK = self._rng.standard_normal((CLIPS_A_VIDEO, len(LABEL_NAMES)), np.float32)
        logits_NK[:, label] += 8
        return logits_NK, self._centroids_KD[label] + 0.8 * shared_D + 0.6 * noise_ND


def outcomes(numbers: range, archive: Archive) -> Iterator[UnitOutcome]:
    """Some indexed videos, without any decoding."""
    info = VideoInfo(640, 360, "h264", 30.0, 0, CLIPS_A_VIDEO * CLIP_SECONDS)
    spans = tuple(
        ClipSpan(
            i, i * CLIP_SECONDS, (i + 1) * CLIP_SECONDS, tuple(i * CLIP_SECONDS + np.arange(8))
        )
        for i in range(CLIPS_A_VIDEO)
    )
    for number in numbers:
        uri = f"s3://archive/videos/{number // 1000:04}/{number:08}.mp4"
        yield UnitOutcome(
            ref=VideoRef(video_id(uri), uri, 10_000_000, "10000000-abc"),
            attempt=1,
            unit_index=0,
            units=1,
            info=info,
            spans=spans,
            scores=ClipScores(*archive.video()),
            failure=None,
            fetch=FetchEffort(0.1),
            decode_seconds=1.0,
            codec_seconds=0.5,
            decode_wall_seconds=1.0,
            worker="host:1",
        )


def make_index(paths: IndexPaths, clips: int) -> None:
    """Writes and commits the rows as a job does."""
    archive = Archive()
    context = RowContext(
        tag=TAG,
        run_id=RUN,
        labels=LABEL_NAMES,
        top_k=5,
        min_score=0.0,
        keep_logits=False,
        stored_mantissa_bits=10,
        indexed_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    catalog.create_index(paths)
    catalog.register_model(paths, TAG, {"model": "synthetic"}, LABEL_NAMES)
    videos = range(clips // CLIPS_A_VIDEO)
    with held(paths, TAG, Shard().writer, RUN) as lease:
        committer = Committer(paths, TAG, RUN, lease)
        for task, start in enumerate(range(0, len(videos), VIDEOS_A_COMMIT)):
            numbers = videos[start : start + VIDEOS_A_COMMIT]
            rows = unit_tables(list(outcomes(numbers, archive)), context)
            committer.commit(write_tables(rows, paths, TAG, RUN, f"t{task}"))


def queries(paths: IndexPaths, number: int) -> list[str]:
    """Ids of some clips, drawn from all."""
    clip_ids = LabelIndex.open(paths.root_uri).rows("embeddings").to_table(columns=["clip_id"])
    drawn = np.random.default_rng(1).choice(clip_ids.num_rows, number, replace=False)
    chosen: list[str] = clip_ids["clip_id"].take(np.sort(drawn)).to_pylist()
    return chosen


def measure_ours(
    paths: IndexPaths, clip_ids: Sequence[str], approximate: bool = False
) -> dict[str, object]:
    """Asks for the clips like each of some clips; the first question opens what there is."""
    index = LabelIndex.open(paths.root_uri)
    index.similar(clip_ids[0], top=TOP, approximate=approximate)
    timer, answers = Timer(), []
    for clip_id in clip_ids:
        with timer:
            found = index.similar(clip_id, top=TOP, approximate=approximate)
        answers.append(found.select(["clip_id", "similarity"]).to_pydict())
    told = {"recall_as_told": index.recall()} if approximate else {}
    return timer.facts() | told | {"answers": answers, "peak_memory_bytes": peak_memory_bytes()}


def measure_duckdb(paths: IndexPaths, clip_ids: Sequence[str]) -> dict[str, object]:
    """DuckDB's `array_cosine_similarity` over the same Parquet files."""
    connection = duckdb.connect()
    rows = f"read_parquet('{paths.table('embeddings')}/model=*/*.parquet')"
    vector = f"embedding::FLOAT[{WIDTH}]"
    timer = Timer()
    for clip_id in clip_ids:
        with timer:
            connection.execute(
                f"SELECT clip_id, array_cosine_similarity({vector}, (SELECT {vector} FROM {rows}"  # noqa: S608
                f" WHERE clip_id = $1)) AS s FROM {rows} ORDER BY s DESC, clip_id LIMIT {TOP + 1}",
                [clip_id],
            ).fetchall()
    return timer.facts() | {"version": duckdb.__version__, "peak_memory_bytes": peak_memory_bytes()}


def measure_lancedb(paths: IndexPaths, clip_ids: Sequence[str]) -> dict[str, object] | None:
    """LanceDB's exact search, after it has taken the rows in; None where it is not installed."""
    if importlib.util.find_spec("lancedb") is None:
        return None
    import lancedb  # type: ignore[import-not-found,unused-ignore]

    wide = pa.list_(pa.float32(), WIDTH)
    index = LabelIndex.open(paths.root_uri).rows("embeddings")

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in index.to_batches(columns=["clip_id", "embedding"], batch_size=8192):
            vectors = pa.FixedSizeListArray.from_arrays(batch["embedding"].flatten(), WIDTH)
            yield pa.RecordBatch.from_arrays([batch["clip_id"], vectors], ["clip_id", "vector"])

    schema = pa.schema([("clip_id", pa.string()), ("vector", wide)])
    taking_in, timer = Timer(), Timer()
    with taking_in:
        table = lancedb.connect(paths.root_uri + ".lance").create_table(
            "clips", data=batches(), schema=schema, mode="overwrite"
        )
    for clip_id in clip_ids:
        vector = table.search().where(f"clip_id = '{clip_id}'").limit(1).to_arrow()["vector"][0]
        with timer:
            table.search(vector.values.to_numpy()).distance_type("cosine").limit(TOP + 1).to_arrow()
    facts = {"version": lancedb.__version__, "peak_memory_bytes": peak_memory_bytes()}
    return timer.facts() | facts | {"take_in_seconds": taking_in.wall_seconds[0]}


def truth(paths: IndexPaths, clip_ids: Sequence[str]) -> list[dict[str, list[Any]]]:
    """The answers of numpy in float64, ties by clip id."""
    rows = LabelIndex.open(paths.root_uri).rows("embeddings")
    units: dict[str, npt.NDArray[np.float64]] = {}
    for batch in rows.to_batches(
        columns=["clip_id", "embedding"], filter=pc.field("clip_id").isin(pa.array(clip_ids))
    ):
        units |= dict(zip(batch["clip_id"].to_pylist(), _units(batch), strict=True))
    units_QD = np.stack([units[clip_id] for clip_id in clip_ids])
    best: list[list[tuple[float, str]]] = [[] for _ in clip_ids]
    for batch in rows.to_batches(columns=["clip_id", "embedding"], batch_size=16384):
        names = batch["clip_id"]
        cosines_QN = np.round(units_QD @ _units(batch).T, 12)
        for number, cosines_N in enumerate(cosines_QN):
            least = -best[number][-1][0] if len(best[number]) > TOP else -np.inf
            near = np.flatnonzero(cosines_N >= least)
            if len(near) > TOP:  # of equal ones all are kept
                near = near[cosines_N[near] >= np.partition(cosines_N[near], -TOP - 1)[-TOP - 1]]
            found = [(-float(cosines_N[row]), names[row].as_py()) for row in near]
            best[number] = sorted([*best[number], *found])[: TOP + 1]
    return [
        {
            "clip_id": [name for _, name in answer if name != clip_id][:TOP],
            "similarity": [-cosine for cosine, name in answer if name != clip_id][:TOP],
        }
        for clip_id, answer in zip(clip_ids, best, strict=True)
    ]


def _units(batch: pa.RecordBatch) -> npt.NDArray[np.float64]:
    vectors_ND = batch["embedding"].flatten().to_numpy().reshape(-1, WIDTH).astype(np.float64)
    units_ND: npt.NDArray[np.float64] = vectors_ND / np.linalg.norm(vectors_ND, axis=1)[:, None]
    return units_ND


def measure_compaction(paths: IndexPaths, lists: bool = False) -> dict[str, object]:
    """Compacts the index, which writes the sidecar; one with inverted lists, if they are wanted."""
    timer = Timer()
    with timer:
        done = compact(paths, TAG, lists=lists)
    return timer.facts() | {
        "sidecar_bytes": done[-1].bytes_after,
        "embeddings_bytes": next(t.bytes_after for t in done if t.table == "embeddings"),
        "peak_memory_bytes": peak_memory_bytes(),
    }


class Timer(AbstractContextManager["Timer"]):
    """Wall and CPU seconds of several turns."""

    def __init__(self) -> None:
        self.wall_seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def __enter__(self) -> Self:
        """Begins a turn."""
        self._begun = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it."""
        self.wall_seconds.append(time.perf_counter() - self._begun[0])
        self.cpu_seconds.append(time.process_time() - self._begun[1])

    def facts(self) -> dict[str, object]:
        """The least and the median of each."""
        return {
            "turns": len(self.wall_seconds),
            "wall_seconds_least": min(self.wall_seconds),
            "wall_seconds_median": statistics.median(self.wall_seconds),
            "cpu_seconds_least": min(self.cpu_seconds),
            "cpu_seconds_median": statistics.median(self.cpu_seconds),
        }


def peak_memory_bytes() -> int:
    """Of this process so far, mapped pages included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def apart(step: Callable[..., Result], *arguments: object) -> Result:
    """Runs a step in a process of its own, so that its memory is its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(step, *arguments).result()


def right(facts: dict[str, Any], expected: Sequence[dict[str, list[Any]]]) -> dict[str, Any]:
    """Puts in the place of the answers how many of them are those of numpy."""
    answers = facts.pop("answers")
    same = sum(
        found["clip_id"] == true["clip_id"] and np.allclose(found["similarity"], true["similarity"])
        for found, true in zip(answers, expected, strict=False)
    )
    shares = [
        len({*found["clip_id"]} & {*true["clip_id"]}) / len(true["clip_id"])
        for found, true in zip(answers, expected, strict=False)
    ]
    return facts | {"right_answers": int(same), "recall": statistics.mean(shares)}


def main() -> int:
    """Makes the index, asks it and its peers, prints what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--slow-queries", type=int, default=3, help="of what scans all")
    parser.add_argument("--keep", action="store_true", help="use the index that is in the folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    paths = IndexPaths(str(options.folder / "index"))
    if not options.keep:
        shutil.rmtree(options.folder, ignore_errors=True)
        apart(make_index, paths, options.clips)
    clip_ids = queries(paths, options.queries)
    few = clip_ids[: options.slow_queries]
    expected = apart(truth, paths, clip_ids)
    facts: dict[str, Any] = {"clips": options.clips, "queries": options.queries}
    steps: dict[str, Callable[[], dict[str, Any] | None]] = {
        "before compact": lambda: right(apart(measure_ours, paths, few), expected),
        "compact": lambda: apart(measure_compaction, paths),
        "after compact": lambda: right(apart(measure_ours, paths, clip_ids), expected),
        "compact --ivf": lambda: apart(measure_compaction, paths, True),
        "approximate": lambda: right(apart(measure_ours, paths, clip_ids, True), expected),
        "duckdb": lambda: apart(measure_duckdb, paths, few),
        "lancedb": lambda: apart(measure_lancedb, paths, few),
    }
    for name, step in steps.items():
        facts[name] = step()
        print(name, json.dumps(facts[name]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(facts, indent=1) + "\n")
    return 0 if facts["after compact"]["right_answers"] == options.queries else 1


if __name__ == "__main__":
    sys.exit(main())
