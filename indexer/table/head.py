"""A linear head: the weights and names that turn a stored embedding into labels.

Axes: N clips, K labels, D the model's hidden size.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from indexer.errors import ConfigError

NAMES: Final = (("weight", "bias"), ("classifier.weight", "classifier.bias"))
"""What the tensors may be called: those of a bare layer, or of a whole Hugging Face checkpoint."""

_DTYPES: Final = ("F16", "F32", "F64")

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Head:
    """A linear classifier over embeddings.

    Attributes:
        weight_KD: float32.
        bias_K: float32.
        labels: the vocabulary, by label id.
    """

    weight_KD: Floats
    bias_K: Floats
    labels: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of the numbers as float32, whatever file they came in; in hex."""
        little = (self.weight_KD.astype("<f4"), self.bias_K.astype("<f4"))
        return hashlib.sha256(b"".join(array.tobytes() for array in little)).hexdigest()

    def logits(self, embeddings_ND: Floats) -> Floats:
        """Scores before softmax, as float32[N, K].

        Summed in float64, so that the result does not depend on which clips are looked at together.

        Raises:
            ConfigError: one is beyond float32.
        """
        wide_NK = embeddings_ND.astype(np.float64) @ self.weight_KD.T.astype(np.float64)
        with np.errstate(over="ignore"):
            logits_NK: Floats = (wide_NK + self.bias_K).astype(np.float32)
        if not np.isfinite(logits_NK).all():
            message = "the head's weights are so large that a logit is beyond float32"
            raise ConfigError(message)
        return logits_NK


def read_head(weights: Path, labels: Path) -> Head:
    """Reads a head from a safetensors file and a JSON list of names.

    Args:
        weights: holds `weight` [K, D] and `bias` [K], or a checkpoint's `classifier.weight` and
            `classifier.bias`, in float16, float32 or float64.
        labels: a JSON list of K names, or an object `{"0": name, ...}`.

    Raises:
        ConfigError: a file is missing or malformed, or the two do not fit each other.
    """
    weight_KD, bias_K = _read_tensors(weights)
    names = _read_labels(labels)
    if weight_KD.ndim != 2 or bias_K.shape != weight_KD.shape[:1] or not weight_KD.size:  # noqa: PLR2004 - KD
        message = (
            f"{weights}: weight {list(weight_KD.shape)} and bias {list(bias_K.shape)} should be"
            " [labels, hidden size] and [labels]"
        )
        raise ConfigError(message)
    if len(names) != len(bias_K):
        message = f"{labels} has {len(names)} labels, but {weights} scores {len(bias_K)}"
        raise ConfigError(message)
    if not (np.isfinite(weight_KD).all() and np.isfinite(bias_K).all()):
        message = f"{weights}: a weight is not finite in float32"
        raise ConfigError(message)
    return Head(weight_KD, bias_K, names)


def _read_tensors(path: Path) -> tuple[Floats, Floats]:
    try:
        with safe_open(str(path), framework="numpy") as file:
            found = set(file.keys())
            named = [pair for pair in NAMES if found.issuperset(pair)]
            if len(named) != 1:
                message = f"{path} {_name_fault(found, named)}"
                raise ConfigError(message)
            weight_KD, bias_K = (_floats(path, file, name) for name in named[0])
            return weight_KD, bias_K
    except (OSError, SafetensorError) as error:
        message = f"{path} is no readable safetensors file: {error}"
        raise ConfigError(message) from error


def _name_fault(found: set[str], named: Sequence[tuple[str, str]]) -> str:
    if named:
        return "holds two heads, `weight` and `classifier.weight`; keep one"
    shown = ", ".join(sorted(found)[:5]) or "nothing"
    return (
        "should hold the tensors weight and bias, or classifier.weight and classifier.bias;"
        f" it holds {shown}{', ...' if len(found) > 5 else ''}"  # noqa: PLR2004 - as shown
    )


def _floats(path: Path, file: Any, name: str) -> Floats:  # noqa: ANN401 - safe_open has no type
    dtype = file.get_slice(name).get_dtype()
    if dtype not in _DTYPES:
        message = f"{path}: {name} is {dtype}; save it as one of {', '.join(_DTYPES)}"
        raise ConfigError(message)
    with np.errstate(over="ignore"):
        values: Floats = np.ascontiguousarray(file.get_tensor(name), dtype=np.float32)
    return values


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_once)
    except (OSError, ValueError) as error:
        message = f"{path} is no readable JSON file: {error}"
        raise ConfigError(message) from error
    names: Any = _in_order(path, content) if isinstance(content, dict) else content
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        message = f'{path} should be a list of names, or an object such as {{"0": "a name"}}'
        raise ConfigError(message)
    seen: set[str] = set()
    for name in names:
        if name in seen:
            message = f"{path}: the label {name!r} is there twice"
            raise ConfigError(message)
        if not name.isprintable() and any("\ud800" <= c <= "\udfff" for c in name):
            message = f"{path}: the label {name!r} holds half a character (a lone surrogate)"
            raise ConfigError(message)
        seen.add(name)
    return tuple(names)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        message = "an object has a key twice"
        raise ValueError(message)
    return found


def _in_order(path: Path, content: dict[str, object]) -> list[object]:
    """The names of `{"0": name, ...}` by their ids."""
    ids = [str(number) for number in range(len(content))]
    missing = [number for number in ids if number not in content]
    if missing:
        message = f"{path}: the ids should be 0 to {len(ids) - 1}, but {missing[0]} is not there"
        raise ConfigError(message)
    return [content[number] for number in ids]
