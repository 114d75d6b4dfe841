import json

import pytest
from transformers import TimesformerConfig

from indexer.errors import ModelError
from indexer.model.recipe import (
    Architecture,
    read_architecture,
    read_frame_rate_divisor,
    read_json,
    read_labels,
    read_preprocessing,
)
from tests.model.stress import preprocessor

CONFIG = {"model_type": "timesformer", "id2label": {"0": "a", "1": "b"}}


def test_defaults_are_those_of_transformers():
    ours, theirs = Architecture(num_labels=2), TimesformerConfig()
    assert {name: getattr(theirs, name) for name in ours.__slots__} == {
        name: getattr(ours, name) for name in ours.__slots__
    }
    assert read_architecture(CONFIG) == ours


def test_config_values_win_over_the_defaults():
    config = CONFIG | {"num_frames": 16, "image_size": 448, "qkv_bias": False, "num_labels": 2}
    architecture = read_architecture(config)
    assert (architecture.num_frames, architecture.image_size) == (16, 448)
    assert architecture.qkv_bias is False


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "videomae"}, "model_type is 'videomae'"),
        ({"model_type": None}, "only TimesformerForVideoClassification"),
        ({"num_channels": 1}, "num_channels = 1"),
        ({"num_frames": 0}, "num_frames = 0"),
        ({"num_frames": True}, "num_frames = True"),
        ({"image_size": [224, 224]}, "image_size = "),
        ({"hidden_size": "768"}, "hidden_size = '768'"),
        ({"num_attention_heads": 7}, "7 attention heads do not divide"),
        ({"attention_type": "space_only"}, "scores single frames"),
        ({"attention_type": "other"}, "attention_type = 'other'"),
        ({"qkv_bias": 1}, "qkv_bias = 1"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps = -1.0"),
        ({"hidden_act": {"x": 1}}, "hidden_act"),
        ({"patch_size": 256}, "patch_size is larger"),
        ({"id2label": None}, "id2label is missing"),
        ({"id2label": {}}, "id2label is missing"),
        ({"id2label": {"0": "a", "2": "b"}}, r"without a name: \[1\]"),
        ({"id2label": {"0": "a", "1": " "}}, r"without a name: \[1\]"),
        ({"id2label": {"0": "a", "1": 7}}, r"without a name: \[1\]"),
        ({"num_labels": 3}, "num_labels is 3"),
        ({"num_labels": 10**12}, "num_labels is 1000000000000"),
    ],
)
def test_impossible_configs_are_refused(change, words):
    with pytest.raises(ModelError, match=words):
        read_architecture(CONFIG | change)


def test_labels_are_in_the_order_of_the_logits_and_distinct():
    id2label = {"10": "k", "2": "c", **{str(i): f"x{i}" for i in (0, 1, 3, 4, 5, 6, 7, 8, 9)}}
    assert read_labels({"id2label": id2label})[2] == "c"
    assert read_labels({"id2label": id2label})[10] == "k"
    twice = {"0": "run", "1": "walk", "2": "run"}
    assert read_labels({"id2label": twice}) == ("run (0)", "walk", "run (2)")


@pytest.mark.parametrize(("frames", "divisor"), [(8, 32), (16, 16), (96, 4), (64, 32)])
def test_frame_rate_divisor_follows_the_paper(frames, divisor):
    assert read_frame_rate_divisor({}, frames) == divisor
    assert read_frame_rate_divisor({"frame_rate_divisor": 5}, frames) == 5
    with pytest.raises(ModelError, match="frame_rate_divisor = 0"):
        read_frame_rate_divisor({"frame_rate_divisor": 0}, frames)


def read(folder, settings, image_size=224, name="preprocessor_config.json"):
    (folder / name).write_text(json.dumps(settings))
    return read_preprocessing(folder, image_size)


def test_preprocessing_of_a_hub_checkpoint(tmp_path):
    recipe = read(tmp_path, preprocessor(224))
    assert (recipe.resize, recipe.crop, recipe.interpolation) == (224, (224, 224), "bilinear")
    assert recipe.rescale_factor == 1 / 255
    assert recipe.mean == (0.45, 0.40, 0.35)
    assert recipe.std == (0.225, 0.25, 0.275)


@pytest.mark.parametrize(
    ("change", "resize", "crop"),
    [
        ({"size": 256, "crop_size": 224}, 256, (224, 224)),
        ({"size": {"shortest_edge": 256}}, 256, (224, 224)),
        ({"size": {"height": 224, "width": 224}, "do_center_crop": False}, (224, 224), None),
        ({"size": {"height": 256, "width": 340}}, (256, 340), (224, 224)),
    ],
)
def test_forms_of_size_and_crop(tmp_path, change, resize, crop):
    recipe = read(tmp_path, preprocessor(224) | change)
    assert (recipe.resize, recipe.crop) == (resize, crop)


def test_a_missing_crop_is_no_crop(tmp_path):
    settings = preprocessor(224) | {"size": {"height": 224, "width": 224}, "resample": 3}
    del settings["crop_size"], settings["do_center_crop"]
    recipe = read(tmp_path, settings)
    assert (recipe.crop, recipe.interpolation) == (None, "bicubic")


def test_switched_off_steps_change_nothing(tmp_path):
    recipe = read(tmp_path, preprocessor(224) | {"do_rescale": False, "do_normalize": False})
    assert (recipe.rescale_factor, recipe.mean, recipe.std) == (1.0, (0.0,) * 3, (1.0,) * 3)


def test_video_preprocessor_wins_as_in_transformers(tmp_path):
    read(tmp_path, preprocessor(224))
    newer = preprocessor(224) | {"image_mean": 0.5}
    assert read(tmp_path, newer, name="video_preprocessor_config.json").mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_mean": None}, "image_mean = None is not a finite number"),
        ({"image_std": None}, "image_std"),
        ({"image_std": [0.2, 0.0, 0.2]}, "divide by zero"),
        ({"image_mean": [0.5, 0.5]}, "3 colours"),
        ({"image_mean": ["x", 1, 1]}, "image_mean"),
        ({"rescale_factor": float("inf")}, "rescale_factor"),
        ({"do_resize": False}, "do_resize is off"),
        ({"size": None}, "size = None does not say"),
        ({"size": {"shortest_edge": 0}}, "no number of pixels"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "does not say"),
        ({"crop_size": None}, "crop_size = None"),
        ({"crop_size": 200}, "do not give frames of 224x224"),
        ({"size": {"shortest_edge": 200}}, "do not give frames of 224x224"),
        ({"do_center_crop": False}, "do not give frames of 224x224"),
        ({"resample": 1}, "resample = 1"),
        ({"resample": None}, "resample = None"),
    ],
)
def test_open_or_impossible_preprocessing_is_refused(tmp_path, change, words):
    with pytest.raises(ModelError, match=words):
        read(tmp_path, preprocessor(224) | change)


def test_no_preprocessor_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no preprocessor_config\.json"):
        read_preprocessing(tmp_path, 224)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff", "[" * 100_000])
def test_files_that_hold_no_json_object_are_refused(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=r"config\.json"):
        read_json(tmp_path / "config.json")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match="cannot read"):
        read_json(tmp_path / "config.json")
