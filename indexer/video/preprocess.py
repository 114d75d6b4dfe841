"""From a decoded frame to the model's pixels, as the Hugging Face (torchvision) processors do it.

The pixels equal those of `VideoMAEImageProcessor` and `TimesformerVideoProcessor`, bit for bit;
`tests/goldens/make_preprocess.py` makes the arrays that prove it. Rescaling and normalisation are
left to the model.

Axes: H height, W width, C colour (RGB), N = 1.
"""

import platform
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch

from indexer.records import Preprocessing

Frame = npt.NDArray[np.uint8]


def preprocess_frame(
    frame_HWC: Frame, recipe: Preprocessing, pixel_aspect: Fraction = Fraction(1)
) -> Frame:
    """Resizes and crops one frame.

    Args:
        frame_HWC: uint8 RGB, of any size and strides.
        recipe: the checkpoint's own.
        pixel_aspect: width of a pixel by its height; the processors take every pixel for square.

    Returns:
        uint8 RGB of `recipe.crop or resized_size(recipe, H, W)`, contiguous, sharing no memory
        with the input.
    """
    height, width = frame_HWC.shape[0], max(round(frame_HWC.shape[1] * pixel_aspect), 1)
    resized_HWC = _resize(frame_HWC, resized_size(recipe, height, width), recipe.interpolation)
    if recipe.crop is not None:
        resized_HWC = centre_crop(resized_HWC, recipe.crop)
    return np.array(resized_HWC, order="C")


def resized_size(recipe: Preprocessing, height: int, width: int) -> tuple[int, int]:
    """(height, width) after resizing a frame of this size, before any crop.

    The longer side is rounded down, as in `int(size * long / short)` of the processors.
    """
    if not isinstance(recipe.resize, int):
        return recipe.resize
    longer = recipe.resize * max(height, width) // min(height, width)
    return (longer, recipe.resize) if width <= height else (recipe.resize, longer)


def _resize(frame_HWC: Frame, size: tuple[int, int], interpolation: str) -> Frame:
    if frame_HWC.shape[:2] == size:
        return frame_HWC
    frame_NCHW = torch.from_numpy(np.ascontiguousarray(frame_HWC)).permute(2, 0, 1).unsqueeze(0)
    if not _has_uint8_kernel(interpolation):
        frame_NCHW = frame_NCHW.float()
    try:
        resized_NCHW = torch.nn.functional.interpolate(
            frame_NCHW, size=size, mode=interpolation, align_corners=False, antialias=True
        )
    except RuntimeError as error:  # torch has no class of its own for this
        if "allocate memory" in str(error):
            raise MemoryError from error
        raise
    if resized_NCHW.is_floating_point():
        resized_NCHW = resized_NCHW.round().to(torch.uint8)
    resized_HWC: Frame = resized_NCHW[0].permute(1, 2, 0).numpy()
    return resized_HWC


def _has_uint8_kernel(interpolation: str) -> bool:
    """Whether torchvision resizes this in uint8; elsewhere it goes through float32."""
    if interpolation != "bilinear":
        return True
    vector = torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}
    return vector or platform.machine() in {"aarch64", "arm64"}


def centre_crop(frame_HWC: Frame, crop: tuple[int, int]) -> Frame:
    """Cuts (height, width) from the middle; a smaller frame is first padded with black."""
    excess = [max(wanted - have, 0) for wanted, have in zip(crop, frame_HWC.shape, strict=False)]
    if any(excess):
        around = [(missing // 2, missing - missing // 2) for missing in excess]
        frame_HWC = np.pad(frame_HWC, [*around, (0, 0)])
    top, left = ((have - cut) // 2 for have, cut in zip(frame_HWC.shape, crop, strict=False))
    return frame_HWC[top : top + crop[0], left : left + crop[1]]
