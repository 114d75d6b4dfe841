"""Goes on through a store's bad minute: what may be done twice is repeated until it works."""

import time
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from indexer.errors import CommitFenced, LeaseHeld, StorageError

PATIENCE_SECONDS: Final = 60.0
"""A long job outlives a failure of its store that lasts this long."""

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 5.0

Answer = TypeVar("Answer")
Arguments = ParamSpec("Arguments")


def patiently(
    act: Callable[Arguments, Answer], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Answer:
    """Does something that may be done twice, again after every failure of the storage.

    Args:
        act: what to do; doing it after it was done must change nothing.
        args: for it.
        kwargs: for it.

    Raises:
        CommitFenced: at once.
        LeaseHeld: at once.
        StorageError: the store still fails when the time is up.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return act(*args, **kwargs)
        except (CommitFenced, LeaseHeld):
            raise
        except StorageError:
            if time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
