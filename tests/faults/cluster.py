"""A Ray cluster of several nodes on this machine, in a process of its own that obeys orders.

`Cluster` talks to it; run as a program, this module is the process.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

from tests.ray_env import own_ray_env

REPOSITORY = Path(__file__).resolve().parents[2]
OBJECT_STORE_BYTES = 96 * 2**20
WATCH_SECONDS = 0.2


class Cluster:
    """A head without CPUs and the nodes that are added to it; `with` ends all of it."""

    def __init__(self) -> None:
        # not a folder of pytest's: Ray's sockets lie in it, and their paths must be short
        self._folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        token = Path(self._folder.name, "token")
        token.write_text(secrets.token_hex(32))
        self.env = own_ray_env() | {
            "RAY_TMPDIR": self._folder.name,  # its own, so that no other Ray of this machine joins
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_agent_register_timeout_ms": "240000",  # else the raylet ends on a busy machine
            "RAY_health_check_timeout_ms": "30000",
        }
        self._log = Path(self._folder.name, "cluster.log").open("w+")  # noqa: SIM115 - closed by __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.cluster"],
            cwd=REPOSITORY,
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self.head, self.env["RAY_ADDRESS"] = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.stdin.close()
            self._process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()
        self._folder.cleanup()

    def add(self, **node: Any) -> str:
        """Starts a node; gives its id."""
        return self._order("add", node)

    def kill(self, node: str) -> None:
        """Ends a node at once, and all its processes."""
        self._order("kill", node)

    def drain(self, node: str, seconds: float) -> bool:
        """Tells Ray, as a spot notice does, that a node will go; whether Ray has taken it in."""
        return self._order("drain", [node, seconds])

    def actors(self) -> list[dict[str, Any]]:
        """Stage, node and state of each actor that was seen, in every place it was seen in."""
        return self._order("actors", None)

    def _order(self, verb: str, argument: Any) -> Any:
        self._process.stdin.write(json.dumps([verb, argument]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        self._log.seek(0)
        assert line, self._log.read()[-4000:]
        return json.loads(line)


class _Watch(threading.Thread):
    """Looks again and again where Ray has the stages' actors."""

    def __init__(self, state: Any) -> None:
        super().__init__(daemon=True)
        self._state, self.seen = state, set()

    def run(self) -> None:
        while True:
            for actor in self._state.actor_table(None).values():
                stage = actor["ActorClassName"].removeprefix("MapWorker(MapBatches(")
                if stage != actor["ActorClassName"] and actor["State"] == "ALIVE":
                    self.seen.add((stage.rstrip(")"), actor["Address"]["NodeID"]))
            time.sleep(WATCH_SECONDS)


def serve() -> None:
    """Starts the head, says its id and address, and obeys."""
    from ray._raylet import GcsClient
    from ray.cluster_utils import Cluster as RayCluster
    from ray.core.generated import autoscaler_pb2

    said, sys.stdout = sys.stdout, sys.stderr
    cluster = RayCluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        },
    )
    nodes: dict[str, Any] = {}

    def say(answer: Any) -> None:
        said.write(json.dumps(answer) + "\n")
        said.flush()

    say([cluster.head_node.node_id, cluster.address])
    watch = _Watch(cluster.global_state)
    watch.start()
    for line in sys.stdin:
        verb, argument = json.loads(line)
        answer: Any = None
        if verb == "add":
            node = cluster.add_node(object_store_memory=OBJECT_STORE_BYTES, **argument)
            nodes[node.node_id] = node
            answer = node.node_id
        elif verb == "kill":
            cluster.remove_node(nodes.pop(argument), allow_graceful=False)
        elif verb == "drain":
            node_id, seconds = argument
            reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
            deadline_ms = int(1000 * (time.time() + seconds))
            gcs = GcsClient(address=cluster.address)
            answer = gcs.drain_node(node_id, reason, "spot notice", deadline_ms)[0]
        elif verb == "actors":
            answer = sorted(watch.seen)
        say(answer)
    cluster.shutdown()


if __name__ == "__main__":
    serve()
