"""What a plan measures of the machine."""

import pytest

from indexer.config import IndexConfig
from indexer.runtime.estimate import describe_plan
from indexer.runtime.speed import Runner, measure, measured_speed
from indexer.runtime.todo import plan_job
from tests.model.stress import write_stress_checkpoint
from tests.video.synth import Synth


@pytest.fixture
def job(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(Synth(frames=60).encode())
    (folder / "b.mp4").write_bytes(b"no video")
    model = write_stress_checkpoint(tmp_path / "model", num_frames=4, frame_rate_divisor=4)
    return IndexConfig.load(
        overrides={
            "inputs": (str(folder),),
            "index": str(tmp_path / "index"),
            "model.id": str(model),
            "sampling.min_seconds": 0.1,
        }
    )


def test_clips_of_the_readable_videos_are_decoded_and_scored(job):
    plan = plan_job(job)
    runner = Runner("cpu", "float32", 1)
    speed = measure(plan.todo, plan.decode_plan, plan.checkpoint, runner)
    assert speed.clips == 4
    assert min(speed.decode_cpu_seconds, speed.fetch_seconds, speed.model_seconds) > 0
    assert measure(plan.todo.slice(1), plan.decode_plan, plan.checkpoint, runner) is None


def test_views_count_in_the_time_of_a_clip(job, monkeypatch):
    plan = plan_job(
        job.model_copy(update={"sampling": job.sampling.model_copy(update={"crops": 3})})
    )
    monkeypatch.setattr("indexer.runtime.speed._view_seconds", lambda *_: 2.0)
    speed = measure(plan.todo, plan.decode_plan, plan.checkpoint, Runner("cpu", "float32", 1))
    assert speed.model_seconds == 6.0


def test_a_plan_says_how_long_and_what_will_hold_it_up(job, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    plan = plan_job(job)
    speed, pools = measured_speed(plan, plan.todo)
    assert (pools.cpus, pools.device) == (8.0, "cpu")
    facts = describe_plan(plan, measured=True)
    assert facts["measured_clips"] == speed.clips
    assert facts["estimated_bottleneck"] in ("storage", "decode", "model")
    assert facts["estimated_cpu_hours"] == pytest.approx(8 * facts["estimated_hours"], abs=1e-3)
    assert "estimated_hours" not in describe_plan(plan)
