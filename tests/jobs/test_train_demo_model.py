"""The training script repeats itself, augments truthfully, and the bundled model passes the bar."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TimesformerForVideoClassification

from indexer.video.motion import LABELS
from jobs import train_demo_model as job
from jobs.train_demo_model import Clips, MotionHeads, Plan, Recipe

SMALL = Recipe(
    hidden_size=32, layers=2, heads=2, intermediate_size=32, videos=10, windows_per_video=2, steps=4
)
UNSEEN_SEED = 424242


@pytest.fixture(scope="module")
def clips() -> Clips:
    """Two clips of one video of each label."""
    plan = Plan(0, job.TRAIN_STREAM, SMALL.image_size, SMALL.num_frames, SMALL.windows_per_video)
    return Clips.join(job.render_pool(plan, len(LABELS), workers=0))


@pytest.fixture(autouse=True)
def _deterministic():
    torch.use_deterministic_algorithms(mode=True)
    yield
    torch.use_deterministic_algorithms(mode=False)


# --- Clips --------------------------------------------------------------------------------------


def test_clips_come_with_what_is_known_about_them(clips):
    assert clips.frames_BTCHW.shape == (20, 8, 3, 48, 48)
    assert clips.frames_BTCHW.dtype == torch.uint8
    assert clips.labels_B.tolist() == [label for label in range(10) for _ in range(2)]
    assert clips.places_BT4.shape == (20, 8, 4)
    assert clips.rates_B4.shape == (20, 4)


def test_a_video_is_decided_by_its_seed_stream_and_index(clips):
    plan = Plan(0, job.TRAIN_STREAM, SMALL.image_size, SMALL.num_frames, SMALL.windows_per_video)
    again = job.make_clips(plan, 3)
    assert all(
        torch.equal(one, other)
        for one, other in zip(again.parts(), clips.take(torch.tensor([6, 7])).parts(), strict=True)
    )
    held_out = job.make_clips(dataclasses.replace(plan, stream=job.HELD_OUT_STREAM), 3)
    assert not torch.equal(held_out.frames_BTCHW, again.frames_BTCHW)


@pytest.mark.slow
def test_worker_processes_make_the_same_clips(clips):
    plan = Plan(0, job.TRAIN_STREAM, SMALL.image_size, SMALL.num_frames, SMALL.windows_per_video)
    parallel = Clips.join(job.render_pool(plan, 4, workers=1))
    assert torch.equal(parallel.frames_BTCHW, clips.frames_BTCHW[:8])


def test_held_out_windows_follow_one_another_as_in_the_indexer():
    plan = Plan(0, job.HELD_OUT_STREAM, 48, 8, windows=0)
    rng = np.random.default_rng(0)
    window = 8 * 8 / 30
    assert job._window_starts(rng, 5.0, plan) == pytest.approx([0.0, window])
    assert job._window_starts(rng, window + 2.01, plan) == pytest.approx([0.0, window])
    assert job._window_starts(rng, window + 1.99, plan) == [0.0]
    assert job._window_starts(rng, 6.5, plan) == pytest.approx([0.0, window, 2 * window])


# --- Augmentation -------------------------------------------------------------------------------

SYMMETRIES = (job.mirror, job.transpose, job.reverse)


@pytest.mark.parametrize("change", SYMMETRIES)
def test_a_symmetry_done_twice_changes_nothing(clips, change):
    for before, after in zip(clips.parts(), change(change(clips)).parts(), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("change", SYMMETRIES)
def test_a_symmetry_keeps_label_places_rates_and_pixels_in_agreement(clips, change):
    changed = change(clips)
    for label, places_T4, rates_4 in zip(
        changed.labels_B.tolist(), changed.places_BT4, changed.rates_B4, strict=True
    ):
        _check_label_against_rates(LABELS[label], rates_4)
        moved_2 = places_T4[-1, :2] - places_T4[0, :2]
        assert torch.allclose(moved_2, rates_4[:2] * 7 * 8 / 30, atol=0.03)
        grown = torch.log(places_T4[-1, 2] / places_T4[0, 2])
        assert torch.allclose(grown, rates_4[2] * 7 * 8 / 30, atol=0.05)
    assert torch.equal(_centre_pixels(changed).sum(1), _centre_pixels(clips).sum(1))


def _check_label_against_rates(label: str, rates_4: torch.Tensor) -> None:
    vx, vy, growth, spin = rates_4.tolist()
    strongest = {
        "moving left": -vx - 2 * abs(vy),
        "moving right": vx - 2 * abs(vy),
        "moving up": -vy - 2 * abs(vx),
        "moving down": vy - 2 * abs(vx),
        "growing": growth,
        "shrinking": -growth,
        "rotating clockwise": spin,
        "rotating counter-clockwise": -spin,
    }
    if label in strongest:
        assert strongest[label] > 0
    else:
        assert not rates_4.any()


def _centre_pixels(clips: Clips) -> torch.Tensor:
    """The colour at the object's centre in every frame: B, T, C."""
    columns_BT, rows_BT = (
        ((clips.places_BT4[..., axis].double() + 0.5) * 48).floor().long() for axis in (0, 1)
    )
    batch_B1 = torch.arange(len(clips))[:, None]
    return clips.frames_BTCHW[batch_B1, torch.arange(8), :, rows_BT, columns_BT].long()


def test_turning_pictures_really_turn_the_other_way_in_a_mirror(clips):
    one = clips.take(torch.tensor([12]))
    assert LABELS[one.labels_B] == "rotating clockwise"
    for change in SYMMETRIES:
        assert LABELS[change(one).labels_B] == "rotating counter-clockwise"


def test_augmentation_reaches_every_picture_and_keeps_labels_balanced(clips):
    generator = torch.Generator().manual_seed(0)
    left = clips.take(torch.zeros(400, dtype=torch.long))
    labels = torch.bincount(job.augment(left, generator).labels_B, minlength=10)
    assert labels[:4].min() > 60
    assert labels[4:].sum() == 0
    growing = clips.take(torch.full((400,), 8))
    labels = torch.bincount(job.augment(growing, generator).labels_B, minlength=10)
    assert labels[4:6].min() > 150
    assert labels.sum() == labels[4:6].sum()


# --- Auxiliary heads ----------------------------------------------------------------------------


def test_dense_targets_say_where_the_object_is_and_how_its_points_move():
    heads = MotionHeads(SMALL)
    places_BT4 = torch.tensor([[[0.2, 0.1, 0.15, 1.0]], [[0.0, 0.0, 0.3, 1.0]], [[0, 0, 0.3, 0]]])
    rates_B4 = torch.tensor([[0.15, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.3, 0.0]])
    known = Clips(torch.empty(3, 1), torch.empty(3), places_BT4, rates_B4)
    presence_BNT, flow_BNT2 = heads.targets(known)
    nearest = torch.hypot(heads.points_N2[:, 0] - 0.2, heads.points_N2[:, 1] - 0.1).argmin()
    assert presence_BNT[0, :, 0].argmax() == nearest
    assert presence_BNT[0].min() < 0.01
    assert torch.allclose(flow_BNT2[0, :, 0], torch.tensor([1.0, 0.0]))
    # Clockwise: what is right of the centre goes down, and what is below goes left.
    x_N, y_N = heads.points_N2.unbind(-1)
    assert torch.allclose(flow_BNT2[1, :, 0, 1], x_N / heads.FLOW_SCALE)
    assert torch.allclose(flow_BNT2[1, :, 0, 0], -y_N / heads.FLOW_SCALE)
    assert presence_BNT[2].max() == 0
    assert torch.allclose(flow_BNT2[2, :, 0], 0.3 * heads.points_N2 / heads.FLOW_SCALE)


# --- Training -----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(clips, capsys):
    one, same = (job.train(SMALL, clips).state_dict() for _ in range(2))
    other = job.train(dataclasses.replace(SMALL, seed=1), clips).state_dict()
    assert one.keys() == same.keys()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert "step     3" in capsys.readouterr().out


@pytest.mark.slow
def test_training_learns_its_clips(clips, capsys):
    recipe = dataclasses.replace(SMALL, steps=60, learning_rate=3e-3, ema_decay=0.9)
    model = job.train(recipe, clips)
    with torch.inference_mode():
        logits_BL = model(job.normalise(clips.frames_BTCHW)).logits
    loss = torch.nn.functional.cross_entropy(logits_BL, clips.labels_B)
    assert loss < 0.9 * np.log(len(LABELS))
    assert capsys.readouterr().out


def test_position_and_time_are_legible_before_training():
    model = job.build_model(SMALL)
    embeddings = model.timesformer.embeddings
    for table_PD, truth_P in (
        (embeddings.position_embeddings[0, 1:], job._grid_points(6)[:, 0]),
        (embeddings.position_embeddings[0, 1:], job._grid_points(6)[:, 1]),
        (embeddings.time_embeddings[0], torch.linspace(-1, 1, 8)),
    ):
        known_PD = table_PD.detach()
        weights = torch.linalg.lstsq(known_PD, truth_P[:, None], driver="gelsd").solution
        assert torch.allclose((known_PD @ weights)[:, 0], truth_P, atol=1e-3)


# --- Checkpoint and command line ----------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_a_checkpoint_that_loads_and_measures_it(tmp_path, capsys):
    numbers = [
        "--steps",
        "2",
        "--videos",
        "10",
        "--held-out",
        "10",
        "--workers",
        "0",
        "--seed",
        "5",
    ]
    assert job.main(["--out", str(tmp_path), *numbers]) == 1  # nothing is learned in two steps
    text = capsys.readouterr().out
    assert all(label in text for label in LABELS)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "preprocessor_config.json", "model.safetensors"}
    TimesformerForVideoClassification.from_pretrained(tmp_path)
    evaluate = ["--out", str(tmp_path), "--evaluate-only", "--bar", "0", *numbers]
    assert job.main(evaluate) == 0
    assert capsys.readouterr().out.splitlines()[-1] == text.splitlines()[-1]


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit, match="0"):
        job.main(["--help"])
    text = capsys.readouterr().out
    for option in ("--out", "--seed", "--steps", "--evaluate-only", "--workers"):
        assert option in text


def test_the_table_names_the_mistakes():
    counts_LL = 9 * torch.eye(len(LABELS), dtype=torch.int64)
    counts_LL[0, 1] = 3
    lines = job.table(counts_LL).splitlines()
    assert lines[1].split() == ["moving", "left", "12", "9", "75.0%", "moving", "right", "(3)"]
    assert lines[-1].split() == ["all", "93", "90", "96.8%"]
    assert job.top1(counts_LL) == pytest.approx(90 / 93)


# --- The bundled checkpoint ---------------------------------------------------------------------


def test_the_bundled_checkpoint_is_small_and_complete():
    folder = job.DEFAULT_OUT
    assert (folder / "model.safetensors").stat().st_size <= 3_000_000
    weights = load_file(folder / "model.safetensors")
    model = job.build_model(Recipe())
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    assert all(
        value.dtype == torch.float32 and value.isfinite().all() for value in weights.values()
    )


def test_the_bundled_configuration_says_how_to_sample_and_preprocess():
    config = _read(job.DEFAULT_OUT / "config.json")
    assert config["architectures"] == ["TimesformerForVideoClassification"]
    assert config["id2label"] == {str(index): label for index, label in enumerate(LABELS)}
    assert config["label2id"] == {label: index for index, label in enumerate(LABELS)}
    assert (config["num_frames"], config["frame_rate_divisor"]) == (8, 8)
    assert config["attention_type"] == "divided_space_time"
    preprocessor = _read(job.DEFAULT_OUT / "preprocessor_config.json")
    side = config["image_size"]
    assert preprocessor["size"] == {"shortest_edge": side}
    assert preprocessor["crop_size"] == {"height": side, "width": side}
    assert preprocessor["image_mean"] == [0.45, 0.45, 0.45]
    assert preprocessor["image_std"] == [0.225, 0.225, 0.225]


def _read(path: Path) -> dict[str, object]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_bundled_model_names_motions_it_has_never_seen():
    counts_LL = job.evaluate(job.DEFAULT_OUT, videos=120, seed=UNSEEN_SEED)
    assert counts_LL.sum() >= 200
    assert job.top1(counts_LL) >= 0.97, job.table(counts_LL)
    # About 20 clips a label, and the windows of one video succeed or fail together.
    assert (counts_LL.diag() / counts_LL.sum(1)).min() >= 0.75, job.table(counts_LL)
