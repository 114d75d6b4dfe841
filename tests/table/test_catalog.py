import json
from pathlib import Path

import pytest

from indexer import storage
from indexer.errors import ConfigError, QueryError, StorageError
from indexer.table import catalog
from indexer.table.paths import IndexPaths, data_file_path
from tests.table.make import FINGERPRINT, TAG, VOCABULARY, new_index


@pytest.fixture
def paths(tmp_path):
    return IndexPaths(str(tmp_path / "index"))


def put(uri: str, content: object) -> None:
    storage.write_bytes(uri, json.dumps(content).encode())


def test_an_index_is_created_once(paths):
    catalog.create_index(paths)
    first = storage.read_bytes(paths.index_json)
    catalog.create_index(paths)
    assert storage.read_bytes(paths.index_json) == first
    assert json.loads(first)["version"] == 1
    catalog.check_index(paths)


def test_a_folder_with_other_things_is_refused(paths):
    put(storage.join(paths.root_uri, "holiday.mp4"), {})
    with pytest.raises(ConfigError, match=r"is no index, but holds holiday\.mp4"):
        catalog.create_index(paths)
    assert not storage.exists(paths.index_json)


def test_hidden_files_do_not_matter(paths):
    put(storage.join(paths.root_uri, ".DS_Store"), {})
    catalog.create_index(paths)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"format": "video-label-index", "version": 2}, "format version 2, this program knows 1"),
        ({"format": "video-label-index"}, "format version None"),
        ({"hello": 1}, "not written by the indexer"),
    ],
)
def test_an_index_of_another_kind_is_refused(paths, content, says):
    put(paths.index_json, content)
    with pytest.raises(ConfigError, match=says):
        catalog.create_index(paths)
    with pytest.raises(QueryError, match=says):
        catalog.check_index(paths)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_a_damaged_index_json_is_a_storage_error(paths, content):
    storage.write_bytes(paths.index_json, content)
    with pytest.raises(StorageError, match=r"index\.json"):
        catalog.create_index(paths)


def test_no_index_tells_how_to_make_one(paths):
    with pytest.raises(QueryError, match="indexer run VIDEOS --index"):
        catalog.check_index(paths)


def test_a_tag_keeps_its_fingerprint(paths):
    first = catalog.register_model(paths, TAG, FINGERPRINT, VOCABULARY)
    assert catalog.register_model(paths, TAG, FINGERPRINT, VOCABULARY) == first
    assert catalog.read_model(paths, TAG) == first
    assert first.labels == VOCABULARY


def test_a_tag_refuses_another_fingerprint_and_names_what_differs(paths):
    catalog.register_model(paths, TAG, {**FINGERPRINT, "top_k": 5}, VOCABULARY)
    other = {"model": {"id": "demo", "revision": "v2"}, "sampling": {"mode": "uniform"}}
    with pytest.raises(ConfigError) as refusal:
        catalog.register_model(paths, TAG, other, ("Growing", *VOCABULARY[1:]))
    lines = str(refusal.value).splitlines()
    assert "  labels[0]: 'growing' in the index, 'Growing' now" in lines
    assert "  model.revision: None in the index, 'v2' now" in lines
    assert "  sampling.mode: 'windows' in the index, 'uniform' now" in lines
    assert "  top_k: 5 in the index, '(absent)' now" in lines
    assert not any("model.id" in line for line in lines)


def test_another_vocabulary_is_refused_in_a_short_message(paths):
    catalog.register_model(paths, TAG, FINGERPRINT, VOCABULARY)
    with pytest.raises(ConfigError, match="labels: ") as refusal:
        catalog.register_model(paths, TAG, FINGERPRINT, [str(i) for i in range(400)])
    assert max(map(len, str(refusal.value).splitlines())) < 300


def test_models_are_listed_the_newest_last(paths):
    for tag in ("b", "c", "a"):
        catalog.register_model(paths, tag, FINGERPRINT, VOCABULARY)
    assert catalog.model_tags(paths) == ("b", "c", "a")
    with pytest.raises(QueryError, match="has no model 'x'; it has b, c, a"):
        catalog.read_model(paths, "x")


def test_a_damaged_model_file_is_named(paths):
    put(paths.model_json(TAG), {"tag": TAG})
    with pytest.raises(StorageError, match=rf"{TAG}\.json is damaged"):
        catalog.read_model(paths, TAG)


def test_run_reports_are_replaced_and_listed_in_order(paths):
    assert catalog.read_run_reports(paths) == ()
    catalog.write_run_report(paths, "b", {"started_at": "2026-11-22", "state": "running"})
    catalog.write_run_report(paths, "a", {"started_at": "2026-11-23"})
    catalog.write_run_report(paths, "b", {"started_at": "2026-11-22", "state": "done"})
    assert catalog.read_run_reports(paths) == (
        {"run_id": "b", "started_at": "2026-11-22", "state": "done"},
        {"run_id": "a", "started_at": "2026-11-23"},
    )


def test_the_catalog_works_on_s3(s3):
    paths = new_index(f"s3://{s3.bucket()}/index")
    new_index(paths.root_uri)
    assert catalog.model_tags(paths) == (TAG,)
    catalog.write_run_report(paths, "r", {})
    assert catalog.read_run_reports(paths) == ({"run_id": "r"},)
    bucket = s3.bucket()
    put(f"s3://{bucket}/folder/holiday.mp4", {})
    with pytest.raises(ConfigError, match="is no index"):
        catalog.create_index(IndexPaths(f"s3://{bucket}/folder"))


def test_paths_are_canonical(tmp_path):
    assert IndexPaths("s3://bucket/index/").table("clips") == "s3://bucket/index/clips"
    assert IndexPaths(str(tmp_path / "x" / ".." / "y")).runs == str(tmp_path / "y" / "runs")
    path = data_file_path("tsf@v1/x", "run-task", "0123456789abcdef0000")
    assert path == "model=tsf%40v1%2Fx/part-run-task-0123456789abcdef.parquet"
    assert IndexPaths(str(tmp_path)).data_file("clips", path) == str(Path(tmp_path, "clips", path))


def test_a_folder_that_delta_cannot_name_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="'%41' in its name"):
        IndexPaths(str(tmp_path / "a%41b"))


def test_a_tag_keeps_the_dtype_of_its_first_run(paths):
    catalog.settle_precision(paths, "base-1", "float16")
    catalog.settle_precision(paths, "base-1", "float16")
    catalog.settle_precision(paths, "base-2", "bfloat16")
    with pytest.raises(
        ConfigError, match=r"scored in float16.*stands for bfloat16.*precision\.model"
    ):
        catalog.settle_precision(paths, "base-1", "bfloat16")
