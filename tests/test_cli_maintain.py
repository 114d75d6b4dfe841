"""`compact`, `verify` and `delete` as a user meets them."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from deltalake import DeltaTable
from safetensors.numpy import save_file

from indexer.cli import main
from indexer.table import catalog
from indexer.table.delta import live_files, open_table
from indexer.table.paths import IndexPaths
from indexer.table.schema import TABLES
from tests.table.make import TAG, Run, new_index, unit


def call(capsys, *args):
    """Runs the command line in this process; gives exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as exit_:
        main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return exit_.value.code, captured.out, captured.err


@pytest.fixture
def index(tmp_path):
    run = Run(new_index(str(tmp_path / "index")))
    run.add(unit("s3://videos/a.mp4"), unit("s3://videos/b.mp4", range(3)))
    run.add(unit("s3://videos/c.mp4"))
    return tmp_path / "index"


def data_file(index: Path, table: str) -> Path:
    paths = IndexPaths(str(index))
    return Path(paths.data_file(table, live_files(open_table(paths, TABLES[table]))[0].path))


def test_compact_prints_what_became_of_each_table(capsys, index):
    code, out, err = call(capsys, "compact", index, "--format", "json")
    rows = json.loads(out)
    assert code == 0
    assert [(row["table"], row["files_before"], row["files_after"]) for row in rows] == [
        *((name, 2, 1) for name in TABLES),
        ("_similarity", 0, 1),
    ]
    assert f"{TAG} labels: 2 files are 1 now" in err
    assert call(capsys, "compact", index, "--model", TAG, "--keep-history")[0] == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--target-file-size", "much"], "should be a size such as 256MB"),
        (["--target-file-size", "0"], "should be 1 byte or more"),
        (["--model", "nope"], "has no model 'nope'"),
    ],
)
def test_what_cannot_be_compacted_is_refused(capsys, index, args, words):
    code, _, err = call(capsys, "compact", index, *args)
    assert code == 2
    assert words in err


@pytest.mark.parametrize("size", ["1000", "1kB", "0.5 MB", "2GB"])
def test_sizes_have_units(capsys, index, size):
    assert call(capsys, "compact", index, "--target-file-size", size)[0] == 0


def test_verify_says_that_every_promise_holds(capsys, index):
    code, out, err = call(capsys, "verify", index, "--format", "json")
    found = json.loads(out)
    assert code == 0
    assert (found["broken"], found["files"], found["index_anew"]) == (False, 8, {TAG: []})
    assert "every promise holds" in err


def test_verify_names_what_is_broken_and_how_to_mend_it(capsys, index):
    path = data_file(index, "embeddings")
    path.unlink()
    code, out, err = call(capsys, "verify", index)
    assert code == 1
    assert "the file is missing" in out
    assert path.name in out
    assert "videos of demo-3f9a1c must be indexed anew" in err
    assert f"indexer verify --repair {index}" in err


def test_repair_says_what_it_did_and_what_is_left(capsys, index):
    data_file(index, "labels").unlink()
    code, out, err = call(capsys, "verify", "--repair", index, "--format", "json")
    found = json.loads(out)
    assert code == 0
    assert len(found["repaired"]["dropped_files"]) == 1
    assert found["repaired"]["postings"] == [TAG]
    assert "made the postings of 1 models again" in err
    data_file(index, "clips").write_bytes(b"gone")
    code, out, err = call(capsys, "verify", "--repair", index)
    assert code == 1
    assert f"--index {index} --if-exists overwrite" in err


def test_delete_says_what_is_gone(capsys, index):
    code, out, _ = call(capsys, "delete", index, "s3://videos/a.mp4", "--format", "json")
    (row,) = json.loads(out)
    assert code == 0
    assert len(row["video_ids"]) == 1
    assert row["models"] == [TAG]
    code, _, err = call(capsys, "delete", index, "s3://videos/nope.mp4")
    assert code == 2
    assert "nothing was deleted" in err


@pytest.mark.parametrize("command", [["compact"], ["verify"], ["verify", "--repair"], ["delete"]])
def test_where_there_is_no_index_none_is_made(capsys, tmp_path, command):
    videos = ["x"] if command == ["delete"] else []
    code, _, err = call(capsys, *command, tmp_path, *videos)
    assert code == 2
    assert "there is no index" in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def head(tmp_path):
    """Options that name a head of three labels."""
    weight_KD = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    save_file({"weight": weight_KD, "bias": np.zeros(3, np.float32)}, tmp_path / "my head.st")
    (tmp_path / "labels.json").write_text('["jumping", "running", "standing"]')
    return ["--head", tmp_path / "my head.st", "--labels", tmp_path / "labels.json"]


def test_relabel_says_what_it_made_and_can_be_asked(capsys, index, head):
    code, out, err = call(capsys, "relabel", index, *head, "--format", "json")
    (row,) = json.loads(out)
    assert code == 0
    assert (row["source"], row["units"], row["clips"]) == (TAG, 3, 7)
    assert row["model"].startswith("demo-my-head-")
    assert err == "7 of 7 clips are labelled\n"
    code, out, _ = call(capsys, "labels", index, "--format", "json")
    assert {found["label"] for found in json.loads(out)} == {"jumping", "running", "standing"}
    assert call(capsys, "verify", index)[0] == 0
    code, out, _ = call(capsys, "status", index)
    assert row["run_id"] in out
    code, out, _ = call(capsys, "relabel", index, *head, "--model", TAG, "--tag", "mine")
    assert code == 0
    assert "mine" in out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--head", "/no/head"], "is no readable safetensors file"),
        (["--labels", "/no/labels"], "is no readable JSON file"),
        (["--model", "nope"], "has no model 'nope'"),
        (["--tag", "a/b"], "should be letters"),
        (["--tag", TAG], "come from decoded videos"),
    ],
)
def test_what_cannot_be_relabelled_is_refused(capsys, index, head, changes, words):
    code, _, err = call(capsys, "relabel", index, *head, *changes)
    assert code == 2
    assert words in err


def test_an_interrupted_relabelling_resumes(capsys, index, head, monkeypatch):
    monkeypatch.setattr("indexer.table.relabel.GROUP_CLIPS", 2)
    monkeypatch.setattr("indexer.cli_maintain._tell_clips", signal.default_int_handler)
    assert call(capsys, "relabel", index, *head)[0] == 130
    monkeypatch.undo()
    code, out, _ = call(capsys, "relabel", index, *head, "--format", "json")
    (row,) = json.loads(out)
    assert code == 0
    assert 0 < row["units"] < 3
    reports = catalog.read_run_reports(IndexPaths(str(index)))
    assert [report["status"] for report in reports[-2:]] == ["interrupted", "finished"]


def test_relabel_says_that_units_were_left_out(capsys, index, head):
    DeltaTable(str(index / "embeddings")).delete("clip_index = 2")
    code, out, err = call(capsys, "relabel", index, *head, "--format", "json")
    assert code == 1
    assert json.loads(out)[0]["left_units"] == 1
    assert f"1 units of {TAG} were left out" in err


def test_a_run_into_a_relabelled_tag_is_refused(capsys, index, head, tmp_path):
    call(capsys, "relabel", index, *head, "--tag", "mine")
    (tmp_path / "v.mp4").write_bytes(b"not really")
    options = ["--index", index, "--model", "demo", "--set", "output.tag=mine"]
    code, _, err = call(capsys, "run", tmp_path / "v.mp4", *options)
    assert code == 2
    assert "were made by `indexer relabel`" in err
    assert "--set output.tag=NAME" in err
