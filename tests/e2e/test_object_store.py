"""Decoders wait for a slow model before the object store is full."""

import pytest

from benchmarks._null_stages import SLOW_CLIPS_PER_SECOND
from benchmarks._pipeline_runs import Machine, Order, run_operators, watched, write_manifest

SECONDS = 24
CLIPS = int(SECONDS * SLOW_CLIPS_PER_SECOND)  # 3.7 GB of frames


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("clips_per_video", [8, 256])
def test_a_small_object_store_is_enough_for_a_slow_model(tmp_path, clips_per_video):
    manifest = write_manifest(
        tmp_path / "videos.parquet", CLIPS // clips_per_video, clips_per_video
    )
    order = Order(
        manifest,
        str(tmp_path / "index"),
        ("NullDecode", "SlowScore", "NullWrite"),
        pixels=224,
        machine=Machine(cpus=4, gpus=1, store_bytes=1 << 30),
    )
    outcome = watched(run_operators, order)
    assert outcome.counts.clips == CLIPS
    assert outcome.spilled_bytes == 0
