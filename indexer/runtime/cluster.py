"""Connecting to Ray, and sizing the pools so that the pipeline can never starve itself."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

import ray

from indexer.config import Cluster, Model
from indexer.errors import ClusterError

WRITER_CPUS: Final = 0.25
"""What a write actor claims: it mostly waits for the store."""

MIN_CPUS: Final = 1.0
CONNECT_SECONDS: Final = 5.0


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
        actor_cpus: logical CPUs that each decode and model actor claims.
        block_clips: clips that travel together from the decoders to the model.
        batch_size: clips of one forward pass; None lets each model actor find out.
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

    @property
    def model_threads(self) -> int:
        """Threads of one model actor on a CPU."""
        return max(1, int(self.actor_cpus))


def size_pools(
    cpus: float, gpus: float, cluster: Cluster, model: Model, *, todo_rows: int
) -> Pools:
    """Works out the pools from what the cluster has.

    With GPUs, each gets one model actor, and the other CPUs decode. Without, decoding a clip costs
    a small part of scoring it, so a quarter of the CPUs decode.

    Raises:
        ClusterError: the cluster cannot hold the pools; the message has the numbers.
    """
    device = _pick_device(gpus, model)
    if cpus < MIN_CPUS:
        message = f"the Ray cluster has {cpus:g} CPUs; the job needs at least {MIN_CPUS:g}"
        raise ClusterError(message)
    if device == "cuda":
        model_actors = cluster.model_actors or max(1, min(int(gpus), int(cpus) - 1))
        write_actors = 2 * model_actors  # a GPU fills some 16 blocks a second, a writer ten
        left_cpus = cpus - WRITER_CPUS * write_actors - model_actors
        decode_actors = cluster.decode_actors or max(1, int(left_cpus))
    else:
        decode_actors = cluster.decode_actors or max(1, int(cpus // 4))
        model_actors = cluster.model_actors or max(1, int(cpus) - decode_actors)
        write_actors = 1 + model_actors // 32
    decode_actors = min(decode_actors, max(1, todo_rows))
    _check_room(cpus, gpus, device, decode_actors, model_actors)
    claimable_cpus = cpus - WRITER_CPUS * write_actors
    return Pools(
        cpus=cpus,
        gpus=gpus,
        device=device,
        decode_actors=decode_actors,
        model_actors=model_actors,
        write_actors=write_actors,
        actor_cpus=min(1.0, int(100 * claimable_cpus / (decode_actors + model_actors)) / 100),
        block_clips=cluster.block_clips or (64 if device == "cuda" else 8),
        batch_size=model.batch_size,
    )


def _pick_device(gpus: float, model: Model) -> Literal["cpu", "cuda"]:
    if model.device == "cuda" and gpus < 1:
        message = "model.device = cuda, but the Ray cluster has no GPU; use auto or cpu"
        raise ClusterError(message)
    return "cuda" if gpus >= 1 and model.device != "cpu" else "cpu"


def _check_room(
    cpus: float, gpus: float, device: str, decode_actors: int, model_actors: int
) -> None:
    asked = f"{decode_actors} decode and {model_actors} model actors"
    if device == "cuda" and model_actors > gpus:
        message = f"{asked} need {model_actors} GPUs, but the Ray cluster has {gpus:g}"
        raise ClusterError(message)
    # Two small pools may share one or two CPUs; beyond that, an actor wants a CPU of its own.
    if decode_actors + model_actors > max(2.0, cpus):
        message = (
            f"{asked} need {decode_actors + model_actors} CPUs, but the Ray cluster has {cpus:g}; "
            "lower cluster.decode_actors or cluster.model_actors, or add nodes"
        )
        raise ClusterError(message)


@contextmanager
def connected(cluster: Cluster) -> Iterator[tuple[float, float]]:
    """Joins the Ray cluster of this process, or starts one on this machine until the block ends.

    Yields:
        The CPUs and GPUs of the cluster.

    Raises:
        ClusterError: no cluster can be reached or started.
    """
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    if address:
        _knock(address)
    joined = ray.is_initialized()
    if not joined:
        _start(address)
    try:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        yield resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    finally:
        if not joined:
            ray.shutdown()


def _knock(address: str) -> None:
    """Fails at once where nothing listens: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        message = f"cannot reach the Ray cluster at {address}: {error}"
        raise ClusterError(message) from error


def _start(address: str | None) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default
    if not address:
        # A Ray of our own writes warnings for its developers, formatted as errors, on our stderr.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            include_dashboard=None if address else False,
        )
    except Exception as error:
        where = f"the Ray cluster at {address}" if address else "a local Ray"
        message = f"cannot reach or start {where}: {error}"
        raise ClusterError(message) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end the job without its report
