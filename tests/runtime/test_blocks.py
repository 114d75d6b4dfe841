import numpy as np
import pyarrow as pa
import pytest

from indexer.metrics import FetchEffort, ModelEffort
from indexer.records import (
    ClipScores,
    ClipSpan,
    DecodedClips,
    UnitOutcome,
    VideoFailure,
    VideoInfo,
    VideoRef,
)
from indexer.runtime import blocks

REF = VideoRef("ab" * 16, "s3://b/odd ?#%[1]\n.mp4", 7, "7-etag", '{"a": 1}')
INFO = VideoInfo(320, 240, "h264", 29.97, 90, 12.5, ("3 of 9 packets failed to decode",))
SPANS = (
    ClipSpan(3, 0.0, 1.5, (0.0, 0.5, 1.0)),
    ClipSpan(4, 1.5, 2.0, (1.5, 1.5, 1.5), frames_exact=False),
)
EFFORT = {
    "fetch": FetchEffort(0.25, 3, 1000, {"truncated": 2, "transient_io": 1}),
    "decode_seconds": 0.5,
    "decode_wall_seconds": 0.75,
    "decode_wait_seconds": 0.5,
    "worker": "h:1",
}
TOLD = EFFORT | {"codec_seconds": 0.375}
OF_A_FAILURE = EFFORT | {"codec_seconds": 0.0}


def frames(clips=2):
    return np.random.default_rng(0).integers(0, 256, (clips, 3, 4, 5, 3), dtype=np.uint8)


def decoded(clips_NTHWC=None):
    frames_NTHWC = frames() if clips_NTHWC is None else clips_NTHWC
    item = DecodedClips(1, 5, INFO, SPANS, frames_NTHWC, TOLD["codec_seconds"])
    return blocks.decoded_row(REF, 2, item, **EFFORT)


def failed(info=None):
    item = VideoFailure("corrupt", "why", 1, 5, info)
    return blocks.decoded_row(REF, 2, item, **EFFORT)


def test_frames_travel_unchanged_and_share_memory():
    clips_NTHWC = frames()
    table = decoded(clips_NTHWC)
    (back,) = blocks.frames_of(table, (3, 4, 5, 3))
    assert np.array_equal(back, clips_NTHWC)
    assert np.shares_memory(back, clips_NTHWC)
    assert table.schema.equals(blocks.DECODED_SCHEMA)


def test_a_failed_unit_has_no_frames():
    assert blocks.frames_of(failed(), (3, 4, 5, 3))[0].shape == (0, 3, 4, 5, 3)


def test_everything_about_a_unit_comes_back():
    table = pa.concat_tables([decoded(), failed(INFO), failed()])
    logits, vectors = np.arange(8, dtype=np.float32).reshape(2, 4), np.ones((2, 3), np.float32)
    effort = ModelEffort(0.5, 0.25, 1.0, 2, frozenset({"it is slow"}))
    scored = blocks.with_scores(table, [ClipScores(logits, vectors), None, None], effort)
    assert blocks.effort_of(pa.concat_tables([scored, scored])) == effort + effort
    assert scored.schema.equals(blocks.SCORED_SCHEMA)
    indexed, *failures = blocks.outcomes(scored)
    assert np.array_equal(indexed.scores.logits_NK, logits)
    assert np.array_equal(indexed.scores.embeddings_ND, vectors)
    assert indexed == UnitOutcome(REF, 2, 1, 5, INFO, SPANS, indexed.scores, None, **TOLD)
    assert failures == [
        UnitOutcome(
            REF, 2, 1, 5, info, (), None, VideoFailure("corrupt", "why", 1, 5, info), **OF_A_FAILURE
        )
        for info in (INFO, None)
    ]


def test_rows_survive_being_sliced_and_joined_by_ray():
    table = pa.concat_tables([failed(), decoded(), failed(), decoded(frames() + 1)])
    for some in (table.slice(1, 3), table.slice(1, 3).combine_chunks(), table[1:4]):
        first, none, last = blocks.frames_of(some, (3, 4, 5, 3))
        assert np.array_equal(first, frames())
        assert np.array_equal(last, frames() + 1)
        assert len(none) == 0


def test_rows_are_packed_until_they_hold_the_clips_asked_for():
    units = [decoded(), failed(), decoded(), failed(), decoded(), failed()]
    tables = list(blocks.packed(iter(units), 3))
    assert [table.num_rows for table in tables] == [3, 3]
    assert [table.num_rows for table in blocks.packed(iter(units), 1)] == [1, 2, 2, 1]
    assert pa.concat_tables(tables).to_pylist() == pa.concat_tables(units).to_pylist()
    assert list(blocks.packed(iter([]), 3)) == []


def test_packing_copies_no_frames_and_leaves_all_else_in_one_piece():
    clips = [frames(), frames() + 1]
    (table,) = blocks.packed(iter([decoded(clips[0]), failed(), decoded(clips[1])]), 64)
    assert table.schema.equals(blocks.DECODED_SCHEMA)
    first, _, last = blocks.frames_of(table, (3, 4, 5, 3))
    assert np.shares_memory(first, clips[0])
    assert np.shares_memory(last, clips[1])
    pieces = {name: table.column(name).num_chunks for name in table.column_names[:-1]}
    assert set(pieces.values()) == {1}


def test_scores_leave_in_one_piece_whatever_came_in():
    table = pa.concat_tables([decoded(), failed()])
    scores = ClipScores(np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float32))
    scored = blocks.with_scores(table, [scores, None], ModelEffort())
    assert {column.num_chunks for column in scored.columns} == {1}


def test_todo_rows_become_records():
    row = {
        "video_id": REF.video_id, "uri": REF.uri, "size_bytes": 7, "content_key": "7-etag",
        "extra": REF.extra, "attempt": 3, "units": 4, "done_units": [0, 2],
    }  # fmt: skip
    table = pa.Table.from_pylist([row], schema=blocks.TODO_SCHEMA)
    assert list(blocks.todos(table)) == [blocks.Todo(REF, 3, 4, frozenset({0, 2}))]


@pytest.mark.parametrize(
    "array", [np.zeros((2, 3, 4, 5, 3), np.float32), np.zeros((2, 3), np.uint8)]
)
def test_records_refuse_frames_of_another_kind(array):
    with pytest.raises(ValueError, match="uint8 NTHWC"):
        DecodedClips(0, 1, INFO, SPANS, array)


def test_records_refuse_contradictions():
    with pytest.raises(ValueError, match="2 spans for 1 views"):
        DecodedClips(0, 1, INFO, SPANS, frames(1))
    with pytest.raises(ValueError, match="empty or negative"):
        ClipSpan(0, 1.0, 1.0, ())
    with pytest.raises(ValueError, match="either scores or a failure"):
        UnitOutcome(REF, 1, 0, 1, None, (), None, None, **TOLD)
    scores = ClipScores(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32))
    with pytest.raises(ValueError, match="2 clips, but 1 rows"):
        UnitOutcome(REF, 1, 0, 1, None, SPANS, scores, None, **TOLD)
