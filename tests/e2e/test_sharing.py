"""A long video that is shared among decoders gives the rows that one decoder gives."""

import pickle
from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pytest

from indexer.config import Cluster, Decode, Model, Sampling
from indexer.manifest import discover
from indexer.model.weights import resolve
from indexer.runtime import blocks, sharing
from indexer.runtime.decoding import decode_videos
from indexer.runtime.pools import Node, size_pools
from indexer.video.plan import DecodePlan
from indexer.video.sandbox import Sandbox
from tests.video.synth import Synth

pytestmark = pytest.mark.usefixtures("ray_session")
RUN_FACTS = {
    "fetch", "decode_seconds", "codec_seconds", "decode_wall_seconds", "decode_wait_seconds",
    "worker",
}  # fmt: skip


@pytest.fixture
def plan(checkpoint):
    recipe = resolve(checkpoint, schemes=("file",)).preprocessing
    return DecodePlan(Sampling(min_seconds=0.1, segment_clips=2), 4, 4, recipe, Decode())


def todo_of(folder):
    todo = discover([str(folder)], schemes=("file",)).to_pylist()
    rows = [row | {"attempt": 1, "units": 1, "done_units": []} for row in todo]
    return pa.Table.from_pylist(rows, blocks.TODO_SCHEMA)


def rows_of(todo, plan):
    with Sandbox(plan) as sandbox:
        tables = list(decode_videos(todo, plan, sandbox))
    rows = [
        {key: value for key, value in pickle.loads(row["unit"]).items() if key not in RUN_FACTS}
        | {"clips": row["clips"], "frames_NTHWC": row["frames_NTHWC"]}
        for row in pa.concat_tables(tables).to_pylist()
    ]
    return sorted(rows, key=lambda row: (row["ref"].uri, row["unit_index"]))


def test_few_long_videos_are_shared(plan, tmp_path, monkeypatch):
    (tmp_path / "long.mp4").write_bytes(Synth(frames=400, noise=40).encode())
    (tmp_path / "cut.mp4").write_bytes(Synth(frames=400, noise=40).encode()[:-5000])
    (tmp_path / "raw.h264.mkv").write_bytes(Synth(frames=100, container="h264").encode())
    (tmp_path / "short.mp4").write_bytes(Synth(frames=8, noise=0).encode())
    monkeypatch.setattr(sharing, "SHARE_BYTES", 4096)
    pools = size_pools([Node(2)], Cluster(), Model(), todo_rows=100, clip_flops=1e9)
    pools = replace(pools, decode_actors=2, actor_cpus=0.5)
    todo = todo_of(tmp_path)
    shared = sharing.share_out(todo, plan, pools, patience_seconds=60)
    rows_per_video = Counter(row["uri"] for row in shared.to_pylist())
    assert sorted(rows_per_video.values()) == [1, 1, 1, 8]
    assert shared.num_rows <= sharing.most_rows(todo)
    assert rows_of(shared, plan) == rows_of(todo, plan)


def test_many_videos_are_not(plan, tmp_path, monkeypatch):
    for name in range(8):
        (tmp_path / f"{name}.mp4").write_bytes(Synth(frames=8).encode())
    monkeypatch.setattr(sharing, "SHARE_BYTES", 1)
    pools = replace(
        size_pools([Node(2)], Cluster(), Model(), todo_rows=100, clip_flops=1e9), decode_actors=2
    )
    assert sharing.share_out(todo_of(tmp_path), plan, pools, patience_seconds=60).num_rows == 8
