import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch
from transformers import TimesformerConfig, TimesformerForVideoClassification

from indexer.errors import ModelError
from indexer.model.recipe import Architecture
from indexer.model.weights import expected_shapes, load_state, resolve
from tests.model.stress import stress_tensors, write_stress_checkpoint, write_weights

ROOT = Path(__file__).resolve().parents[2]


def resolve_folder(folder):
    return resolve(str(folder), schemes=("file",))


@pytest.fixture
def folder(tmp_path):
    return write_stress_checkpoint(tmp_path / "ck")


@pytest.mark.parametrize("attention", ["divided_space_time", "joint_space_time", "space_only"])
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize(
    "sizes",
    [
        {"image_size": 32, "patch_size": 8, "num_frames": 4, "num_hidden_layers": 1},
        {"image_size": 50, "patch_size": 16, "num_frames": 3, "num_hidden_layers": 3},
        {"image_size": 448, "patch_size": 16, "num_frames": 16, "num_hidden_layers": 2},
    ],
)
def test_expected_shapes_are_those_of_the_module(attention, qkv_bias, sizes):
    shape = Architecture(
        num_labels=7,
        hidden_size=24,
        num_attention_heads=3,
        intermediate_size=40,
        attention_type=attention,
        qkv_bias=qkv_bias,
        **sizes,
    )
    config = TimesformerConfig(**{name: getattr(shape, name) for name in shape.__slots__})
    with torch.device("meta"):
        state = TimesformerForVideoClassification(config).state_dict()
    assert expected_shapes(shape) == {name: tuple(value.shape) for name, value in state.items()}


def test_facts_of_a_folder(tmp_path):
    folder = write_stress_checkpoint(tmp_path / "my model!", num_frames=4, frame_rate_divisor=8)
    checkpoint = resolve_folder(folder)
    assert (checkpoint.id, checkpoint.short_name) == ("my model!", "my-model-")
    assert (checkpoint.num_frames, checkpoint.image_size, checkpoint.hidden_size) == (4, 32, 32)
    assert (checkpoint.num_labels, checkpoint.frame_rate_divisor) == (5, 8)
    assert checkpoint.attention_type == "divided_space_time"
    assert checkpoint.labels == ("left", "right", "up", "down", "none")
    facts = checkpoint.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["weights_sha256"] == checkpoint.weights_sha256
    assert pickle.loads(pickle.dumps(checkpoint)) == checkpoint


def test_facts_follow_every_part_of_the_checkpoint(tmp_path):
    base = resolve_folder(write_stress_checkpoint(tmp_path / "a" / "ck")).facts()
    assert resolve_folder(write_stress_checkpoint(tmp_path / "b" / "ck")).facts() == base
    variants = {
        "weights_sha256": {"seed": 1},
        "labels_sha256": {"labels": ("right", "left", "up", "down", "none")},
        "frame_rate_divisor": {"frame_rate_divisor": 9},
    }
    for key, change in variants.items():
        other = resolve_folder(write_stress_checkpoint(tmp_path / key / "ck", **change)).facts()
        assert {name for name in base if base[name] != other[name]} == {key}


def test_relative_and_absolute_paths_are_one_model(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert resolve("ck", schemes=()) == resolve_folder(folder)
    assert resolve(f"file://{folder}", schemes=("file",)) == resolve_folder(folder)


def test_shards_hold_the_same_state(tmp_path, folder):
    sharded = resolve_folder(write_stress_checkpoint(tmp_path / "sharded", shards=3))
    assert len(sharded.weights_files) == 3
    one, many = load_state(resolve_folder(folder)), load_state(sharded)
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_stored_halves_are_loaded_as_float32(folder):
    file = folder / "model.safetensors"
    halves = {name: torch.tensor(value).bfloat16() for name, value in load_file(file).items()}
    save_torch(halves, file)
    state = load_state(resolve_folder(folder))
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert all(torch.equal(state[name], halves[name].float()) for name in halves)


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def drop_head(tensors):
    del tensors["classifier.weight"], tensors["classifier.bias"]


def drop_many(tensors):
    for name in [name for name in tensors if "attention" in name]:
        del tensors[name]


def add_extra(tensors):
    tensors["classifier.extra"] = np.zeros(3, np.float32)


def reshape_head(tensors):
    tensors["classifier.weight"] = np.zeros((6, 32), np.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_head, "ck: .*2 missing: classifier.bias, classifier.weight$"),
        (drop_many, r"16 missing: (timesformer\S+, ){5}\.\.\."),
        (add_extra, "1 unexpected: classifier.extra$"),
        (reshape_head, r"wrong shape: classifier.weight is \(6, 32\), not \(5, 32\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, words):
    edit(folder, change)
    with pytest.raises(ModelError, match=words):
        resolve_folder(folder)


def test_hugging_face_would_load_a_missing_head_silently(folder):
    edit(folder, drop_head)
    module = TimesformerForVideoClassification.from_pretrained(folder)
    assert module.classifier.weight.shape == (5, 32)  # random numbers: why we check


def test_quantised_weights_are_refused(folder):
    edit(folder, lambda tensors: tensors.update({"classifier.bias": np.zeros(5, np.int8)}))
    with pytest.raises(ModelError, match="quantised weights"):
        resolve_folder(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_truncated_weights_are_refused(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        resolve_folder(folder)


def test_weights_that_vanish_after_resolve_are_reported(folder):
    checkpoint = resolve_folder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"cannot load model\.safetensors"):
        load_state(checkpoint)


def test_weights_that_are_others_than_when_they_were_resolved_are_refused(folder):
    """Rows of theirs would lie under the fingerprint of the first."""
    checkpoint = resolve_folder(folder)
    edit(folder, lambda tensors: tensors.update({"classifier.bias": np.ones(5, np.float32)}))
    with pytest.raises(ModelError, match=r"model\.safetensors has other weights here"):
        load_state(checkpoint)


def test_a_folder_that_this_machine_lacks_is_explained(folder):
    checkpoint = resolve_folder(folder)
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="is not on this machine"):
        load_state(checkpoint)


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": []},
        {"weight_map": {}},
        {"weight_map": {"x": "../secret.safetensors"}},
        {"weight_map": {"x": "/etc/passwd"}},
        {"weight_map": {"x": 3}},
    ],
)
def test_shard_indexes_that_reach_out_of_the_folder_are_refused(folder, index):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="weight_map does not name"):
        resolve_folder(folder)


def test_missing_shard_is_refused(tmp_path):
    folder = write_stress_checkpoint(tmp_path / "ck", shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="00002-of-00002"):
        resolve_folder(folder)


def test_pickled_weights_alone_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="save_pretrained"):
        resolve_folder(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match="is this a checkpoint"):
        resolve_folder(folder)


def test_stress_tensors_are_seeded(tmp_path):
    shape = Architecture(num_labels=2, hidden_size=24, num_hidden_layers=1)
    write_weights(tmp_path, stress_tensors(shape, 3))
    again = load_file(tmp_path / "model.safetensors")
    assert all(
        np.array_equal(value, again[name]) for name, value in stress_tensors(shape, 3).items()
    )
    assert not np.array_equal(stress_tensors(shape, 4)["classifier.bias"], again["classifier.bias"])


RESOLVE = """
import sys, time
for name in {blocked!r}:
    sys.modules[name] = None
started = time.process_time()
from indexer.model.weights import resolve
resolve({folder!r}, schemes=("file",))
seconds = time.process_time() - started
assert "torch" not in sys.modules and "transformers" not in sys.modules
print(seconds)
if {classify!r}:
    from indexer.model.classify import Classifier
    Classifier(resolve({folder!r}, schemes=("file",)))
"""


def run_python(code):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )


def test_resolving_a_folder_needs_neither_torch_nor_a_second(folder):
    code = RESOLVE.format(folder=str(folder), blocked=(), classify=False)
    assert float(run_python(code).stdout) < 1.0


def test_the_model_needs_no_other_part_of_the_project(folder):
    blocked = ("ray", "av", "pydantic", "deltalake", "pyarrow", "fsspec", "s3fs", "duckdb")
    run_python(RESOLVE.format(folder=str(folder), blocked=blocked, classify=True))
