"""What a checkpoint runs as: a module from uint8 clips to logits and embeddings."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from indexer.errors import ModelError
from indexer.model.precision import resolve_dtype
from indexer.model.timesformer import State, TimeSformer
from indexer.model.weights import Checkpoint, load_state

Backend = Literal["native", "transformers"]
"""`native` is our own forward pass, `transformers` the Hugging Face module: slower, but it knows
every activation, and it is what ours is measured against."""


def pick_device(name: str) -> str:
    """`cpu` or `cuda`, for `auto` the GPU where there is one.

    Raises:
        ModelError: a GPU is asked for, but this process cannot use one.
    """
    if name not in {"auto", "cpu", "cuda"}:
        message = f"model.device = {name!r}, but must be auto, cpu or cuda"
        raise ModelError(message)
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        message = (
            "model.device = cuda, but torch finds no GPU here: check nvidia-smi and"
            " CUDA_VISIBLE_DEVICES, install a CUDA build of torch, or set model.device = cpu"
        )
        raise ModelError(message)
    return "cuda" if available and name != "cpu" else "cpu"


def pick_dtype(name: str, device: str) -> torch.dtype:
    """The dtype of weights and activations; for `auto` the fastest that is accurate enough.

    See `precision.resolve_dtype`.

    Raises:
        ModelError: there is no such precision.
    """
    return getattr(torch, resolve_dtype(name, device))  # type: ignore[no-any-return]


def build(checkpoint: Checkpoint, backend: str, device: str, dtype: torch.dtype) -> nn.Module:
    """Loads a checkpoint as a module for inference.

    Returns:
        A module that takes uint8 frames (B, T, H, W, 3) and gives logits (B, K), and what its
        classifier is given, embeddings (B, D).

    Raises:
        ModelError: the checkpoint cannot be loaded, or the backend cannot run it.
    """
    if backend not in get_args(Backend):
        message = f"model.backend = {backend!r}, but must be one of {', '.join(get_args(Backend))}"
        raise ModelError(message)
    state = load_state(checkpoint)
    module: nn.Module
    if backend == "native":
        module = TimeSformer(state, checkpoint.architecture, checkpoint.preprocessing, dtype)
    else:
        module = _HuggingFace(state, checkpoint, dtype)
    return module.to(device).train(mode=False)


class _HuggingFace(nn.Module):
    """The module of transformers, which wants normalised pixels."""

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, state: State, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        from transformers import TimesformerConfig, TimesformerForVideoClassification

        super().__init__()
        architecture, recipe = checkpoint.architecture, checkpoint.preprocessing
        # of the configuration only what shapes the scores
        settings = {name: getattr(architecture, name) for name in architecture.__slots__}
        try:
            with torch.device("meta"):
                self.module = TimesformerForVideoClassification(TimesformerConfig(**settings))
        except KeyError as error:
            message = f"config.json: hidden_act = {architecture.hidden_act!r} is unknown"
            raise ModelError(message) from error
        placed = {name: tensor.to(dtype) for name, tensor in state.items()}
        self.module.load_state_dict(placed, strict=True, assign=True)
        self.dtype = dtype
        self.rescale_factor = recipe.rescale_factor
        self.register_buffer("mean_C", torch.tensor(recipe.mean))
        self.register_buffer("std_C", torch.tensor(recipe.std))

    def forward(self, frames_BTHWC: Tensor) -> tuple[Tensor, Tensor]:
        pixels_BTHWC = (frames_BTHWC.float() * self.rescale_factor - self.mean_C) / self.std_C
        pixels_BTCHW = pixels_BTHWC.permute(0, 1, 4, 2, 3).to(self.dtype)
        embeddings_BD = self.module.timesformer(pixels_BTCHW).last_hidden_state[:, 0]
        return self.module.classifier(embeddings_BD), embeddings_BD
