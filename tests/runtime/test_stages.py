import os
import pickle
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from indexer.config import Decode, Sampling
from indexer.manifest import discover, video_id
from indexer.metrics import Counts, FetchEffort, ModelEffort
from indexer.model.classify import Classifier
from indexer.model.fusion import fuse_views
from indexer.model.weights import resolve
from indexer.records import ClipScores, ClipSpan, DecodedClips, VideoFailure, VideoInfo, VideoRef
from indexer.runtime import blocks
from indexer.runtime.decoding import decode_videos
from indexer.runtime.scoring import score_units
from indexer.runtime.workers import DecodeVideos, WriteUnits, receipts
from indexer.runtime.writing import UnitReceipt, write_units
from indexer.table.paths import IndexPaths
from indexer.table.rows import RowContext
from indexer.video.plan import DecodePlan
from indexer.video.sandbox import Sandbox
from tests.model.stress import write_stress_checkpoint
from tests.video.synth import Synth

LABELS = ("left", "right", "up", "down", "none")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = write_stress_checkpoint(
        tmp_path_factory.mktemp("model") / "stress", num_frames=4, frame_rate_divisor=4
    )
    return resolve(str(folder), schemes=("file",))


@pytest.fixture
def plan(checkpoint):
    return DecodePlan(
        sampling=Sampling(min_seconds=0.1, segment_clips=2),
        num_frames=4,
        frame_rate_divisor=4,
        preprocessing=checkpoint.preprocessing,
        decode=Decode(),
    )


@pytest.fixture
def sandbox(plan):
    with Sandbox(plan) as sandbox:
        yield sandbox


def todo_of(path, attempt=1, units=1, done_units=()):
    manifest = discover([str(path)], schemes=("file",))
    rows = manifest.num_rows
    return (
        manifest.append_column("attempt", [[attempt] * rows])
        .append_column("units", [[units] * rows])
        .append_column("done_units", pa.array([list(done_units)] * rows, pa.list_(pa.int32())))
        .select(blocks.TODO_SCHEMA.names)
        .cast(blocks.TODO_SCHEMA)
    )


def facts(tables):
    return [
        (Path(unit["ref"].uri).name, unit["unit_index"], unit["units"], len(unit["spans"]),
         unit["failure"] and unit["failure"].code)
        for unit in units_of(pa.concat_tables(tables))
    ]  # fmt: skip


def units_of(table):
    """What is known of the units of `DECODED_SCHEMA` rows."""
    return [pickle.loads(unit) for unit in table["unit"].to_pylist()]


def test_each_unit_becomes_one_row_with_its_clips_or_its_failure(tmp_path, plan, sandbox):
    (tmp_path / "a.mp4").write_bytes(Synth(frames=80).encode())
    (tmp_path / "b.mp4").write_bytes(b"")
    (tmp_path / "c.mp4").write_bytes(Synth(frames=16).encode())
    found = list(decode_videos(todo_of(tmp_path), plan, sandbox))
    assert all(table.schema.equals(blocks.DECODED_SCHEMA) for table in found)
    assert facts(found) == [
        ("a.mp4", 0, 3, 2, None),
        ("a.mp4", 1, 3, 2, None),
        ("a.mp4", 2, 3, 1, None),
        ("b.mp4", 0, 1, 0, "empty"),
        ("c.mp4", 0, 1, 1, None),
    ]
    for table in found:
        (unit,) = units_of(table)
        (clips,) = blocks.frames_of(table, (4, 32, 32, 3))
        assert len(clips) == len(unit["spans"]) == table["clips"][0].as_py()
        assert unit["worker"].endswith(f":{os.getpid()}")


def test_what_a_decoder_waits_for_is_told_apart_from_its_work(tmp_path, plan, sandbox):
    """It waits for its first task, and for whoever takes its units."""
    (tmp_path / "a.mp4").write_bytes(Synth(frames=80).encode())
    began = time.perf_counter() - 7.0
    found = []
    for row in decode_videos(todo_of(tmp_path), plan, sandbox, idle_since=began):
        found.append(row)
        time.sleep(0.25)
    lasted = time.perf_counter() - began - 0.25  # the last pause is nobody's yet
    units = [unit for table in found for unit in units_of(table)]
    waits = [unit["decode_wait_seconds"] for unit in units]
    assert waits[0] > 7.0
    assert all(0.25 <= wait < 5.0 for wait in waits[1:])
    told = sum(waits) + sum(unit["decode_wall_seconds"] for unit in units)
    assert told == pytest.approx(lasted, abs=0.1)


def test_a_failure_is_logged_with_the_id_of_its_video(tmp_path, plan, sandbox, caplog):
    (tmp_path / "b.mp4").write_bytes(b"")
    list(decode_videos(todo_of(tmp_path, attempt=2), plan, sandbox))
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"video_id={video_id(str(tmp_path / 'b.mp4'))} error_code=empty attempt=2: "
    )
    assert (record.error_code, record.unit_index) == ("empty", 0)
    assert record.uri == str(tmp_path / "b.mp4")


def test_finished_units_are_left_out_and_the_attempt_is_kept(tmp_path, plan, sandbox):
    (tmp_path / "a.mp4").write_bytes(Synth(frames=80).encode())
    found = list(
        decode_videos(todo_of(tmp_path, attempt=4, units=3, done_units=[0, 2]), plan, sandbox)
    )
    assert facts(found) == [("a.mp4", 1, 3, 2, None)]
    assert units_of(found[0])[0]["attempt"] == 4


def test_a_video_that_cannot_be_opened_fails_in_every_unit_that_it_owes(tmp_path, plan, sandbox):
    path = tmp_path / "a.mp4"
    path.write_bytes(Synth(frames=80).encode())
    todo = todo_of(tmp_path, units=3, done_units=[1])
    path.unlink()
    assert facts(decode_videos(todo, plan, sandbox)) == [
        ("a.mp4", 0, 3, 0, "missing"),
        ("a.mp4", 2, 3, 0, "missing"),
    ]


def test_a_video_that_cannot_be_decoded_fails_in_every_unit_that_it_owes(tmp_path, plan, sandbox):
    (tmp_path / "a.mp4").write_bytes(bytes(5000))
    assert facts(decode_videos(todo_of(tmp_path, units=3, done_units=[0]), plan, sandbox)) == [
        ("a.mp4", 1, 3, 0, "not_a_video"),
        ("a.mp4", 2, 3, 0, "not_a_video"),
    ]


INFO = VideoInfo(64, 48, "h264", 30.0, 0, 2.0)


def decoded(clips, unit_index=0, units=1, seed=0, video=1):
    frames = np.random.default_rng(seed).integers(0, 256, (clips, 4, 32, 32, 3), dtype=np.uint8)
    spans = tuple(ClipSpan(i, float(i), i + 1.0, (float(i),) * 4) for i in range(clips))
    item = DecodedClips(unit_index, units, INFO, spans, frames, codec_seconds=0.125)
    return row_of(item, video), frames


def row_of(item, video=1):
    ref = VideoRef(f"{video:032x}", f"/v/{video}.mp4", 100, "k")
    facts = {"decode_seconds": 0.25, "decode_wall_seconds": 0.5, "decode_wait_seconds": 0.75}
    return blocks.decoded_row(ref, 1, item, fetch=FetchEffort(0.5), worker="h:1", **facts)


def test_every_unit_gets_its_own_scores_whatever_the_batches(checkpoint):
    classifier = Classifier(checkpoint, batch_size=3)
    first, frames_1 = decoded(2, seed=1)
    second, frames_2 = decoded(5, seed=2, video=2)
    failed = row_of(VideoFailure("corrupt", "why"), video=3)
    scored = score_units(pa.concat_tables([first, failed, second]), classifier, "logits")
    one, none, two = blocks.outcomes(scored)
    for outcome, frames in ((one, frames_1), (two, frames_2)):
        alone = classifier.classify(frames)
        np.testing.assert_allclose(outcome.scores.logits_NK, alone.logits_NK, atol=1e-5)
        np.testing.assert_allclose(outcome.scores.embeddings_ND, alone.embeddings_ND, atol=1e-5)
    assert none.failure.code == "corrupt"
    effort = blocks.effort_of(scored)
    assert 0 < effort.busy_seconds < classifier.busy_seconds
    assert effort.wait_seconds > 0


@pytest.mark.parametrize("fusion", ["probabilities", "logits"])
def test_views_of_a_clip_are_fused_unit_by_unit(checkpoint, fusion):
    classifier = Classifier(checkpoint)
    frames = np.random.default_rng(0).integers(0, 256, (3 * 3, 4, 32, 32, 3), dtype=np.uint8)
    spans = tuple(ClipSpan(i, float(i), i + 1.0, (float(i),) * 4) for i in range(3))
    rows = [
        row_of(DecodedClips(0, 1, INFO, spans[:1], frames[:3]), video=1),
        row_of(VideoFailure("corrupt", "why"), video=2),
        row_of(DecodedClips(0, 1, INFO, spans[1:], frames[3:]), video=3),
    ]
    one, _, two = blocks.outcomes(score_units(pa.concat_tables(rows), classifier, fusion))
    expected = fuse_views(classifier.classify(frames), 3, fusion)
    found = np.concatenate([one.scores.logits_NK, two.scores.logits_NK])
    np.testing.assert_allclose(found, expected.logits_NK, atol=1e-5)
    found = np.concatenate([one.scores.embeddings_ND, two.scores.embeddings_ND])
    np.testing.assert_allclose(found, expected.embeddings_ND, atol=1e-5)


def test_a_block_of_failures_needs_no_model(checkpoint):
    failed = row_of(VideoFailure("corrupt", "why"))
    scored = score_units(failed, Classifier(checkpoint), "logits")
    assert [o.failure.code for o in blocks.outcomes(scored)] == ["corrupt"]


def context():
    return RowContext(
        tag="t-1",
        run_id="r",
        labels=LABELS,
        top_k=2,
        min_score=0.0,
        keep_logits=True,
        stored_mantissa_bits=10,
        indexed_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def scored_row(clips, video, *, broken=False, unit_index=0, units=1):
    table, _ = decoded(clips, unit_index, units, video=video)
    logits = np.arange(clips * 5, dtype=np.float32).reshape(clips, 5)
    logits[0, 0] = np.nan if broken else 0.0
    scores = ClipScores(logits, np.ones((clips, 3), np.float32))
    return blocks.with_scores(table, [scores], ModelEffort(busy_seconds=1.5))


def test_a_receipt_says_what_the_files_hold(tmp_path):
    failed = blocks.with_scores(
        row_of(VideoFailure("empty", "why"), video=3), [None], ModelEffort()
    )
    scored = pa.concat_tables([
        scored_row(2, 1), scored_row(3, 2, unit_index=1, units=2), failed,
        scored_row(1, 4, broken=True),
    ])  # fmt: skip
    paths = IndexPaths(str(tmp_path / "index"))
    receipt = write_units(scored, paths=paths, context=context(), task="x")
    assert {file.table: file.rows for file in receipt.files} == {
        "clips": 5, "embeddings": 5, "labels": 10, "videos": 4,
    }  # fmt: skip
    assert all(Path(paths.data_file(file.table, file.path)).is_file() for file in receipt.files)
    ids = [f"{video:032x}" for video in (1, 2, 3, 4)]
    assert receipt.units == tuple(
        UnitReceipt(ids[n], unit, units, failed, f"/v/{n + 1}.mp4", seconds=1.0)
        for n, (unit, units, failed) in enumerate([
            (0, 1, False), (1, 2, False), (0, 1, True), (0, 1, True)
        ])
    )  # fmt: skip
    assert receipt.counts.write_seconds > 0
    assert replace(receipt.counts, write_seconds=0.0) == Counts(
        units=4,
        clips=5,
        failures={"empty": 1, "bad_output": 1},
        fetch=FetchEffort(2.0),
        decode_seconds=1.0,
        codec_seconds=0.375,
        decode_wall_seconds=2.0,
        decode_wait_seconds=3.0,
        model=ModelEffort(busy_seconds=4.5),
        video_seconds=4.0,
        listed_bytes=300,
        written_bytes=sum(file.size_bytes for file in receipt.files),
    )
    sizes = [Path(paths.data_file(f.table, f.path)).stat().st_size for f in receipt.files]
    assert receipt.counts.written_bytes == sum(sizes) > 0


def test_actors_tell_how_long_they_waited_between_two_tasks(tmp_path, plan):
    (tmp_path / "a.mp4").write_bytes(b"")
    paths = IndexPaths(str(tmp_path / "index"))
    decoder, writer = DecodeVideos(plan, 8), WriteUnits(paths, context())
    found = []
    for _ in range(2):
        time.sleep(0.25)
        (block,) = decoder(todo_of(tmp_path))
        scored = blocks.with_scores(block, [None], ModelEffort())
        (receipt,) = receipts(writer(scored))
        found.append(receipt.counts)
    for counts in found:
        assert 0.25 <= counts.decode_wait_seconds < 5.0
        assert 0.25 <= counts.write_wait_seconds < 5.0


def test_counts_add_up():
    one = Counts(units=1, clips=2, failures={"a": 1}, listed_bytes=3)
    two = Counts(units=1, failures={"a": 1, "b": 2}, decode_seconds=0.5)
    assert one + two == Counts(
        units=2, clips=2, failures={"a": 2, "b": 2}, listed_bytes=3, decode_seconds=0.5
    )
    assert one + Counts() == one
