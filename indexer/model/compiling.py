"""Compiling a module with inductor: when it pays, and what if it fails."""

import time
import warnings
from typing import Final

import torch
from torch import Tensor, nn

from indexer.model.recipe import Architecture, flops_of

_PAYS_FROM: Final = {"cpu": 1e14, "cuda": 4e16}
"""Floating-point operations from which on compiling pays, by device.

On one core it takes 15 to 30 s, and saves 0.1 s of a clip of the base model: 250 clips. On a GPU,
where it was not measured, it is taken to need a minute, and to save 0.6 ms of such a clip."""


def pays(architecture: Architecture, expected_clips: int, device: str) -> bool:
    """Whether compiling is likely to save more time than it takes."""
    return flops_of(architecture) * expected_clips >= _PAYS_FROM[device]


class Compiled:
    """A module that is compiled for each shape of its input when that first comes.

    Inductor keeps what it compiled in a folder of the machine, `/tmp/torchinductor_USER` unless
    TORCHINDUCTOR_CACHE_DIR says otherwise, which any number of processes may share.

    Attributes:
        seconds: spent compiling, the first runs included.
        failure: why the module runs uncompiled after all.
    """

    def __init__(self, module: nn.Module) -> None:
        self.seconds = 0.0
        self.failure: str | None = None
        self._module = module
        self._compiled = torch.compile(module, fullgraph=True, dynamic=False)
        self._ready: set[torch.Size] = set()

    def __call__(self, frames_BTHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the module; compiled, wherever that works."""
        scores: tuple[Tensor, Tensor]
        if self.failure is not None:
            scores = self._module(frames_BTHWC)
        elif frames_BTHWC.shape in self._ready:
            scores = self._compiled(frames_BTHWC)
        else:
            scores = self._first(frames_BTHWC)
        return scores

    def _first(self, frames_BTHWC: Tensor) -> tuple[Tensor, Tensor]:
        import torch._inductor.config as inductor

        started = time.perf_counter()
        scores: tuple[Tensor, Tensor]
        try:
            # A frozen graph has its weights packed for the CPU's matrix units. Whoever scores on
            # CPUs has a process for each: a pool of compilers for each process would be too many.
            on_cpu = {"freezing": True, "compile_threads": 1}
            settings = on_cpu if frames_BTHWC.device.type == "cpu" else {}
            with inductor.patch(settings), warnings.catch_warnings():
                # it would have float32 rounded to 10 bits: whoever asks for that asks for less
                warnings.filterwarnings("ignore", message="TensorFloat32")
                scores = self._compiled(frames_BTHWC)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever ails the compiler, the job can go on
            self.failure = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            message = f"the model runs uncompiled, and so slower: {self.failure}"
            warnings.warn(message, RuntimeWarning, stacklevel=3)
            scores = self._module(frames_BTHWC)
        self.seconds += time.perf_counter() - started
        self._ready.add(frames_BTHWC.shape)
        return scores
