import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.model.batching import calibrate, next_batch, pieces


@given(
    lengths=st.lists(st.integers(0, 9), max_size=6),
    start=st.integers(0, 40),
    clips=st.integers(0, 20),
)
def test_pieces_are_views_of_what_a_slice_of_the_whole_would_hold(lengths, start, clips):
    whole = np.arange(sum(lengths), dtype=np.uint8)
    arrays = np.split(whole, np.cumsum(lengths)[:-1]) if lengths else []
    found = pieces(arrays, slice(start, start + clips))
    assert all(np.shares_memory(piece, whole) for piece in found)
    joined = np.concatenate([*found, whole[:0]])
    assert joined.tolist() == whole[start : start + clips].tolist()


@given(total=st.integers(1, 300), batch_size=st.integers(1, 130))
def test_batches_cover_all_clips_with_two_sizes_and_little_waste(total, batch_size):
    remaining, sizes = total, []
    while remaining:
        clips, size = next_batch(remaining, batch_size)
        assert 1 <= clips <= size <= batch_size
        remaining -= clips
        sizes.append(size)
    assert len(set(sizes)) <= 2
    assert sum(sizes) - total < (batch_size // 4 if batch_size >= 8 else batch_size)


@pytest.mark.parametrize(
    ("remaining", "batch_size", "batch"),
    [
        (1, 1, (1, 1)),
        (5, 1, (1, 1)),
        (1, 2, (1, 2)),
        (3, 4, (3, 4)),
        (64, 32, (32, 32)),
        (31, 32, (31, 32)),
        (24, 32, (8, 8)),
        (9, 32, (8, 8)),
        (1, 32, (1, 8)),
    ],
)
def test_the_next_batch(remaining, batch_size, batch):
    assert next_batch(remaining, batch_size) == batch


@pytest.mark.parametrize(
    ("milliseconds", "best"),
    [
        ({1: 5, 2: 6, 4: 8, 8: 15, 16: 29.9, 32: 60, 64: 120}, 8),  # 16 is hardly faster
        ({1: 5, 2: 6, 4: 8, 8: 15, 16: 20, 32: 50, 64: 60}, 64),
        ({1: 5, 2: 6, 4: 8, 8: None}, 4),
        ({1: None}, 1),
        ({1: 5, 2: 10, 4: 20, 8: 40, 16: 80, 32: 160, 64: 320}, 1),
    ],
)
def test_calibration_takes_the_smallest_batch_among_the_fastest(milliseconds, best):
    tried = []

    def seconds_of(size):
        tried.append(size)
        return milliseconds[size]

    assert calibrate(seconds_of, 64) == best
    assert tried == list(milliseconds)
