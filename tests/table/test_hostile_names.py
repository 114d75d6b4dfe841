"""A hundred hostile names of videos and labels: they come back as they are, and reach nothing."""

import csv
import json

import numpy as np
import pyarrow.dataset as ds
import pytest

from indexer.table import catalog
from indexer.table.export import KINDS, export
from indexer.table.paths import IndexPaths
from indexer.table.query import LabelIndex
from tests.table.make import FINGERPRINT, TAG, Run, unit
from tests.test_cli import call

NAMES = [
    "../../etc/passwd", "..", ".", "../", "/etc/passwd", "a/../../b", "~", "~root/x", "./-rf",
    "-rf", "--to", "--help", "*", "?", "[a-z]", "[!a]", "[", "]", "{a,b}", "**/*", "a*b?c[d]e",
    "%", "%2e%2e%2f", "%00", "%41", "100%", "%s%n", "%(x)s", "{0.__class__}", "{}", "${HOME}",
    "$(touch x)", "`touch x`", "; touch x", "| touch x", "&& touch x", "a'b", 'a"b', "a\\b", "\\",
    "'; DROP TABLE labels; --", '"; DROP TABLE labels; --', "' OR '1'='1", "1; SELECT 1", "$1",
    "?1", "$$x$$", "read_text('/etc/passwd')", "/* x */", "-- x", "NULL", "null", "None", "NaN",
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</title><b>", "&lt;b&gt;",
    "&amp;", "javascript:alert(1)", "data:text/html,x", "]]>", "<!--", "{{7*7}}", "<%= 7 %>",
    "=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", '=HYPERLINK("http://x")', "=",
    "line\nbreak", "line\r\nbreak", "tab\tstop", "\x01\x02\x1f", "\x7f", "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07", "\u202etxt.exe", "\u2066x\u2069", "\u200bzero\u200b", "\ufeffbom",
    "שלום", "مرحبا", "日本語", "𠮷野家", "é", "e\u0301", "🎸", "👩\u200d🚀", "\U0010ffff", "\ufffd",
    " leading", "trailing ", "  ", "long/" * 800, "x" * 5000, "\u2028line", "a\u0085b", "CON",
    "a:b", "s3://b/k?versionId=1#x", "file:///etc/passwd", "http://127.0.0.1:9/x",
    "model=evil/x.parquet",
]  # fmt: skip
EACH = range(len(NAMES))
LOW, HIGH = -30.0, 30.0


def test_there_are_a_hundred():
    assert len(set(NAMES)) == len(NAMES) >= 100


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def index(root):
    """A model with these labels: clip 0 of video i has label i."""
    paths = IndexPaths(str(root / "index"))
    catalog.create_index(paths)
    catalog.register_model(paths, TAG, FINGERPRINT, NAMES)
    run = Run(paths)
    logits_VK = np.where(np.eye(len(NAMES), dtype=bool), HIGH, LOW).astype(np.float32)
    units = [unit(NAMES[i], [0], logits_NK=logits_VK[i : i + 1]) for i in EACH]
    run.add(*units, labels=tuple(NAMES), top_k=1)
    return LabelIndex.open(paths.root_uri)


def test_a_label_finds_its_clip(index):
    for name in NAMES:
        assert index.search(name)["uri"].to_pylist() == [name]
    assert sorted(index.segments()["label"].to_pylist()) == sorted(NAMES)
    left = index.search(NAMES, without=NAMES[::2], top=None)
    assert sorted(left["uri"].to_pylist()) == sorted(NAMES[1::2])


def test_a_uri_finds_its_video(index):
    for name in NAMES:
        assert index.search(name, video=name, source=name)["uri"].to_pylist() == [name]
    for name in NAMES[::5]:
        assert index.video(name)["top_labels"].to_pylist() == [[name]]


def test_lists_hold_every_name(index):
    assert sorted(index.labels()["label"].to_pylist()) == sorted(NAMES)
    assert sorted(index.videos()["uri"].to_pylist()) == sorted(NAMES)
    assert sorted(index.sql("SELECT uri FROM clips")["uri"].to_pylist()) == sorted(NAMES)
    found = index.sql("SELECT uri FROM labels WHERE label = uri")
    assert sorted(found["uri"].to_pylist()) == sorted(NAMES)


def test_a_terminal_gets_no_control_character(index, capsys):
    for arguments in (["labels", index.uri], ["sql", index.uri, "SELECT uri, label FROM labels"]):
        code, out, _ = call(capsys, *arguments)
        assert code == 0
        assert not [c for c in out if not c.isprintable() and c != "\n"]
        code, out, _ = call(capsys, *arguments, "--format", "json")
        names = {value for row in json.loads(out) for value in row.values()}
        assert set(NAMES) <= names


def everything(folder):
    return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fiftyone"])
def test_an_export_writes_inside_its_folder(index, root, kind):
    folder = root / f"export-{kind}"
    before = everything(root)
    written = export(index, folder, kind)
    made = everything(root) - before
    assert made
    assert all(path.parts[0] == folder.name for path in made)
    assert all(path.resolve().is_relative_to(folder) for path in written)


def test_an_export_gives_the_names_back(index, root, tmp_path):
    export(index, tmp_path / "parquet", "parquet")
    rows = ds.dataset(tmp_path / "parquet" / "labels", partitioning="hive").to_table()
    assert sorted(rows["uri"].to_pylist()) == sorted(rows["label"].to_pylist()) == sorted(NAMES)
    export(index, tmp_path / "jsonl", "jsonl")
    lines = (tmp_path / "jsonl" / "labels.jsonl").read_bytes().decode().split("\n")
    assert sorted(json.loads(line)["uri"] for line in lines if line) == sorted(NAMES)
    export(index, tmp_path / "csv", "csv")
    with (tmp_path / "csv" / "labels.csv").open(newline="", encoding="utf-8") as file:
        cells = [row["uri"] for row in csv.DictReader(file)]
    assert not [cell for cell in cells if cell[:1] in {"=", "+", "-", "@", "\t", "\r", "\n"}]
    assert sorted(cell.removeprefix("'") for cell in cells) == sorted(
        name.removeprefix("'") for name in NAMES
    )
