"""Secrets that are planted wherever a job can meet one are found nowhere that a job writes.

The store is a real one; a proxy before it answers some requests with errors whose texts quote what
a careless server could know: signed addresses, headers, users and passwords.
"""

import hashlib
import io
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.faults import proxy as faults
from tests.s3server import SECRET_KEY
from tests.table.readers import read_all
from tests.video.synth import Synth

REPOSITORY = Path(__file__).resolve().parents[2]


def word():
    return f"Planted{secrets.token_hex(8)}"


SIGNED = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={0}&X-Amz-Signature={1}"
ENVIRONMENT = {
    "HF_TOKEN": f"hf_{secrets.token_hex(17)}",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "DATABASE_PASSWORD": word(),
    "GITHUB_TOKEN": word(),
    "WANDB_API_KEY": word(),
    "HTTPS_PROXY": f"http://proxy-user:{word()}@127.0.0.1:9",
}
COLUMNS = {
    "preview": f"https://cdn.test/a.jpg?{SIGNED.format(word(), word())}",
    "original": f"ftp://editor:{word()}@nas.test/a.mov",
    "azure": f"https://x.blob.test/a?sv=2024&sig={word()}",
    "note": f"uploaded with AKIA{secrets.token_hex(8).upper()}",
}
ANSWER = {
    "address": f"https://b.s3.test/k?{SIGNED.format(word(), word())}&X-Amz-Security-Token={word()}",
    "header": f"Authorization: AWS4-HMAC-SHA256 Credential={word()}/s3, Signature={'ab' * 32}",
    "bearer": f"Bearer {word()}",
    "user": f"http://admin:{word()}/{word()}@store.test/k",
}


def planted():
    """Each secret with its name: what of the texts above must not be seen anywhere."""
    found = {name: value for name, value in ENVIRONMENT.items() if name != "HTTPS_PROXY"}
    found["AWS_SECRET_ACCESS_KEY"] = SECRET_KEY
    found["signature of a header"] = "ab" * 32
    for name, text in {**COLUMNS, **ANSWER, "HTTPS_PROXY": ENVIRONMENT["HTTPS_PROXY"]}.items():
        parts = text.replace("/", " ").replace("=", " ").replace("&", " ").replace("@", " ")
        words = [
            w for p in parts.split() for w in p.split(":") if w.startswith(("Planted", "AKIA"))
        ]
        found |= {f"{name} {number}": text for number, text in enumerate(words)}
    return found


def test_there_are_twenty_secrets_and_each_is_another():
    assert len(planted()) >= 20
    assert len(set(planted().values())) == len(planted())


class CarelessHandler(faults.Handler):
    """Fails the object `evil.mp4`, and all data files below `failing/`, with a telling text."""

    def _serve(self):
        evil = self.command == "GET" and "evil.mp4" in self.path
        failing = self.command in {"PUT", "POST"} and "failing" in self.path
        if not (evil or (failing and ".parquet" in self.path)):
            super()._serve()
            return
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.proxy.faults["told"] += 1
        text = " ".join(["the careless store says", *ANSWER.values()]).replace("&", "&amp;")
        body = f"<Error><Code>Careless</Code><Message>{text}</Message></Error>"
        self._reply(400, [("Content-Type", "application/xml")], body.encode())

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815


@pytest.fixture(scope="module")
def told(s3, checkpoint, tmp_path_factory):
    """Two jobs, one of which fails, and an export: what they printed, logged and wrote."""
    folder, bucket = tmp_path_factory.mktemp("secrets"), s3.bucket()
    manifest = _archive(s3, bucket)
    options = ["--model", checkpoint, "--set", "sampling.min_seconds=0.1"]
    index, export = f"s3://{bucket}/index", folder / "export"
    commands = [
        ["run", manifest, "--index", index, *options],
        ["run", manifest, "--index", f"s3://{bucket}/failing", *options],
        ["export", index, "-o", str(export), "--format", "csv"],
    ]
    # Not a folder of pytest's: Ray's sockets lie in it, and their paths must be short.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as logs,
        faults.running(s3.endpoint, CarelessHandler) as proxy,
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "tests.e2e.leaky_jobs", json.dumps(commands)],
            cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=600,
            env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
            | ENVIRONMENT
            | {"AWS_ENDPOINT_URL": proxy.endpoint, "RAY_TMPDIR": logs, "PYTHONPATH": "."},
        )  # fmt: skip
        texts = {"stdout": ended.stdout, "stderr": ended.stderr}
        texts |= {str(path): path.read_text(errors="replace") for path in _files(Path(logs))}
        faults_told = proxy.faults["told"]
    texts |= {f"export/{path.name}": path.read_text() for path in _files(export)}
    codes = [json.loads(line)["code"] for line in ended.stdout.splitlines() if "code" in line]
    return codes, faults_told, texts, s3, bucket


def _archive(s3, bucket):
    video = Synth(frames=33).encode()
    listed = {"size_bytes": len(video), "etag": hashlib.md5(video).hexdigest()}  # noqa: S324
    uris = [s3.put(bucket, f"videos/{name}.mp4", video) for name in ("good", "evil")]
    rows = [{"uri": uri, "caption": "a caption", **listed, **COLUMNS} for uri in uris]
    lines = "\n".join(json.dumps(row) for row in rows)
    return s3.put(bucket, "videos/list.jsonl", lines.encode())


def _files(folder):
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def leaks(text):
    return [name for name, secret in planted().items() if secret in text]


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.slow
def test_the_jobs_met_the_secrets(told):
    codes, faults_told, texts, _, _ = told
    assert codes == [1, 3, 0], texts["stderr"][-3000:]
    assert faults_told > 2
    assert "the careless store says" in texts["stderr"]  # the failure's words reach the user
    assert any(name.endswith(".err") and "error_code=" in text for name, text in texts.items())
    assert any("ray-data" in name for name in texts)


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.slow
def test_no_log_no_answer_and_no_export_repeats_one(told):
    texts = told[2]
    assert {name: found for name, text in texts.items() if (found := leaks(text))} == {}


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.slow
def test_no_object_of_the_index_repeats_one(told):
    *_, s3, bucket = told
    found = Counter()
    for prefix in ("index/", "failing/"):
        for key in s3.keys(bucket, prefix):
            data = s3.client.get_object(Bucket=bucket, Key=key)["Body"].read()
            found[key.partition("/")[2].partition("/")[0]] += 1
            assert leaks(_content(data)) == [], key
    assert {"runs", "models", "leases", "videos", "clips"} <= set(found)


def _content(data):
    """The rows of a Parquet file, whose pages are compressed; else the text."""
    if data[:4] != b"PAR1":
        return data.decode(errors="replace")
    return repr(pq.read_table(io.BytesIO(data)).to_pylist()) + data.decode(errors="replace")


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.slow
def test_the_rest_of_the_manifest_s_columns_is_carried_along(told):
    *_, bucket = told
    rows = read_all(f"s3://{bucket}/index", "videos")["deltalake"]
    assert len(rows) == 2
    for row in rows:
        extra = json.loads(row["extra"])
        assert extra["caption"] == "a caption"
        assert extra["original"] == "ftp://nas.test/a.mov"
        assert extra["preview"].startswith("https://cdn.test/a.jpg?X-Amz-Algorithm=AWS4")
