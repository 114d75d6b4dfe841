"""All project videos, in a real S3 server, through the whole job, against the plainest loops."""

import pickle
from collections import defaultdict
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from transformers import TimesformerForVideoClassification

from indexer.config import Decode, Sampling
from indexer.manifest import discover, refs
from indexer.model.weights import resolve
from indexer.records import Preprocessing
from indexer.runtime.blocks import TODO_SCHEMA, frames_of
from indexer.runtime.decoding import decode_videos
from indexer.video.plan import DecodePlan
from indexer.video.preprocess import preprocess_frame
from indexer.video.sandbox import Sandbox
from tests.e2e.jobs import run
from tests.model.stress import write_stress_checkpoint
from tests.table.readers import ENGINES, read_all

FORMATS = (*Decode().formats, "avi", "mpeg", "mpegts")
MODES = ("windows", pytest.param("uniform", marks=pytest.mark.slow))
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A seeded stress checkpoint with the base model's clip: 8 frames, 32 apart."""
    folder = tmp_path_factory.mktemp("model") / "stress"
    return write_stress_checkpoint(folder, num_frames=8, image_size=64, seed=7)


@pytest.fixture(scope="module")
def bucket(s3, shared_videos):
    """The videos as objects, one of them under a key that needs care."""
    name = s3.bucket()
    for path in sorted(shared_videos.iterdir()):
        if path.suffix != ".md":
            folder = "odd ?#%41[1]/é" if path.name == "bikes.mp4" else "plain"
            s3.put(name, f"{folder}/{path.name}", path.read_bytes())
    return name


@pytest.fixture(scope="module")
def index_bucket(bucket, s3):
    s3.client.create_bucket(Bucket=f"{bucket}-index")
    return f"{bucket}-index"


@pytest.fixture(scope="module", params=MODES)
def indexed(request, bucket, index_bucket, model, ray_session):
    """The index of one sampling mode, and the mode."""
    index = f"s3://{index_bucket}/{request.param}"
    result = run(
        f"s3://{bucket}",
        index,
        model,
        sampling__mode=request.param,
        sampling__min_seconds=2.0,
        decode__formats=FORMATS,
        precision__stored_mantissa_bits=23,
    )
    return index, request.param, result


def linear_frames(content, wanted):
    """Decodes a video from end to end by the book; gives RGB frames by presentation time.

    An AVI with B-frames has no presentation times, and FFmpeg's go back: there, the order of
    output at the declared rate is the clock.

    Args:
        content: a path.
        wanted: presentation times in seconds, counted from the first frame.
    """
    first, last, found = None, None, {}
    with av.open(str(content)) as container:
        stream = max(
            container.streams.video,
            key=lambda s: (bool(s.disposition & av.stream.Disposition.default), s.width * s.height),
        )
        stream.thread_count = 1
        frames = (frame for packet in container.demux(stream) for frame in packet.decode())
        for number, frame in enumerate(frames):
            first = frame.pts if first is None else first
            seconds = float((frame.pts - first) * stream.time_base)
            if container.format.name == "avi":
                seconds = float(number / stream.average_rate)
            assert last is None or seconds > last
            last = seconds
            if seconds in wanted:
                turns = frame.rotation // 90  # counter-clockwise, as numpy counts
                found[seconds] = np.ascontiguousarray(
                    np.rot90(frame.to_ndarray(format="rgb24"), turns)
                )
    return found


def by_name(rows):
    grouped = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["uri"], row["clip_index"])):
        grouped[Path(row["uri"]).name].append(row)
    return grouped


def test_every_object_has_exactly_one_outcome(indexed, shared_videos):
    index, _, result = indexed
    videos = read_all(index, "videos")["deltalake"]
    expected = {path.name for path in shared_videos.iterdir() if path.suffix != ".md"}
    assert {Path(row["uri"]).name for row in videos} == expected
    outcomes = {(row["uri"], row["unit_index"]) for row in videos}
    assert len(outcomes) == len(videos)
    assert [row["error_message"] for row in videos if row["status"] != "indexed"] == []
    assert (result.videos_indexed, result.videos_failed) == (len(expected), 0)
    for row in videos:
        units = {r["unit_index"] for r in videos if r["uri"] == row["uri"]}
        assert units == set(range(row["units"]))


def test_every_engine_reads_the_same_rows_from_s3(indexed):
    index, _, _ = indexed
    for table in ("clips", "embeddings", "labels", "videos"):
        rows = read_all(index, table)
        assert rows["deltalake"]
        for engine in ENGINES:
            assert rows[engine] == rows["deltalake"], (table, engine)


@pytest.mark.timeout(600)
def test_scores_are_those_of_the_model_fed_by_hand(indexed, model, shared_videos):
    index, _, result = indexed
    clips = by_name(read_all(index, "clips")["deltalake"])
    scores = {row["clip_id"]: row for row in read_all(index, "embeddings")["deltalake"]}
    recipe = resolve(str(model), schemes=("file",)).preprocessing
    reference = TimesformerForVideoClassification.from_pretrained(model).eval()
    checked = 0
    for name, rows in clips.items():
        wanted = {seconds for row in rows for seconds in row["frame_pts_seconds"]}
        frames = linear_frames(shared_videos / name, wanted)
        assert wanted == set(frames), name
        small = {pts: preprocess_frame(frame, recipe) for pts, frame in frames.items()}
        for row in rows:
            assert row["frames_exact"]
            clip_THWC = np.stack([small[pts] for pts in row["frame_pts_seconds"]])
            logits_K, vector_D = by_hand(reference, clip_THWC, recipe)
            stored = scores[row["clip_id"]]
            assert np.abs(np.array(stored["logits"]) - logits_K).max() <= TOLERANCE, name
            assert np.abs(np.array(stored["embedding"]) - vector_D).max() <= TOLERANCE, name
            checked += 1
    assert checked == result.counts.clips > len(clips) / 2


def by_hand(reference, clip_THWC, recipe: Preprocessing):
    """Logits and the classifier's input for one clip, with nothing of ours in between."""
    scaled = torch.from_numpy(clip_THWC).float() * recipe.rescale_factor
    normal = (scaled - torch.tensor(recipe.mean)) / torch.tensor(recipe.std)
    seen = []
    hook = reference.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        logits = reference(normal.permute(0, 3, 1, 2)[None]).logits[0].numpy()
    hook.remove()
    return logits, seen[0][0].numpy()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", MODES)
def test_frames_that_reach_the_model_are_those_of_a_linear_decode(
    bucket, model, shared_videos, mode
):
    checkpoint = resolve(str(model), schemes=("file",))
    plan = DecodePlan(
        sampling=Sampling(mode=mode),
        num_frames=checkpoint.num_frames,
        frame_rate_divisor=checkpoint.frame_rate_divisor,
        preprocessing=checkpoint.preprocessing,
        decode=Decode(formats=FORMATS),
    )
    manifest = discover([f"s3://{bucket}"], schemes=("s3",))
    assert len(list(refs(manifest))) == manifest.num_rows == 24
    todo = manifest.append_column("attempt", [[1] * 24]).append_column("units", [[1] * 24])
    todo = todo.append_column("done_units", [[[]] * 24]).select(TODO_SCHEMA.names).cast(TODO_SCHEMA)
    with Sandbox(plan) as sandbox:
        for table in decode_videos(todo, plan, sandbox):
            unit = pickle.loads(table["unit"][0].as_py())
            name = Path(unit["ref"].uri).name
            (clips_NTHWC,) = frames_of(table, (8, 64, 64, 3))
            wanted = {pts for span in unit["spans"] for pts in span.frame_pts_seconds}
            frames = linear_frames(shared_videos / name, wanted)
            expected = [
                [
                    preprocess_frame(frames[pts], plan.preprocessing)
                    for pts in span.frame_pts_seconds
                ]
                for span in unit["spans"]
            ]
            assert unit["failure"] is None
            assert np.array_equal(clips_NTHWC, np.array(expected)), name
