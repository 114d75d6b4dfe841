"""`ray job submit` against a real head with token authentication."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from indexer import LabelIndex
from tests.e2e.conftest import ARCHIVE_CLIPS

REPOSITORY = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).with_name("ray")
START_SECONDS = 120


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Head:
    """A Ray head of its own ports and folder, whose job API wants a token."""

    def __init__(self, folder):
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        self.port, self.dashboard_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.dashboard_port}"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
            "RAY_TMPDIR": str(folder),  # its own, so that no other Ray of this machine joins it
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.log = (folder / "head.log").open("wb")
        self.process = subprocess.Popen(
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
        )  # fmt: skip

    def wait(self):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            if self.status() == 401:
                return self
            time.sleep(0.5)
        pytest.fail(
            f"no Ray head after {START_SECONDS} s: {Path(self.log.name).read_text()[-3000:]}"
        )

    def status(self, token=None):
        """HTTP status of a request to list the jobs."""
        request = urllib.request.Request(f"{self.url}/api/jobs/")  # noqa: S310 - http, from here
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            return urllib.request.urlopen(request, timeout=10).status  # noqa: S310
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def submit(self, *arguments):
        return subprocess.run(
            [
                RAY, "job", "submit", "--address", self.url, "--working-dir", ".", "--",
                sys.executable, "jobs/index_videos.py", *map(str, arguments),
            ],
            cwd=REPOSITORY, env=self.env, capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip

    def stop(self):
        # Only the process group that was started here: `ray stop` would end every Ray of the host.
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def head():
    # Not a folder of pytest's: Ray's sockets lie in it, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        head = Head(Path(folder))
        try:
            yield head.wait()
        finally:
            head.stop()


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_submitted_job_indexes_and_its_exit_code_says_how_it_went(
    head, archive, checkpoint, tmp_path
):
    index = tmp_path / "index"
    options = ["--index", index, "--model", checkpoint, "--set", "sampling.min_seconds=0.1"]
    good = head.submit(archive / "a.mp4", archive / "sub folder", *options)
    assert good.returncode == 0, good.stdout[-3000:] + good.stderr[-3000:]
    assert "2 videos indexed, 0 failed" in good.stdout
    some_failed = head.submit(archive, *options)
    assert some_failed.returncode == 1, some_failed.stdout[-3000:]
    assert "1 videos indexed, 2 failed (1 empty, 1 not_a_video" in some_failed.stdout
    clips = LabelIndex.open(str(index)).status()["clips"]
    assert clips == sum(ARCHIVE_CLIPS.values())
    reports = [json.loads(path.read_text()) for path in sorted((index / "runs").iterdir())]
    assert [(r["status"], r["videos"]["todo"], r["videos"]["skipped"]) for r in reports] == [
        ("finished", 2, 0),
        ("finished", 3, 2),
    ]
    assert all(report["cluster"]["cpus"] == 2 for report in reports)
    refused = head.submit(archive, *options, "--sampling", "every")
    assert refused.returncode != 0
    assert "sampling.mode = 'every'" in refused.stdout


@pytest.mark.ray
def test_nobody_submits_without_the_token(head):
    assert head.status() == 401
    assert head.status("0" * 64) == 403
    assert head.status(Path(head.env["RAY_AUTH_TOKEN_PATH"]).read_text()) == 200
