"""Thousands of damaged videos, each with exactly one outcome, through the real decode process.

What fails is named as "mutant N: ...": `tests.video.mutate.mutant(N)` makes its bytes again, and
they are kept in the test's own folder too.
"""

import math
import time
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest

from indexer.config import Decode, Sampling
from indexer.errors import ERROR_CODES
from indexer.records import DecodedClips, Preprocessing, VideoFailure
from indexer.video.plan import DecodePlan
from indexer.video.sandbox import Sandbox
from tests.video.mutate import FORMATS, INDEXED_SEEDS, MUTATORS, SEEDS, index_mutant, mutant, seed
from tests.video.sandbox.abuse import Bytes

MUTANTS = 2_000
SLOW_MUTANTS = 20_000
SPARSE_MUTANTS = 400
CASE = 200
SLOW_CASE = 1_000
PRESENT_BYTES = 256

NUM_FRAMES = 4
SIDE = 32
RECIPE = Preprocessing(SIDE, (SIDE, SIDE), "bilinear", 1 / 255, (0.45,) * 3, (0.225,) * 3)
BUDGETS = Decode(
    formats=FORMATS,
    max_pixels=2**20,
    max_frames=2_000,
    max_memory_bytes=256 * 2**20,
    max_cpu_seconds=10,
    deadline_seconds=10.0,
)
LATE_SECONDS = BUDGETS.deadline_seconds + 2.0
MODES = {
    "uniform": Sampling(mode="uniform"),
    "windows": Sampling(mode="windows", segment_clips=2, min_seconds=0.05),
}
EXPECTED_CODES = set(ERROR_CODES) - {
    "internal", "missing", "changed", "access_denied", "transient_io", "bad_output",
}  # fmt: skip
WORKER_LOST = {"decoder_crash", "timeout"}


def plan_of(mode):
    return DecodePlan(MODES[mode], NUM_FRAMES, 2, RECIPE, BUDGETS)


@pytest.fixture(scope="module")
def sandboxes():
    """Both have started: that time is not a mutant's."""
    with Sandbox(plan_of("uniform")) as uniform, Sandbox(plan_of("windows")) as windows:
        for sandbox in (uniform, windows):
            list(sandbox.decode(Bytes(seed("h264 mp4")), video_id="good"))
        yield {"uniform": uniform, "windows": windows}


@pytest.fixture(scope="module")
def sparse_sandbox():
    with Sandbox(plan_of("uniform"), module="tests.video.sparse_child") as sandbox:
        yield sandbox


def settle(sandbox, video):
    """Decodes a video; every unit comes once, in order and in time, and makes sense.

    Returns:
        What came of the units, and the first one. (A clock that lies makes ten thousands of them.)
    """
    results, first, last_clip = Counter(), None, -1
    started = time.monotonic()
    for index, (item, cpu_seconds) in enumerate(sandbox.decode(video, video_id="v")):
        assert time.monotonic() - started < LATE_SECONDS
        assert 0 <= cpu_seconds < LATE_SECONDS
        first = first or item
        assert (item.unit_index, item.units) == (index, first.units)
        last_clip = check(item, last_clip)
        results[result_of(item)] += 1
        started = time.monotonic()
    assert time.monotonic() - started < LATE_SECONDS
    assert results.total() == first.units
    return results, first


def check(item, last_clip):
    """A failure says why, or clips make sense; the last one's number, so far."""
    if isinstance(item, VideoFailure):
        assert item.code in EXPECTED_CODES, item
        assert item.message
        return last_clip
    clips = [span.clip_index for span in item.spans]
    assert last_clip < clips[0]
    assert clips == sorted(set(clips))
    check_clips(item)
    return clips[-1]


def check_clips(unit):
    assert unit.frames_NTHWC.shape == (len(unit.spans), NUM_FRAMES, SIDE, SIDE, 3)
    assert unit.frames_NTHWC.dtype == np.uint8
    info = unit.info
    assert 0 < info.width * info.height <= BUDGETS.max_pixels
    assert 0 < info.duration_seconds < math.inf
    assert 0 < info.fps < math.inf
    for span in unit.spans:
        times = span.frame_pts_seconds
        assert len(times) == NUM_FRAMES
        assert 0 <= span.start_seconds < span.end_seconds <= info.duration_seconds
        assert all(0 <= seconds < info.duration_seconds for seconds in times)
        assert not span.frames_exact or list(times) == sorted(times)


def result_of(item):
    return "ok" if isinstance(item, DecodedClips) else item.code


@contextmanager
def kept_on_failure(name, data, folder):
    """What goes wrong with a mutant, whatever it is, names it and keeps its bytes."""
    try:
        yield
    except Exception as error:
        (folder / "mutant").write_bytes(data)
        message = f"{name}; its bytes are in {folder}"
        raise AssertionError(message) from error


def run(sandboxes, numbers, folder):
    """Decodes mutants in every mode; counts what came of their first units."""
    results = Counter()
    for number in numbers:
        video = mutant(number)
        for mode, sandbox in sandboxes.items():
            with kept_on_failure(f"{video}, {mode}", video.data, folder):
                found, _ = settle(sandbox, Bytes(video.data))
            results.update(found.keys())
    assert not results.keys() & WORKER_LOST, results
    return results


@pytest.mark.parametrize("first", range(0, MUTANTS, CASE))
def test_every_mutant_has_one_outcome(sandboxes, first, tmp_path):
    results = run(sandboxes, range(first, first + CASE), tmp_path)
    assert results["ok"] > CASE / 2  # of two modes each: most damage is survived, and looked into
    assert len(results) > 3


@pytest.mark.slow
@pytest.mark.parametrize("first", range(MUTANTS, MUTANTS + SLOW_MUTANTS, SLOW_CASE))
def test_many_more_mutants_have_one_outcome_each(sandboxes, first, tmp_path):
    run(sandboxes, range(first, first + SLOW_CASE), tmp_path)


@pytest.mark.parametrize("name", SEEDS)
def test_what_is_mutated_is_small_and_decodes(sandboxes, name):
    assert len(seed(name)) < 20_000
    for sandbox in sandboxes.values():
        results, _ = settle(sandbox, Bytes(seed(name)))
        assert results.keys() == {"ok"}


def test_a_number_gives_the_same_mutant_again_and_every_mutator_is_used():
    mutants = [mutant(number) for number in range(200)]
    assert mutants == [mutant(number) for number in range(200)]
    assert {name for video in mutants for name in video.mutators} == set(MUTATORS)
    assert {video.seed for video in mutants} == set(SEEDS)
    assert sum(video.data != seed(video.seed) for video in mutants) > 190


@pytest.mark.parametrize("first", range(0, SPARSE_MUTANTS, CASE))
def test_a_mutant_of_which_only_parts_are_brought_has_one_outcome(sparse_sandbox, first, tmp_path):
    spared = 0
    for number in range(first, first + CASE):
        video = mutant(number, INDEXED_SEEDS)
        with kept_on_failure(video, video.data, tmp_path):
            item, brought_bytes = sparsely(sparse_sandbox, video.data)
            assert result_of(item) not in WORKER_LOST
        spared += result_of(item) == "ok" and brought_bytes < len(video.data) * 3 / 4
    assert spared > CASE / 20


@pytest.mark.parametrize("first", range(0, SPARSE_MUTANTS, CASE))
def test_a_damaged_index_is_read_alike_with_and_without_the_frames_bytes(
    sparse_sandbox, first, tmp_path
):
    spared = 0
    for number in range(first, first + CASE):
        video = index_mutant(number)
        with kept_on_failure(video, video.data, tmp_path):
            item, brought_bytes = sparsely(sparse_sandbox, video.data)
            _, expected = settle(sparse_sandbox, Bytes(video.data))
            check_alike(item, expected)
        spared += result_of(item) == "ok" and brought_bytes < len(video.data) * 3 / 4
    assert spared > CASE / 20


def sparsely(sandbox, data):
    """The only unit of a video whose bytes are brought when they are asked for; how many were."""
    video = Bytes(data, present=((0, min(len(data), PRESENT_BYTES)),))
    _, item = settle(sandbox, video)
    return item, sum(stop - start for start, stop in video.asked)


def check_alike(item, expected):
    """Frames that are exact are the same; a reader of the index alone meets other errors first."""
    results = {result_of(item), result_of(expected)}
    assert len(results) == 1 or results == {"truncated", "over_budget"}
    if results == {"ok"} and item.spans[0].frames_exact:
        assert item.spans == expected.spans
        np.testing.assert_array_equal(item.frames_NTHWC, expected.frames_NTHWC)
