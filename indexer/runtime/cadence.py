"""When a running job commits: often, but not so often that it does little else."""

from typing import Final

MOST_SHARE: Final = 0.03
"""Of a job's time, what its commits may take."""

MOST_TIMES: Final = 12
"""So many times what was asked, however long a commit takes: by default a minute of work, which is
what a crash may cost."""


def pause_seconds(asked_seconds: float, commit_seconds: float) -> float:
    """How long after a commit the next one is due.

    The library that commits looks at every live file each time, so that commits grow slower with
    the files of an index, until it is compacted; a slow store has the same effect.

    Args:
        asked_seconds: `output.commit_seconds`.
        commit_seconds: wall time of the last commit.
    """
    return max(asked_seconds, min(commit_seconds / MOST_SHARE, MOST_TIMES * asked_seconds))
