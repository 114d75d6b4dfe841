"""Whitened embeddings, against numpy."""

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from indexer.table import whitening as whitening_module
from indexer.table.whitening import whitened


def rows(vectors_ND):
    return ds.dataset(
        pa.table(
            {
                "clip_id": [f"{i:04}" for i in range(len(vectors_ND))],
                "embedding": pa.array(list(vectors_ND.astype(np.float32)), pa.list_(pa.float32())),
            }
        )
    )


def skewed(count, dimensions=6, seed=0):
    """Vectors of a few strong directions and many weak ones, away from the origin."""
    rng = np.random.default_rng(seed)
    scales_D = 2.0 ** -np.arange(dimensions)
    turn_DD = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0]
    return rng.normal(size=(count, dimensions)) * scales_D @ turn_DD + 5.0


def all_of(vectors_ND):
    return whitened(rows(vectors_ND), pa.array([f"{i:04}" for i in range(len(vectors_ND))]))


def test_no_direction_is_stronger_than_another():
    vectors_ND = skewed(4000)
    directions_ND = all_of(vectors_ND)
    assert directions_ND.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(directions_ND, axis=1), 1, atol=1e-6)
    strengths_D = np.linalg.eigvalsh(np.cov(directions_ND.T))
    raw_ND = vectors_ND - vectors_ND.mean(axis=0)
    raw_ND /= np.linalg.norm(raw_ND, axis=1, keepdims=True)
    raw_strengths_D = np.linalg.eigvalsh(np.cov(raw_ND.T))
    assert strengths_D[-1] / strengths_D[0] < 10
    assert raw_strengths_D[-1] / raw_strengths_D[0] > 100


def test_the_matrix_is_that_of_the_shrunken_covariance():
    vectors_ND = skewed(50)
    mean_D, whitening_DD = whitening_module._whitening(rows(vectors_ND))
    centred_ND = vectors_ND.astype(np.float32).astype(np.float64) - mean_D
    np.testing.assert_allclose(centred_ND.mean(axis=0), 0, atol=1e-12)
    covariance_DD = centred_ND.T @ centred_ND / 50
    target_DD = np.eye(6) * np.trace(covariance_DD) / 6
    shrinkage = (6 / 50) ** 2
    shrunken_DD = (1 - shrinkage) * covariance_DD + shrinkage * target_DD
    np.testing.assert_allclose(whitening_DD.T @ shrunken_DD @ whitening_DD, np.eye(6), atol=1e-9)


def test_the_pieces_in_which_they_are_read_do_not_matter(monkeypatch):
    vectors_ND = skewed(100)
    whole_ND = all_of(vectors_ND)
    monkeypatch.setattr(whitening_module, "_BATCH_ROWS", 7)
    np.testing.assert_allclose(all_of(vectors_ND), whole_ND, atol=1e-6)


def test_rows_are_in_the_order_of_the_ids_and_zero_where_there_is_no_embedding():
    vectors_ND = skewed(30)
    directions_ND = whitened(rows(vectors_ND), pa.array(["0004", "gone", "0001"]))
    np.testing.assert_array_equal(directions_ND[[0, 2]], all_of(vectors_ND)[[4, 1]])
    assert not directions_ND[1].any()


def test_equal_clips_stay_equal_and_what_is_all_the_same_has_no_direction():
    vectors_ND = skewed(40)
    vectors_ND[20] = vectors_ND[3]
    directions_ND = all_of(vectors_ND)
    np.testing.assert_array_equal(directions_ND[20], directions_ND[3])
    assert not all_of(np.ones((5, 4))).any()
    assert whitened(rows(np.zeros((0, 4))), pa.array([], pa.string())).shape[0] == 0


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_clips_than_dimensions_are_no_trouble(count):
    assert np.isfinite(all_of(skewed(count, dimensions=32))).all()
