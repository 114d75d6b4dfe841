"""The contestants of `model.py`, and the weights and clips that they all get."""

import contextlib
import importlib
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from indexer.model.backends import build
from indexer.model.classify import Classifier
from indexer.model.compiling import Compiled
from indexer.model.recipe import Architecture
from indexer.model.weights import Checkpoint, expected_shapes, resolve

Scores = tuple[Tensor, Tensor]
Run = Callable[[Tensor], Scores]

PRESETS: Final = {
    "base": Architecture(num_labels=400),
    "hr": Architecture(num_labels=400, num_frames=16, image_size=448),
    "l": Architecture(num_labels=400, num_frames=96),
}
ABOUT: Final = {
    "hf": "the Hugging Face module",
    "hf-tf32": "the same, with TF32 in matrix products",
    "hf-compiled": "the same, compiled as our classifier compiles",
    "openvino": "the same, converted for OpenVINO",
    "native": "our module",
    "native-compiled": "the same, compiled as the classifier compiles it",
    "native-graphs": "the same, compiled with CUDA graphs",
    "classifier": "the classifier, from numpy to numpy",
}


@contextlib.contextmanager
def checkpoint_of(name: str) -> Iterator[Checkpoint]:
    """A model of that name, or seeded weights in the shape of a preset until the block ends."""
    if name not in PRESETS:
        yield resolve(name, schemes=("file",))
        return
    architecture = PRESETS[name]
    settings = {key: getattr(architecture, key) for key in architecture.__slots__}
    labels = {str(index): f"label {index}" for index in range(architecture.num_labels)}
    size = {"height": architecture.image_size, "width": architecture.image_size}
    preprocessor = {"size": size, "do_center_crop": False, "resample": 2, "image_mean": 0.45}
    with tempfile.TemporaryDirectory() as folder:
        config = settings | {"model_type": "timesformer", "id2label": labels}
        Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        Path(folder, "preprocessor_config.json").write_text(
            json.dumps(preprocessor | {"image_std": 0.225}), encoding="utf-8"
        )
        save_file(seeded_state(architecture), Path(folder, "model.safetensors"))
        yield resolve(folder, schemes=("file",))


def seeded_state(architecture: Architecture) -> dict[str, Tensor]:
    """Weights by which activations keep their size, and nothing is zero or one."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in expected_shapes(architecture).items():
        values = torch.randn(shape, generator=generator)
        if "layernorm" in name and name.endswith("weight"):
            state[name] = 1 + 0.3 * values
        elif name.endswith("weight"):
            state[name] = values * (1.2 / values[0].numel() ** 0.5)
        else:
            state[name] = 0.2 * values
    return state


def clips_of(checkpoint: Checkpoint, clips: int) -> Tensor:
    """Colour fields under noise: no two clips are alike."""
    generator = torch.Generator().manual_seed(1)
    size, frames = checkpoint.image_size, checkpoint.num_frames
    coarse = 255 * torch.rand((clips * frames, 3, 4, 4), generator=generator)
    fine = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    fine += 20 * torch.randn(fine.shape, generator=generator)
    frames_BTCHW = fine.clamp(0, 255).to(torch.uint8).unflatten(0, (clips, frames))  # type: ignore[no-untyped-call]
    frames_BTHWC: Tensor = frames_BTCHW.permute(0, 1, 3, 4, 2).contiguous()
    return frames_BTHWC


def contestant(method: str, dtype: str, checkpoint: Checkpoint, device: str, batch: int) -> Run:
    """Loads a contestant, which takes host frames and leaves the scores on the device."""
    if method == "classifier":
        return _classifier(checkpoint, dtype, device, batch)
    backend = "native" if method.startswith("native") else "transformers"
    if method == "openvino":
        return _openvino(build(checkpoint, backend, device, torch.float32), checkpoint, dtype)
    module = build(checkpoint, backend, device, getattr(torch, dtype))
    run: Run = module
    if method.endswith("-compiled"):
        run = partial(_compiled, Compiled(module))
    elif method == "native-graphs":
        run = torch.compile(module, fullgraph=True, dynamic=False, mode="reduce-overhead")
    elif method == "hf-tf32":
        run = partial(_with_tf32, module)
    return lambda frames_BTHWC: run(frames_BTHWC.to(device, non_blocking=True))


def _classifier(checkpoint: Checkpoint, dtype: str, device: str, batch: int) -> Run:
    classifier = Classifier(
        checkpoint, device=device, dtype=dtype, batch_size=batch, expected_clips=10**9
    )

    def run(frames_BTHWC: Tensor) -> Scores:
        scores = classifier.classify(frames_BTHWC.numpy())
        return torch.from_numpy(scores.logits_NK), torch.from_numpy(scores.embeddings_ND)

    return run


def _compiled(compiled: Compiled, frames_BTHWC: Tensor) -> Scores:
    scores = compiled(frames_BTHWC)
    if compiled.failure is not None:  # else the figure would be that of the module as it is
        raise RuntimeError(compiled.failure)
    return scores


def _with_tf32(run: Run, frames_BTHWC: Tensor) -> Scores:
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return run(frames_BTHWC)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def _openvino(module: nn.Module, checkpoint: Checkpoint, dtype: str) -> Run:
    openvino = importlib.import_module("openvino")

    example_BTHWC = clips_of(checkpoint, 1)
    hints = {"INFERENCE_PRECISION_HINT": {"bfloat16": "bf16"}[dtype], "INFERENCE_NUM_THREADS": 1}
    converted = openvino.convert_model(module, example_input=example_BTHWC)
    compiled = openvino.compile_model(converted, "CPU", hints)

    def run(frames_BTHWC: Tensor) -> Scores:
        outputs = compiled(frames_BTHWC.numpy())
        return torch.from_numpy(outputs[0]), torch.from_numpy(outputs[1])

    return run
