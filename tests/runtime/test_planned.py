"""What a plan promised, held against what came."""

import json
from dataclasses import replace

import pytest

from indexer.errors import ConfigError
from indexer.metrics import Counts
from indexer.runtime.planned import Estimate, estimate_against_truth, estimate_text, read_estimate
from indexer.runtime.pools import Pools

FACTS = {
    "model": "base-a1b2c3",
    "listed_videos": 12,
    "todo_bytes": 4000,
    "estimated_video_hours": 8.0,
    "estimated_clips": 8000,
    "estimated_index_bytes": 4_000_000,
    "estimated_hours": 2.0,
    "estimated_cpu_hours": 64.0,
    "estimated_gpu_hours": 4.0,
    "estimated_bottleneck": "decode",
}
POOLS = Pools(32, 2, "cuda", 20, 2, 4, 1.0, 64, None)
CAME = Counts(units=5, clips=2100, video_seconds=7560.0, listed_bytes=1000, written_bytes=1_100_000)


def told(pools=POOLS, counts=CAME, **facts):
    return estimate_against_truth(Estimate(**FACTS | facts), counts, pools, 1980.0)


def test_a_plan_is_held_against_what_came_of_its_bytes():
    assert told() == {
        "share": 0.25,
        "hours": {"estimate": 0.5, "came": 0.55},
        "video_hours": {"estimate": 2.0, "came": 2.1},
        "clips": {"estimate": 2000.0, "came": 2100},
        "index_bytes": {"estimate": 1_000_000.0, "came": 1_100_000},
        "cpu_hours": {"estimate": 16.0, "came": 17.6},
        "gpu_hours": {"estimate": 1.0, "came": 1.1},
    }
    assert estimate_text(told()) == (
        "planned for 25% of the bytes: 30:00, 2,000 clips, 1.0 MB; came: 33:00, 2,100 clips, 1.1 MB"
    )


def test_what_nobody_knows_is_not_told():
    assert not {"cpu_hours", "gpu_hours"} & set(told(replace(POOLS, growing=True)))
    assert not {"hours", "cpu_hours"} & set(told(estimated_hours=None, estimated_cpu_hours=None))
    assert told(estimated_clips=None).keys() == told().keys() - {"clips"}
    assert told(counts=Counts()) is None
    assert told(todo_bytes=0) is None
    silent = {name: None for name in FACTS if name.startswith("estimated_")}
    assert told(**silent) is None  # no video of its sample could be read


def test_a_plan_is_read_from_what_the_command_prints(tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(FACTS))
    assert read_estimate(str(file), FACTS["model"]) == Estimate(**FACTS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "nothing of this name"),
        ("", "not what `indexer plan --format json` prints"),
        ('{"model": "base-a1b2c3"}', "not what `indexer plan --format json` prints"),
        (json.dumps(FACTS | {"estimated_hours": "soon"}), "not what"),
        (json.dumps(FACTS | {"model": "large-000000"}), "made for large-000000"),
    ],
)
def test_what_is_no_plan_of_this_job_is_refused(tmp_path, text, words):
    file = tmp_path / "plan.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=words) as error:
        read_estimate(str(file), FACTS["model"])
    assert str(file) in str(error.value)
