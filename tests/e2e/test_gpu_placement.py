"""The model's actors ask for a GPU where the cluster says that it has one."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
JOB = """
import sys
import ray
from indexer.config import IndexConfig
from indexer.errors import ModelError
from indexer.metrics import ClusterReady
from indexer.runtime.pipeline import run_index

class Listener:
    def on_event(self, event):
        if isinstance(event, ClusterReady):
            print("gpus", event.gpus, "model actors", event.model_actors)

video, index, model = sys.argv[1:]
overrides = {"inputs": (video,), "index": index, "model.id": model}
ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
try:
    run_index(IndexConfig.load(overrides=overrides), Listener())
except ModelError as error:
    print("refused", error)
"""


@pytest.mark.slow
@pytest.mark.ray
def test_the_model_runs_on_the_gpu_that_the_cluster_has(archive, checkpoint, tmp_path):
    """Without a CUDA device the model itself must refuse: it was told to use one."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a real GPU")
    result = subprocess.run(
        [sys.executable, "-c", JOB, archive / "a.mp4", tmp_path / "index", checkpoint],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = result.stdout.splitlines()[-2:]
    assert first == "gpus 1.0 model actors 1"
    assert second.startswith("refused")
    assert "cuda" in second.lower()
