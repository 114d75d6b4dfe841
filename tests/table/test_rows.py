import dataclasses
import math
import pickle
import uuid
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.records import ClipScores, ClipSpan
from indexer.table.rows import checked, clip_id, round_mantissa, softmax, unit_tables
from indexer.table.schema import TABLES
from tests.table.make import INFO, NOW, VOCABULARY, context, ref, unit

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
bits_kept = st.integers(1, 23)


def rounded(value: float, bits: int) -> np.float32:
    return np.float32(round_mantissa(np.array([value], np.float32), bits)[0])


def nearest_even(value: np.float32, bits: int) -> Fraction:
    """The representable neighbour of a normal number, by exact arithmetic."""
    exact = Fraction(float(value))
    exponent = math.frexp(float(value))[1] - 1
    step = Fraction(2) ** (exponent - bits)
    return round(exact / step) * step  # Python rounds ties to even


@given(finite.filter(lambda x: abs(x) >= 2.0**-126), bits_kept)
def test_rounding_is_to_the_nearest_and_ties_go_to_even(value, bits):
    result = rounded(value, bits)
    expected = nearest_even(np.float32(value), bits)
    if abs(expected) < Fraction(2) ** 128:
        assert Fraction(float(result)) == expected
        assert abs(expected - Fraction(value)) <= abs(Fraction(value)) / 2 ** (bits + 1)
    else:
        assert np.isfinite(result)


@given(bits_kept, st.data())
def test_half_way_between_two_neighbours_the_even_one_wins(bits, data):
    if bits == 23:
        return
    lower = data.draw(st.integers(0, 2**bits - 2))
    value = 1.0 + (lower + 0.5) * 2.0**-bits
    even = lower + lower % 2
    assert rounded(value, bits) == np.float32(1.0 + even * 2.0**-bits)


@given(finite, bits_kept)
def test_rounding_clears_the_bits_that_are_not_kept_and_is_idempotent(value, bits):
    result = rounded(value, bits)
    assert result.view(np.uint32) & np.uint32((1 << (23 - bits)) - 1) == 0
    assert rounded(result, bits) == result
    assert np.signbit(result) == np.signbit(np.float32(value))


def test_rounding_keeps_what_is_not_finite_and_stays_finite_otherwise():
    values = np.array([np.inf, -np.inf, np.finfo(np.float32).max, 0.0, -0.0], np.float32)
    result = round_mantissa(values, 10)
    assert result[0] == np.inf
    assert result[1] == -np.inf
    assert np.isfinite(result[2])
    assert np.isnan(round_mantissa(np.array([np.nan], np.float32), 1)).all()
    assert np.array_equal(np.signbit(result[3:]), [False, True])


def test_23_bits_change_nothing():
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    assert np.array_equal(round_mantissa(values, 23), values)


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=9))
def test_softmax_agrees_with_exact_arithmetic(logits):
    scores = softmax(np.array([logits], np.float32))[0]
    top = max(logits)
    powers = [math.exp(max(x - top, -800.0)) for x in logits]
    expected = [p / math.fsum(powers) for p in powers]
    assert scores.dtype == np.float32
    assert np.allclose(scores, expected, rtol=1e-6, atol=1e-40)


def labels_of(rows, clip_index=0):
    """(label, rank) of a clip, best first."""
    found = [row for row in rows["labels"].to_pylist() if row["clip_index"] == clip_index]
    return [(row["label"], row["rank"]) for row in sorted(found, key=lambda row: row["rank"])]


def test_equal_scores_are_ranked_by_label_id():
    logits = np.array([[1, 2, 2, 1, 2]], np.float32)
    rows = unit_tables([unit(clips=[0], logits_NK=logits)], context(top_k=4))
    assert labels_of(rows) == [(VOCABULARY[i], rank) for rank, i in enumerate([1, 2, 4, 0], 1)]


def test_min_score_leaves_the_best_label():
    logits = np.array([[0, 0, 0, 0, 0.1], [9, 0, 8.9, 0, 0]], np.float32)
    rows = unit_tables([unit(logits_NK=logits)], context(min_score=0.4))
    assert labels_of(rows, 0) == [(VOCABULARY[4], 1)]
    assert labels_of(rows, 1) == [(VOCABULARY[0], 1), (VOCABULARY[2], 2)]


def test_min_score_is_met_by_an_equal_stored_score():
    logits = np.log(np.array([[0.7, 0.1, 0.1, 0.05, 0.05]])).astype(np.float32)
    stored = float(softmax(logits)[0, 0])
    for min_score, kept in ((stored, 1), (np.nextafter(np.float32(stored), np.float32(1)), 1)):
        rows = unit_tables(
            [unit(clips=[0], logits_NK=logits)], context(min_score=float(min_score), top_k=5)
        )
        assert rows["labels"].num_rows == kept
    many = unit_tables(
        [unit(clips=[0], logits_NK=np.zeros((1, 5), np.float32))],
        context(min_score=0.2, top_k=5),
    )
    assert many["labels"].num_rows == 5


def test_top_k_beyond_the_vocabulary_keeps_all():
    assert unit_tables([unit(clips=[0])], context(top_k=99))["labels"].num_rows == len(VOCABULARY)


def test_rows_are_sorted_whatever_the_order_of_the_units():
    units = [
        unit("b", [2, 3], unit_index=1, units=2),
        unit("b", [0, 1], units=2),
        unit("c", failure="corrupt"),
        unit("a", [1, 0]),
    ]
    rows = unit_tables(units, context(top_k=2))
    keys = [(row["uri"], row["clip_index"]) for row in rows["clips"].to_pylist()]
    assert keys == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2), ("b", 3)]
    keys = [(row["video_id"], row["clip_index"]) for row in rows["embeddings"].to_pylist()]
    assert keys == sorted(keys)
    assert set(rows["embeddings"]["clip_id"].to_pylist()) == set(
        rows["clips"]["clip_id"].to_pylist()
    )
    order = [
        (row["label"], -row["score"], row["uri"], row["clip_index"])
        for row in rows["labels"].to_pylist()
    ]
    assert order == sorted(order)
    assert [row["uri"] for row in rows["videos"].to_pylist()] == ["a", "b", "b", "c"]


def test_every_row_keeps_the_numbers_of_its_own_clip():
    units = [unit("b", [1, 0]), unit("a", [0])]
    rows = unit_tables(units, context(top_k=5))
    expected = {
        (one.ref.uri, clip.clip_index): (logits, embedding)
        for one in units
        for clip, logits, embedding in zip(
            one.spans, one.scores.logits_NK, one.scores.embeddings_ND, strict=True
        )
    }
    by_clip = {row["clip_id"]: row for row in rows["embeddings"].to_pylist()}
    assert len(by_clip) == rows["clips"].num_rows == 3
    for clip in rows["clips"].to_pylist():
        numbers = by_clip[clip["clip_id"]]
        logits, embedding = expected[clip["uri"], clip["clip_index"]]
        assert np.array_equal(numbers["logits"], logits)
        assert np.array_equal(numbers["embedding"], embedding)
        assert clip["top_labels"][0] == VOCABULARY[int(np.argmax(logits))]
        assert clip["top_scores"] == sorted(softmax(logits[None])[0].tolist(), reverse=True)


def test_a_clip_id_is_the_documented_uuid():
    video_id = ref("s3://videos/a.mp4").video_id
    assert clip_id(video_id, 7) == uuid.uuid5(uuid.UUID(video_id), "7").hex


def test_logits_may_be_left_out_and_are_rounded_like_embeddings():
    rows = unit_tables([unit()], context(keep_logits=False, stored_mantissa_bits=4))
    assert rows["embeddings"]["logits"].null_count == 2
    kept = np.array(rows["embeddings"]["embedding"].to_pylist(), np.float32)
    assert np.array_equal(kept, round_mantissa(kept, 4))
    assert not np.array_equal(kept, unit().scores.embeddings_ND)


def test_an_outcome_row_tells_all_about_the_unit():
    good, bad = unit_tables(
        [unit("a"), unit("b", failure="corrupt", info=None, attempt=2)], context()
    )["videos"].to_pylist()
    assert good == {
        "video_id": ref("a").video_id, "uri": "a", "content_key": "10-abc", "status": "indexed",
        "error_code": None, "error_message": None, "attempt": 1, "unit_index": 0, "units": 1,
        "clips": 2, "duration_seconds": 12.5, "width": 640, "height": 360, "codec": "h264",
        "fps": 29.97, "rotation": 90, "size_bytes": 3_000_000_000,
        "warnings": ["12 packets failed to decode"], "decode_seconds": 1.5, "fetch_seconds": 0.25,
        "worker": "host:123", "run_id": "run-1", "finished_at": NOW, "extra": '{"camera": 7}',
    }  # fmt: skip
    assert (bad["status"], bad["clips"], bad["attempt"]) == ("failed", 0, 2)
    assert (bad["error_code"], bad["error_message"]) == ("corrupt", "corrupt it is")
    assert bad["duration_seconds"] is bad["width"] is bad["codec"] is bad["fps"] is None


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["logits_NK", "embeddings_ND"])
def test_output_that_is_not_finite_becomes_a_failure(where, poison):
    good = unit("a", unit_index=1, units=3)
    values = getattr(good.scores, where).copy()
    values[1, 2] = poison
    scores = dataclasses.replace(good.scores, **{where: values})
    rows = unit_tables([dataclasses.replace(good, scores=scores), unit("b")], context())
    first, second = rows["videos"].to_pylist()
    assert (first["status"], first["error_code"], first["clips"]) == ("failed", "bad_output", 0)
    assert (first["unit_index"], first["units"], first["width"]) == (1, 3, 640)
    assert second["status"] == "indexed"
    for name in ("clips", "labels"):
        assert set(rows[name]["uri"].to_pylist()) == {"b"}
    assert rows["embeddings"].num_rows == 2


def test_container_facts_that_are_not_finite_are_never_stored():
    odd = dataclasses.replace(INFO, fps=math.nan)
    failure = checked(unit(info=odd)).failure
    assert failure.code == "bad_output"
    assert checked(unit(failure="corrupt", info=odd)).failure.code == "corrupt"
    assert checked(unit(failure="corrupt", info=odd)).info is None
    endless = dataclasses.replace(unit(clips=[0]), spans=(ClipSpan(0, 0.0, math.inf, (0.0,)),))
    assert checked(endless).failure.code == "bad_output"
    good = unit()
    assert checked(good) is good


def test_text_that_utf8_cannot_hold_is_escaped():
    odd = dataclasses.replace(INFO, codec="\udc80", warnings=("caf\udce9",))
    row = unit_tables([unit(info=odd)], context())["videos"].to_pylist()[0]
    assert row["codec"] == "\\udc80"
    assert row["warnings"] == ["caf\\udce9"]


def test_no_units_and_a_unit_without_clips_give_tables_of_the_right_columns():
    for units in ([], [unit(clips=[])]):
        rows = unit_tables(units, context())
        assert rows["clips"].num_rows == rows["labels"].num_rows == 0
        for name, spec in TABLES.items():
            assert rows[name].schema == spec.data_schema


def test_scores_of_another_vocabulary_are_refused():
    wrong = ClipScores(np.zeros((2, 3), np.float32), np.zeros((2, 8), np.float32))
    with pytest.raises(ValueError, match="3 scores a clip for 5 labels"):
        unit_tables([dataclasses.replace(unit(), scores=wrong)], context())


def test_the_context_travels_between_processes():
    assert pickle.loads(pickle.dumps(context())) == context()
