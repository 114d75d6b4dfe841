"""The commands that ask an index, as they are typed."""

import json

import numpy as np
import pytest

from indexer.cli import main
from indexer.table.catalog import write_run_report
from tests.table.make import Run, new_index, unit
from tests.test_cli import call

ON, OFF = 9.0, -9.0


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Label 0 is `growing`, 1 `moving left`, 2 `Moving Right`."""
    run = Run(new_index(str(tmp_path_factory.mktemp("cli") / "index")))
    logits = np.full((3, 5), OFF, np.float32)
    logits[[0, 1, 2], [0, 0, 1]] = ON
    run.add(unit("s3://films/a.mp4", range(3), logits_NK=logits))
    run.add(unit("s3://films/bad.mp4", failure="corrupt"))
    return run.paths.root_uri


def rows(capsys, *args):
    code, out, err = call(capsys, *args, "--format", "json")
    assert code == 0, err
    return json.loads(out)


def test_words_and_segments(index, capsys):
    clips = rows(capsys, "search", index, "moving", "--min-score", "0.5")
    assert [(c["label"], c["clip_index"]) for c in clips] == [("moving left", 2)]
    segments = rows(capsys, "search", index, "growing", "moving", "--segments", "--top", "9")
    assert [(s["label"], s["start_ms"], s["end_ms"]) for s in segments] == [
        ("growing", 0, 17000),
        ("moving left", 17000, 25500),
    ]
    bridged = rows(capsys, "search", index, "growing", "--segments", "--gap", "9", "--leave-score",
                   "0.00000001")  # fmt: skip
    assert bridged[0]["end_ms"] == 25500


def test_an_answer_without_rows_says_what_would_widen_it(index, capsys):
    code, out, err = call(capsys, "search", index, "Moving Right", "--min-score", "0.9")
    assert (code, out) == (0, "")
    assert "lower --min-score" in err
    code, _, err = call(capsys, "search", index, "moving left", "--source", "s3://other/")
    assert code == 0
    assert "the best of all scores" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["video", "INDEX", "A.mp"], 2, "did you mean s3://films/a.mp4?"),
        (["similar", "INDEX", "a.mp4@99"], 2, "shows 99 s; its clips end at 25.50 s"),
        (["similar", "INDEX", "a.mp4@9", "--video", "z*"], 0, "widen --video"),
        (["duplicates", "INDEX", "--video", "z*"], 0, "--video and --source wider"),
        (["errors", "INDEX", "--code", "nope"], 0, "codes are access_denied, "),
        (["errors", "INDEX", "--code", "missing"], 0, "no video failed with missing\n"),
        (["sql", "INDEX", "SELECT * FROM shots"], 2, "the views are clips, embeddings, labels, "),
        (["labels", "INDEX/index.json"], 2, "there is no index at"),
    ],
)
def test_what_finds_nothing_says_what_to_do(index, capsys, arguments, code, words):
    given = [argument.replace("INDEX", index) for argument in arguments]
    found, out, err = call(capsys, *given)
    assert (found, out) == (code, "")
    assert words in err


def test_options_that_segments_do_not_have_are_refused(index, capsys):
    code, _, err = call(capsys, "search", index, "growing", "--segments", "--not", "moving left")
    assert code == 2
    assert "--segments takes no --not" in " ".join(err.replace("│", " ").split())


def test_similar_clips_and_all_clips_of_a_video(index, capsys):
    assert len(rows(capsys, "similar", index, "a.mp4@1")) == 2
    assert [c["clip_index"] for c in rows(capsys, "video", index, "a.mp4")] == [0, 1, 2]
    code, out, _ = call(capsys, "video", index, "a.mp4")
    assert code == 0
    assert "growing" in out
    assert call(capsys, "similar", index, "zzz")[0] == 2


def test_sql(index, capsys):
    assert rows(capsys, "sql", index, "SELECT count(*) AS n FROM segments") == [{"n": 2}]
    code, _, err = call(capsys, "sql", index, "COPY clips TO '/tmp/x'")
    assert code == 2
    assert "one SELECT is wanted" in err


def test_export(index, tmp_path, capsys):
    code, out, _ = call(capsys, "export", index, "--to", tmp_path / "out", "--format", "webvtt")
    assert code == 0
    assert out.strip() == str(tmp_path / "out" / "00000_a.vtt")
    with pytest.raises(SystemExit) as again:
        main(["export", index, "--to", str(tmp_path / "out")])
    assert again.value.code == 2


def test_status_shows_the_last_run_beside_its_plan(tmp_path, capsys):
    paths = new_index(str(tmp_path / "index"))
    Run(paths).add(unit("s3://films/a.mp4", range(3)))
    told = {"share": 0.5, "hours": {"estimate": 1.5, "came": 1.75}}
    report = {"status": "finished", "elapsed_seconds": 1.0, "clips": 0, "estimate": told}
    write_run_report(paths, "r1", report)
    code, out, _ = call(capsys, "status", paths.root_uri)
    assert code == 0
    assert "planned for 50% of the bytes: 1:30:00; came: 1:45:00" in out


def test_status_and_errors(index, capsys):
    assert rows(capsys, "status", index)["videos"] == {"indexed": 1, "failed": 1, "incomplete": 0}
    assert [e["error_code"] for e in rows(capsys, "errors", index)] == ["corrupt"]
    assert {r["label"] for r in rows(capsys, "labels", index)} >= {"growing", "moving left"}
