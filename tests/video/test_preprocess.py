from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from indexer.video import preprocess
from indexer.video.preprocess import preprocess_frame, resized_size
from tests.goldens.preprocess_cases import CASES, Case

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "preprocess.npz")
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
sides = st.integers(1, 400)


@every_case
def test_pixels_equal_those_of_the_hugging_face_processors(case):
    np.testing.assert_array_equal(
        preprocess_frame(case.frame(), case.recipe()), GOLDEN[case.name], strict=True
    )


@pytest.mark.parametrize("name", [name for name in GOLDEN.files if name.endswith(".pil")])
def test_pixels_are_within_one_level_of_the_pillow_processor(name):
    case = next(case for case in CASES if case.name == name.removesuffix(".pil"))
    pixels_HWC = preprocess_frame(case.frame(), case.recipe()).astype(int)
    expected_HWC = GOLDEN[name].astype(int)
    assert pixels_HWC.shape == expected_HWC.shape
    assert np.abs(pixels_HWC - expected_HWC).max() <= 1


@every_case
def test_output_size_is_that_of_the_output(case):
    frame_HWC = preprocess_frame(case.frame(), case.recipe())
    recipe = case.recipe()
    expected = recipe.crop or resized_size(recipe, case.height, case.width)
    assert frame_HWC.shape[:2] == expected
    assert frame_HWC.dtype == np.uint8
    assert frame_HWC.flags.c_contiguous


@given(height=sides, width=sides, edge=st.integers(1, 256))
def test_shorter_side_is_exact_and_the_longer_one_rounded_down(height, width, edge):
    recipe = Case("", height, width, edge, None).recipe()
    found = resized_size(recipe, height, width)
    assert min(found) == edge
    assert max(found) == int(edge * max(height, width) / min(height, width))


def test_strides_of_the_frame_do_not_matter():
    case = CASES[0]
    turned_HWC = np.rot90(case.frame().transpose(1, 0, 2)[:, ::-1], -1)[::-1, ::-1]
    plain_HWC = np.ascontiguousarray(turned_HWC)
    np.testing.assert_array_equal(
        preprocess_frame(turned_HWC, case.recipe()), preprocess_frame(plain_HWC, case.recipe())
    )


@pytest.mark.parametrize("crop", [None, (64, 64)])
def test_result_shares_no_memory_with_the_decoder_s_frame(crop):
    frame_HWC = CASES[0].frame()[:64, :64].copy()
    recipe = Case("", 64, 64, 64, crop).recipe()
    assert not np.shares_memory(preprocess_frame(frame_HWC, recipe), frame_HWC)


def test_a_processor_without_vector_units_stays_within_one_level(monkeypatch):
    """torchvision goes through float32 there, with another rounding."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr(preprocess.platform, "machine", lambda: "x86_64")
    case = CASES[0]
    pixels_HWC = preprocess_frame(case.frame(), case.recipe()).astype(int)
    assert np.abs(pixels_HWC - GOLDEN[case.name].astype(int)).max() <= 1
