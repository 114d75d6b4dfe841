"""What a search reads, counted at a real S3 server; and that it is the same as reading all."""

import dataclasses
import functools
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.s3 import S3Store
from indexer.table import snapshot as snapshot_module
from indexer.table.answers import HITS
from indexer.table.postings import Postings, _best_rows
from indexer.table.query import LabelIndex
from indexer.table.rows import unit_tables
from indexer.table.schema import LABELS, TABLES
from indexer.table.sorting import sorted_rows
from indexer.table.write import write_sorted
from tests.faults.proxy import Proxy, running
from tests.table.make import TAG, VOCABULARY, Run, context, new_index, unit

GROUP_ROWS = 200
SMALL_GROUPS = dataclasses.replace(LABELS, row_group_rows=GROUP_ROWS)
UNITS = [unit(f"s3://videos/{number:03}.mp4", range(8)) for number in range(100)]


def compacted(uri: str, target_bytes: int = 10**9) -> Run:
    """An index whose postings lie sorted in small row groups."""
    run = Run(new_index(uri))
    files = [file for file in run.write(*UNITS, top_k=5) if file.table != LABELS.name]
    rows = [unit_tables(UNITS, context(top_k=5))[LABELS.name]]
    files += write_sorted(
        sorted_rows(rows, LABELS.order), SMALL_GROUPS, run.paths, TAG, "made", target_bytes
    )
    run.committer.commit(files)
    return run


@functools.cache
def all_rows():
    return unit_tables(UNITS, context(top_k=5))[LABELS.name].select(HITS.names).to_pylist()


def naive(label: str | tuple[str, ...], min_score: float, top: int | None):
    labels = (label,) if isinstance(label, str) else label
    kept = [r for r in all_rows() if r["label"] in labels and r["score"] >= np.float32(min_score)]
    kept.sort(key=lambda r: (-r["score"], r["uri"], r["clip_index"], r["rank"]))
    return kept[:top]


@pytest.fixture(scope="module", params=["one file", "some files", "small files"])
def index(request, tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("postings") / "index")
    if request.param == "small files":
        run = Run(new_index(uri))
        for start in range(0, len(UNITS), 10):
            run.add(*UNITS[start : start + 10], top_k=5)
    else:
        compacted(uri, 10**9 if request.param == "one file" else 40_000)
    return LabelIndex.open(uri)


@pytest.mark.parametrize("min_score", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("top", [1, 300, None])
def test_no_row_group_is_missed(index, min_score, top):
    for label in ("growing", VOCABULARY[-1], ("growing", "Moving Right")):
        found = index.search(label, min_score=min_score, top=top)
        assert found.schema == HITS
        assert found.to_pylist() == naive(label, min_score, top)


def test_a_filter_that_leaves_little_reads_on(index):
    for video in ("*/099.mp4", "s3://videos/00[0-2].mp4"):
        rows = [r for r in naive("growing", 0, None) if query_glob(r["uri"], video)]
        assert index.search("growing", video=video, top=5).to_pylist() == rows[:5]


def query_glob(uri: str, video: str) -> bool:
    return uri.endswith("099.mp4") if video.startswith("*") else uri[12:15] in {"000", "001", "002"}


def test_a_footer_without_bounds_only_costs_time(index, monkeypatch):
    monkeypatch.setattr("indexer.table.postings._bounds", lambda column, default: default)
    fresh = LabelIndex.open(index.uri)
    assert fresh.search("growing", top=9).to_pylist() == naive("growing", 0, 9)


EQUALS = st.tuples(st.sampled_from([0.25, 0.5]), st.sampled_from("ab"), st.integers(0, 3))


@settings(max_examples=300)
@given(
    keys=st.lists(EQUALS, unique=True, max_size=12),
    top=st.none() | st.integers(1, 12),
    presorted=st.booleans(),
)
def test_equal_scores_come_in_a_total_order(keys, top, presorted):
    rows = [
        {"label": "x", "score": score, "rank": 1, "uri": uri, "clip_index": clip_index,
         "start_seconds": 0.0, "end_seconds": 1.0, "clip_id": f"{score}{uri}{clip_index}"}
        for score, uri, clip_index in keys
    ]  # fmt: skip
    best = sorted(rows, key=lambda row: (-row["score"], row["uri"], row["clip_index"]))
    given_rows = best if presorted else rows
    halves = [given_rows[: len(rows) // 2], given_rows[len(rows) // 2 :]]
    table = pa.concat_tables(pa.Table.from_pylist(half, schema=HITS) for half in halves)
    assert _best_rows(table, top).to_pylist() == best[:top]


# -- what is asked of the storage


@pytest.fixture
def proxy(s3, monkeypatch) -> Iterator[Proxy]:
    with running(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        S3Store.clear_instance_cache()
        yield proxy
    S3Store.clear_instance_cache()


def test_a_search_fetches_a_footer_and_what_it_needs_of_one_row_group(proxy, s3_folder):
    run = compacted(f"{s3_folder}/index")
    (file,) = Postings(run.paths, LabelIndex.open(run.paths.root_uri)._tables["labels"], TAG)._files
    index = LabelIndex.open(run.paths.root_uri)
    index.search("growing", min_score=1.0)  # reads the log
    proxy.reset()
    found = index.search("Moving Right", top=20)
    assert found.to_pylist() == naive("Moving Right", 0, 20)
    assert {method for method, _, _ in proxy.served} == {"GET"}
    _footer, *data = [size for _, _, size in proxy.served]
    assert len(data) <= 2
    a_group_bytes = file.size_bytes * GROUP_ROWS / file.rows
    assert sum(data) <= 2.2 * a_group_bytes < file.size_bytes / 8, "the label has five groups"
    proxy.reset()
    index.search("Moving Right", top=20)
    assert len(proxy.served) == len(data), "footers are kept"


def test_files_are_ruled_out_by_the_log(proxy, s3_folder):
    run = compacted(f"{s3_folder}/index", 20_000)
    index = LabelIndex.open(run.paths.root_uri)
    index.search("growing", min_score=1.0)
    assert len(index._postings._files) > 4
    proxy.reset()
    assert index.search("日本\n語", top=3).num_rows == 3
    assert len({path.partition("?")[0] for _, path, _ in proxy.served}) <= 2


def test_only_the_log_of_the_table_that_is_asked_is_read(proxy, s3_folder):
    run = compacted(f"{s3_folder}/index")
    proxy.reset()
    LabelIndex.open(run.paths.root_uri).search("growing")
    read = {path for _, path, _ in proxy.served if path.endswith(".json")}
    tables = {name for name in TABLES if any(f"/{name}/_delta_log/0" in path for path in read)}
    assert tables == {"labels"}


# -- a snapshot is of one moment


def test_what_outcomes_call_indexed_is_in_the_other_tables(tmp_path, monkeypatch):
    """A commit meanwhile: between the looks at two tables' versions."""
    run = Run(new_index(str(tmp_path / "index")))
    run.add(unit("before"))
    look = snapshot_module.newest_version
    looked = []

    def interrupted(paths, table):
        version = look(paths, table)
        if not looked:
            run.add(unit("meanwhile"))
        looked.append(table)
        return version

    monkeypatch.setattr(snapshot_module, "newest_version", interrupted)
    index = LabelIndex.open(run.paths.root_uri)
    indexed = set(index.videos()["uri"].to_pylist())
    assert looked[0] == "videos"
    assert indexed == {"before"}
    for table in ("clips", "labels"):
        assert indexed <= set(index.rows(table).to_table()["uri"].to_pylist())


def test_a_table_that_is_read_late_is_of_the_moment_of_opening(tmp_path):
    run = Run(new_index(str(tmp_path / "index")))
    run.add(unit("before"))
    index = LabelIndex.open(run.paths.root_uri)
    for number in range(3):
        run.add(unit(f"after {number}"))
    assert set(index.search("growing", top=None)["uri"].to_pylist()) <= {"before"}
    assert index.videos()["uri"].to_pylist() == ["before"]
    assert set(index.rows("clips").to_table()["uri"].to_pylist()) == {"before"}


@pytest.mark.parametrize("store", ["local", "s3"])
def test_the_newest_version_is_found_behind_a_checkpoint(store, tmp_path, request):
    folder = str(tmp_path) if store == "local" else request.getfixturevalue("s3_folder")
    run = Run(new_index(f"{folder}/index"))
    run.add(unit("a"))
    index = LabelIndex.open(run.paths.root_uri)
    table = index._tables["labels"]
    assert snapshot_module.newest_version(run.paths, "labels") == table.version()
    table.create_checkpoint()
    assert snapshot_module.newest_version(run.paths, "labels") == table.version()
    run.add(unit("b"))
    assert snapshot_module.newest_version(run.paths, "labels") == table.version() + 1
    assert set(LabelIndex.open(run.paths.root_uri).videos()["uri"].to_pylist()) == {"a", "b"}


# -- what a command loads


NEVER = ("pandas", "duckdb", "pyarrow.dataset", "ray", "torch", "av", "s3fs", "fsspec", "rich")


@pytest.mark.parametrize(
    ("filters", "slow"),
    [
        ([], (*NEVER, "pyarrow.compute", "asyncio", "indexer.table.write")),
        (["--after", "0", "--before", "99", "--video", "*", "--source", "a"], NEVER),
    ],
)
def test_a_search_loads_nothing_slow(tmp_path, filters, slow):
    """Pandas, which pyarrow likes to load, would double the time of the command."""
    run = Run(new_index(str(tmp_path / "index")))
    run.add(unit("a"), top_k=5)
    command = ["search", run.paths.root_uri, "growing", "--min-score", "0.01", *filters]
    code = (
        "import sys\n"
        "from indexer.cli import main\n"
        "try:\n"
        f"    main({command})\n"
        "except SystemExit as end: assert not end.code\n"
        f"print([name for name in {slow} if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "growing" in told.stdout
    assert told.stdout.splitlines()[-1] == "[]"
