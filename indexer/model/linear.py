"""Fits a linear classifier: multinomial logistic regression by L-BFGS.

Axes: N examples, K classes, D features.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from indexer.errors import ModelError

STEPS: Final = 500
"""At most; a problem of a few thousand features takes some fifty."""

_SMALLEST_SPREAD: Final = 1e-6

Floats = npt.NDArray[np.float32]


def fit_linear(
    features_ND: Floats, classes_N: npt.NDArray[np.int64], classes: int, *, l2: float = 1e-3
) -> tuple[Floats, Floats]:
    """Minimises the mean cross-entropy, plus `l2 / 2` times the squared weights.

    The features are brought to mean 0 and deviation 1 for the fit, in float64, and the result is
    written in terms of the given ones. The problem is convex and the start is 0: the same data give
    the same weights.

    Args:
        features_ND: finite.
        classes_N: 0 to `classes` - 1.
        classes: how many there are.
        l2: above 0, so that there is one best answer.

    Returns:
        weight float32[K, D] and bias float32[K]; logits are `features @ weight.T + bias`.

    Raises:
        ModelError: the fit came to no finite end.
    """
    x_ND = torch.from_numpy(features_ND.astype(np.float64))
    mean_D, spread_D = x_ND.mean(0), x_ND.std(0, correction=0).clamp(min=_SMALLEST_SPREAD)
    x_ND = (x_ND - mean_D) / spread_D
    y_N = torch.from_numpy(classes_N.astype(np.int64))
    weight_KD = torch.zeros(classes, x_ND.shape[1], dtype=torch.float64, requires_grad=True)
    bias_K = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight_KD, bias_K],
        max_iter=STEPS,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logits_NK = functional.linear(x_ND, weight_KD, bias_K)
        value: torch.Tensor = functional.cross_entropy(logits_NK, y_N)
        value = value + l2 / 2 * weight_KD.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        own_KD = weight_KD / spread_D
        own_K = bias_K - own_KD @ mean_D
    if not (own_KD.isfinite().all() and own_K.isfinite().all()):
        message = "the fit came to no finite end; are the embeddings all finite?"
        raise ModelError(message)
    return own_KD.numpy().astype(np.float32), own_K.numpy().astype(np.float32)
