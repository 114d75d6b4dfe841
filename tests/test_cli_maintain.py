"""`compact`, `verify` and `delete` as a user meets them."""

import json
from pathlib import Path

import pytest

from indexer.cli import main
from indexer.table.delta import live_files, open_table
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
    from indexer.table.paths import IndexPaths

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
