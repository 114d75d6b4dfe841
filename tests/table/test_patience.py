import pytest

from indexer.errors import CommitFenced, LeaseHeld, StorageError
from indexer.table import patience
from indexer.table.patience import patiently


class Failing:
    """Fails a number of times, then works."""

    def __init__(self, times, error):
        self.calls, self.times, self.error = 0, times, error

    def __call__(self, answer):
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return answer


def test_a_failure_of_the_store_is_outlived():
    act = Failing(2, StorageError("503"))
    assert patiently(act, "done") == "done"
    assert act.calls == 3


@pytest.mark.parametrize("error", [CommitFenced("x"), LeaseHeld("x"), ValueError("x")])
def test_what_will_not_pass_is_raised_at_once(error):
    act = Failing(9, error)
    with pytest.raises(type(error)):
        patiently(act, "done")
    assert act.calls == 1


def test_a_store_that_stays_away_is_given_up(monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.15)
    act = Failing(9, StorageError("503"))
    with pytest.raises(StorageError):
        patiently(act, "done")
    assert act.calls == 2
