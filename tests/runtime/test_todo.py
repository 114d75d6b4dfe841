import json
import subprocess
import sys
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from indexer.config import IndexConfig
from indexer.errors import ConfigError
from indexer.runtime.estimate import Sample, describe_plan, take_sample
from indexer.runtime.report import Course, build_report
from indexer.runtime.tally import Tally
from indexer.runtime.todo import _compare, plan_job
from indexer.table.deleted import mark_deleted
from indexer.table.resume import STATES
from tests.model.stress import write_stress_checkpoint
from tests.video.synth import Synth


def manifest(*rows):
    columns = ["video_id", "uri", "size_bytes", "content_key", "extra"]
    return pa.Table.from_pylist(
        [dict(zip(columns, (name, f"/{name}", 1, key, "{}"), strict=True)) for name, key in rows]
    )


def states(*rows):
    return pa.Table.from_pylist(
        [dict(zip(STATES.names, row, strict=True)) for row in rows], schema=STATES
    )


KNOWN = states(
    ("done", "k", 2, [0, 1], [], 1, None),
    ("failed", "k", 1, [], [0], 1, "corrupt"),
    ("half", "k", 4, [0, 2], [3], 2, "timeout"),
    ("other", "old", 1, [0], [], 1, None),
)
LISTED = manifest(*((name, "k") for name in ("new", "done", "failed", "half", "other")))


def compared(retry=None, listed=LISTED, known=KNOWN, **settings):
    config = IndexConfig(inputs=("x",), index="y", retry=retry, **settings)
    finished = pa.array(
        [name == "done" and known is KNOWN for name in listed["video_id"].to_pylist()]
    )
    found = _compare(listed, finished, known, config)
    rows = {
        row["video_id"]: (row["attempt"], row["units"], sorted(row["done_units"]))
        for row in found.todo.to_pylist()
    }
    return rows, found


def test_only_what_has_no_outcome_is_left_to_do():
    rows, found = compared()
    assert rows == {"new": (1, 1, []), "half": (2, 4, [0, 2, 3]), "other": (1, 1, [])}
    assert (found.done_videos, found.failed_videos) == (2, 1)
    assert found.reasons.to_pylist() == [
        "new", "indexed", "failed: corrupt", "incomplete", "changed",
    ]  # fmt: skip
    assert found.changed.to_pylist() == [{"video_id": "other", "uri": "/other"}]


@pytest.mark.parametrize(
    ("retry", "again"),
    [
        ("all", {"failed": (2, 1, []), "half": (3, 4, [0, 2])}),
        ("corrupt", {"failed": (2, 1, [])}),
        ("timeout", {"half": (3, 4, [0, 2])}),
    ],
)
def test_a_retry_takes_failed_units_again_with_the_next_attempt(retry, again):
    rows, _ = compared(retry)
    assert rows == {"new": (1, 1, []), "half": (2, 4, [0, 2, 3]), "other": (1, 1, [])} | again


def test_a_changed_video_beyond_the_limit_keeps_its_rows_for_now():
    rows, found = compared(limit=2)
    assert list(rows) == ["new", "half"]
    assert found.changed.num_rows == 0
    assert (found.done_videos, found.failed_videos) == (2, 1)


def test_the_manifest_s_order_is_kept_and_an_empty_index_skips_nothing():
    rows, found = compared(known=STATES.empty_table())
    assert list(rows) == ["new", "done", "failed", "half", "other"]
    assert (found.done_videos, found.changed.num_rows) == (0, 0)


def test_what_is_left_for_later_says_so():
    _, found = compared(limit=2)
    assert found.reasons.to_pylist()[-1] == "beyond the limit"


def test_a_video_that_failed_too_often_is_left_alone_whatever_is_asked():
    known = states(
        ("failed", "k", 1, [], [0], 3, "corrupt"), ("half", "k", 4, [0, 2], [3], 3, "timeout")
    )
    listed = manifest(("failed", "k"), ("half", "k"))
    rows, found = compared("all", listed, known)
    assert rows == {"half": (3, 4, [0, 2, 3])}
    assert found.reasons.to_pylist() == ["quarantined: corrupt", "incomplete"]
    assert found.failed_videos == 1
    rows, found = compared("all", listed, known, max_attempts=4)
    assert rows == {"failed": (4, 1, []), "half": (4, 4, [0, 2])}
    assert set(found.reasons.to_pylist()) == {"retried"}


def test_overwriting_does_everything_listed_again_and_its_rows_go_first():
    rows, found = compared(if_exists="overwrite", retry="all")
    assert rows == dict.fromkeys(["new", "done", "failed", "half", "other"], (1, 1, []))
    assert found.changed["video_id"].to_pylist() == ["done", "failed", "half", "other"]
    assert found.reasons.to_pylist() == ["new", *["overwritten"] * 4]
    assert (found.done_videos, found.failed_videos) == (0, 0)


@pytest.fixture
def job(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "a.mp4").write_bytes(Synth(frames=300, fps=30).encode())
    (videos / "b.mp4").write_bytes(b"junk" * 100)
    model = write_stress_checkpoint(tmp_path / "model", num_frames=4, frame_rate_divisor=15)
    return IndexConfig.load(
        overrides={
            "inputs": (str(videos),),
            "index": str(tmp_path / "index"),
            "model.id": str(model),
        }
    )


def test_a_plan_estimates_hours_and_clips_and_writes_nothing(job, tmp_path):
    plan = plan_job(job)
    facts = describe_plan(plan)
    assert (facts["listed_videos"], facts["todo_videos"], facts["skipped_videos"]) == (2, 2, 0)
    assert (facts["sampled_videos"], facts["unreadable_in_sample"]) == (2, 1)
    assert facts["estimated_clips"] == 5
    assert facts["estimated_video_hours"] == pytest.approx(10 / 3600, abs=1e-3)
    assert facts["todo_bytes"] == plan.todo_bytes > 400
    assert not (tmp_path / "index").exists()
    json.dumps(facts)


def test_a_sample_is_spread_over_the_whole_list(job, tmp_path):
    for number in range(13):
        (tmp_path / "videos" / f"c{number:02d}.mp4").write_bytes(b"junk")
    for number in range(7):
        (tmp_path / "videos" / f"d{number}.mp4").write_bytes(Synth(frames=60).encode())
    plan = plan_job(job)  # 22 videos: a good one, 14 bad ones, 7 good ones
    sample = take_sample(plan.todo, plan.decode_plan)
    assert (sample.videos, sample.unreadable) == (8, 5)


def test_nothing_to_do_needs_no_sample(job):
    plan = plan_job(job)
    assert take_sample(plan.todo.slice(0, 0), plan.decode_plan) == Sample()


def test_the_divisor_is_the_checkpoint_s_unless_configured(job):
    assert plan_job(job).decode_plan.frame_rate_divisor == 15
    other = job.model_copy(update={"sampling": job.sampling.model_copy(update={"seed": 1})})
    assert plan_job(other).tag != plan_job(job).tag


def test_a_deleted_video_stays_away_unless_it_is_written_over(job):
    first = plan_job(job)
    mark_deleted(first.paths, None, first.todo["video_id"].to_pylist()[:1])
    plan = plan_job(job)
    assert (plan.reason_counts(), plan.done_videos) == ({"deleted": 1, "new": 1}, 1)
    again = plan_job(job.model_copy(update={"if_exists": "overwrite"}))
    assert again.todo.num_rows == 2


def test_shards_share_the_videos_out(job, tmp_path):
    for number in range(20):
        (tmp_path / "videos" / f"c{number}.mp4").write_bytes(b"junk")
    parts = [
        set(plan_job(job.model_copy(update={"shard": f"{i}/3"})).todo["uri"].to_pylist())
        for i in (1, 2, 3)
    ]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == 22
    with pytest.raises(ConfigError, match="1 <= i <= n"):
        plan_job(job.model_copy(update={"shard": "4/3"}))


def test_a_plan_tells_what_it_skips_and_why(job):
    plan = plan_job(job.model_copy(update={"limit": 1}))
    assert plan.reason_counts() == {"beyond the limit": 1, "new": 1}
    (skipped,) = plan.skipped()
    assert skipped["reason"] == "beyond the limit"
    assert skipped["uri"].endswith("b.mp4")
    assert describe_plan(plan)["skipped_because"] == "1 beyond the limit"


def test_an_unknown_retry_names_the_codes(job):
    with pytest.raises(ConfigError, match="all or one of access_denied, bad_output"):
        plan_job(job.model_copy(update={"retry": "sometimes"}))


def test_planning_loads_neither_ray_nor_torch_nor_a_codec():
    code = (
        "import sys, indexer.runtime.todo\n"
        "print(sorted({'ray', 'torch', 'av', 'transformers'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"


def test_a_report_holds_no_secret_of_a_url(job):
    uri = "https://user:pass@host/list.csv?X-Amz-Signature=abc"
    plan = plan_job(job)
    config = job.model_copy(update={"inputs": (uri,)})
    report = build_report(
        type(plan)(**{name: getattr(plan, name) for name in plan.__slots__} | {"config": config}),
        Tally(plan.todo),
        Course(datetime.now(UTC), None, 0.0, 0.0, None, None),
        status="running",
    )
    assert "abc" not in json.dumps(report)
    assert "pass" not in json.dumps(report)
