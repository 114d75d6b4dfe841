import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import TimesformerForVideoClassification

from indexer.errors import ModelError
from indexer.model.backends import pick_device, pick_dtype
from indexer.model.classify import Classifier
from indexer.model.timesformer import TimeSformer
from indexer.model.weights import resolve
from tests.model.stress import write_stress_checkpoint, write_weights


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


@pytest.mark.parametrize(("backend", "tolerance"), [("native", 1e-5), ("transformers", 1e-6)])
@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"num_frames": 3, "image_size": 48, "seed": 1},
        {"attention_type": "joint_space_time", "num_frames": 2, "seed": 2},
        {"qkv_bias": False, "seed": 3},
    ],
)
def test_scores_are_those_of_the_hugging_face_module(tmp_path, variant, backend, tolerance):
    folder = write_stress_checkpoint(tmp_path / "ck", **variant)
    checkpoint = resolve(str(folder), schemes=("file",))
    frames_NTHWC = random_clips(checkpoint, 4)
    logits, embeddings = reference(checkpoint, frames_NTHWC)
    scores = Classifier(checkpoint, batch_size=4, backend=backend).classify(frames_NTHWC)
    assert np.abs(scores.logits_NK - logits).max() <= tolerance
    assert np.abs(scores.embeddings_ND - embeddings).max() <= tolerance
    assert np.ptp(logits, axis=0).min() > 0.01  # the clips do differ
    assert scores.logits_NK.dtype == scores.embeddings_ND.dtype == np.float32


def test_embedding_times_head_is_the_logits(checkpoint):
    classifier = Classifier(checkpoint)
    scores = classifier.classify(random_clips(checkpoint, 3))
    head = TimesformerForVideoClassification.from_pretrained(checkpoint.folder).classifier
    logits = head(torch.from_numpy(scores.embeddings_ND)).detach().numpy()
    assert np.abs(scores.logits_NK - logits).max() <= 1e-6


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_several_arrays_are_scored_as_one(checkpoint, batch_size):
    frames_NTHWC = random_clips(checkpoint, 6)
    classifier = Classifier(checkpoint, batch_size=batch_size)
    whole = classifier.classify(frames_NTHWC)
    parts = classifier.classify(frames_NTHWC[:1], frames_NTHWC[1:1], frames_NTHWC[1:])
    assert np.array_equal(whole.logits_NK, parts.logits_NK)
    assert np.array_equal(whole.embeddings_ND, parts.embeddings_ND)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 64])
def test_scores_do_not_depend_on_the_batch(checkpoint, batch_size):
    frames_NTHWC = random_clips(checkpoint, 5)
    whole = Classifier(checkpoint, batch_size=5).classify(frames_NTHWC)
    parts = Classifier(checkpoint, batch_size=batch_size).classify(frames_NTHWC)
    assert np.abs(whole.logits_NK - parts.logits_NK).max() <= 1e-5
    assert np.abs(whole.embeddings_ND - parts.embeddings_ND).max() <= 1e-5


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


@pytest.mark.parametrize("backend", ["native", "transformers"])
def test_unknown_activation_is_refused(tmp_path, backend):
    folder = write_stress_checkpoint(tmp_path / "ck")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"gloo"'))
    with pytest.raises(ModelError, match="hidden_act = 'gloo'"):
        Classifier(resolve(str(folder), schemes=("file",)), backend=backend)


def test_devices(checkpoint):
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ModelError, match="must be auto, cpu or cuda"):
        pick_device("tpu")
    with pytest.raises(ModelError, match=r"precision\.model = 'float8'"):
        Classifier(checkpoint, dtype="float8")
    with pytest.raises(ModelError, match=r"model\.backend = 'onnx'"):
        Classifier(checkpoint, backend="onnx")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_missing_gpu_is_refused():
    with pytest.raises(ModelError, match="finds no GPU"):
        pick_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_the_cpu(checkpoint):
    frames_NTHWC = random_clips(checkpoint, 5)
    cpu = Classifier(checkpoint).classify(frames_NTHWC)
    for backend in ("native", "transformers"):
        gpu = Classifier(checkpoint, device="cuda", backend=backend).classify(frames_NTHWC)
        assert np.abs(cpu.logits_NK - gpu.logits_NK).max() <= 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("expected_clips", [0, 10**15])
def test_a_gpu_scores_many_batches_in_float16(checkpoint, expected_clips):
    """Every clip gets its own scores, whichever buffer and stream it went through."""
    frames_NTHWC = random_clips(checkpoint, 100)
    exact = Classifier(checkpoint).classify(frames_NTHWC)
    classifier = Classifier(
        checkpoint, device="cuda", dtype="auto", batch_size=8, expected_clips=expected_clips
    )
    assert classifier.dtype == "float16"
    scores = classifier.classify(frames_NTHWC)
    assert np.abs(scores.embeddings_ND - exact.embeddings_ND).max() <= 0.02
    distances_NN = np.abs(scores.embeddings_ND[:, None] - exact.embeddings_ND).max(2)
    assert (distances_NN.argmin(1) == np.arange(100)).all()
    again = classifier.classify(frames_NTHWC[:50])
    assert np.array_equal(again.logits_NK[:48], scores.logits_NK[:48])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_finds_its_batch(checkpoint):
    classifier = Classifier(checkpoint, device="cuda", dtype="auto")
    assert classifier.batch_size in {1, 2, 4, 8, 16, 32, 64}
    assert len(classifier.classify(random_clips(checkpoint, 70)).logits_NK) == 70


def test_auto_is_the_fastest_precision_that_is_accurate_enough(checkpoint):
    assert pick_dtype("auto", "cuda") is torch.float16
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    fast = "avx512_bf16" in flags or "amx_bf16" in flags
    expected = "bfloat16" if fast else "float32"
    assert Classifier(checkpoint, dtype="auto").dtype == expected


@pytest.fixture(scope="module")
def loud(tmp_path_factory):
    """A model whose activations outgrow float16 for some clips, and clips of every brightness."""
    folder = write_stress_checkpoint(tmp_path_factory.mktemp("loud") / "ck")
    tensors = load_file(folder / "model.safetensors")
    tensors["timesformer.encoder.layer.1.output.dense.weight"] *= 2e4
    write_weights(folder, tensors)
    checkpoint = resolve(str(folder), schemes=("file",))
    brightness_N1111 = np.linspace(0, 1, 8).reshape(-1, 1, 1, 1, 1)
    return checkpoint, (random_clips(checkpoint, 8) * brightness_N1111).astype(np.uint8)


@pytest.mark.parametrize("backend", ["native", "transformers"])
def test_what_overflows_float16_is_scored_in_bfloat16(loud, backend):
    checkpoint, frames_NTHWC = loud
    classifier = Classifier(checkpoint, dtype="float16", backend=backend, batch_size=1)
    scores = classifier.classify(frames_NTHWC)
    coarse = Classifier(checkpoint, dtype="bfloat16", backend=backend, batch_size=1)
    same = (scores.logits_NK == coarse.classify(frames_NTHWC).logits_NK).all(axis=1)
    assert np.isfinite(scores.logits_NK).all()
    assert np.isfinite(scores.embeddings_ND).all()
    assert 0 < classifier.recomputed_batches == same.sum() < 8
    classifier.classify(frames_NTHWC)
    assert classifier.recomputed_batches == 2 * same.sum()


def test_what_is_not_finite_in_bfloat16_either_stays_so(tmp_path):
    folder = write_stress_checkpoint(tmp_path / "ck")
    tensors = load_file(folder / "model.safetensors")
    tensors["timesformer.embeddings.cls_token"] *= np.nan
    write_weights(folder, tensors)
    checkpoint = resolve(str(folder), schemes=("file",))
    classifier = Classifier(checkpoint, dtype="float16", batch_size=2)
    assert np.isnan(classifier.classify(random_clips(checkpoint, 3)).logits_NK).all()
    assert classifier.recomputed_batches == 2


def test_what_does_not_overflow_is_scored_once(checkpoint):
    classifier = Classifier(checkpoint, dtype="float16")
    classifier.classify(random_clips(checkpoint, 3))
    assert classifier.recomputed_batches == 0


@pytest.fixture
def batches():
    """The sizes of the batches that a native model is given, as they come."""
    sizes = []

    def note(module, inputs):
        if isinstance(module, TimeSformer):
            sizes.append(len(inputs[0]))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    yield sizes
    handle.remove()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_scores_do_not_depend_on_the_padding(checkpoint, batches, dtype):
    """Bit for bit: the batch always has the same size, whatever fills it up."""
    frames_NTHWC = random_clips(checkpoint, 4)
    classifier = Classifier(checkpoint, dtype=dtype, batch_size=4)
    full = classifier.classify(frames_NTHWC)
    for clips in (1, 2, 3):
        padded = classifier.classify(frames_NTHWC[:clips])
        assert np.array_equal(padded.logits_NK, full.logits_NK[:clips])
        assert np.array_equal(padded.embeddings_ND, full.embeddings_ND[:clips])
    assert batches == [4] * 4


def test_a_small_rest_does_not_cost_a_full_batch(checkpoint, batches):
    Classifier(checkpoint, batch_size=8).classify(random_clips(checkpoint, 19))
    assert batches == [8, 8, 2, 2]


class ScarceMemory:
    """A GPU on which batches beyond a size do not fit, from some call on."""

    def __init__(self, monkeypatch, fits, from_call=1):
        self.scored, self.calls = [], 0
        forward = TimeSformer.forward

        def scarce(model, frames_BTHWC):
            self.calls += 1
            if self.calls >= from_call and len(frames_BTHWC) > fits:
                raise torch.OutOfMemoryError
            self.scored.append(len(frames_BTHWC))
            return forward(model, frames_BTHWC)

        monkeypatch.setattr(TimeSformer, "forward", scarce)


def test_out_of_memory_halves_the_batch_for_good(checkpoint, monkeypatch):
    frames_NTHWC = random_clips(checkpoint, 16)
    expected = Classifier(checkpoint).classify(frames_NTHWC)
    classifier = Classifier(checkpoint, batch_size=8)
    memory = ScarceMemory(monkeypatch, fits=4, from_call=2)
    scores = classifier.classify(frames_NTHWC)
    assert classifier.batch_size == 4
    assert memory.scored == [8, 4, 4]  # what the first batch gave is kept
    assert memory.calls == 4
    assert np.abs(scores.logits_NK - expected.logits_NK).max() <= 1e-5
    calls = memory.calls
    classifier.classify(frames_NTHWC[:2])
    assert memory.calls == calls + 1


def test_too_little_memory_for_one_clip_is_refused(checkpoint, monkeypatch):
    classifier = Classifier(checkpoint, batch_size=4)
    ScarceMemory(monkeypatch, fits=0)
    with pytest.raises(ModelError, match="does not suffice for one clip"):
        classifier.classify(random_clips(checkpoint, 1))


def test_busy_and_waiting_are_told_apart(checkpoint):
    classifier = Classifier(checkpoint)
    started = time.perf_counter()
    classifier.classify(random_clips(checkpoint, 2))
    time.sleep(0.2)
    classifier.classify(random_clips(checkpoint, 2))
    passed_seconds = time.perf_counter() - started
    assert 0.2 <= classifier.wait_seconds < passed_seconds
    assert 0 < classifier.busy_seconds <= passed_seconds - 0.2


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize()


def check_memory(checkpoint, clips):
    """Scores clips in calls of every length, and compares memory after a tenth and at the end."""
    classifier = Classifier(checkpoint, batch_size=8)
    frames_NTHWC = random_clips(checkpoint, 32)
    scored, before = 0, None
    while scored < clips:
        count = 1 + scored % len(frames_NTHWC)
        classifier.classify(frames_NTHWC[:count])
        scored += count
        if before is None and scored >= clips // 10:
            before = resident_bytes()
    assert resident_bytes() - before < 10_000_000


def test_memory_stays_flat(checkpoint):
    check_memory(checkpoint, 2_000)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_memory_stays_flat_over_a_hundred_thousand_clips(checkpoint):
    check_memory(checkpoint, 100_000)


CHILD = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"av", "pydantic", "ray", "deltalake", "pyarrow", "fsspec"}:
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, Absent())
import numpy as np
from indexer.model.classify import Classifier
from indexer.model.weights import resolve

checkpoint = resolve(sys.argv[1], schemes=("file",))
frames = np.zeros((1, *Classifier(checkpoint).clip_shape_THWC), np.uint8)
for backend in ("native", "transformers"):
    print(Classifier(checkpoint, backend=backend).classify(frames).logits_NK.shape)
    print("transformers" in sys.modules)
"""


def test_scoring_needs_torch_numpy_and_safetensors_only(checkpoint):
    """The benchmark runs on GPU machines that have nothing else, and transformers as its rival."""
    command = [sys.executable, "-c", CHILD, str(checkpoint.folder)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.stdout.split("\n")[:4] == ["(1, 5)", "False", "(1, 5)", "True"], child.stderr
