"""Files of a head: what fits is read, whatever else is refused with a reason."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from indexer.errors import ConfigError
from indexer.table.head import Head, read_head

WEIGHT_KD = np.arange(12, dtype=np.float32).reshape(3, 4)
BIAS_K = np.array([1, 2, 3], np.float32)
LABELS = ["a", "b", "c"]


@pytest.fixture
def read(tmp_path):
    def read(tensors, labels):
        weights, names = tmp_path / "head.safetensors", tmp_path / "labels.json"
        if isinstance(tensors, bytes):
            weights.write_bytes(tensors)
        elif isinstance(tensors, dict):
            save_file(tensors, weights)
        if labels is not None:
            names.write_text(labels if isinstance(labels, str) else json.dumps(labels))
        return read_head(weights, names)

    return read


def tensors(weight=WEIGHT_KD, bias=BIAS_K, prefix=""):
    return {f"{prefix}weight": weight, f"{prefix}bias": bias}


@pytest.mark.parametrize("labels", [LABELS, {"0": "a", "2": "c", "1": "b"}])
@pytest.mark.parametrize(
    "stored",
    [
        tensors(),
        tensors(prefix="classifier.") | {"timesformer.layernorm.weight": np.ones(4)},
        tensors(WEIGHT_KD.astype(np.float16), BIAS_K.astype(np.float64)),
    ],
)
def test_both_spellings_of_a_head_are_one_head(read, stored, labels):
    head = read(stored, labels)
    assert np.array_equal(head.weight_KD, WEIGHT_KD)
    assert np.array_equal(head.bias_K, BIAS_K)
    assert head.labels == ("a", "b", "c")
    assert head.sha256 == read(tensors(), LABELS).sha256


def test_the_digest_is_of_the_numbers(read):
    assert read(tensors(bias=BIAS_K + 1), LABELS).sha256 != read(tensors(), LABELS).sha256


@pytest.mark.parametrize(
    ("stored", "labels", "words"),
    [
        (None, LABELS, "is no readable safetensors file"),
        (b"junk", LABELS, "is no readable safetensors file"),
        ({"weight": WEIGHT_KD}, LABELS, "should hold the tensors weight and bias"),
        ({"head.weight": WEIGHT_KD, "head.bias": BIAS_K}, LABELS, "it holds head.bias, head.wei"),
        (tensors() | tensors(prefix="classifier."), LABELS, "holds two heads"),
        (tensors(BIAS_K), LABELS, r"weight \[3\] and bias \[3\] should be"),
        (tensors(bias=BIAS_K[:2]), LABELS, r"weight \[3, 4\] and bias \[2\] should be"),
        (tensors(WEIGHT_KD[:0], BIAS_K[:0]), [], "should be"),
        (tensors(WEIGHT_KD.astype(np.int32)), LABELS, "weight is I32; save it as one of F16"),
        (tensors(WEIGHT_KD * np.float32(np.nan)), LABELS, "is not finite"),
        (tensors(bias=BIAS_K.astype(np.float64) * 1e300), LABELS, "is not finite"),
        (tensors(), LABELS[:2], "has 2 labels, but .* scores 3"),
        (tensors(), ["a", "b", "a"], "the label 'a' is there twice"),
        (tensors(), ["a", "b", ""], "should be a list of names"),
        (tensors(), ["a", "b", 3], "should be a list of names"),
        (tensors(), "3", "should be a list of names"),
        (tensors(), {"0": "a", "1": "b", "3": "c"}, "should be 0 to 2, but 2 is not there"),
        (tensors(), {"0": "a", "01": "b", "2": "c"}, "but 1 is not there"),
        (tensors(), '{"0": "a", "1": "b", "1": "c"}', "has a key twice"),
        (tensors(), '["a", "b", "\\ud800"]', "half a character"),
        (tensors(), "[", "is no readable JSON"),
        (tensors(), None, "is no readable JSON"),
    ],
)
def test_what_is_no_head_is_refused_by_name(read, stored, labels, words):
    with pytest.raises(ConfigError, match=words):
        read(stored, labels)


def test_a_bfloat16_head_is_refused_by_name(tmp_path):
    stored = {"weight": torch.ones(1, 4, dtype=torch.bfloat16), "bias": torch.ones(1)}
    save_torch_file(stored, tmp_path / "h.safetensors")
    (tmp_path / "l.json").write_text('["a"]')
    with pytest.raises(ConfigError, match="weight is BF16; save it as"):
        read_head(tmp_path / "h.safetensors", tmp_path / "l.json")


@pytest.mark.parametrize("size", [1, 7, 64])
def test_logits_do_not_depend_on_their_neighbours(size):
    rng = np.random.default_rng(size)
    head = Head(rng.normal(size=(40, 768)).astype("f4"), np.zeros(40, "f4"), ("",) * 40)
    vectors_ND = rng.normal(size=(500, 768)).astype("f4")
    whole = head.logits(vectors_ND)
    parts = [head.logits(vectors_ND[start : start + size]) for start in range(0, 500, size)]
    assert np.array_equal(whole, np.concatenate(parts))
