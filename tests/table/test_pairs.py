"""Pairs of clips that look alike, against a comparison of all with all in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.table import pairs as pairs_module
from indexer.table.pairs import similar_pairs


def found(units_ND, videos_N, chosen_N=None, similarity=0.7, neighbours=1000, block=2048):
    told = []
    chosen_N = np.ones(len(units_ND), np.bool_) if chosen_N is None else chosen_N
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs_module, "_BLOCK_CLIPS", block)
        patch.setattr(pairs_module, "_PAIRS_AT_ONCE", 3)
        pairs = similar_pairs(
            units_ND.astype(np.float32),
            np.asarray(videos_N),
            chosen_N,
            min_similarity=similarity,
            max_neighbours=neighbours,
            observe=told.append,
        )
    triples = list(
        zip(
            pairs.first_P.tolist(),
            pairs.second_P.tolist(),
            pairs.similarity_P.tolist(),
            strict=True,
        )
    )
    return triples, told


def expected(units_ND, videos_N, chosen_N, similarity, neighbours):
    """Row by row, as the documentation says it."""
    cosines_NN = np.round(units_ND.astype(np.float64) @ units_ND.astype(np.float64).T, 6)
    count = len(units_ND)
    pairs, neighbours_N = [], np.zeros(count, int)
    for i in range(count):
        unbroken = True
        for j in range(i + 1, count):
            alike = cosines_NN[i, j] >= similarity
            unbroken &= alike and videos_N[i] == videos_N[j]
            if alike and not unbroken and (chosen_N[i] or chosen_N[j]):
                pairs.append((i, j, cosines_NN[i, j]))
                neighbours_N[[i, j]] += 1
    return [p for p in pairs if max(neighbours_N[[p[0], p[1]]]) <= neighbours], neighbours_N


@st.composite
def archives(draw):
    """Few directions, so that many clips are alike, and none lies near a threshold by accident."""
    videos = draw(st.lists(st.integers(1, 7), max_size=6))
    clips = sum(videos)
    directions = draw(st.lists(st.integers(0, 3), min_size=clips, max_size=clips))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    basis = np.vstack([np.eye(3), [[0, 0.8, 0.6]]])
    units_ND = basis[np.array(directions, int)].astype(np.float32)
    if clips and draw(st.booleans()):
        units_ND[rng.integers(clips)] = 0
    videos_N = np.repeat(np.arange(len(videos)), videos)
    chosen = draw(st.lists(st.booleans(), min_size=len(videos), max_size=len(videos)))
    return units_ND, videos_N, np.array(chosen, np.bool_)[videos_N]


@settings(max_examples=80)
@given(
    archive=archives(),
    similarity=st.sampled_from([0.5, 0.7, 1.0]),
    neighbours=st.sampled_from([1, 4, 1000]),
    everything=st.booleans(),
    block=st.sampled_from([1, 2, 5, 1000]),
)
def test_all_are_compared_whatever_the_blocks(archive, similarity, neighbours, everything, block):
    units_ND, videos_N, chosen_N = archive
    chosen_N = np.ones_like(chosen_N) if everything else chosen_N
    pairs, told = found(units_ND, videos_N, chosen_N, similarity, neighbours, block)
    right, neighbours_N = expected(units_ND, videos_N, chosen_N, similarity, neighbours)
    assert pairs == right
    shares = [one.share for one in told]
    assert shares == sorted(shares)
    if chosen_N.any():
        assert (told[-1].share, told[-1].hubs) == (1.0, np.sum(neighbours_N > neighbours))


@settings(max_examples=15)
@given(seed=st.integers(0, 999), block=st.sampled_from([3, 16, 61]))
def test_blocks_give_the_very_same_numbers_as_one(seed, block):
    rng = np.random.default_rng(seed)
    units_ND = rng.normal(size=(60, 5)).astype(np.float32)
    units_ND /= np.linalg.norm(units_ND, axis=1, keepdims=True)
    videos_N = np.sort(rng.integers(0, 9, 60))
    in_one, _ = found(units_ND, videos_N)
    assert in_one
    assert found(units_ND, videos_N, block=block)[0] == in_one


def test_the_threshold_is_exact_where_float32_is_not():
    angle = 0.123
    units_ND = np.array([[1, 0], [np.cos(angle), np.sin(angle)]])
    cosine = round(float(np.float64(units_ND[1, 0].astype(np.float32))), 6)
    assert len(found(units_ND, [0, 1], similarity=cosine)[0]) == 1
    assert len(found(units_ND, [0, 1], similarity=cosine + 1e-5)[0]) == 0


def test_a_slow_video_is_not_like_itself_but_a_repeat_is():
    still, other = [1.0, 0.0], [0.0, 1.0]
    assert found(np.array([still] * 9), [0] * 9)[0] == []
    pairs, _ = found(np.array([still, still, other, still]), [0] * 4)
    assert [(i, j) for i, j, _ in pairs] == [(0, 3), (1, 3)]


def test_a_clip_that_is_like_too_many_is_left_out_and_counted():
    black, left, up = np.eye(3)
    units_ND = np.array([*[black] * 5, left, left, up])
    pairs, told = found(units_ND, range(8), neighbours=3)
    assert [(i, j) for i, j, _ in pairs] == [(5, 6)]
    assert told[-1].hubs == 5
    assert len(found(units_ND, range(8), neighbours=4)[0]) == 11


def test_pairs_in_memory_do_not_grow_with_what_looks_like_everything():
    kept = []

    class Watched(pairs_module._Search):
        def compare(self, rows_B):
            super().compare(rows_B)
            kept.append(sum(found_2P.shape[1] for found_2P in self._found))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs_module, "_Search", Watched)
        found(np.ones((300, 1)), range(300), neighbours=5, block=10)
    assert max(kept) <= 300 * 5
