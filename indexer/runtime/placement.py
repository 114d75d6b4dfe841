"""What the actors of each stage ask of Ray: how many, on which nodes, and how often to start again.

Ray Data's own settings start a dead actor again for ever, and end the job when a single actor could
not be made. Both are set on purpose here: a job outlives lost nodes and killed workers, and an
actor that dies again and again ends it with an error that says where.
"""

from typing import Any, Final

from ray.data import ActorPoolStrategy

from indexer.runtime.pools import ROLE_LABEL, TOKEN_CPUS, Pools

MAX_RESTARTS: Final = 30
"""Deaths of one actor that a job outlives: of spot nodes in days, of a crash loop in minutes.

Its tasks are tried as often as it is: an actor that is dead for good fails them, and so the job.
"""

MAX_FAILED_STARTS: Final = 3
"""Actors of a stage, one after the other, whose constructor may fail: a node may be broken, a job
whose every actor fails is."""


def decode_options(pools: Pools) -> dict[str, Any]:
    """Of the decode stage, for `map_batches_internal`."""
    return _options(pools.decode_actors, decode_claim(pools), growing=pools.growing)


def model_options(pools: Pools) -> dict[str, Any]:
    """Of the model stage.

    An actor scores one block at a time. On a GPU it takes in the next one and gives away the one
    before meanwhile, each in a thread: a GPU is done with a block in less than that takes.
    """
    calls = 2 if pools.device == "cuda" else 1
    return _options(pools.model_actors, model_claim(pools), growing=pools.growing, calls=calls)


def write_options(pools: Pools) -> dict[str, Any]:
    """Of the write stage, beside the decoders."""
    claim = _claim(TOKEN_CPUS, pools.decode_role)
    return _options(pools.write_actors, claim, growing=pools.growing)


def decode_claim(pools: Pools) -> dict[str, Any]:
    """What one decode actor, or a task like it, claims."""
    return _claim(pools.actor_cpus, pools.decode_role)


def model_claim(pools: Pools) -> dict[str, Any]:
    """What one model actor claims; on a GPU that places it, whatever its node does beside."""
    cpus = pools.actor_cpus if pools.device == "cpu" else TOKEN_CPUS
    return _claim(cpus, pools.model_role) | {"num_gpus": pools.model_gpus}


def _claim(cpus: float, role: str | None) -> dict[str, Any]:
    labels = {} if role is None else {"label_selector": {ROLE_LABEL: role}}
    return {"num_cpus": cpus, **labels}


def _options(
    actors: int, claim: dict[str, Any], *, growing: bool, calls: int = 1
) -> dict[str, Any]:
    return {
        "batch_size": None,
        "batch_format": "pyarrow",
        "compute": ActorPoolStrategy(
            min_size=1 if growing else actors,
            max_size=actors,
            max_concurrent_calls_per_actor=calls,
        ),
        "max_restarts": MAX_RESTARTS,
        "max_task_retries": -1,
        **claim,
    }
