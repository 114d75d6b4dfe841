"""The environment of Rays, and of processes that have a Ray of their own."""

import os
from typing import Final

EQUAL_SHARE: Final = {"RAY_worker_niceness": "0"}
"""Else Ray's workers get what other test processes leave, and tests wait for them."""


def own_ray_env() -> dict[str, str]:
    """For a process that is to find no Ray but its own."""
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | EQUAL_SHARE
