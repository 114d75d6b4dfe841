"""What Ray says of a pipeline that failed, as an error of the package with advice for people."""

import re
from collections.abc import Sequence
from typing import Final

from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from indexer.errors import ClusterError, IndexerError
from indexer.redaction import redact_text
from indexer.runtime.placement import MAX_FAILED_STARTS, MAX_RESTARTS
from indexer.runtime.pools import Node, Pools

RAY_ADVICE: Final = "\nFailed to apply UDF transform"
"""Where Ray's own words begin in the message of an error that a stage raised."""

_STAGE: Final = re.compile(r"MapWorker\(MapBatches\((\w+)\)\)")
_IP: Final = re.compile(r"\bip[:=]\s*([^\s,)]+)")
_OPERATOR: Final = re.compile(r"- MapBatches\((\w+)\): (.*)")
_GUESSES: Final = ". Some common causes include"
_RESUME: Final = "what was committed stands, run the same command again for the rest"

STALLS: Final = (ExecutionTimeoutError, GetTimeoutError)
"""Errors with which Ray gives up waiting."""


def explain(error: BaseException) -> IndexerError:
    """The package's own error inside what Ray raised, else one that quotes the last cause."""
    last = _last_cause(error)
    message = str(last).partition(RAY_ADVICE)[0].strip()
    if isinstance(last, IndexerError):
        return type(last)(message)
    if isinstance(last, RayActorError):
        return ClusterError(_death(message))
    final_line = message.splitlines()[-1] if message else ""
    return ClusterError(f"the pipeline failed: {type(last).__name__}: {final_line}")


def explain_stall(
    error: BaseException, pools: Pools, nodes: Sequence[Node], patience_seconds: float
) -> ClusterError:
    """What a job waits for in vain, and what the cluster has.

    Args:
        error: of `STALLS`.
        pools: that the job asked for.
        nodes: of the cluster now.
        patience_seconds: that the job has waited.
    """
    waiting = [f"{stage} ({state})" for stage, state in _OPERATOR.findall(str(error))]
    there = [
        f"{node.name}{node.role and f' of the role {node.role}'}: "
        f"{node.cpus:g} CPUs, {node.gpus:g} GPUs"
        for node in nodes
    ]
    return ClusterError(
        f"nothing has moved for {patience_seconds:g} s (cluster.no_progress_seconds). "
        f"Not done: {'; '.join(waiting) or 'a look at the longest videos'}. "
        f"Asked for: {_asked(pools)}. The cluster has: {'; '.join(there) or 'no nodes'}. "
        f"Now {_RESUME}"
    )


def _last_cause(error: BaseException) -> BaseException:
    last = error
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, SystemException):  # by Ray, without words
        last = cause
        cause = cause.cause if isinstance(cause, RayTaskError) else cause.__cause__
    return last


def _death(message: str) -> str:
    """What became of an actor that Ray does not start again."""
    stage, address = _STAGE.search(message), _IP.search(message)
    name = stage[1] if stage else "a stage"
    node = f"node {address[1]}" if address else "a node that Ray does not name"
    final_line = redact_text(message.splitlines()[-1].partition(_GUESSES)[0].strip())
    often = (
        f"{MAX_FAILED_STARTS + 1} actors of {name} in a row could not be made"
        if "creation task" in message
        else f"an actor of {name} died {MAX_RESTARTS + 1} times"
    )
    return f"{often}, the last on {node}: {final_line}; {_RESUME}"


def _asked(pools: Pools) -> str:
    decode = (
        f"{pools.decode_actors} decode actors of {pools.actor_cpus:g} CPU{_on(pools.decode_role)}"
    )
    each = f"{pools.model_gpus:g} GPU" if pools.model_gpus else f"{pools.actor_cpus:g} CPU"
    model = f"{pools.model_actors} model actors of {each}{_on(pools.model_role)}"
    asked = f"{decode}, {model}"
    return f"at least one each of up to {asked}" if pools.growing else asked


def _on(role: str | None) -> str:
    return "" if role is None else f" on nodes of the role {role}"
