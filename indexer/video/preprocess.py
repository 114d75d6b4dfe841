"""From a decoded frame to the model's pixels, as the Hugging Face (torchvision) processors do it.

The pixels equal those of `VideoMAEImageProcessor` and `TimesformerVideoProcessor`, bit for bit;
`tests/goldens/make_preprocess.py` makes the arrays that prove it. Rescaling and normalisation are
left to the model. Torch is imported for the first frame that is resized: it takes seconds and more
memory than a decoder, and who lets FFmpeg resize does without.

Axes: P crops of one frame, H height, W width, C colour (RGB), N = 1.
"""

import platform
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from indexer.records import Preprocessing

Frame = npt.NDArray[np.uint8]


def preprocess_frame(frame_HWC: Frame, recipe: Preprocessing) -> Frame:
    """Resizes and crops one frame as the processors do: see `preprocess_crops`."""
    only_HWC: Frame = preprocess_crops(frame_HWC, recipe)[0]
    return only_HWC


def preprocess_crops(
    frame_HWC: Frame, recipe: Preprocessing, pixel_aspect: Fraction = Fraction(1), crops: int = 1
) -> Frame:
    """Resizes one frame, and cuts one or three crops out of it.

    Args:
        frame_HWC: uint8 RGB, of any size and strides.
        recipe: the checkpoint's own.
        pixel_aspect: width of a pixel by its height; the processors take every pixel for square.
        crops: 1 or 3; see `cut_crops`.

    Returns:
        uint8 RGB PHWC, where HW is `recipe.crop or resized_size(recipe, H, W)`, contiguous, sharing
        no memory with the input.
    """
    height, width = frame_HWC.shape[0], max(round(frame_HWC.shape[1] * pixel_aspect), 1)
    resized_HWC = _resize(frame_HWC, resized_size(recipe, height, width), recipe.interpolation)
    return np.array(cut_crops(resized_HWC, recipe.crop, crops), order="C")


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
    import torch

    # in this order, torch sees that a pixel's colours lie together, and is several times faster
    frame_NCHW = torch.from_numpy(np.ascontiguousarray(frame_HWC)).unsqueeze(0).permute(0, 3, 1, 2)
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
    import torch

    vector = torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}
    return vector or platform.machine() in {"aarch64", "arm64"}


def cut_crops(frame_HWC: Frame, crop: tuple[int, int] | None, crops: int) -> Sequence[Frame]:
    """Cuts one crop, or three, out of a resized frame; a smaller frame is first padded with black.

    One is cut from the middle, as the processors do. Three are those of the TimeSformer code's
    test protocol: both ends and the middle of the longer side.

    Args:
        frame_HWC: the resized frame.
        crop: (height, width) of a crop; None gives the whole frame.
        crops: 1 or 3; 3 need a size.
    """
    if crop is None:
        return (frame_HWC,)
    excess = [max(wanted - have, 0) for wanted, have in zip(crop, frame_HWC.shape, strict=False)]
    if any(excess):
        around = [(missing // 2, missing - missing // 2) for missing in excess]
        frame_HWC = np.pad(frame_HWC, [*around, (0, 0)])
    down, right = (have - cut for have, cut in zip(frame_HWC.shape, crop, strict=False))
    if crops == 1:
        corners = [(down // 2, right // 2)]
    elif down > right:
        corners = [(top, right // 2) for top in (0, (down + 1) // 2, down)]
    else:
        corners = [(down // 2, left) for left in (0, (right + 1) // 2, right)]
    return [frame_HWC[top : top + crop[0], left : left + crop[1]] for top, left in corners]
