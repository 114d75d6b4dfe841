import numpy as np
import pytest
import torch
from transformers import TimesformerForVideoClassification

from indexer.errors import ModelError
from indexer.model.classify import Classifier, pick_device
from indexer.model.weights import resolve
from tests.model.stress import write_stress_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = write_stress_checkpoint(tmp_path_factory.mktemp("stress") / "ck")
    return resolve(str(folder), schemes=("file",))


def random_clips(checkpoint, clips, seed=0):
    size = checkpoint.image_size
    shape = (clips, checkpoint.num_frames, size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def reference(checkpoint, frames_NTHWC):
    """The module fed by hand, and what its classifier was given."""
    module = TimesformerForVideoClassification.from_pretrained(checkpoint.folder).eval()
    seen = []
    module.classifier.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numpy()))
    recipe = checkpoint.preprocessing
    pixels = frames_NTHWC.astype(np.float32) * np.float32(recipe.rescale_factor)
    pixels = (pixels - np.float32(recipe.mean)) / np.float32(recipe.std)
    with torch.no_grad():
        logits = module(torch.from_numpy(pixels).permute(0, 1, 4, 2, 3)).logits.numpy()
    return logits, seen[0]


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"num_frames": 3, "image_size": 48, "seed": 1},
        {"attention_type": "joint_space_time", "num_frames": 2, "seed": 2},
        {"qkv_bias": False, "seed": 3},
    ],
)
def test_scores_are_those_of_the_hugging_face_module(tmp_path, variant):
    folder = write_stress_checkpoint(tmp_path / "ck", **variant)
    checkpoint = resolve(str(folder), schemes=("file",))
    frames_NTHWC = random_clips(checkpoint, 4)
    logits, embeddings = reference(checkpoint, frames_NTHWC)
    scores = Classifier(checkpoint, batch_size=4).classify(frames_NTHWC)
    assert np.abs(scores.logits_NK - logits).max() <= 1e-6
    assert np.abs(scores.embeddings_ND - embeddings).max() <= 1e-6
    assert np.ptp(logits, axis=0).min() > 0.01  # the clips do differ
    assert scores.logits_NK.dtype == scores.embeddings_ND.dtype == np.float32


def test_embedding_times_head_is_the_logits(checkpoint):
    classifier = Classifier(checkpoint)
    scores = classifier.classify(random_clips(checkpoint, 3))
    head = TimesformerForVideoClassification.from_pretrained(checkpoint.folder).classifier
    logits = head(torch.from_numpy(scores.embeddings_ND)).detach().numpy()
    assert np.abs(scores.logits_NK - logits).max() <= 1e-6


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 64])
def test_scores_do_not_depend_on_the_batch(checkpoint, batch_size):
    frames_NTHWC = random_clips(checkpoint, 5)
    whole = Classifier(checkpoint, batch_size=5).classify(frames_NTHWC)
    parts = Classifier(checkpoint, batch_size=batch_size).classify(frames_NTHWC)
    assert np.abs(whole.logits_NK - parts.logits_NK).max() <= 2e-6
    assert np.abs(whole.embeddings_ND - parts.embeddings_ND).max() <= 2e-6


def test_the_order_of_frames_matters(checkpoint):
    frames_NTHWC = random_clips(checkpoint, 2)
    classifier = Classifier(checkpoint)
    forwards = classifier.classify(frames_NTHWC).logits_NK
    backwards = classifier.classify(frames_NTHWC[:, ::-1]).logits_NK
    assert np.abs(forwards - backwards).max() > 1e-3


def test_bfloat16_is_near_and_gives_float32(checkpoint):
    frames_NTHWC = random_clips(checkpoint, 4)
    exact = Classifier(checkpoint).classify(frames_NTHWC)
    coarse = Classifier(checkpoint, dtype="bfloat16").classify(frames_NTHWC)
    assert coarse.logits_NK.dtype == coarse.embeddings_ND.dtype == np.float32
    difference = np.abs(exact.logits_NK - coarse.logits_NK).max()
    assert 0 < difference < 0.1 * np.abs(exact.logits_NK).max()


def test_read_only_frames_and_no_frames(checkpoint):
    classifier = Classifier(checkpoint)
    frames_NTHWC = random_clips(checkpoint, 3)
    frames_NTHWC.setflags(write=False)
    assert len(classifier.classify(frames_NTHWC).logits_NK) == 3
    none = classifier.classify(frames_NTHWC[:0])
    assert none.logits_NK.shape == (0, 5)
    assert none.embeddings_ND.shape == (0, 32)


@pytest.mark.parametrize(
    "shape",
    [(1, 16, 32, 32, 3), (1, 4, 32, 32, 3), (1, 8, 64, 64, 3), (1, 8, 3, 32, 32), (8, 32, 32, 3)],
)
def test_clips_of_another_shape_are_refused(checkpoint, shape):
    """Hugging Face scores 16 or 4 frames with an 8-frame model without a word."""
    classifier = Classifier(checkpoint)
    assert classifier.clip_shape_THWC == (8, 32, 32, 3)
    with pytest.raises(ModelError, match="takes 8 frames of 32x32"):
        classifier.classify(np.zeros(shape, np.uint8))
    with pytest.raises(ModelError, match="float32"):
        classifier.classify(np.zeros((1, 8, 32, 32, 3), np.float32))


def test_unknown_activation_is_refused(tmp_path):
    folder = write_stress_checkpoint(tmp_path / "ck")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"gloo"'))
    with pytest.raises(ModelError, match="hidden_act = 'gloo'"):
        Classifier(resolve(str(folder), schemes=("file",)))


def test_devices(checkpoint):
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ModelError, match="must be auto, cpu or cuda"):
        pick_device("tpu")
    with pytest.raises(ModelError, match=r"precision\.model = 'float8'"):
        Classifier(checkpoint, dtype="float8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_missing_gpu_is_refused():
    with pytest.raises(ModelError, match="finds no GPU"):
        pick_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_the_cpu(checkpoint):
    frames_NTHWC = random_clips(checkpoint, 5)
    cpu = Classifier(checkpoint).classify(frames_NTHWC)
    gpu = Classifier(checkpoint, device="cuda").classify(frames_NTHWC)
    assert np.abs(cpu.logits_NK - gpu.logits_NK).max() <= 1e-4
