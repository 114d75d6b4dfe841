"""From a decoded frame to the model's pixels: colour, orientation, size.

Axes: P crops of one frame, H height, W width, C colour (RGB).
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Final, Literal

import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import Interpolation, VideoReformatter

from indexer.records import Preprocessing
from indexer.video.preprocess import Frame, cut_crops, preprocess_crops, resized_size
from indexer.video.probe import clockwise_rotation

_ACCURATE: Final = (
    Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
)


class PictureRenderer:
    """Renders frames of one video; keeps FFmpeg's conversion tables from one to the next.

    Args:
        recipe: the checkpoint's own.
        resize: `exact` converts the whole frame to RGB as `frame.to_ndarray(format="rgb24")` does
            and resizes it as the Hugging Face processor does; `fast` lets FFmpeg do both in one.
        pixel_aspect: width of a stored pixel by its height; 1 leaves frames as they are stored.
        crops: of each frame, 1 or 3.
    """

    def __init__(
        self,
        recipe: Preprocessing,
        resize: Literal["exact", "fast"],
        pixel_aspect: Fraction = Fraction(1),
        crops: int = 1,
    ) -> None:
        self._recipe = recipe
        self._is_fast = resize == "fast"
        self._pixel_aspect = pixel_aspect
        self._crops = crops
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> Frame:
        """The model's views of a frame: uint8 RGB PHWC, upright, in memory of its own."""
        rotation = clockwise_rotation(frame)
        return self._fast(frame, rotation) if self._is_fast else self._exact(frame, rotation)

    def _exact(self, frame: VideoFrame, rotation: int) -> Frame:
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
        aspect = self._pixel_aspect if rotation % 180 == 0 else 1 / self._pixel_aspect
        return preprocess_crops(_upright(rgb, rotation), self._recipe, aspect, self._crops)

    def _fast(self, frame: VideoFrame, rotation: int) -> Frame:
        width = max(round(frame.width * self._pixel_aspect), 1)
        if rotation % 180 == 0:
            height, width = resized_size(self._recipe, frame.height, width)
        else:
            width, height = resized_size(self._recipe, width, frame.height)
        # planar, because FFmpeg is twice as fast at it and gives the same values
        rgb = self._reformatter.reformat(
            frame, width, height, "gbrp", interpolation=_ACCURATE, threads=1
        )
        green, blue, red = (self._finished(plane, rotation) for plane in rgb.planes)
        views_PHWC = np.empty((len(red), *red[0].shape[:2], 3), np.uint8)
        for colour, planes in enumerate((red, green, blue)):
            for view_HWC, plane_HW1 in zip(views_PHWC, planes, strict=True):
                view_HWC[:, :, colour] = plane_HW1[:, :, 0]
        return views_PHWC

    def _finished(self, plane: VideoPlane, rotation: int) -> Sequence[Frame]:
        """One colour of a resized frame, upright and cropped: uint8 HW1 of each crop."""
        stored_HW = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1)
        upright_HW = stored_HW[:, : plane.width]
        if rotation:
            upright_HW = np.rot90(upright_HW, -rotation // 90)
        return cut_crops(upright_HW[:, :, np.newaxis], self._recipe.crop, self._crops)


def _upright(rgb: VideoFrame, rotation: int) -> Frame:
    frame_HWC = rgb.to_ndarray().astype(np.uint8, copy=False)
    return np.rot90(frame_HWC, -rotation // 90)
