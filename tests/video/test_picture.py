"""How a decoded frame is turned, stretched and shrunk."""

import io
from fractions import Fraction

import numpy as np
import pytest

from indexer.config import Decode
from indexer.records import Preprocessing
from indexer.video.picture import PictureRenderer
from indexer.video.preprocess import preprocess_frame, resized_size
from indexer.video.probe import open_video_stream, pixel_aspect
from tests.video.synth import Synth, rotated

NORMAL = (1 / 255, (0.45,) * 3, (0.225,) * 3)
RECIPES = {
    "cropped": Preprocessing(32, (32, 32), "bilinear", *NORMAL),
    "whole": Preprocessing(32, None, "bilinear", *NORMAL),
    "squashed": Preprocessing((20, 40), None, "bilinear", *NORMAL),
    "padded": Preprocessing(16, (32, 32), "bilinear", *NORMAL),
}
TURNS = {"upright": None, "right": (0, 1, -1, 0), "over": (-1, 0, 0, -1), "left": (0, -1, 1, 0)}


def first_frame(source):
    with open_video_stream(io.BytesIO(source), Decode()) as (container, stream):
        return next(container.decode(stream))


def source_of(turn="upright", **synth):
    source = Synth(frames=3, width=160, height=96, noise=0, **synth).encode()
    return source if TURNS[turn] is None else rotated(source, TURNS[turn])


@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(16, 9), Fraction(1, 2)])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("turn", TURNS)
def test_fast_is_near_exact_whatever_the_shape(turn, recipe, aspect):
    frame = first_frame(source_of(turn))
    exact_PHWC = PictureRenderer(recipe, "exact", aspect)(frame)
    fast_PHWC = PictureRenderer(recipe, "fast", aspect)(frame)
    assert exact_PHWC.shape == fast_PHWC.shape
    assert np.abs(exact_PHWC.astype(int) - fast_PHWC.astype(int)).mean() < 4
    for rendered in (exact_PHWC, fast_PHWC):
        assert rendered.flags.c_contiguous
        assert rendered.flags.owndata


@pytest.mark.parametrize(
    "pix_fmt", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p10le"]
)
def test_fast_is_near_exact_whatever_the_samples(pix_fmt):
    frame = first_frame(source_of(pix_fmt=pix_fmt))
    recipe = RECIPES["whole"]
    exact_PHWC, fast_PHWC = (PictureRenderer(recipe, way)(frame) for way in ("exact", "fast"))
    assert np.abs(exact_PHWC.astype(int) - fast_PHWC.astype(int)).mean() < 4


def test_exact_is_the_frame_in_rgb_preprocessed():
    frame = first_frame(source_of("left"))
    expected_HWC = preprocess_frame(
        np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90), RECIPES["cropped"]
    )
    rendered_HWC = PictureRenderer(RECIPES["cropped"], "exact")(frame)[0]
    np.testing.assert_array_equal(rendered_HWC, expected_HWC)


@pytest.mark.parametrize("way", ["exact", "fast"])
@pytest.mark.parametrize("turn", ["upright", "right"])
def test_three_crops_are_the_ends_and_the_middle_of_the_longer_side(turn, way):
    frame = first_frame(source_of(turn))
    (whole_HWC,) = PictureRenderer(RECIPES["whole"], way)(frame)
    first, middle, last = PictureRenderer(RECIPES["cropped"], way, crops=3)(frame)
    along_HWC = whole_HWC if turn == "right" else whole_HWC.transpose(1, 0, 2)  # 53 by 32
    for crop_HWC, start in ((first, 0), (middle, 11), (last, 21)):
        cut_HWC = along_HWC[start : start + 32]
        expected_HWC = cut_HWC if turn == "right" else cut_HWC.transpose(1, 0, 2)
        np.testing.assert_array_equal(crop_HWC, expected_HWC)


@pytest.mark.parametrize("way", ["exact", "fast"])
@pytest.mark.parametrize(("turn", "shape"), [("upright", (32, 80)), ("right", (80, 32))])
def test_pixels_that_are_not_square_are_stretched_across_the_stored_width(way, turn, shape):
    frame = first_frame(source_of(turn))
    rendered_PHWC = PictureRenderer(RECIPES["whole"], way, Fraction(3, 2))(frame)
    assert rendered_PHWC.shape == (1, *shape, 3)
    assert resized_size(RECIPES["whole"], 96, 240) == (32, 80)


def test_the_aspect_of_the_pixels_is_the_container_s():
    source = Synth(options={"x264-params": "sar=16/11"}).encode()
    with open_video_stream(io.BytesIO(source), Decode()) as (_, stream):
        assert pixel_aspect(stream) == Fraction(16, 11)
    with open_video_stream(io.BytesIO(Synth().encode()), Decode()) as (_, stream):
        assert pixel_aspect(stream) == 1
