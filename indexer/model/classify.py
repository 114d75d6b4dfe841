"""Clips in, logits and embeddings out: the Hugging Face module behind one method.

Axes in array names: N clips, B clips of one batch, T frames, H height, W width, C colours,
K labels, D hidden size.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from transformers import TimesformerConfig, TimesformerForVideoClassification

from indexer.errors import ModelError
from indexer.model.recipe import Architecture
from indexer.model.weights import Checkpoint, load_state
from indexer.records import ClipScores

_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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


class Classifier:
    """A loaded model, ready to score clips; not for use by two threads at once.

    Args:
        checkpoint: the model.
        device: `auto`, `cpu` or `cuda`.
        dtype: `float32` or `bfloat16`, of weights and activations; scores are float32.
        batch_size: clips of one forward pass.

    Attributes:
        clip_shape_THWC: the shape of one clip.

    Raises:
        ModelError: the checkpoint cannot be loaded, or the device is not there.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 2,
    ) -> None:
        if dtype not in _DTYPES:
            message = f"precision.model = {dtype!r}, but must be one of {', '.join(_DTYPES)}"
            raise ModelError(message)
        size = checkpoint.image_size
        self.clip_shape_THWC = (checkpoint.num_frames, size, size, 3)
        self._device = torch.device(pick_device(device))
        self._dtype = _DTYPES[dtype]
        self._batch_size = batch_size
        self._output_sizes = (checkpoint.num_labels, checkpoint.hidden_size)
        self._rescale_factor = checkpoint.preprocessing.rescale_factor
        self._mean_C = torch.tensor(checkpoint.preprocessing.mean, device=self._device)
        self._std_C = torch.tensor(checkpoint.preprocessing.std, device=self._device)
        state = load_state(checkpoint)
        placed = {name: tensor.to(self._device, self._dtype) for name, tensor in state.items()}
        self._module = _build(checkpoint.architecture)
        self._module.load_state_dict(placed, strict=True, assign=True)
        self._module.train(mode=False)

    def classify(self, frames_NTHWC: npt.NDArray[np.uint8]) -> ClipScores:
        """Scores clips.

        Args:
            frames_NTHWC: uint8 RGB frames at the model's size, not normalised.

        Returns:
            Logits, and the final-LayerNorm CLS vectors that the classifier itself sees.

        Raises:
            ModelError: the clips are not of the length and size that the model takes.
        """
        self._check(frames_NTHWC)
        logits_NK, embeddings_ND = (
            np.empty((len(frames_NTHWC), size), np.float32) for size in self._output_sizes
        )
        # inference mode belongs to the thread, and convolutions on a GPU default to TF32
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            for start in range(0, len(frames_NTHWC), self._batch_size):
                batch = slice(start, start + self._batch_size)
                logits_BK, embeddings_BD = self._forward(frames_NTHWC[batch])
                logits_NK[batch] = logits_BK.float().cpu().numpy()
                embeddings_ND[batch] = embeddings_BD.float().cpu().numpy()
        return ClipScores(logits_NK=logits_NK, embeddings_ND=embeddings_ND)

    def _check(self, frames_NTHWC: npt.NDArray[np.uint8]) -> None:
        if frames_NTHWC.dtype == np.uint8 and frames_NTHWC.shape[1:] == self.clip_shape_THWC:
            return
        frames, height, width, _ = self.clip_shape_THWC
        message = (
            f"the checkpoint takes {frames} frames of {height}x{width} (uint8 NTHWC), got"
            f" {frames_NTHWC.dtype} {frames_NTHWC.shape}"
        )
        raise ModelError(message)

    def _forward(self, frames_BTHWC: npt.NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        # torch.tensor copies: frames that come out of Arrow are read-only
        frames_BTHWC = np.ascontiguousarray(frames_BTHWC)
        pixels_BTHWC = torch.tensor(frames_BTHWC, device=self._device).float()
        pixels_BTHWC = (pixels_BTHWC * self._rescale_factor - self._mean_C) / self._std_C
        pixels_BTCHW = pixels_BTHWC.permute(0, 1, 4, 2, 3).to(self._dtype)
        tokens = self._module.timesformer(pixels_BTCHW).last_hidden_state
        embeddings_BD = tokens[:, 0]
        return self._module.classifier(embeddings_BD), embeddings_BD


def _build(architecture: Architecture) -> TimesformerForVideoClassification:
    """The module without weights; of the configuration only what shapes the scores is used."""
    settings = {name: getattr(architecture, name) for name in architecture.__slots__}
    try:
        with torch.device("meta"):
            return TimesformerForVideoClassification(TimesformerConfig(**settings))
    except KeyError as error:
        message = f"config.json: hidden_act = {architecture.hidden_act!r} is unknown"
        raise ModelError(message) from error
