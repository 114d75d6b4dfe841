"""A Ray head of our own, to which jobs are submitted as to any cluster."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.ray_env import own_ray_env

REPOSITORY = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).with_name("ray")
START_SECONDS = 240
STOP_WAIT_SECONDS = 60
JOB_SECONDS = 300


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Head:
    """A Ray head of its own ports and folder, whose job API wants a token."""

    def __init__(self, folder):
        self.folder = folder
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        self.port, self.dashboard_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.dashboard_port}"
        self.env = own_ray_env() | {
            "RAY_TMPDIR": str(folder),  # its own, so that no other Ray of this machine joins it
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_agent_register_timeout_ms": str(1000 * START_SECONDS),  # else the raylet ends
            "RAY_JOB_START_TIMEOUT_SECONDS": str(JOB_SECONDS),
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SECONDS),  # as in cluster.yaml
        }
        self.log = (folder / "head.log").open("wb")
        self.process = self._start()

    def _start(self):
        return subprocess.Popen(
            [
                RAY, "start", "--head", "--block", "--num-cpus=2", "--include-dashboard=true",
                "--node-ip-address=127.0.0.1", f"--port={self.port}",
                f"--dashboard-port={self.dashboard_port}", "--dashboard-host=127.0.0.1",
                f"--dashboard-agent-listen-port={free_port()}",
                f"--dashboard-agent-grpc-port={free_port()}",
                f"--ray-client-server-port={free_port()}", "--disable-usage-stats",
                "--min-worker-port=0", "--max-worker-port=0",
            ],
            env=self.env, stdout=self.log, stderr=self.log, start_new_session=True,
            cwd=self.folder,  # where jobs without a working_dir run: beside no checkout
        )  # fmt: skip

    def wait(self):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:  # Ray gives itself 30 s, whatever else is running
                self._kill()
                self.process = self._start()
            if self._takes_jobs():
                return self
            time.sleep(0.5)
        pytest.fail(
            f"no Ray head after {START_SECONDS} s: {Path(self.log.name).read_text()[-3000:]}"
        )

    def _takes_jobs(self):
        """Whether the head's agent runs, long after its dashboard answers on a busy machine."""
        probe = {"entrypoint": "true", "submission_id": f"probe-{secrets.token_hex(4)}"}
        return self.status() == 401 and self.request(body=probe, token=self.token)[0] == 200

    @property
    def token(self):
        return Path(self.env["RAY_AUTH_TOKEN_PATH"]).read_text()

    def request(self, path="/api/jobs/", token=None, body=None):
        """HTTP status and text of a request to the job API: a POST where there is a body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data)  # noqa: S310 - http, from here
        request.add_header("Content-Type", "application/json")
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def status(self, token=None):
        """HTTP status of a request to list the jobs."""
        return self.request(token=token)[0]

    def jobs(self):
        """What the job API tells of all jobs, by their submission id."""
        return {job["submission_id"]: job for job in json.loads(self.request(token=self.token)[1])}

    def submit(self, *command, name, working_dir=REPOSITORY, env=(), wait=True):
        """Runs `ray job submit` for a command; with `wait`, until the job is over."""
        where = [] if working_dir is None else ["--working-dir", str(working_dir)]
        variables = ["--runtime-env-json", json.dumps({"env_vars": dict(env)})] if env else []
        options = ["--submission-id", name, *where, *variables, *([] if wait else ["--no-wait"])]
        return self.ray("job", "submit", *options, "--", sys.executable, *map(str, command))

    def ray(self, *arguments):
        """Runs the `ray` command against this head."""
        return subprocess.run(
            [RAY, *arguments[:2], "--address", self.url, *arguments[2:]],
            cwd=self.folder, env=self.env, capture_output=True, text=True, check=False,
            timeout=600,
        )  # fmt: skip

    def ended(self, name):
        """The job's entry once it is over."""
        deadline = time.monotonic() + JOB_SECONDS
        while time.monotonic() < deadline:
            job = self.jobs()[name]
            if job["status"] in {"SUCCEEDED", "FAILED", "STOPPED"}:
                return job
            time.sleep(0.5)
        pytest.fail(f"job {name} has not ended in {JOB_SECONDS} s")

    def stop(self):
        # Only the process group that was started here: `ray stop` would end every Ray of the host.
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self._kill()
        self.process.wait()
        self.log.close()

    def _kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
