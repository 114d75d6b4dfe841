"""Sizing the pools of actors so that the pipeline can never starve itself, on whatever nodes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from indexer.config import Cluster, Model
from indexer.errors import ClusterError

ROLE_LABEL: Final = "role"
DECODE_ROLE: Final = "decode"
"""Value of the node label `role` that keeps decoding and writing to the nodes that have it."""

ACTOR_CPUS: Final = 0.99
"""What a decode actor claims, and one that runs the model on a CPU: a little less than it takes.

So a full node has room for actors that claim a token, wherever Ray puts the others, also after it
has moved them from a node that was lost.
"""

TOKEN_CPUS: Final = 0.0001
"""What a write actor claims, and one that its GPU places: next to nothing, but more than a head
without CPUs has."""

WRITER_CPUS: Final = 0.25
"""What a write actor takes: it mostly waits for the store."""

MIN_CPUS: Final = 1.0

_MOST_BLOCK_CLIPS: Final = 64
_LEAST_BLOCK_CLIPS: Final = 8
_BLOCK_FLOPS: Final = 3e12
"""Of a block on a CPU: what a core does in half a minute. Ray and the driver may need 0.1 s of CPU
for a block; but what dies with an actor, and what the last actors wait for, is a block too."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster.

    Attributes:
        cpus: that Ray hands out; a head usually has none.
        gpus: likewise.
        role: its label `role`; empty where it has none.
        name: for people.
    """

    cpus: float
    gpus: float = 0.0
    role: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Pools:
    """How the job is spread over the cluster.

    Attributes:
        cpus: of the cluster.
        gpus: of the cluster.
        device: of the model actors.
        decode_actors: decoding processes.
        model_actors: model processes.
        write_actors: writing processes.
        actor_cpus: logical CPUs that each decode actor claims, and each model actor on a CPU.
        block_clips: clips that travel together from the decoders to the model.
        batch_size: clips of one forward pass; None lets each model actor find out.
        model_gpus: that each model actor claims; 0 on a CPU.
        decode_role: label `role` of the nodes that decode and write; None for any node.
        model_role: likewise of the nodes that run the model; with `!` in front, of all others.
        growing: the pools begin with one actor each, and grow with the cluster.
    """

    cpus: float
    gpus: float
    device: Literal["cpu", "cuda"]
    decode_actors: int
    model_actors: int
    write_actors: int
    actor_cpus: float
    block_clips: int
    batch_size: int | None
    model_gpus: float = 0.0
    decode_role: str | None = None
    model_role: str | None = None
    growing: bool = False

    @property
    def model_threads(self) -> int:
        """Threads of one model actor on a CPU."""
        return max(1, int(self.actor_cpus))


def size_pools(
    nodes: Sequence[Node], cluster: Cluster, model: Model, *, todo_rows: int, clip_flops: float
) -> Pools:
    """Works out the pools from the nodes that the cluster has.

    Nodes labelled `role: decode` decode; where there are none, all nodes do. With GPUs, each gets
    one model actor, for which its node keeps a CPU. Without, the nodes that do not decode run the
    model; where all do, decoding a clip costs a small part of scoring it, so a quarter of the CPUs
    decode. Of a cluster that grows only the labels are looked at: the pools may become as large as
    the configuration says.

    Args:
        nodes: of the cluster.
        cluster: what the configuration asks for.
        model: likewise.
        todo_rows: of the job.
        clip_flops: floating-point operations of scoring one clip.

    Raises:
        ClusterError: the cluster cannot hold the pools; the message has the numbers.
    """
    usable = [node for node in nodes if node.cpus > 0]
    labelled = [node for node in usable if node.role == DECODE_ROLE]
    others = [node for node in usable if node.role != DECODE_ROLE]
    device = _pick_device(usable, cluster, model)
    if not cluster.autoscaling and _cpus(usable) < MIN_CPUS:
        message = f"the Ray cluster has {_cpus(usable):g} CPUs; the job needs at least {MIN_CPUS:g}"
        raise ClusterError(message)
    apart = device == "cpu" and bool(labelled) and _slots(others) > 0
    if device == "cuda":
        decode_actors, model_actors = _beside_gpus(labelled or usable, usable, cluster)
    elif apart:
        decode_actors, model_actors = max(1, _slots(labelled)), _slots(others)
    else:
        decode_actors, model_actors = _together(_slots(usable), cluster)
    model_actors = cluster.model_actors or model_actors
    pools = Pools(
        cpus=_cpus(nodes),
        gpus=_gpus(nodes),
        device=device,
        decode_actors=min(cluster.decode_actors or decode_actors, max(1, todo_rows)),
        model_actors=model_actors,
        write_actors=_writers(device, model_actors),
        actor_cpus=ACTOR_CPUS,
        block_clips=cluster.block_clips or _block_clips(device, clip_flops),
        batch_size=model.batch_size,
        model_gpus=cluster.gpus_per_model_actor if device == "cuda" else 0.0,
        decode_role=DECODE_ROLE if labelled else None,
        model_role=f"!{DECODE_ROLE}" if apart else None,
        growing=cluster.autoscaling,
    )
    return pools if cluster.autoscaling else _fitted(pools, labelled or usable, others)


def _beside_gpus(
    decode_nodes: Sequence[Node], nodes: Sequence[Node], cluster: Cluster
) -> tuple[int, int]:
    model_actors = cluster.model_actors or _gpu_actors(nodes, cluster.gpus_per_model_actor)
    kept_cpus = min(model_actors, _gpu_actors(decode_nodes, cluster.gpus_per_model_actor))
    taken_cpus = kept_cpus + WRITER_CPUS * _writers("cuda", model_actors)
    return max(1, int(_slots(decode_nodes) - taken_cpus)), model_actors


def _together(slots: int, cluster: Cluster) -> tuple[int, int]:
    decode_actors = cluster.decode_actors or max(1, slots // 4)
    return decode_actors, max(1, slots - decode_actors)


def _writers(device: Literal["cpu", "cuda"], model_actors: int) -> int:
    # a GPU fills some 16 blocks a second, a writer ten
    return 2 * model_actors if device == "cuda" else 1 + model_actors // 32


def _block_clips(device: Literal["cpu", "cuda"], clip_flops: float) -> int:
    if device == "cuda":
        return _MOST_BLOCK_CLIPS
    return max(_LEAST_BLOCK_CLIPS, min(_MOST_BLOCK_CLIPS, int(_BLOCK_FLOPS / clip_flops)))


def _slots(nodes: Sequence[Node]) -> int:
    """Actors with a CPU of their own that fit."""
    return sum(int(node.cpus) for node in nodes)


def _gpu_actors(nodes: Sequence[Node], gpus_each: float) -> int:
    """Model actors that fit: no more on a node than it has CPUs to feed them."""
    return sum(min(int(node.gpus / gpus_each), max(1, int(node.cpus))) for node in nodes)


def _cpus(nodes: Sequence[Node]) -> float:
    return sum(node.cpus for node in nodes)


def _gpus(nodes: Sequence[Node]) -> float:
    return sum(node.gpus for node in nodes)


def _pick_device(nodes: Sequence[Node], cluster: Cluster, model: Model) -> Literal["cpu", "cuda"]:
    has_gpu = cluster.autoscaling or any(node.gpus >= 1 for node in nodes)
    if model.device == "cuda" and not has_gpu:
        message = "model.device = cuda, but the Ray cluster has no GPU; use auto or cpu"
        raise ClusterError(message)
    return "cuda" if has_gpu and model.device != "cpu" else "cpu"


def _fitted(pools: Pools, decode_nodes: Sequence[Node], others: Sequence[Node]) -> Pools:
    """The pools, with smaller claims where two actors have to share a CPU.

    Raises:
        ClusterError: they do not fit.
    """
    asked = f"{pools.decode_actors} decode and {pools.model_actors} model actors"
    gpus = pools.model_actors * pools.model_gpus
    if gpus > pools.gpus:
        message = f"{asked} need {gpus:g} GPUs, but the Ray cluster has {pools.gpus:g}"
        raise ClusterError(message)
    crowds = [(pools.decode_actors, decode_nodes)]
    if pools.model_role is not None:
        crowds.append((pools.model_actors, others))
    elif pools.device == "cpu":
        crowds = [(pools.decode_actors + pools.model_actors, decode_nodes)]
    for actors, nodes in crowds:
        slots = _slots(nodes)
        # Two small pools may share one or two CPUs; beyond that, an actor wants a CPU of its own.
        if actors > max(2, slots):
            kind = f" on nodes of the role {pools.decode_role}" if pools.decode_role else ""
            message = (
                f"{asked} need {actors} CPUs{kind}, but the Ray cluster has {slots}; "
                "lower cluster.decode_actors or cluster.model_actors, or add nodes"
            )
            raise ClusterError(message)
        if actors > slots:
            largest_cpus = max(node.cpus for node in nodes)
            pools = replace(pools, actor_cpus=int(100 * ACTOR_CPUS * largest_cpus / actors) / 100)
    return pools
