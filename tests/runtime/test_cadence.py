import pytest

from indexer.runtime.cadence import pause_seconds


@pytest.mark.parametrize(
    ("asked", "took", "pause"),
    [
        (5.0, 0.0, 5.0),
        (5.0, 0.15, 5.0),
        (5.0, 0.3, 10.0),
        (5.0, 1.5, 50.0),
        (5.0, 60.0, 60.0),  # a store that was away for a minute is no reason to wait for an hour
        (0.01, 0.003, 0.1),
        (0.01, 0.3, 0.12),
        (600.0, 60.0, 2000.0),
    ],
)
def test_commits_take_a_small_share_of_the_time(asked, took, pause):
    assert pause_seconds(asked, took) == pytest.approx(pause)
