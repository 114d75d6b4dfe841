"""An index as plain files: every row once, and hostile names are text."""

import csv
import json
import shutil
import subprocess

import numpy as np
import pyarrow.dataset as ds
import pytest

from indexer.errors import QueryError
from indexer.table import export as export_module
from indexer.table.export import KINDS, export
from indexer.table.query import LabelIndex
from indexer.table.schema import TABLES
from tests.table.make import TAG, Run, new_index, unit

HOSTILE = [
    "s3://films/a;touch $(touch x)`touch y`'\".mp4",
    "/videos/-i --> <b>&amp;\n.mp4",
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd",
    "/a/b/Ünï cödé 🎸.mkv",
    "-rf",
]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    run = Run(new_index(str(tmp_path_factory.mktemp("export") / "index")))
    for uri in HOSTILE:
        logits = np.full((3, 5), -9.0, np.float32)
        logits[:, 3] = 9.0  # it's; DROP TABLE labels
        run.add(unit(uri, range(3), logits_NK=logits))
    run.add(unit("/videos/bad.mp4", failure="corrupt"))
    return LabelIndex.open(run.paths.root_uri)


def test_parquet_holds_every_row_once(index, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "_FILE_ROWS", 5)
    monkeypatch.setattr(export_module, "_BATCH_ROWS", 2)
    paths = export(index, tmp_path / "out", "parquet")
    assert len(paths) > len(TABLES)
    for name in TABLES:
        found = ds.dataset(tmp_path / "out" / name, partitioning="hive").to_table()
        assert set(found["model"].to_pylist()) == {TAG}
        rows = index.rows(name).to_table()
        assert sorted(map(repr, found.select(rows.column_names).to_pylist())) == sorted(
            map(repr, rows.to_pylist())
        )


def test_nemo_reads_ids_and_embeddings_alone(index, tmp_path):
    export(index, tmp_path, "nemo")
    found = ds.dataset(tmp_path).to_table()
    assert found.column_names == ["id", "embedding"]
    embeddings = index.rows("embeddings").to_table()
    expected = dict(
        zip(*(embeddings[n].to_pylist() for n in ("clip_id", "embedding")), strict=True)
    )
    assert dict(zip(*(found[n].to_pylist() for n in found.column_names), strict=True)) == expected


def test_no_cell_of_a_spreadsheet_is_a_formula(index, tmp_path):
    paths = export(index, tmp_path, "csv")
    assert [path.name for path in paths] == [
        "clips.csv", "labels.csv", "videos.csv", "segments.csv",
    ]  # fmt: skip
    cells = []
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            cells += [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[:1] in "=+-@\t\r\n" and cell]
    assert "'=cmd|' /C calc'!A0" in cells
    assert "'-rf" in cells


def test_every_line_is_an_object(index, tmp_path):
    export(index, tmp_path, "jsonl")
    rows = [json.loads(line) for line in (tmp_path / "clips.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * len(HOSTILE)
    assert {row["uri"] for row in rows} == set(HOSTILE)


def test_the_script_runs_nothing_but_ffmpeg(index, tmp_path):
    """A stand-in for ffmpeg writes its arguments down."""
    (script,) = export(index, tmp_path / "out", "cuts")
    tools = tmp_path / "tools"
    tools.mkdir()
    calls = tmp_path / "calls"
    (tools / "ffmpeg").write_text(
        f'#!/bin/sh\nfor a in "$@"; do printf "%s\\0" "$a" >> {calls}; done\n'
        f'printf "\\1" >> {calls}\n'
    )
    (tools / "ffmpeg").chmod(0o755)
    (tools / "mkdir").symlink_to(shutil.which("mkdir"))
    folder = tmp_path / "run"
    folder.mkdir()
    subprocess.run(
        ["/bin/sh", script, "cut here"], env={"PATH": str(tools)}, cwd=folder, check=True
    )
    assert [path.name for path in folder.iterdir()] == ["cut here"]
    found = [call.split("\0")[:-1] for call in calls.read_text().split("\1")[:-1]]
    assert len(found) == len(HOSTILE)
    sources = {call[call.index("-i") + 1] for call in found}
    assert sources == {uri if "://" in uri else f"file:{uri}" for uri in HOSTILE}
    for call in found:
        assert call[:7] == ["-nostdin", "-v", "error", "-ss", "0.000", "-to", "25.500"]
        assert call[-1].startswith("cut here/0000")
        assert "/" not in call[-1].removeprefix("cut here/")


def test_chapters_are_text(index, tmp_path):
    paths = export(index, tmp_path, "webvtt")
    assert len(paths) == len(HOSTILE)
    for path in paths:
        assert path.parent == tmp_path
        assert path.read_text() == (
            "WEBVTT\n\n00:00:00.000 --> 00:00:25.500\nit's; DROP TABLE labels\n"
        )


def test_a_cue_is_one_line_without_markup():
    assert export_module._cue("a\n\n--> <b> & c") == "a --&gt; &lt;b&gt; &amp; c"


def test_what_cannot_be_done_is_refused(index, tmp_path):
    with pytest.raises(QueryError, match="should be one of parquet"):
        export(index, tmp_path / "x", "xlsx")
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(QueryError, match="is not empty"):
        export(index, tmp_path, "csv")


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_of_failures_can_be_exported(kind, tmp_path):
    run = Run(new_index(str(tmp_path / "index")))
    run.add(unit(failure="corrupt"))
    export(LabelIndex.open(run.paths.root_uri), tmp_path / "out", kind)
