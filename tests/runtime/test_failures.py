"""Errors as Ray raises them; `tests/faults` makes Ray raise them."""

import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import ActorDiedError, GetTimeoutError

from indexer.config import Cluster, Model
from indexer.errors import ClusterError, ModelError
from indexer.runtime.failures import explain, explain_stall
from indexer.runtime.pools import Node, size_pools

NODES = [Node(0, name="10.0.0.1 (aaaa)"), Node(4, role="decode", name="10.0.0.2 (bbbb)")]
STALL = """Dataset execution made no progress for at least 61s of scheduling time (timeout: 60s).
Operators still running:
  - MapBatches(ScoreUnits): 2 active task(s), 0 finished, 0 outputs taken
  - MapBatches(WriteUnits): 0 active task(s), 0 finished, 0 outputs taken
If this is expected, raise the timeout."""


def raised(error, cause):
    """An error as it is after Ray Data has raised it."""
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_a_dead_actor_is_told_of_with_its_stage_and_node():
    context = ActorDiedErrorContext(
        class_name="MapWorker(MapBatches(ScoreUnits))",
        actor_id=ray.ActorID.from_random().binary(),
        node_ip_address="10.0.0.7",
        error_message="The actor is dead because its worker process has died. Some common causes "
        "include: (1) the process was killed by the OOM killer",
    )
    found = explain(raised(ActorDiedError(context), SystemException()))
    assert isinstance(found, ClusterError)
    assert str(found) == (
        "an actor of ScoreUnits died 31 times, the last on node 10.0.0.7: The actor is dead "
        "because its worker process has died; what was committed stands, run the same command "
        "again for the rest"
    )


def test_an_error_of_ours_keeps_its_class():
    found = explain(
        raised(ActorDiedError(), ModelError("no such label\nFailed to apply UDF transform"))
    )
    assert (type(found), str(found)) == (ModelError, "no such label")


def test_a_wait_in_vain_names_what_was_asked_for_and_what_there_is():
    cluster = Cluster(autoscaling=True, decode_actors=9, model_actors=2)
    pools = size_pools(NODES, cluster, Model(device="cuda"), todo_rows=100, clip_flops=1e9)
    message = str(explain_stall(ExecutionTimeoutError(STALL), pools, NODES, 60))
    for words in (
        "nothing has moved for 60 s (cluster.no_progress_seconds)",
        "ScoreUnits (2 active task(s), 0 finished, 0 outputs taken); WriteUnits (0 active",
        "up to 9 decode actors of 0.99 CPU on nodes of the role decode, 2 model actors of 1 GPU",
        "10.0.0.1 (aaaa): 0 CPUs, 0 GPUs; 10.0.0.2 (bbbb) of the role decode: 4 CPUs, 0 GPUs",
        "run the same command again",
    ):
        assert words in message


def test_a_count_of_units_that_never_starts_is_a_wait_too():
    pools = size_pools([Node(4)], Cluster(), Model(), todo_rows=100, clip_flops=1e9)
    message = str(explain_stall(GetTimeoutError("x"), pools, [], 60))
    assert "Not done: a look at the longest videos. Asked for: 1 decode actors" in message
    assert "The cluster has: no nodes" in message
