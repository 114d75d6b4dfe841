"""Writes preprocess.npz: what the Hugging Face processors make of the cases of preprocess_cases.

torchvision has no build for this project's CPU torch, so it is not a dependency. Put the release
that matches the installed torch (0.28 for torch 2.13), and Pillow, into a folder of their own:

    pip download --no-deps torchvision==0.28.* && unzip -d /tmp/golden torchvision-*.whl
    pip install --no-deps --target /tmp/golden pillow
    PYTHONPATH=/tmp/golden:. python tests/goldens/make_preprocess.py

Its compiled operators do not load there; none is needed, but two have to exist by name.
"""

from pathlib import Path

import numpy as np
import torch

from tests.goldens.preprocess_cases import CASES, Case

OPERATORS = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from PIL.Image import Resampling  # noqa: E402 - transformers looks for torchvision when imported
from transformers.models.timesformer.video_processing_timesformer import (  # noqa: E402
    TimesformerVideoProcessor,
)
from transformers.models.videomae.image_processing_pil_videomae import (  # noqa: E402
    VideoMAEImageProcessorPil,
)
from transformers.models.videomae.image_processing_videomae import (  # noqa: E402
    VideoMAEImageProcessor,
)


def settings(case: Case) -> dict[str, object]:
    sides = case.resize
    size = {"shortest_edge": sides} if isinstance(sides, int) else _box(sides)
    crop = {"crop_size": _box(case.crop)} if case.crop else {"do_center_crop": False}
    resample = Resampling.BICUBIC if case.interpolation == "bicubic" else Resampling.BILINEAR
    rest = {"do_rescale": False, "do_normalize": False, "resample": resample}
    return {"size": size, **crop, **rest}


def _box(sides: tuple[int, int]) -> dict[str, int]:
    return {"height": sides[0], "width": sides[1]}


def main() -> None:
    arrays = {}
    for case in CASES:
        frames_THWC = [case.frame(), case.frame()[::-1].copy()]
        processed = [
            processor(**settings(case))(frames_THWC, return_tensors="np")["pixel_values"][0, 0]
            for processor in (
                VideoMAEImageProcessor,
                TimesformerVideoProcessor,
                VideoMAEImageProcessorPil,
            )
        ]
        image, video, pil = (np.moveaxis(frame_CHW, 0, -1) for frame_CHW in processed)
        if not np.array_equal(image, video):
            raise SystemExit(f"{case.name}: the two processors disagree")
        arrays[case.name] = image.astype(np.uint8)
        if not case.name.startswith("padded"):  # it rounds the place of a padded picture otherwise
            arrays[f"{case.name}.pil"] = pil.astype(np.uint8)
    np.savez_compressed(Path(__file__).with_name("preprocess.npz"), **arrays)


if __name__ == "__main__":
    main()
