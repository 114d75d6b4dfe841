"""Our forward pass against the Hugging Face module's, from the same tensors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import TimesformerConfig, TimesformerForVideoClassification

from indexer.errors import ModelError
from indexer.model.recipe import Architecture
from indexer.model.timesformer import TimeSformer, _attend_elementwise
from indexer.records import Preprocessing
from tests.model.stress import stress_tensors

TINY = Architecture(
    num_labels=5,
    image_size=32,
    patch_size=8,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
)
MIDDLE = Architecture(
    num_labels=50,
    image_size=64,
    hidden_size=192,
    num_hidden_layers=4,
    num_attention_heads=3,
    intermediate_size=768,
)
BASE = Architecture(num_labels=400)
RECIPE = Preprocessing(
    resize=32,
    crop=None,
    interpolation="bilinear",
    rescale_factor=1 / 255,
    mean=(0.45, 0.40, 0.35),
    std=(0.225, 0.25, 0.275),
)


def state_of(architecture, seed=0):
    return {
        name: torch.from_numpy(values)
        for name, values in stress_tensors(architecture, seed).items()
    }


def clips_of(architecture, clips, seed=0):
    """Colour fields that drift, under noise: no two clips are alike."""
    rng = np.random.default_rng(seed)
    size, frames = architecture.image_size, architecture.num_frames
    low_NTHWC = rng.uniform(0, 255, (clips, frames, 4, 4, 3))
    scale = -(-size // 4)
    high_NTHWC = low_NTHWC.repeat(scale, 2).repeat(scale, 3)[:, :, :size, :size]
    noisy_NTHWC = high_NTHWC + rng.normal(0, 20, high_NTHWC.shape)
    return torch.from_numpy(noisy_NTHWC.clip(0, 255).astype(np.uint8))


class HuggingFace:
    """The reference, fed as its processor would, in float64 up to the module's own dtype."""

    def __init__(self, state, architecture, recipe=RECIPE, dtype=torch.float32):
        settings = {name: getattr(architecture, name) for name in architecture.__slots__}
        with torch.device("meta"):
            self.module = TimesformerForVideoClassification(TimesformerConfig(**settings)).eval()
        placed = {name: tensor.to(dtype) for name, tensor in state.items()}
        self.module.load_state_dict(placed, assign=True)
        self.recipe, self.dtype = recipe, dtype

    @torch.inference_mode()
    def __call__(self, frames_BTHWC):
        mean_C, std_C = (
            torch.tensor(values, dtype=torch.float64)
            for values in (self.recipe.mean, self.recipe.std)
        )
        pixels_BTHWC = (frames_BTHWC.double() * self.recipe.rescale_factor - mean_C) / std_C
        pixels_BTCHW = pixels_BTHWC.to(self.dtype).permute(0, 1, 4, 2, 3)
        embeddings_BD = self.module.timesformer(pixels_BTCHW).last_hidden_state[:, 0]
        return self.module.classifier(embeddings_BD), embeddings_BD


@torch.inference_mode()
def ours(state, architecture, frames_BTHWC, recipe=RECIPE, dtype=torch.float32):
    return TimeSformer(state, architecture, recipe, dtype).eval()(frames_BTHWC)


def eager(model):
    return model


def traced(model):
    """Compiled as far as the graph of kernels: whole, and in-place changes made functional."""
    torch.compiler.reset()
    return torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)


def distance(scores, expected):
    return max((a - b).abs().max().item() for a, b in zip(scores, expected, strict=True))


VARIANTS = {
    "base": {},
    "one frame": {"num_frames": 1},
    "three frames": {"num_frames": 3},
    "more frames than are compiled as arithmetic": {"num_frames": 17},
    "pixels beyond the last patch": {"image_size": 45},
    "one patch": {"image_size": 8},
    "one layer": {"num_hidden_layers": 1},
    "one head": {"num_attention_heads": 1},
    "heads of an odd width": {"hidden_size": 33, "num_attention_heads": 3},
    "no bias": {"qkv_bias": False},
    "joint attention": {"attention_type": "joint_space_time"},
    "joint attention of three frames": {"attention_type": "joint_space_time", "num_frames": 3},
    "one label": {"num_labels": 1},
    "a large epsilon": {"layer_norm_eps": 0.1},
}


@pytest.mark.parametrize("prepare", [eager, traced])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_float64_is_the_hugging_face_module(variant, prepare):
    architecture = replace(TINY, **variant)
    state, frames_BTHWC = state_of(architecture), clips_of(architecture, 3)
    expected = HuggingFace(state, architecture, dtype=torch.float64)(frames_BTHWC)
    model = TimeSformer(state, architecture, RECIPE, torch.float64)
    with torch.no_grad():
        scores = prepare(model)(frames_BTHWC)
    assert scores[0].dtype == scores[1].dtype == torch.float64
    assert distance(scores, expected) <= 1e-10
    assert (expected[1].amax(0) - expected[1].amin(0)).max() > 0.01  # the clips do differ


@pytest.mark.parametrize(
    "recipe",
    [
        replace(RECIPE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        replace(RECIPE, rescale_factor=1.0, mean=(120.0, 0.0, 300.0), std=(50.0, 60.0, 0.5)),
        replace(RECIPE, mean=(-0.5, 0.5, 2.0), std=(-0.5, 1.0, 1.0)),
    ],
)
def test_any_normalisation_is_folded_in(recipe):
    state, frames_BTHWC = state_of(TINY), clips_of(TINY, 2)
    expected = HuggingFace(state, TINY, recipe, torch.float64)(frames_BTHWC)
    assert distance(ours(state, TINY, frames_BTHWC, recipe, torch.float64), expected) <= 1e-10


def test_other_activations_are_refused():
    architecture = replace(TINY, hidden_act="gelu_new")
    with pytest.raises(ModelError, match=r"gelu_new.*set model\.backend = transformers"):
        TimeSformer(state_of(architecture), architecture, RECIPE)


def test_float32_at_full_size():
    state, frames_BTHWC = state_of(BASE), clips_of(BASE, 1)
    expected = HuggingFace(state, BASE)(frames_BTHWC)
    scores = ours(state, BASE, frames_BTHWC)
    assert scores[0].dtype == scores[1].dtype == torch.float32
    assert distance(scores, expected) <= 1e-5


def relative_rms(scores, expected):
    return ((scores - expected).pow(2).mean() / expected.pow(2).mean()).sqrt().item()


def worst_cosine(scores, expected):
    return torch.cosine_similarity(scores.double(), expected.double()).min().item()


def check_low_precision(architecture, dtype, clips, batch, prepare):
    state, frames_NTHWC = state_of(architecture), clips_of(architecture, clips)

    def scores_of(classify):
        parts = [classify(frames_BTHWC) for frames_BTHWC in frames_NTHWC.split(batch)]
        return [torch.cat(outputs).float() for outputs in zip(*parts, strict=True)]

    exact = scores_of(HuggingFace(state, architecture))
    theirs = scores_of(HuggingFace(state, architecture, dtype=dtype))
    model = TimeSformer(state, architecture, RECIPE, dtype).eval()
    mine = scores_of(torch.no_grad()(prepare(model)))
    for score, their, expected in zip(mine, theirs, exact, strict=True):
        assert 0 < relative_rms(score, expected) <= relative_rms(their, expected)
        assert worst_cosine(score, expected) >= min(worst_cosine(their, expected), 0.99999)
        assert worst_cosine(score, expected) >= 0.9998
    check_labels(mine[0], exact[0])
    head = functional.linear(mine[1], state["classifier.weight"], state["classifier.bias"])
    assert (mine[0] - head).abs().max() <= 1e-5


def check_labels(logits_NK, exact_NK):
    """The best label is the exact one's wherever that leads by more than twice the error."""
    best_N2 = exact_NK.topk(2).values
    error_N = (logits_NK - exact_NK).abs().amax(1)
    clear_N = best_N2[:, 0] - best_N2[:, 1] > 2 * error_N
    assert clear_N.float().mean() > 0.5
    assert torch.equal(logits_NK.argmax(1)[clear_N], exact_NK.argmax(1)[clear_N])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("prepare", [eager, traced])
def test_low_precision_is_no_worse_than_theirs(dtype, prepare):
    check_low_precision(MIDDLE, dtype, clips=12, batch=4, prepare=prepare)


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        replace(RECIPE, mean=(0.4492, 0.4, 0.35)),
        replace(RECIPE, mean=(4.0, 4.5, 5.0)),
    ],
    ids=["base", "a mean between whole pixels", "a mean that no pixel has"],
)
def test_pixels_near_the_mean_lose_nothing(recipe):
    """Their own rounding, and that of the weights times the mean, would be all that is left."""
    state, frames_BTHWC = state_of(MIDDLE), clips_of(MIDDLE, 2)
    mean_C = (torch.tensor(recipe.mean) * 255).clamp(0, 250)
    near_BTHWC = (frames_BTHWC / 32 + mean_C).to(torch.uint8)
    expected = HuggingFace(state, MIDDLE, recipe)(near_BTHWC)
    theirs = HuggingFace(state, MIDDLE, recipe, torch.bfloat16)(near_BTHWC)
    mine = ours(state, MIDDLE, near_BTHWC, recipe, torch.bfloat16)
    centre_C = TimeSformer(state, MIDDLE, recipe, torch.bfloat16).embedding.centre_C
    assert torch.equal(centre_C, centre_C.round())
    assert relative_rms(mine[1], expected[1]) < relative_rms(theirs[1].float(), expected[1])


def test_attention_over_time_is_rounded_once():
    rng = torch.Generator().manual_seed(0)
    q, k, v = torch.randn((3, 2, 8, 5, 4, 64), generator=rng, dtype=torch.float64).bfloat16()
    exact = _attend_elementwise(q.double(), k.double(), v.double())
    error = (_attend_elementwise(q, k, v).double() - exact).abs()
    assert (error <= 2**-8 * exact.abs() + 1e-6).all()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_at_full_size(dtype):
    check_low_precision(BASE, dtype, clips=64, batch=2, prepare=eager)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_clip_does_not_see_its_batch(dtype):
    """Bit for bit; between batches of other sizes, kernels may sum in another order."""
    state, frames_BTHWC = state_of(MIDDLE), clips_of(MIDDLE, 4)
    scores = ours(state, MIDDLE, frames_BTHWC, dtype=dtype)
    padded_BTHWC = frames_BTHWC.clone()
    padded_BTHWC[2:] = 0
    padded = ours(state, MIDDLE, padded_BTHWC, dtype=dtype)
    for score, other in zip(scores, padded, strict=True):
        assert torch.equal(score[:2], other[:2])
        assert not torch.equal(score[2:], other[2:])


def test_the_model_leaves_frames_and_state_alone():
    state, frames_BTHWC = state_of(TINY), clips_of(TINY, 2)
    before, frames_before = {k: v.clone() for k, v in state.items()}, frames_BTHWC.clone()
    first = ours(state, TINY, frames_BTHWC)
    assert torch.equal(frames_BTHWC, frames_before)
    assert all(torch.equal(state[name], before[name]) for name in state)
    assert torch.equal(first[0], ours(state, TINY, frames_BTHWC)[0])
