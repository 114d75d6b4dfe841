"""The command, from an index that the stages of a run made."""

import html
import io
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.errors import QueryError
from indexer.gallery.tiles import Question, find_tiles
from indexer.video.motion import encode_video, iter_scene, sample_scene
from tests.gallery.indexing import index_videos
from tests.test_cli import call

LABELS = ("moving left", "growing")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    films = tmp_path_factory.mktemp("films")
    for number, label in enumerate(LABELS):
        scene = sample_scene(np.random.default_rng(number), label, 4.3)
        encode_video(films / f"{label}.mp4", iter_scene(scene, 4.3, 30, 160, 120), 30, "libx264")
    return films


@pytest.fixture(scope="module")
def index(films, tmp_path_factory):
    return index_videos(str(films), str(tmp_path_factory.mktemp("index") / "index"))


def test_tiles_are_those_of_search(index):
    asked = Question(("moving",), min_score=0.01, top=5)
    answer = find_tiles(index, asked)
    hits = index.search("moving", min_score=0.01, top=5).to_pylist()
    assert hits
    for tile, hit in zip(answer.tiles, hits, strict=True):
        assert (tile.label, tile.uri, tile.score) == (hit["label"], hit["uri"], hit["score"])
        assert tile.start_seconds <= tile.frame_seconds < tile.end_seconds
    assert all(Path(uri).stat().st_size == ref.size_bytes for uri, ref in answer.videos.items())


def test_tiles_without_a_label_are_the_best_of_every_label(index):
    answer = find_tiles(index, Question(top=2))
    assert {tile.label for tile in answer.tiles} == set(LABELS)
    only = find_tiles(index, Question(video="*growing*", min_score=0.5))
    assert {(tile.label, Path(tile.uri).name) for tile in only.tiles} == {
        ("growing", "growing.mp4")
    }


def test_tiles_of_clips_that_look_alike(index, films):
    answer = find_tiles(index, Question(like=f"{films}/growing.mp4@0.5", top=3))
    assert answer.tiles[0].label == "growing"
    assert [t.score for t in answer.tiles] == sorted((t.score for t in answer.tiles), reverse=True)
    with pytest.raises(QueryError, match="without label"):
        find_tiles(index, Question(("growing",), like="x"))


def test_the_page_and_the_sheet(index, tmp_path, capsys):
    page, sheet = tmp_path / "new" / "page.html", tmp_path / "sheet.png"
    code, out, err = call(
        capsys, "gallery", index.uri, "-o", page, "--contact-sheet", sheet, "--top", "3",
        "--link-prefix", f"{index.uri}=x", "--link-prefix", "/=https://cdn.example/",
    )  # fmt: skip
    assert (code, out.split(), err) == (0, [str(page), str(sheet)], "")
    text = html.unescape(page.read_text())
    assert text.count("<img ") == 3
    assert "default-src 'none'" in text
    assert (
        len(re.findall(r'href="https://cdn\.example/[^"]*growing\.mp4#t=[\d.]+,[\d.]+"', text)) > 0
    )
    image = Image.open(sheet)
    assert image.size == (2 * 404 + 20, 2 * 292 + 20)
    cell = np.asarray(image)[20:236, 20:404]
    assert cell.std() > 5  # a picture, not a placeholder


def test_a_video_that_is_gone_or_changed_is_a_placeholder_and_a_warning(
    index, films, tmp_path, capsys
):
    page, sheet = tmp_path / "page.html", tmp_path / "sheet.jpg"
    film = films / "growing.mp4"
    before = film.stat()
    os.utime(film, (time.time(), time.time()))
    try:
        code, _, err = call(
            capsys, "gallery", index.uri, "growing", "--min-score", "0.5", "-o", page,
            "--contact-sheet", sheet,
        )  # fmt: skip
    finally:
        os.utime(film, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert code == 0
    assert re.search(r"(\d) of \1 clips have no picture: \1 changed", err)
    assert "No picture: changed" in page.read_text()
    assert Image.open(io.BytesIO(sheet.read_bytes())).format == "JPEG"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "name the page with --out"),
        (("-o", "x.html", "--link-prefix", "s3://a/=javascript:"), "link prefix"),
        (("--contact-sheet", "x.gif"), "ends in .jpg"),
        (("groing", "-o", "x.html"), "growing"),
        (("growing", "--like", "x", "-o", "x.html"), "without label"),
    ],
)
def test_what_cannot_be_is_refused(index, args, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "gallery", index.uri, *args)
    assert code == 2
    assert words in " ".join(err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []
