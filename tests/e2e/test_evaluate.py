"""The evaluation job, on videos of the demo whose motion is known."""

import csv
import json

import pytest

from indexer.demo import make_videos
from indexer.render import Format
from jobs import evaluate as job

WRONG = "growing"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Eight short videos with their labels, of which one is wrong and one has no video."""
    folder = tmp_path_factory.mktemp("labelled")
    truth = make_videos(folder)
    short = [(name, labels[0]) for name, labels in truth.items() if len(labels) == 1][:8]
    (name, label) = next(pair for pair in short if pair[1] != WRONG)
    rows = [(n, WRONG if n == name else known) for n, known in short]
    (folder / "videos" / "broken.mp4").write_bytes(b"nothing of the kind" * 100)
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "label"])
        writer.writerows([(folder / "videos" / n, known) for n, known in rows])
        writer.writerow([folder / "videos" / "broken.mp4", WRONG])
    return folder, label


@pytest.mark.usefixtures("ray_session")
def test_the_accuracy_of_the_demo_model(labelled, capsys):
    folder, mistaken = labelled
    command = [str(folder / "list.csv"), "--index", str(folder / "index"), "--model", "demo"]
    settings = ["--sampling", "uniform", "--crops", "1"]
    assert job.main([*command, *settings, "--format", Format.json]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["videos"], found["scored"]) == (9, 8)
    assert found["top1"] == 7 / 8
    wrong = [row for row in found["classes"] if row["top1"] < 1]
    assert [(row["label"], row["mistaken_for"]) for row in wrong] == [(WRONG, mistaken)]

    assert job.main([*command, *settings]) == 1
    out, err = capsys.readouterr()
    assert "nothing to do" in err
    assert "top-1 87.50%" in out
    assert "of 8 videos scored (9 listed)" in out


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_three_crops_of_several_stretches_make_one_answer(labelled, capsys):
    folder, _ = labelled
    command = [str(folder / "list.csv"), "--index", str(folder / "crops"), "--model", "demo"]
    assert job.main([*command, "--views", "2", "--format", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["scored"] == 8


def test_a_list_without_labels_is_refused_before_anything_runs(labelled, capsys):
    folder, _ = labelled
    command = [str(folder / "list.csv"), "--index", str(folder / "other"), "--model", "demo"]
    assert job.main([*command, "--label-column", "class"]) == 2
    assert "--label-column" in capsys.readouterr().err
    assert not (folder / "other" / "clips").exists()
