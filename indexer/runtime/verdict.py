"""What holds a job up, and what would help: from what its actors spent, per actor and stage.

A stage whose actors have the most work each is the bottleneck: the others wait for it. Bytes are
fetched beside the decoding of the video before, so a decode actor is as slow as the slower of both.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from indexer.metrics import Counts
from indexer.runtime.pools import Pools

Stage = Literal["storage", "decode", "model", "write"]

_MOST: Final = 10.0
"""Advice goes no further than so many times of what there is: beyond, something else will limit."""

_NEAR: Final = 1.15
"""A stage with less than so many times the work of the next is in balance with it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where the time of a job went.

    Attributes:
        bottleneck: the stage that the others wait for; None before any outcome.
        busy: share of their time in which the actors of each stage work, 0 to 1.
        text: one line for people, with what to change.
    """

    bottleneck: Stage | None
    busy: Mapping[str, float]
    text: str


def judge(counts: Counts, pools: Pools | None, elapsed_seconds: float) -> Verdict:
    """Judges a job, or what there is of it so far.

    Args:
        counts: sums over the units that came out.
        pools: how it is spread; None where the pipeline did not start.
        elapsed_seconds: since the pipeline started; used where the model's actors cannot tell how
            long they have been there, and where their number changes.
    """
    if pools is None or not counts.units:
        return Verdict(None, {}, "nothing was indexed")
    if pools.growing:
        pools = _present(counts, pools, elapsed_seconds)
    load_seconds = _loads(counts, pools)
    lifetime_seconds = _model_seconds(counts) / pools.model_actors
    seconds = max(lifetime_seconds or elapsed_seconds, *load_seconds.values(), 1e-9)
    busy: dict[str, float] = {
        stage: round(load / seconds, 4) for stage, load in load_seconds.items()
    }
    bottleneck = max(load_seconds, key=lambda stage: load_seconds[stage])
    return Verdict(bottleneck, busy, _text(bottleneck, busy, pools, counts))


def _present(counts: Counts, pools: Pools, elapsed_seconds: float) -> Pools:
    """The pools with the actors that there were on average, where they are bounds at first."""

    def actors(seconds: float, most: int) -> int:
        return min(max(round(seconds / max(elapsed_seconds, 1e-9)), 1), most)

    decode_seconds = counts.decode_wall_seconds + counts.decode_wait_seconds
    write_seconds = counts.write_seconds + counts.write_wait_seconds
    return replace(
        pools,
        decode_actors=actors(decode_seconds, pools.decode_actors),
        model_actors=actors(_model_seconds(counts), pools.model_actors),
        write_actors=actors(write_seconds, pools.write_actors),
    )


def _model_seconds(counts: Counts) -> float:
    """For how long model actors were there, all together."""
    model = counts.model
    return model.busy_seconds + model.wait_seconds + model.compile_seconds


def _loads(counts: Counts, pools: Pools) -> dict[Stage, float]:
    """Seconds of work of one actor of each stage."""
    return {
        "storage": counts.fetch.seconds / pools.decode_actors,
        "decode": counts.decode_wall_seconds / pools.decode_actors,
        "model": counts.model.busy_seconds / pools.model_actors,
        "write": counts.write_seconds / pools.write_actors,
    }


def _text(bottleneck: Stage, busy: Mapping[str, float], pools: Pools, counts: Counts) -> str:
    chip = "GPU" if pools.device == "cuda" else "model"
    head = f"{bottleneck}-bound: {chip} busy {busy['model']:.0%}, decoders {busy['decode']:.0%}"
    others = [load for stage, load in busy.items() if stage != bottleneck]
    ratio = min(busy[bottleneck] / max(*others, 1e-9), _MOST)
    if ratio < _NEAR:
        return f"{head}; the stages are in balance, more of everything makes it faster"
    return f"{head}; {_advice(bottleneck, ratio, busy, pools)}{_floor(bottleneck, counts)}"


def _floor(bottleneck: Stage, counts: Counts) -> str:
    """How far decoding is from what no setting of ours makes faster."""
    if bottleneck != "decode" or not counts.decode_seconds:
        return ""
    return f" (FFmpeg's decoder alone takes {counts.codec_seconds / counts.decode_seconds:.0%})"


def _advice(bottleneck: Stage, ratio: float, busy: Mapping[str, float], pools: Pools) -> str:
    match bottleneck:
        case "decode":
            return f"add {_more(pools.decode_actors, ratio)} decode CPUs"
        case "storage":
            actors = pools.decode_actors + _more(pools.decode_actors, ratio)
            return (
                f"decoders wait for bytes {busy['storage']:.0%} of the time: read from nearer or"
                f" faster storage, or let {actors} decoders fetch at once (cluster.decode_actors)"
            )
        case "model":
            spare = math.floor(pools.decode_actors * (1 - 1 / ratio))
            unit = "GPUs" if pools.device == "cuda" else "CPUs for the model"
            add = f"add {_more(pools.model_actors, ratio)} {unit}"
            return f"{add}, or do with {spare} decoders fewer" if spare else add
        case "write":
            return "the index's storage is slow to write to: put it nearer to the cluster"


def _more(actors: int, ratio: float) -> int:
    """Actors to add until the stage has no more work each than the next."""
    return max(1, math.ceil(actors * (ratio - 1)))
