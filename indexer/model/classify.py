"""Clips in, logits and embeddings out: a checkpoint behind one method.

Axes in array names: N clips, B clips of one batch, T frames, H height, W width, C colours,
K labels, D hidden size.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from indexer.errors import ModelError
from indexer.model.backends import Backend, build, pick_device, pick_dtype
from indexer.model.batching import calibrate, next_batch, pieces
from indexer.model.compiling import Compiled, pays
from indexer.model.staging import Staging
from indexer.model.weights import Checkpoint
from indexer.records import ClipScores

_LARGEST_BATCH: Final = 64
"""So many clips travel together from the decoders to a GPU."""

_MEMORY_SHARE: Final = 0.8
"""Of a GPU's free memory, what a batch may take when it is calibrated."""

Clips = npt.NDArray[np.uint8]
Scores = tuple[Tensor, Tensor]
Model = Callable[[Tensor], Scores]


class Classifier:
    """A loaded model, ready to score clips; not for use by two threads at once.

    The scores of a clip do not depend on the clips beside it, not in the last bit; but kernels may
    sum in another order in batches of another size.

    Args:
        checkpoint: the model.
        device: `auto`, `cpu` or `cuda`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`, of weights and activations; scores are
            float32. A batch that overflows float16 is scored again in bfloat16.
        backend: `native` or `transformers`.
        batch_size: clips of one forward pass; by default 1 on a CPU, and calibrated on a GPU.
        expected_clips: how many clips it is likely to score in its life; from a number on, which
            depends on the model, the native model is compiled. 0 never compiles it.

    Attributes:
        clip_shape_THWC: the shape of one clip.
        dtype: which was picked, such as `float16`.
        batch_size: clips of one forward pass; less than asked for once memory did not suffice.
        recomputed_batches: how many were scored again because they overflowed float16.
        busy_seconds: spent in `classify`, without compiling.
        wait_seconds: passed between its calls, and before the first.

    Raises:
        ModelError: the checkpoint cannot be loaded, the backend cannot run it, or the device is not
            there.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        backend: Backend = "native",
        batch_size: int | None = None,
        expected_clips: int = 0,
    ) -> None:
        size = checkpoint.image_size
        self.clip_shape_THWC = (checkpoint.num_frames, size, size, 3)
        self.recomputed_batches = 0
        self.busy_seconds = self.wait_seconds = 0.0
        self._checkpoint, self._backend = checkpoint, backend
        self._device = pick_device(device)
        picked = pick_dtype(dtype, self._device)
        self.dtype = str(picked).removeprefix("torch.")
        module = build(checkpoint, backend, self._device, picked)
        self._model: Model = module
        self._fallback: Model | None = None
        self._staging = Staging(self.clip_shape_THWC, self._device)
        self.batch_size = batch_size or self._calibrated()
        self._compiled: Compiled | None = None
        if backend == "native" and pays(checkpoint.architecture, expected_clips, self._device):
            self._model = self._compiled = Compiled(module)
        self._idle_since = time.perf_counter()

    @property
    def compile_seconds(self) -> float:
        """Spent compiling so far."""
        return self._compiled.seconds if self._compiled else 0.0

    @property
    def problems(self) -> frozenset[str]:
        """What makes it slower than it could be, in words for the user."""
        failure = self._compiled.failure if self._compiled else None
        if failure is None:
            return frozenset()
        return frozenset({f"the model runs uncompiled, and so slower: {failure}"})

    def classify(self, *frames_NTHWC: Clips) -> ClipScores:
        """Scores clips.

        Args:
            frames_NTHWC: uint8 RGB frames at the model's size, not normalised; several arrays are
                scored as if they were one, without being joined.

        Returns:
            Logits, and the final-LayerNorm CLS vectors that the classifier itself sees.

        Raises:
            ModelError: the clips are not of the length and size that the model takes, or the GPU's
                memory does not suffice for one clip.
        """
        for part_NTHWC in frames_NTHWC:
            self._check(part_NTHWC)
        started, compiled_before = time.perf_counter(), self.compile_seconds
        self.wait_seconds += started - self._idle_since
        # inference mode belongs to the thread, and convolutions on a GPU default to TF32
        cudnn = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with torch.inference_mode(), cudnn:
            scores = self._score(self._model, frames_NTHWC)
        self._idle_since = time.perf_counter()
        compiling_seconds = self.compile_seconds - compiled_before
        self.busy_seconds += self._idle_since - started - compiling_seconds
        return scores

    def _check(self, frames_NTHWC: Clips) -> None:
        if frames_NTHWC.dtype == np.uint8 and frames_NTHWC.shape[1:] == self.clip_shape_THWC:
            return
        frames, height, width, _ = self.clip_shape_THWC
        message = (
            f"the checkpoint takes {frames} frames of {height}x{width} (uint8 NTHWC), got"
            f" {frames_NTHWC.dtype} {frames_NTHWC.shape}"
        )
        raise ModelError(message)

    def _score(self, model: Model, frames_NTHWC: Sequence[Clips]) -> ClipScores:
        """Gives the device all batches before it asks for the scores of the first."""
        total = sum(map(len, frames_NTHWC))
        running: list[tuple[slice, Scores]] = []
        start = 0
        while start < total:
            clips, size = next_batch(total - start, self.batch_size)
            batch = slice(start, start + clips)
            scores = self._run(model, pieces(frames_NTHWC, batch), size)
            if scores is None:
                self._halve_batch()
            else:
                running.append((batch, scores))
                start += clips
        return self._gather(model, frames_NTHWC, running)

    def _run(self, model: Model, frames_NTHWC: Sequence[Clips], size: int) -> Scores | None:
        """The scores of a batch, still on the device; None where its memory does not suffice."""
        try:
            logits_BK, embeddings_BD = model(self._staging.load(frames_NTHWC, size))
        except torch.OutOfMemoryError:
            return None
        clips = sum(map(len, frames_NTHWC))
        return logits_BK[:clips], embeddings_BD[:clips]

    def _halve_batch(self) -> None:
        if self.batch_size == 1:
            message = (
                "the GPU's memory does not suffice for one clip: free it of other processes, see"
                " nvidia-smi, or set model.device = cpu"
            )
            raise ModelError(message)
        self.batch_size //= 2
        torch.cuda.empty_cache()

    def _gather(
        self,
        model: Model,
        frames_NTHWC: Sequence[Clips],
        running: list[tuple[slice, Scores]],
    ) -> ClipScores:
        total = sum(map(len, frames_NTHWC))
        sizes = self._checkpoint.num_labels, self._checkpoint.hidden_size
        logits_NK, embeddings_ND = (np.empty((total, size), np.float32) for size in sizes)
        for batch, (logits_BK, embeddings_BD) in running:
            logits_NK[batch] = logits_BK.float().cpu().numpy()
            embeddings_ND[batch] = embeddings_BD.float().cpu().numpy()
            if model is self._model and self._overflowed(logits_NK[batch], embeddings_ND[batch]):
                self.recomputed_batches += 1
                again = self._score(self._in_bfloat16(), pieces(frames_NTHWC, batch))
                logits_NK[batch], embeddings_ND[batch] = again.logits_NK, again.embeddings_ND
        return ClipScores(logits_NK=logits_NK, embeddings_ND=embeddings_ND)

    def _overflowed(self, *scores: npt.NDArray[np.float32]) -> bool:
        return self.dtype == "float16" and not all(np.isfinite(score).all() for score in scores)

    def _in_bfloat16(self) -> Model:
        """The model whose numbers reach as far as those of float32, loaded when first needed."""
        if self._fallback is None:
            self._fallback = build(self._checkpoint, self._backend, self._device, torch.bfloat16)
        return self._fallback

    def _calibrated(self) -> int:
        if self._device == "cpu":
            return 1
        with torch.inference_mode():
            return calibrate(self._seconds_of_batch, _LARGEST_BATCH)

    def _seconds_of_batch(self, clips: int) -> float | None:
        frames_BTHWC = np.zeros((clips, *self.clip_shape_THWC), np.uint8)
        free_bytes, _ = torch.cuda.mem_get_info()
        budget_bytes = _MEMORY_SHARE * (free_bytes + torch.cuda.memory_reserved())
        torch.cuda.reset_peak_memory_stats()
        seconds = float("inf")
        for _ in range(3):  # the first also loads kernels
            started = time.perf_counter()
            if self._run(self._model, [frames_BTHWC], clips) is None:
                return None
            torch.cuda.synchronize()
            seconds = min(seconds, time.perf_counter() - started)
        return seconds if torch.cuda.max_memory_allocated() <= budget_bytes else None
