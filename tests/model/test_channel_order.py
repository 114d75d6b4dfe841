"""A checkpoint that was trained on BGR gives, for RGB frames, what it gives its own way for BGR."""

from dataclasses import replace

import numpy as np
import pytest

from indexer.model.classify import Classifier
from indexer.model.weights import load_state, resolve
from tests.model.stress import write_stress_checkpoint

PATCH_WEIGHT = "timesformer.embeddings.patch_embeddings.projection.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "stress"
    found = resolve(str(write_stress_checkpoint(folder, num_frames=4)), schemes=("file",))
    uneven = replace(found.preprocessing, mean=(0.3, 0.4, 0.5), std=(0.2, 0.25, 0.3))
    return replace(found, preprocessing=uneven)


def test_turning_the_frames_or_the_weights_is_the_same(checkpoint):
    size = checkpoint.image_size
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, size, size, 3), dtype=np.uint8)
    own_way = Classifier(checkpoint).classify(frames[..., ::-1])
    turned = Classifier(checkpoint.trained_on("bgr")).classify(frames)
    np.testing.assert_allclose(turned.logits_NK, own_way.logits_NK, atol=1e-5)
    plain = Classifier(checkpoint).classify(frames)
    assert np.abs(plain.logits_NK - own_way.logits_NK).max() > 1e-3


def test_only_the_patches_are_turned_and_the_file_is_not(checkpoint):
    plain, turned = load_state(checkpoint), load_state(checkpoint.trained_on("bgr"))
    np.testing.assert_array_equal(turned.pop(PATCH_WEIGHT), plain.pop(PATCH_WEIGHT).flip(1))
    for name, tensor in plain.items():
        np.testing.assert_array_equal(turned[name], tensor)


def test_an_index_knows_the_order(checkpoint):
    turned = checkpoint.trained_on("bgr")
    assert turned.facts() != checkpoint.facts()
    assert turned.facts()["channel_order"] == "bgr"
    assert turned.trained_on("bgr") is turned
    assert turned.trained_on("rgb").preprocessing == checkpoint.preprocessing
