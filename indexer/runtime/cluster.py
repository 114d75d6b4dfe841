"""Connecting to Ray, and what its cluster has."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import ray

from indexer.config import Cluster
from indexer.errors import ClusterError
from indexer.runtime.pools import ROLE_LABEL, Node

CONNECT_SECONDS: Final = 5.0


@contextmanager
def connected(cluster: Cluster) -> Iterator[list[Node]]:
    """Joins the Ray cluster of this process, or starts one on this machine until the block ends.

    Yields:
        The nodes of the cluster.

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
        yield live_nodes()
    finally:
        if not joined:
            ray.shutdown()


def live_nodes() -> list[Node]:
    """The nodes that Ray has now."""
    rows = ray.nodes()  # type: ignore[no-untyped-call]
    return [
        Node(
            cpus=row["Resources"].get("CPU", 0.0),
            gpus=row["Resources"].get("GPU", 0.0),
            role=row["Labels"].get(ROLE_LABEL, ""),
            name=f"{row['NodeName']} ({row['NodeID'][:8]})",
        )
        for row in rows
        if row["Alive"]
    ]


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
