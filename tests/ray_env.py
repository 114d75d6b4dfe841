"""The environment of processes that a test starts."""

import os


def own_ray_env() -> dict[str, str]:
    """For a process that is to find no Ray but its own."""
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
