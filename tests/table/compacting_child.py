"""Compacts an index and dies of SIGKILL before or after the n-th step that changes something."""

import itertools
import os
import signal
import sys

from indexer import storage
from indexer.table.compact import compact
from indexer.table.maintenance import Maintainer
from indexer.table.paths import IndexPaths

index, tag, point, moment = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
numbers = itertools.count(1)


def deadly(function):
    """The function, whose n-th call is the end."""

    def call(*args, **kwargs):
        number = next(numbers)  # several threads delete files
        if number == point and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if number == point and moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


storage.create_bytes = deadly(storage.create_bytes)
storage.write_bytes = deadly(storage.write_bytes)
storage.delete = deadly(storage.delete)
Maintainer._commit = deadly(Maintainer._commit)
compact(IndexPaths(index), tag, target_bytes=5_000)
sys.stdout.write(str(next(numbers) - 1))
