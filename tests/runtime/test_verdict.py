"""What a job's verdict says, from made-up sums and from stages that are slow for real."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from indexer.config import Decode, Sampling
from indexer.metrics import Counts, FetchEffort, ModelEffort
from indexer.model.classify import Classifier
from indexer.model.weights import resolve
from indexer.records import VideoRef
from indexer.runtime import blocks
from indexer.runtime.decoding import decode_videos
from indexer.runtime.forecast import Forecast, against_truth, forecast, is_early_enough
from indexer.runtime.pools import Pools
from indexer.runtime.scoring import score_units
from indexer.runtime.verdict import judge
from indexer.runtime.writing import write_units
from indexer.table.paths import IndexPaths
from indexer.video.fetch import open_video
from indexer.video.plan import DecodePlan
from indexer.video.sandbox import Sandbox
from tests.model.stress import write_stress_checkpoint
from tests.table.make import context
from tests.video.objectserver import URI, run_object_server, used_for_s3
from tests.video.synth import Synth

GPU = Pools(32, 2, "cuda", 20, 2, 4, 1.0, 64, None)
CPU = Pools(8, 0, "cpu", 2, 6, 1, 1.0, 8, None)


def counts(*, fetch=0.0, decode=0.0, model=0.0, wait=0.0, write=0.0):
    return Counts(
        units=1,
        fetch=FetchEffort(fetch),
        decode_wall_seconds=decode,
        write_seconds=write,
        model=ModelEffort(busy_seconds=model, wait_seconds=wait),
    )


@pytest.mark.parametrize(
    ("sums", "pools", "text"),
    [
        (
            counts(fetch=400, decode=1960, model=76, wait=124),
            GPU,
            "decode-bound: GPU busy 38%, decoders 98%; add 32 decode CPUs",
        ),
        (
            counts(fetch=10, decode=200, model=190, wait=10),
            GPU,
            "model-bound: GPU busy 95%, decoders 10%; add 17 GPUs, or do with 17 decoders fewer",
        ),
        (
            counts(fetch=1900, decode=600, model=60, wait=140),
            GPU,
            (
                "storage-bound: GPU busy 30%, decoders 30%; decoders wait for bytes 95% of the"
                " time: read from nearer or faster storage, or let 64 decoders fetch at once"
                " (cluster.decode_actors)"
            ),
        ),
        (
            counts(decode=40, model=60, wait=440, write=80),
            CPU,
            (
                "write-bound: model busy 12%, decoders 24%; the index's storage is slow to write"
                " to: put it nearer to the cluster"
            ),
        ),
        (
            counts(decode=190, model=580, wait=20),
            CPU,
            (
                "model-bound: model busy 97%, decoders 95%; the stages are in balance, more of"
                " everything makes it faster"
            ),
        ),
    ],
)
def test_the_stage_with_most_work_an_actor_is_named_with_what_would_help(sums, pools, text):
    verdict = judge(sums, pools, 1000.0)
    assert verdict.text == text
    assert verdict.bottleneck == text.partition("-bound")[0]


def test_of_a_growing_cluster_the_actors_count_that_are_there():
    """Of 20 decoders and 4 GPUs that there may be, 2 and 1 were there, all the time."""
    growing = replace(GPU, model_actors=4, growing=True)
    sums = counts(fetch=4, decode=196, model=48, wait=52) + Counts(
        decode_wait_seconds=4, write_seconds=1, write_wait_seconds=99
    )
    assert judge(sums, replace(growing, growing=False), 100.0).bottleneck == "model"
    verdict = judge(sums, growing, 100.0)
    assert verdict.bottleneck == "decode"
    assert verdict.busy == {"storage": 0.02, "decode": 0.98, "model": 0.48, "write": 0.01}
    assert verdict.text.startswith("decode-bound: GPU busy 48%, decoders 98%; add 3 decode CPUs")


def test_advice_goes_no_further_than_what_there_is_times_ten():
    assert judge(counts(decode=100, model=0.001), GPU, 100.0).text.endswith("add 180 decode CPUs")


def test_who_is_bound_by_decoding_is_told_how_near_it_is_to_its_floor():
    decoding = Counts(decode_seconds=100.0, codec_seconds=81.0)
    floor = " (FFmpeg's decoder alone takes 81%)"
    assert judge(counts(decode=100) + decoding, GPU, 100.0).text.endswith(floor)
    assert floor not in judge(counts(fetch=100) + decoding, GPU, 100.0).text


@pytest.mark.parametrize(("sums", "pools"), [(Counts(), CPU), (counts(decode=1), None)])
def test_nothing_has_no_bottleneck(sums, pools):
    assert judge(sums, pools, 0.0).bottleneck is None


def test_where_the_model_had_nothing_to_do_the_clock_tells():
    verdict = judge(Counts(units=3, failures={"corrupt": 3}, decode_wall_seconds=4.0), CPU, 4.0)
    assert verdict.busy["decode"] == 0.5


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    sizes = {"small": {}, "large": {"hidden_size": 384, "num_layers": 6}}
    return {
        name: resolve(
            str(write_stress_checkpoint(folder / name, num_frames=4, frame_rate_divisor=4, **size)),
            schemes=("file",),
        )
        for name, size in sizes.items()
    }


def stored(path, data):
    """A listed video of a local disk."""
    path.write_bytes(data)
    status = path.stat()
    key = f"{status.st_size}-{status.st_mtime_ns}"
    return VideoRef("0" * 32, path.as_uri(), status.st_size, key)


def run_stages(ref, checkpoint, tmp_path, *, mode="windows", times=1):
    """One video, so often, through the plain functions of all stages."""
    plan = DecodePlan(
        sampling=Sampling(mode=mode, min_seconds=0.1),
        num_frames=4,
        frame_rate_divisor=4,
        preprocessing=checkpoint.preprocessing,
        decode=Decode(),
    )
    row = {
        "video_id": ref.video_id, "uri": ref.uri, "size_bytes": ref.size_bytes, "extra": "{}",
        "content_key": ref.content_key, "attempt": 1, "units": 1, "done_units": [],
    }  # fmt: skip
    todo = pa.Table.from_pylist([row] * times, blocks.TODO_SCHEMA)
    classifier = Classifier(checkpoint, device="cpu", dtype="float32", backend="native")
    classifier.classify(np.zeros((1, *classifier.clip_shape_THWC), np.uint8))  # its first is slow
    with Sandbox(plan) as sandbox:
        first = stored(tmp_path / "first.mp4", Synth(frames=16).encode())
        with open_video(first, plan.decode) as video:
            list(sandbox.decode(video, video_id=first.video_id))  # its first is slow
        decoded = pa.concat_tables(decode_videos(todo, plan, sandbox))
    assert min(decoded["clips"].to_pylist()) > 0
    scored = score_units(decoded, classifier, "probabilities")
    paths = IndexPaths(str(tmp_path / "index"))
    receipt = write_units(scored, paths=paths, context=context(labels=checkpoint.labels), task="t")
    pools = Pools(1, 0, "cpu", 1, 1, 1, 1.0, 8, None)
    return receipt.counts, judge(receipt.counts, pools, 1.0)


def test_a_slow_decoder_is_named(tmp_path, checkpoints):
    ref = stored(tmp_path / "v.mp4", Synth(frames=90, width=960, height=540).encode())
    _, verdict = run_stages(ref, checkpoints["small"], tmp_path, mode="uniform", times=30)
    assert verdict.bottleneck == "decode"


def test_a_slow_model_is_named(tmp_path, checkpoints):
    ref = stored(tmp_path / "v.mp4", Synth(frames=240).encode())
    _, verdict = run_stages(ref, checkpoints["large"], tmp_path)
    assert verdict.bottleneck == "model"


def test_slow_storage_is_named_and_what_it_brought_is_counted(tmp_path, checkpoints, monkeypatch):
    data = Synth(frames=40).encode()
    with run_object_server() as serve:
        server = serve(data)
        server.latency_seconds = 4.0
        ref = VideoRef("0" * 32, URI, len(data), f"{len(data)}-e1")
        with used_for_s3(server, monkeypatch):
            sums, verdict = run_stages(ref, checkpoints["small"], tmp_path)
    assert verdict.bottleneck == "storage"
    assert sums.fetch.seconds > 4.0
    assert (sums.fetch.requests, sums.fetch.fetched_bytes) == (1, len(data))
    assert sums.listed_bytes == len(data)


def test_a_forecast_extrapolates_by_bytes():
    sums = Counts(units=4, clips=30, video_seconds=3600.0, listed_bytes=100, written_bytes=5000)
    made = forecast(sums, 2000, 60.0)
    assert made == Forecast(60.0, 0.05, 1200.0, 20.0, 600, 100_000)
    assert is_early_enough(made)
    assert not is_early_enough(forecast(sums, 2001, 60.0))
    assert not is_early_enough(forecast(sums, 2000, 29.0))
    assert forecast(Counts(), 2000, 60.0) is None
    assert forecast(sums, 0, 60.0) is None


def test_a_forecast_is_held_against_what_came():
    made = Forecast(60.0, 0.05, 1200.0, 20.0, 600, 100_000)
    sums = Counts(units=80, clips=660, video_seconds=75600.0, written_bytes=90_000)
    assert against_truth(made, sums, 1000.04) == {
        "seconds": {"forecast": 1200.0, "came": 1000.0},
        "video_hours": {"forecast": 20.0, "came": 21.0},
        "clips": {"forecast": 600, "came": 660},
        "index_bytes": {"forecast": 100_000, "came": 90_000},
    }
