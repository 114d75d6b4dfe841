"""Scores of several views of a clip become one."""

import numpy as np
import pytest
import torch

from indexer.model.fusion import fuse_views
from indexer.records import ClipScores


def scores_of(views, seed=0):
    generator = np.random.default_rng(seed)
    return ClipScores(
        logits_NK=generator.normal(0, 6, (4 * views, 5)).astype(np.float32),
        embeddings_ND=generator.normal(size=(4 * views, 3)).astype(np.float32),
    )


@pytest.mark.parametrize("views", [1, 3, 30])
def test_the_softmax_of_fused_probabilities_is_their_average(views):
    scores = scores_of(views)
    fused = fuse_views(scores, views, "probabilities")
    softmax = torch.softmax(torch.tensor(scores.logits_NK).double(), -1)
    expected = softmax.reshape(4, views, 5).mean(1).numpy()
    found = torch.softmax(torch.tensor(fused.logits_NK).double(), -1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_fused_logits_rank_labels_as_their_sum_does():
    scores = scores_of(3)
    fused = fuse_views(scores, 3, "logits")
    sums = scores.logits_NK.astype(np.float64).reshape(4, 3, 5).sum(1)
    np.testing.assert_array_equal(np.argsort(fused.logits_NK), np.argsort(sums))
    np.testing.assert_allclose(fused.logits_NK, sums / 3, rtol=1e-6)


@pytest.mark.parametrize("fusion", ["probabilities", "logits"])
def test_embeddings_are_averaged_clip_by_clip(fusion):
    scores = scores_of(3)
    fused = fuse_views(scores, 3, fusion)
    for clip in range(4):
        expected = scores.embeddings_ND[3 * clip : 3 * clip + 3].mean(0)
        np.testing.assert_allclose(fused.embeddings_ND[clip], expected, rtol=1e-5, atol=1e-6)


def test_the_two_ways_differ_in_what_they_rank_first():
    """One view is sure of the second label, two lean to the first."""
    logits = np.log([[0.6, 0.4], [0.6, 0.4], [0.001, 0.999]]).astype(np.float32)
    scores = ClipScores(logits, np.zeros((3, 2), np.float32))
    assert fuse_views(scores, 3, "logits").logits_NK.argmax() == 1
    less_sure = np.log([[0.8, 0.2], [0.8, 0.2], [0.001, 0.999]]).astype(np.float32)
    scores = ClipScores(less_sure, np.zeros((3, 2), np.float32))
    assert fuse_views(scores, 3, "logits").logits_NK.argmax() == 1
    assert fuse_views(scores, 3, "probabilities").logits_NK.argmax() == 0


def test_a_probability_that_vanishes_has_a_finite_logarithm():
    scores = ClipScores(np.array([[0, 5000], [0, 5000]], np.float32), np.zeros((2, 1), np.float32))
    fused = fuse_views(scores, 2, "probabilities")
    assert np.isfinite(fused.logits_NK).all()


def test_scores_that_are_no_numbers_stay_so():
    scores = scores_of(2)
    scores.logits_NK[0, 0] = np.inf
    scores.logits_NK[2, 0] = np.nan
    fused = fuse_views(scores, 2, "probabilities")
    assert np.isnan(fused.logits_NK).any(axis=1).tolist() == [True, True, False, False]
