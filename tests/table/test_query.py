import subprocess
import sys
from collections import defaultdict
from fnmatch import fnmatchcase

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.errors import ConfigError, QueryError, StorageError
from indexer.table import catalog
from indexer.table.answers import (
    ERRORS,
    HITS,
    LABEL_COUNTS,
    VIDEO_STATES,
)
from indexer.table.paths import IndexPaths
from indexer.table.query import LabelIndex
from indexer.table.rows import unit_tables
from indexer.table.schema import TABLES
from tests.table.make import FINGERPRINT, TAG, VOCABULARY, Run, context, new_index, unit

SCHEMAS = {"search": HITS, "labels": LABEL_COUNTS, "videos": VIDEO_STATES, "errors": ERRORS}


@pytest.fixture
def run(tmp_path):
    return Run(new_index(str(tmp_path / "index")))


def opened(run, model=None):
    return LabelIndex.open(run.paths.root_uri, model)


# -- search against an oracle


def oracle(units, label, *, min_score, top, video, before, after):
    rows = unit_tables(units, context())["labels"].to_pylist()
    hits = [
        row
        for row in rows
        if row["label"] == label
        and row["score"] >= np.float32(min_score)
        and (video is None or row["uri"] == video or fnmatchcase(row["uri"], video))
        and (before is None or row["end_seconds"] <= before)
        and (after is None or row["start_seconds"] >= after)
    ]
    hits.sort(key=lambda row: (-row["score"], row["uri"].encode(), row["clip_index"]))
    return [{name: row[name] for name in HITS.names} for row in hits[:top]]


uris = st.text(st.sampled_from("ab/'\"%_\\\n;é🎸"), max_size=6)
a_logit = st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0])
rows_of_logits = st.lists(st.tuples(*[a_logit] * len(VOCABULARY)), min_size=0, max_size=4)


@st.composite
def some_units(draw):
    found = draw(st.dictionaries(uris, rows_of_logits, max_size=5))
    return [
        unit(uri, range(len(logits)), logits_NK=np.array(logits, np.float32).reshape(-1, 5))
        for uri, logits in found.items()
    ]


@given(
    batches=st.lists(some_units(), min_size=1, max_size=2),
    label=st.sampled_from(VOCABULARY),
    min_score=st.sampled_from([0.0, 0.2, 0.25, 0.6, 1.0]),
    top=st.sampled_from([1, 3, None]),
    video=st.none() | st.text(st.sampled_from("ab/'%_\\é*?"), max_size=4),
    before=st.sampled_from([None, 8.5, 17.0, 20.0]),
    after=st.sampled_from([None, 0.0, 8.5, 9.0]),
)
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
def test_search_agrees_with_a_naive_reading(tmp_path_factory, batches, label, **question):
    run = Run(new_index(str(tmp_path_factory.mktemp("index"))))
    taken: set[str] = set()
    units = []
    for batch in batches:
        fresh = [one for one in batch if one.ref.uri not in taken]
        taken |= {one.ref.uri for one in fresh}
        units += fresh
        run.add(*fresh)
    index = opened(run)
    assert index.search(label, **question).to_pylist() == oracle(units, label, **question)
    check_labels(index, units)


def check_labels(index, units):
    scores, videos = defaultdict(list), defaultdict(set)
    for row in unit_tables(units, context())["labels"].to_pylist():
        scores[row["label"]].append(row["score"])
        videos[row["label"]].add(row["uri"])
    expected = sorted(scores, key=lambda label: (-len(scores[label]), label.encode()))
    found = index.labels().to_pylist()
    assert [row["label"] for row in found] == expected
    for row in found:
        kept = scores[row["label"]]
        assert (row["clips"], row["best_score"]) == (len(kept), max(kept))
        assert row["videos"] == len(videos[row["label"]])
        assert row["mean_score"] == pytest.approx(sum(kept) / len(kept))


def test_a_minimum_score_is_met_by_the_score_that_is_shown(run):
    run.add(unit("a", range(8)))
    index = opened(run)
    for row in index.search("growing", top=None).to_pylist():
        hits = index.search("growing", min_score=row["score"], top=None)["score"].to_pylist()
        assert min(hits) == row["score"]


@pytest.mark.parametrize("uri", ["s3://b/[1].mp4", "s3://b/it's; DROP TABLE hits.mp4", "a\nb"])
def test_a_video_is_found_by_its_exact_name(run, uri):
    run.add(unit(uri), unit("s3://b/1x.mp4"), top_k=5)
    index = opened(run)
    hits = index.search("growing", video=uri, top=None)
    assert set(hits["uri"].to_pylist()) == {uri}
    hits = index.search("growing", video="s3://b/1*", top=None)
    assert set(hits["uri"].to_pylist()) == {"s3://b/1x.mp4"}


def test_times_are_inclusive_at_the_edges(run):
    run.add(unit("a", range(4)), top_k=5)
    hits = opened(run).search("growing", after=8.5, before=25.5, top=None)
    assert sorted(hits["clip_index"].to_pylist()) == [1, 2]


# -- names of labels


@pytest.mark.parametrize("name", ["moving right", "MOVING RIGHT", " Moving Right "])
def test_case_does_not_matter_where_it_tells_nothing_apart(run, name):
    run.add(unit(), top_k=5)
    assert set(opened(run).search(name)["label"].to_pylist()) == {"Moving Right"}


def index_of(tmp_path, vocabulary):
    paths = IndexPaths(str(tmp_path / "cases"))
    catalog.create_index(paths)
    catalog.register_model(paths, TAG, FINGERPRINT, vocabulary)
    return Run(paths)


def test_an_exact_name_wins_and_an_ambiguous_one_is_asked_back(tmp_path):
    index = opened(index_of(tmp_path, ("polo", "Polo")))
    assert index.search("polo").num_rows == 0
    with pytest.raises(QueryError, match="did you mean 'Polo', 'polo'"):
        index.search("POLO")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("groing", "did you mean 'growing'"),
        ("moveing left", "did you mean 'moving left'"),
        ("a right turn", "'Moving Right'"),
        ("xyzzy", "indexer labels"),
        ("", "indexer labels"),
        ("its; DROP TABLE labels", 'did you mean "it\'s; DROP TABLE labels"'),
    ],
)
def test_an_unknown_label_gets_help(run, asked, says):
    run.add(unit())
    with pytest.raises(QueryError, match="has no label") as refusal:
        opened(run).search(asked)
    assert says in str(refusal.value)


def test_a_label_without_clips_is_an_empty_answer(run):
    run.add(unit(clips=[0], logits_NK=np.array([[9, 0, 0, 0, 0]], np.float32)), top_k=1)
    found = opened(run).search("moving left")
    assert found.num_rows == 0
    assert found.schema == HITS


@pytest.mark.parametrize(
    "question", [{"min_score": -0.1}, {"min_score": 1.5}, {"min_score": float("nan")}, {"top": 0}]
)
def test_impossible_arguments_are_refused(run, question):
    with pytest.raises(QueryError, match="give"):
        opened(run).search("growing", **question)


# -- opening


def test_no_index_here(tmp_path):
    with pytest.raises(QueryError, match="there is no index at"):
        LabelIndex.open(str(tmp_path / "nowhere"))


def test_an_index_without_model_or_tables_says_so(tmp_path):
    paths = IndexPaths(str(tmp_path / "index"))
    catalog.create_index(paths)
    with pytest.raises(QueryError, match="is empty; fill it with"):
        LabelIndex.open(paths.root_uri)
    catalog.register_model(paths, TAG, FINGERPRINT, VOCABULARY)
    with pytest.raises(QueryError, match="has not begun to write"):
        LabelIndex.open(paths.root_uri)


def test_the_newest_model_is_the_default_and_models_do_not_mix(run):
    run.add(unit("a"))
    catalog.register_model(run.paths, "newer", FINGERPRINT, VOCABULARY)
    Run(run.paths, tag="newer", run_id="run-2").add(unit("b"), unit("c"))
    assert opened(run).tag == "newer"
    assert opened(run).videos()["uri"].to_pylist() == ["b", "c"]
    assert opened(run, TAG).videos()["uri"].to_pylist() == ["a"]
    assert set(opened(run, TAG).search("growing")["uri"].to_pylist()) <= {"a"}
    assert opened(run, TAG).status()["tables"]["clips"]["rows"] == 2
    with pytest.raises(QueryError, match=f"no model 'x'; it has {TAG}, newer"):
        opened(run, "x")


def test_an_open_index_is_a_snapshot(run):
    run.add(unit("a"))
    index = opened(run)
    run.add(unit("b"))
    run.committer.remove_videos([unit("a").ref.video_id], ["a"])
    assert index.videos()["uri"].to_pylist() == ["a"]
    assert set(index.search("growing", top=None)["uri"].to_pylist()) <= {"a"}
    assert opened(run).videos()["uri"].to_pylist() == ["b"]


def test_a_vanished_file_is_a_storage_error(run):
    files = run.write(unit("a"))
    run.committer.commit(files)
    index = opened(run)
    fs_paths = {file.table: run.paths.data_file(file.table, file.path) for file in files}
    for name in ("labels", "videos"):
        with open(fs_paths[name], "wb") as file:  # noqa: PTH123
            file.write(b"gone")
    with pytest.raises(StorageError, match="cannot be read"):
        index.search("growing")
    with pytest.raises(StorageError, match="cannot be read"):
        index.videos()


def test_an_empty_index_answers_with_the_documented_columns(run):
    index = opened(run)
    answers = {
        "search": index.search("growing"),
        "labels": index.labels(),
        "videos": index.videos(),
        "errors": index.errors(),
    }
    for name, answer in answers.items():
        assert answer.num_rows == 0
        assert answer.schema == SCHEMAS[name]
    assert index.status()["videos"] == {"indexed": 0, "failed": 0, "incomplete": 0}


# -- outcomes


def test_videos_and_errors_count_the_latest_attempts(run):
    run.add(unit("good"), unit("bad", failure="corrupt", info=None))
    run.add(
        unit("retried", failure="timeout"),
        unit("half", [0], units=2),
        unit("torn", [0], units=2),
        unit("torn", failure="corrupt", unit_index=1, units=2),
    )
    run.add(
        unit("retried", attempt=2),
        unit("bad", failure="missing", info=None, attempt=2),
    )
    index = opened(run)
    states = {row["uri"]: row for row in index.videos().to_pylist()}
    assert {uri: row["status"] for uri, row in states.items()} == {
        "good": "indexed", "bad": "failed", "retried": "indexed", "half": "incomplete",
        "torn": "failed",
    }  # fmt: skip
    assert list(states) == sorted(states)
    assert (states["torn"]["units"], states["torn"]["units_indexed"]) == (2, 1)
    assert (states["bad"]["error_code"], states["bad"]["attempts"]) == ("missing", 2)
    assert states["retried"]["error_code"] is None
    assert states["good"]["width"] == 640
    assert states["good"]["warnings"] == ["12 packets failed to decode"]
    assert states["bad"]["width"] is None
    errors = [(row["uri"], row["error_code"]) for row in index.errors().to_pylist()]
    assert errors == [("torn", "corrupt"), ("bad", "missing")]
    assert index.errors("missing")["uri"].to_pylist() == ["bad"]
    assert index.errors("'; DROP TABLE videos; --").num_rows == 0


def test_status_adds_up(run):
    run.add(unit("a"), unit("b", [0]), unit("c", failure="corrupt"))
    catalog.write_run_report(run.paths, "run-1", {"started_at": "2026-11-22", "videos": 3})
    status = opened(run).status()
    assert status["videos"] == {"indexed": 2, "failed": 1, "incomplete": 0}
    assert status["clips"] == 3
    assert status["hours"] == pytest.approx(25 / 3600)
    assert status["errors"] == {"corrupt": 1}
    assert {name: size["rows"] for name, size in status["tables"].items()} == {
        "clips": 3, "embeddings": 3, "labels": 9, "videos": 3,
    }  # fmt: skip
    assert all(size["bytes"] > 0 and size["files"] == 1 for size in status["tables"].values())
    assert [model["id"] for model in status["models"]] == ["demo"]
    assert status["runs"] == [{"run_id": "run-1", "started_at": "2026-11-22", "videos": 3}]


# -- where and how


def test_an_index_on_s3_answers(s3):
    run = Run(new_index(f"s3://{s3.bucket()}/deep/index"))
    run.add(unit("a"), unit("b", failure="corrupt"))
    index = opened(run)
    assert index.search("growing", top=None).to_pylist() == oracle(
        [unit("a")], "growing", min_score=0, top=None, video=None, before=None, after=None
    )
    assert index.status()["videos"] == {"indexed": 1, "failed": 1, "incomplete": 0}
    with pytest.raises(QueryError, match="there is no index at"):
        LabelIndex.open(f"s3://{s3.bucket()}/index")


def test_questions_need_neither_ray_nor_a_model():
    code = (
        "import sys; import indexer.table.query;"
        "print([m for m in ('ray', 'torch', 'av', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_an_impossible_folder_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError):
        LabelIndex.open(str(tmp_path / "%41"))


def test_the_tables_have_no_type_that_an_engine_lacks():
    shared = {pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_()}
    shared.add(pa.timestamp("us", tz="UTC"))
    for spec in TABLES.values():
        for field in spec.schema:
            is_list = pa.types.is_list(field.type)
            assert (field.type.value_type if is_list else field.type) in shared
            assert not is_list or field.type.value_field.name == "element"
