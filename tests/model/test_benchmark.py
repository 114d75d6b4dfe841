"""The model's benchmark runs where torch, transformers, numpy and safetensors are all there is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks._models import _compiled
from indexer.model.compiling import Compiled

REPOSITORY = Path(__file__).resolve().parents[2]
ABSENT = """
import sys

ABSENT = {"av", "deltalake", "duckdb", "pyarrow", "pydantic", "ray", "s3fs"}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, Absent())
"""


def run_alone(folder, *arguments):
    """Runs it, and whatever it starts, where these packages cannot be imported."""
    (folder / "sitecustomize.py").write_text(ABSENT)
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.model", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_runs_without_the_rest_of_the_project_s_packages(tmp_path):
    options = "--preset demo --device cpu --repeat 1 --clips 1 --methods classifier"
    done = run_alone(tmp_path, *options.split(), "--json", tmp_path / "model.json")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "model.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["classifier"]
    assert all(row["seconds"] and not row["problem"] for row in rows)


def test_a_contestant_that_cannot_be_compiled_is_not_measured_as_if_it_were():
    compiled = Compiled(torch.nn.Identity())
    compiled.failure = "no compiler"
    with pytest.raises(RuntimeError, match="no compiler"):
        _compiled(compiled, torch.zeros(1))
