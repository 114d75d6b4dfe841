"""Shares few, long videos among many decoders.

With many videos to do, each goes to one decoder whole. With few, the decoders would soon run out of
work while one of them goes through a film: so the units of a long video are counted first, and
dealt out as several rows, each with the units that others do marked as done.
"""

from itertools import pairwise
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import ray

from indexer.runtime.blocks import TODO_SCHEMA
from indexer.runtime.placement import decode_claim
from indexer.runtime.pools import Pools
from indexer.runtime.workers import survey_todo
from indexer.video.plan import DecodePlan

SHARE_BYTES: Final = 64 * 2**20
"""A share of a video is at least about this large: opening it again should cost little beside."""

ROWS_PER_ACTOR: Final = 4
"""With so many rows for each decoder, none waits long for the last one."""


def most_rows(todo: pa.Table) -> int:
    """The largest number of rows that `share_out` may make of these videos."""
    shares = pc.divide(todo.column("size_bytes"), SHARE_BYTES)
    return int(pc.sum(pc.max_element_wise(shares, 1)).as_py() or 0)


def share_out(
    todo: pa.Table, plan: DecodePlan, pools: Pools, *, patience_seconds: float
) -> pa.Table:
    """Replaces the rows of long videos by several rows, where there are few videos.

    Args:
        todo: rows of `TODO_SCHEMA`.
        plan: by which units are counted.
        pools: of the cluster, which is connected.
        patience_seconds: to wait for CPUs to count units with.

    Raises:
        GetTimeoutError: no CPUs have come.
    """
    rows_wanted = ROWS_PER_ACTOR * pools.decode_actors
    if pools.decode_actors == 1 or todo.num_rows >= rows_wanted:
        return todo
    rows = todo.to_pylist()
    long = [index for index, row in enumerate(rows) if row["size_bytes"] >= 2 * SHARE_BYTES]
    survey = ray.remote(**decode_claim(pools))(survey_todo)
    surveys = [survey.remote(todo.slice(index, 1), plan) for index in long]
    units = ray.get(surveys, timeout=patience_seconds)
    counted = dict(zip(long, units, strict=True))
    shared: list[dict[str, Any]] = []
    for index, row in enumerate(rows):
        shared.extend(_shares(row, counted.get(index, 0), rows_wanted))
    return pa.Table.from_pylist(shared, TODO_SCHEMA)


def _shares(row: dict[str, Any], units: int, most: int) -> list[dict[str, Any]]:
    """Rows for one video, alike in everything but the units they leave to others."""
    done = set(row["done_units"])
    owed = [unit for unit in range(units) if unit not in done]
    number = min(len(owed), row["size_bytes"] // SHARE_BYTES, most)
    if number < 2 or (done and units != row["units"]):  # noqa: PLR2004 - nothing to share
        return [row]
    cuts = [len(owed) * part // number for part in range(number + 1)]
    parts = [set(owed[low:high]) for low, high in pairwise(cuts)]
    return [
        row | {"units": units, "done_units": sorted(set(range(units)) - part)} for part in parts
    ]
