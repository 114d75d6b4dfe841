"""A head fitted on stored embeddings tells apart what can be, and is judged by other videos."""

import csv
import json

import numpy as np
import pytest

from indexer.model.linear import fit_linear
from indexer.table.head import read_head
from indexer.table.labelled import LabelledClips, labelled_clips, read_stretches
from indexer.table.query import LabelIndex
from indexer.table.relabel import relabel
from jobs import train_head as job
from tests.table.make import TAG, Run, new_index, ref, unit

NAMES = ("kneeling", "jumping", "=walking")
WIDTH = 8


def directions():
    """One for each label, of length 2."""
    return 2 * np.linalg.qr(np.random.default_rng(7).normal(size=(WIDTH, WIDTH)))[0][: len(NAMES)]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Videos of one label, and one of two; each adds a direction of its own to its clips."""
    run = Run(new_index(str(tmp_path_factory.mktemp("train") / "index")))
    rng = np.random.default_rng(1)
    units = []
    for number in range(30):
        noise_ND = 0.3 * rng.normal(size=(6, WIDTH)) + 0.3 * rng.normal(size=WIDTH)
        vectors_ND = directions()[number % 3] + noise_ND
        units.append(unit(f"/v/{number}.mp4", range(6), embeddings_ND=vectors_ND.astype("f4")))
    vectors_ND = np.repeat(directions()[:2], 3, axis=0).astype("f4")
    units.append(unit("/v/two.mp4", range(6), embeddings_ND=vectors_ND))
    run.add(*units, unit("/v/other.mp4"))
    return run.paths


@pytest.fixture
def labels(tmp_path):
    rows = [(f"/v/{n}.mp4", "", "", NAMES[n % 3]) for n in range(30)]
    rows += [("/v/two.mp4", "0", "25.5", NAMES[0]), ("/v/two.mp4", "25.5", "60", NAMES[1])]
    return write_list(tmp_path / "labels.csv", rows)


def write_list(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("uri", "start_seconds", "end_seconds", "label"), *rows])
    return path


def call(capsys, *args):
    code = job.main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_what_can_be_told_apart_is_learned(capsys, index, labels, tmp_path):
    code, out, err = call(
        capsys, index.root_uri, labels, "--out", tmp_path / "head", "--format", "json"
    )
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["accuracy"] == found["macro_accuracy"] == 1.0
    assert [row["label"] for row in found["labels"]] == sorted(NAMES)
    assert sum(row["train_clips"] + row["held_out_clips"] for row in found["labels"]) == 186
    assert all(row["held_out_videos"] == 2 for row in found["labels"])


def test_relabel_takes_what_it_writes(capsys, index, labels, tmp_path):
    assert call(capsys, index.root_uri, labels, "--out", tmp_path / "head")[0] == 0
    head = read_head(tmp_path / "head" / "head.safetensors", tmp_path / "head" / "labels.json")
    made = relabel(index, head, source=TAG)
    best = LabelIndex.open(index.root_uri, made.model).sql(
        "SELECT uri, top_labels[1] AS label FROM clips"
    )
    for row in best.to_pylist():
        stem = row["uri"].removeprefix("/v/").removesuffix(".mp4")
        if stem.isdecimal():
            assert row["label"] == NAMES[int(stem) % 3]


def test_the_same_data_give_the_same_head(capsys, index, labels, tmp_path):
    for name in ("one", "two"):
        call(capsys, index.root_uri, labels, "--out", tmp_path / name)
    one, two = ((tmp_path / n / "head.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two
    call(capsys, index.root_uri, labels, "--out", tmp_path / "other", "--seed", 1)
    assert (tmp_path / "other" / "head.safetensors").read_bytes() != one


def test_videos_are_held_out_with_all_their_clips(index, labels):
    clips = labelled_clips(index, TAG, read_stretches(str(labels)))
    for seed in range(5):
        held_N = job.held_out(clips, 0.2, seed)
        ids_N = np.array(clips.video_ids)
        assert set(ids_N[held_N]).isdisjoint(ids_N[~held_N])
        assert len(set(ids_N[held_N])) == 6
        assert set(np.array(clips.labels)[~held_N]) == set(NAMES)
    assert not job.held_out(clips, 0.0, 0).any()


def test_accuracy_is_of_other_videos_alone():
    """Clips of a video are alike, and labels are dice: only a leak could learn them."""
    rng = np.random.default_rng(0)
    video_ids = [f"{number:03}" for number in range(60) for _ in range(10)]
    places = {name: rng.normal(size=64) for name in set(video_ids)}
    names = {name: NAMES[rng.integers(3)] for name in sorted(places)}
    vectors_ND = np.array([places[v] + 0.01 * rng.normal(size=64) for v in video_ids], "f4")
    clips = LabelledClips(tuple(video_ids), tuple(names[v] for v in video_ids), vectors_ND, ())
    classes_N = np.array([NAMES.index(name) for name in clips.labels])

    def accuracy(held_N):
        weight, bias = fit_linear(vectors_ND[~held_N], classes_N[~held_N], 3)
        right_N = (vectors_ND @ weight.T + bias).argmax(axis=1) == classes_N
        return job.judge(clips, NAMES, held_N, right_N).accuracy

    assert accuracy(job.held_out(clips, 0.3, 0)) < 0.6
    assert accuracy(rng.random(600) < 0.3) > 0.95  # held out by clip, it looks learned


def test_the_fit_is_the_minimum():
    """At it the gradient is zero: by differences of the loss in float64."""
    rng = np.random.default_rng(2)
    x_ND, y_N = rng.normal(size=(200, 5)).astype("f4"), rng.integers(0, 3, 200)
    x_ND = (x_ND - x_ND.mean(0)) / x_ND.std(0)
    weight_KD, bias_K = fit_linear(x_ND, y_N, 3, l2=0.1)

    def loss(weight, bias):
        logits = x_ND.astype(np.float64) @ weight.T + bias
        peak = logits.max(axis=1)
        norm = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
        return (norm - logits[np.arange(200), y_N]).mean() + 0.05 * (weight**2).sum()

    best = loss(weight_KD.astype(np.float64), bias_K.astype(np.float64))
    for _ in range(50):
        step_KD, step_K = 1e-3 * rng.normal(size=(3, 5)), 1e-3 * rng.normal(size=3)
        assert loss(weight_KD + step_KD, bias_K + step_K) > best


def test_a_stretch_labels_the_clips_that_lie_half_in_it(index, tmp_path):
    rows = [("/v/0.mp4", "4.25", "12.7", "in"), ("/v/1.mp4", "0", "4.2", "out"),
            ("/v/nowhere.mp4", "", "", "out")]  # fmt: skip
    stretches = read_stretches(str(write_list(tmp_path / "l.csv", rows)))
    clips = labelled_clips(index, TAG, stretches)
    assert clips.labels == ("in",)
    assert clips.video_ids == (ref("/v/0.mp4").video_id,)
    assert [stretch.label for stretch in clips.unused] == ["out", "out"]


def test_doubts_are_told(capsys, index, tmp_path):
    rows = [("/v/0.mp4", "", "", "a"), ("/v/1.mp4", "", "", "b"), ("/v/2.mp4", "", "", "b"),
            ("/v/nowhere.mp4", "", "", "b")]  # fmt: skip
    listed = write_list(tmp_path / "l.csv", rows)
    code, out, err = call(capsys, index.root_uri, listed, "--out", tmp_path / "head")
    assert code == 0
    assert "/v/nowhere.mp4: no clip of the index lies in 1 of its stretches" in err
    assert "'a' has only 6 clips to learn from" in err
    assert "'a' has no held-out video" in err
    assert "on 6 clips of held-out videos" in out


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([("/v/0.mp4", "3", "2", "a")], (), "a stretch that ends after it starts"),
        ([("/v/0.mp4", "x", "2", "a")], (), "could not convert"),
        ([("/v/0.mp4", "nan", "2", "a")], (), "a stretch that ends after it starts"),
        ([("/v/0.mp4", "", "", " ")], (), "should have a label"),
        ([("/v/0.mp4", "", "", "a")], (), "name a second label"),
        ([("/v/0.mp4", "", "", "a"), ("/v/0.mp4", "", "", "b")], (), "is both 'a' and 'b'"),
        ([("/v/none.mp4", "", "", "a")], (), "no clip of demo-3f9a1c lies in"),
        ([], ("--label-column", "tag"), "has no column 'tag'"),
        ([], ("--held-out", "1"), "should be at least 0 and below 1"),
        ([], ("--l2", "0"), "--l2 above 0"),
        ([], ("--model", "nope"), "has no model 'nope'"),
    ],
)
def test_what_cannot_be_learned_is_refused(capsys, index, tmp_path, rows, options, words):
    listed = write_list(tmp_path / "l.csv", rows)
    model = () if "--model" in options else ("--model", TAG)
    code, _, err = call(
        capsys, index.root_uri, listed, "--out", tmp_path / "head", *model, *options
    )
    assert code == 2
    assert words in err
    assert not (tmp_path / "head").exists()


def test_an_empty_index_is_refused(capsys, labels, tmp_path):
    code, _, err = call(capsys, tmp_path / "none", labels, "--out", tmp_path / "head")
    assert code == 2
    assert "there is no index" in err
