"""An index as plain files: every row once, and hostile names are text."""

import csv
import dataclasses
import json
import random
import re
import shutil
import subprocess

import numpy as np
import pyarrow.dataset as ds
import pytest

from indexer.errors import QueryError
from indexer.table import catalog
from indexer.table import export as export_module
from indexer.table.export import KINDS, export
from indexer.table.query import LabelIndex
from indexer.table.schema import TABLES
from tests.table.make import INFO, TAG, VOCABULARY, Run, new_index, ref, unit

HOSTILE = [
    "s3://films/a;touch $(touch x)`touch y`'\".mp4",
    "/videos/-i --> <b>&amp;\n.mp4",
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd",
    "/a/b/Ünï cödé 🎸.mkv",
    "-rf",
    "\uff1dSUM(1)",
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
    assert not [cell for cell in cells if cell[:1] in "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20" and cell]
    assert "'=cmd|' /C calc'!A0" in cells
    assert "'-rf" in cells


def test_every_line_is_an_object(index, tmp_path):
    export(index, tmp_path, "jsonl")
    rows = [json.loads(line) for line in (tmp_path / "clips.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * len(HOSTILE)
    assert {row["uri"] for row in rows} == set(HOSTILE)


def calls_of(script, shell, tmp_path, *arguments):
    """What the script gives to ffmpeg, for which a stand-in writes its arguments down."""
    tools = tmp_path / "tools"
    tools.mkdir()
    calls = tmp_path / "calls"
    (tools / "ffmpeg").write_text(
        f'#!/bin/sh\nfor a in "$@"; do printf "%s\\0" "$a" >> {calls}; done\n'
        f'printf "\\1\\0" >> {calls}\n'
    )
    (tools / "ffmpeg").chmod(0o755)
    (tools / "mkdir").symlink_to(shutil.which("mkdir"))
    folder = tmp_path / "run"
    folder.mkdir()
    subprocess.run(
        [shutil.which(shell), script, *arguments],
        env={"PATH": str(tools)},
        cwd=folder,
        check=True,
    )
    assert [path.name for path in folder.iterdir()] == [*(arguments or ["cuts"])]
    text = calls.read_bytes().decode()
    return [call.split("\0") for call in text.removesuffix("\0\1\0").split("\0\1\0")]


def test_the_script_runs_nothing_but_ffmpeg(index, tmp_path):
    (script,) = export(index, tmp_path / "out", "cuts")
    found = calls_of(script, "sh", tmp_path, "cut here")
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


BLOCK = re.compile(r"(\d\d:[0-5]\d:[0-5]\d\.\d{3}) --> (\d\d:[0-5]\d:[0-5]\d\.\d{3})\n([^\n]*)\n")
"""A cue as the grammar of WebVTT has it, without an identifier and settings."""


def test_chapters_follow_the_grammar(index, tmp_path):
    names = ["a --> b", "<v Roger>", "NOTE x", "WEBVTT", "\u2028\r\n\n", "&amp;", "00:00 --> 1:00"]
    logits_NK = np.where(np.eye(7) > 0, 20.0, -20.0).astype(np.float32)
    paths = new_index(str(tmp_path / "index"), "other")
    catalog.register_model(paths, TAG, {}, names)
    Run(paths).add(unit("v.mp4", range(7), logits_NK=logits_NK), labels=tuple(names))
    (path,) = export(LabelIndex.open(paths.root_uri), tmp_path / "out", "webvtt")
    head, *blocks = path.read_text(encoding="utf-8").removesuffix("\n").split("\n\n")
    found = [BLOCK.fullmatch(f"{block}\n") for block in blocks]
    assert head == "WEBVTT"
    assert all(found)
    assert [(match[1], match[2]) for match in found] == [
        (f"00:{8.5 * i // 60:02.0f}:{8.5 * i % 60:06.3f}",
         f"00:{8.5 * (i + 1) // 60:02.0f}:{8.5 * (i + 1) % 60:06.3f}") for i in range(7)
    ]  # fmt: skip
    assert not [match for match in found if "-->" in match[3] or "<" in match[3]]


NASTY = "'\"`$(){}[]*?!&|;<>\\#~%=- \t\n\r\u2028\u00e9\U0001f3b8\x01\x7f@:/."


def test_no_name_leaves_its_quotes(tmp_path):
    """Two hundred names of nothing but special characters, in a real bash."""
    rng = random.Random(4)
    uris = {"".join(rng.choices(NASTY, k=rng.randint(1, 30))) for _ in range(200)}
    labels = tuple(sorted({"".join(rng.choices(NASTY, k=12)) for _ in range(200)}))
    paths = new_index(str(tmp_path / "index"), "other")
    catalog.register_model(paths, TAG, {}, labels)
    units = []
    for number, uri in enumerate(sorted(uris)):
        logits_NK = np.full((1, len(labels)), -20.0, np.float32)
        logits_NK[0, number % len(labels)] = 20.0
        units.append(unit(uri, range(1), logits_NK=logits_NK))
    Run(paths).add(*units, labels=labels)
    (script,) = export(LabelIndex.open(paths.root_uri), tmp_path / "out", "cuts")
    subprocess.run(["bash", "-n", script], check=True)
    found = calls_of(script, "bash", tmp_path)
    assert {call[call.index("-i") + 1] for call in found} == {
        uri if "://" in uri else f"file:{uri}" for uri in uris
    }
    assert all(re.fullmatch(r"cuts/\d{5}_[\w.-]+", call[-1], re.ASCII) for call in found)


def test_fiftyone_gets_a_sample_for_each_video(tmp_path):
    """Checked against the importer of FiftyOne 1.22: hex ids, for it cuts what follows a dot."""
    run = Run(new_index(str(tmp_path / "index")))
    logits_NK = np.full((4, 5), -9.0, np.float32)
    logits_NK[:2, 3] = logits_NK[2:, 4] = 9.0
    slow = dataclasses.replace(INFO, fps=0.0)
    run.add(unit("/v/a.b.mp4", range(4), logits_NK=logits_NK), unit("/v/bad", failure="corrupt"))
    run.add(unit("/v/slow", range(4), logits_NK=logits_NK, info=slow))
    run.add(unit("/v/none", (0,), logits_NK=np.zeros((1, 5), np.float32)))
    export(LabelIndex.open(run.paths.root_uri), tmp_path / "out", "fiftyone")
    data, labels = (
        json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("data", "labels")
    )
    assert data == {ref(uri).video_id: uri for uri in ("/v/a.b.mp4", "/v/slow", "/v/none")}
    assert labels["classes"] == list(VOCABULARY)
    assert labels["labels"].keys() == data.keys()
    found = {data[key]: value for key, value in labels["labels"].items()}
    assert found["/v/none"] == []
    first, second = found["/v/a.b.mp4"]
    assert (first["label"], second["label"]) == VOCABULARY[3:]
    # 29.97 frames a second: the 510th begins at 16.98 s, the 511th at 17.02, the 1019th at 33.97
    assert (first["support"], second["support"]) == ([1, 510], [511, 1019])
    assert second["attributes"].items() >= {"start_ms": 17_000, "end_ms": 34_000}.items()
    assert 0.99 < second["confidence"] <= 1
    assert [entry["timestamps"] for entry in found["/v/slow"]] == [[0.0, 17.0], [17.0, 34.0]]


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "fps", "support"),
    [
        (0, 1000, 25.0, [1, 25]),
        (1000, 2000, 25.0, [26, 50]),
        (33, 67, 30.0, [2, 2]),  # frames at 0, 33.3 and 66.7 ms, told in whole milliseconds
        (0, 1, 10.0, [1, 1]),
    ],
)
def test_frames_are_those_that_begin_within(start_ms, end_ms, fps, support):
    segment = {"label": "x", "peak_score": 1.0, "mean_score": 1.0} | {
        "start_ms": start_ms,
        "end_ms": end_ms,
    }
    assert export_module._detection(segment, fps)["support"] == support


def test_parquet_is_a_snapshot_without_what_was_removed(tmp_path):
    """Where a glob over the tables sees rows twice, and rows of nobody."""
    run = Run(new_index(str(tmp_path / "index")))
    run.add(unit("a"), unit("b"))
    opened = LabelIndex.open(run.paths.root_uri)
    run.committer.remove_videos([ref("a").video_id], ["a"])
    run.add(unit("c"))
    run.write(unit("never committed"))
    for index, uris, name in (
        (opened, {"a", "b"}, "old"),
        (LabelIndex.open(run.paths.root_uri), {"b", "c"}, "new"),
    ):
        export(index, tmp_path / name, "parquet")
        found = ds.dataset(tmp_path / name / "clips", partitioning="hive").to_table()
        assert sorted(found["uri"].to_pylist()) == sorted([*uris, *uris])
        assert len(set(found["clip_id"].to_pylist())) == found.num_rows == 4


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
