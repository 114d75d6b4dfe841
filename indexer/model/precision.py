"""Which dtype a model runs in; told without torch, so that a driver can decide for all workers."""

from pathlib import Path
from typing import Final

from indexer.errors import ModelError

AUTO: Final = "auto"
DTYPES: Final = ("float32", "bfloat16", "float16")

_CPU_FACTS: Final = Path("/proc/cpuinfo")
_FAST_BFLOAT16: Final = frozenset({"amx_bf16", "avx512_bf16"})


def resolve_dtype(name: str, device: str) -> str:
    """The dtype of weights and activations; for `auto` the fastest that is accurate enough.

    That is float16 on a GPU, bfloat16 on a CPU with instructions for it, and float32 elsewhere. The
    CPU is that of this machine.

    Args:
        name: `auto` or one of `DTYPES`.
        device: `cpu` or `cuda`.

    Raises:
        ModelError: there is no such precision.
    """
    if name == AUTO:
        return "float16" if device == "cuda" else _of_this_cpu()
    if name not in DTYPES:
        message = f"precision.model = {name!r}, but must be auto or one of {', '.join(DTYPES)}"
        raise ModelError(message)
    return name


def _of_this_cpu() -> str:
    try:
        words = _CPU_FACTS.read_text(encoding="utf-8", errors="replace").split()
    except OSError:  # not Linux
        return "float32"
    return "bfloat16" if _FAST_BFLOAT16.intersection(words) else "float32"
