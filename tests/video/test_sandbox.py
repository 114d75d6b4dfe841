import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from indexer.config import Decode, Sampling
from indexer.errors import ClusterError, VideoTransientIO
from indexer.records import DecodedClips, Preprocessing, VideoFailure
from indexer.video.decode import decode_clips
from indexer.video.plan import MAX_CLIPS, DecodePlan
from indexer.video.sandbox import Sandbox
from indexer.video.sandbox import parent as sandbox_module
from indexer.video.sandbox import template as template_module
from indexer.video.survey import survey_video
from tests.video.synth import Synth

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - nothing may be left there
HOSTILE = "tests.video.hostile_child"
RECIPE = Preprocessing(32, (32, 32), "bilinear", 1 / 255, (0.45,) * 3, (0.225,) * 3)
SHAPE = (2, 4, 32, 32, 3)
SECRET = "the secret of the store"  # noqa: S105 - of no store
PATIENT = Decode(deadline_seconds=60.0)
THRIFTY = Decode(deadline_seconds=60.0, max_cpu_seconds=1)
HASTY = Decode(deadline_seconds=2.0)
FRAMES = 120
UNITS = 4


def plan_of(recipe=RECIPE, num_frames=4, decode=PATIENT, **sampling):
    sampling = {"min_seconds": 0.1, "segment_clips": 2} | sampling
    return DecodePlan(Sampling(**sampling), num_frames, 4, recipe, decode)


class Bytes:
    """A video whose bytes lie in a nameless file, or arrive there when they are asked for."""

    def __init__(self, data, present=None, error=None, fetch_seconds=0.0):
        self._file = os.fdopen(os.memfd_create("video"), "r+b", buffering=0)
        self._data = data
        self._error = error
        self._fetch_seconds = fetch_seconds
        self.size_bytes = len(data)
        self.present = ((0, len(data)),) if present is None else present
        self.asked = []
        self._file.truncate(len(data))
        for start, stop in self.present:
            os.pwrite(self.fileno(), data[start:stop], start)

    def fileno(self):
        return self._file.fileno()

    def fetch(self, ranges):
        self.asked.extend(ranges)
        time.sleep(self._fetch_seconds)
        if self._error and len(self.asked) > 1:
            raise self._error
        for start, stop in ranges:
            os.pwrite(self.fileno(), self._data[start:stop], start)


@pytest.fixture(scope="module")
def data():
    return Synth(frames=FRAMES).encode()


@pytest.fixture
def video(data):
    return Bytes(data)


@pytest.fixture(scope="module")
def sandbox():
    """One that may be abused: the next test finds it as good as new."""
    with Sandbox(plan_of(), module=HOSTILE) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def hasty(data):
    plan = plan_of(decode=HASTY)
    with Sandbox(plan, module=HOSTILE) as sandbox:
        list(sandbox.decode(Bytes(data), video_id="start"))
        yield sandbox


def large_video():
    """Two grey frames of 32 million pixels, in some 100 kB."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 8192, 4096, "yuv420p"
        for pts in range(2):
            frame = av.VideoFrame(8192, 4096, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes([128]) * plane.buffer_size)
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def items_of(sandbox, video, video_id="v", **more):
    return [item for item, _ in sandbox.decode(video, video_id=video_id, **more)]


def codes(items):
    return [item.code if isinstance(item, VideoFailure) else "" for item in items]


def in_process(data, plan, **more):
    return list(decode_clips(io.BytesIO(data), plan, video_id="v", **more))


def assert_same(items, expected):
    assert len(items) == len(expected) > 0
    for item, other in zip(items, expected, strict=True):
        assert type(item) is type(other)
        if isinstance(item, VideoFailure):
            assert item == other
            continue
        facts = ("unit_index", "units", "info", "spans")
        assert [getattr(item, name) for name in facts] == [getattr(other, name) for name in facts]
        np.testing.assert_array_equal(item.frames_NTHWC, other.frames_NTHWC)


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def children(pid):
    """Children of a process that are not zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def template_and_worker(sandbox):
    """Their process ids."""
    template = sandbox._template._process.pid
    return template, *children(template)


def is_gone(pid):
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestHonestVideos:
    @pytest.mark.parametrize(
        "plan",
        [
            plan_of(),
            plan_of(recipe=Preprocessing(64, (64, 64), "bilinear", 1, (0.5,) * 3, (0.5,) * 3)),
            plan_of(recipe=Preprocessing(7, (7, 7), "bicubic", 1, (0.5,) * 3, (0.5,) * 3)),
            plan_of(mode="random"),
            plan_of(mode="kinetics", views=3),
            plan_of(mode="kinetics", views=2, crops=3),
            plan_of(crops=3, hop_seconds=0.2),
            plan_of(recipe=Preprocessing(24, None, "bicubic", 1 / 255, (0.5,) * 3, (0.5,) * 3)),
            plan_of(recipe=Preprocessing((20, 40), None, "bilinear", 1, (0.5,) * 3, (0.5,) * 3)),
            plan_of(decode=Decode(resize="fast")),
        ],
        ids=[
            "windows",
            "square",
            "tiny",
            "random",
            "kinetics",
            "crops",
            "crops of windows",
            "no crop",
            "whole",
            "fast",
        ],
    )
    def test_items_equal_those_of_the_same_process(self, plan, data, video):
        with Sandbox(plan) as sandbox:
            assert_same(items_of(sandbox, video), in_process(data, plan))
            assert_same(items_of(sandbox, video), in_process(data, plan))

    @pytest.mark.parametrize("codec", ["mpeg4", "libvpx-vp9", "libsvtav1"])
    def test_codecs_need_nothing_that_is_taken_away(self, sandbox, codec):
        data = Synth(frames=12, codec=codec).encode()
        assert_same(items_of(sandbox, Bytes(data)), in_process(data, plan_of()))

    def test_real_videos(self, shared_videos):
        plan = plan_of(recipe=Preprocessing(64, (64, 64), "bilinear", 1, (0.5,) * 3, (0.5,) * 3))
        small = [path for path in shared_videos.glob("*.*") if path.stat().st_size < 700_000]
        assert len(small) > 10
        with Sandbox(plan) as sandbox:
            for path in sorted(small):
                expected = in_process(path.read_bytes(), plan)
                assert_same(items_of(sandbox, Bytes(path.read_bytes())), expected)

    def test_failures_equal_those_of_the_same_process(self, sandbox):
        assert_same(
            items_of(sandbox, Bytes(b"no video at all")), in_process(b"no video at all", plan_of())
        )

    def test_skipped_units_are_not_decoded(self, sandbox, data, video):
        skip = frozenset({0, 2})
        items = items_of(sandbox, video, skip_units=skip)
        assert [item.unit_index for item in items] == [1, 3]
        assert_same(items, in_process(data, plan_of(), skip_units=skip))
        assert items_of(sandbox, video, skip_units=frozenset(range(UNITS))) == []

    def test_a_video_that_cannot_be_opened_fails_even_where_its_first_unit_is_done(self, sandbox):
        items = items_of(sandbox, Bytes(b"no video"), skip_units=frozenset({0}))
        assert codes(items) == ["not_a_video"]

    def test_moments_come_in_place_of_what_the_sampling_says(self, data, video):
        plan = plan_of(num_frames=1, segment_clips=1)
        with Sandbox(plan) as sandbox:
            items = items_of(sandbox, video, moments_seconds=[0.5, 1.0, 3.5])
            sampled = items_of(sandbox, Bytes(data))
        here = replace(plan, moments_seconds=(0.5, 1.0, 3.5))
        assert_same(items, in_process(data, here))
        assert [item.spans[0].frame_pts_seconds for item in items] == [(0.5,), (1.0,), (3.5,)]
        assert_same(sampled, in_process(data, plan))

    def test_cpu_seconds_are_those_of_the_child(self, sandbox, video):
        started = time.process_time()
        items = list(sandbox.decode(video, video_id="v"))
        seconds = [seconds for _, seconds in items]
        assert len(seconds) == UNITS
        assert 0 < sum(item.codec_seconds for item, _ in items) < sum(seconds)
        assert 0 < sum(seconds) < 5
        assert time.process_time() - started < 5
        assert all(value >= 0 for value in seconds)

    def test_frames_of_a_unit_outlive_the_next_one(self, sandbox, data, video):
        items = items_of(sandbox, video)
        items_of(sandbox, Bytes(Synth(frames=40, noise=90).encode()))
        assert_same(items, in_process(data, plan_of()))

    def test_several_sandboxes_at_once(self, data):
        plan = plan_of()
        expected = in_process(data, plan)
        with Sandbox(plan) as one, Sandbox(plan) as other:
            pairs = zip(
                one.decode(Bytes(data), video_id="v"),
                other.decode(Bytes(data), video_id="v"),
                strict=True,
            )
            items = [(first, second) for (first, _), (second, _) in pairs]
        assert_same([first for first, _ in items], expected)
        assert_same([second for _, second in items], expected)

    def test_survey_equals_that_of_the_same_process(self, sandbox, data, video):
        expected = survey_video(io.BytesIO(data), plan_of(), video_id="v")
        assert sandbox.survey(video, video_id="v") == expected
        assert sandbox.survey(video, video_id="v") == expected

    def test_survey_of_what_is_no_video(self, sandbox):
        assert sandbox.survey(Bytes(b"no video"), video_id="v").code == "not_a_video"
        assert sandbox.survey(Bytes(b""), video_id="refuse").code == "unsupported_codec"


class TestBytesOnDemand:
    def test_missing_bytes_are_asked_for_once(self, sandbox, data):
        video = Bytes(data, present=())
        assert_same(items_of(sandbox, video), in_process(data, plan_of()))
        offsets = [offset for start, stop in video.asked for offset in range(start, stop)]
        assert len(offsets) == len(set(offsets)) > 0

    def test_bytes_that_are_present_are_not_asked_for(self, sandbox, data):
        middle = len(data) // 2
        video = Bytes(data, present=((0, middle),))
        assert_same(items_of(sandbox, video), in_process(data, plan_of()))
        assert min(start for start, _ in video.asked) >= middle

    def test_fetching_does_not_count_against_the_deadline(self, hasty, data):
        video = Bytes(data, present=(), fetch_seconds=2.2)
        assert codes(items_of(hasty, video)) == [""] * UNITS
        assert video.asked

    def test_an_error_of_fetching_is_the_videos(self, sandbox, data, video):
        error = VideoTransientIO("the store does not answer")
        items = items_of(sandbox, Bytes(data + bytes(2**21), present=((0, 4096),), error=error))
        assert codes(items) == ["transient_io"] * len(items) != []
        assert {item.message for item in items} == {"the store does not answer"}
        assert codes(items_of(sandbox, video)) == [""] * UNITS

    def test_an_error_of_fetching_for_a_survey(self, sandbox, data):
        error = VideoTransientIO("the store does not answer")
        video = Bytes(data + bytes(2**21), present=((0, 40),), error=error)
        assert sandbox.survey(video, video_id="v").code == "transient_io"

    def test_a_fault_of_ours_while_fetching_is_raised_and_the_next_video_decodes(
        self, sandbox, data, video
    ):
        with pytest.raises(ZeroDivisionError):
            items_of(
                sandbox, Bytes(data + bytes(2**21), present=((0, 40),), error=ZeroDivisionError())
            )
        assert codes(items_of(sandbox, video)) == [""] * UNITS

    @pytest.mark.parametrize(
        "ranges", ["[]", "[[5, 5]]", "[[-1, 5]]", "[[0, 99999999]]", "[[0]]", '[["0", 1]]']
    )
    def test_ranges_that_make_no_sense_are_not_fetched(self, sandbox, video, ranges):
        (failure,) = items_of(sandbox, video, f'say:{{"kind": "need", "ranges": {ranges}}}')
        assert failure.code == "decoder_crash"
        assert video.asked == []

    def test_a_worker_cannot_have_bytes_fetched_for_ever(self, sandbox):
        video = Bytes(b"x" * 50)
        (failure,) = items_of(sandbox, video, "ask:1000")
        assert failure.code == "decoder_crash"
        assert len(video.asked) == 50


class TestCrashes:
    @pytest.mark.parametrize(
        ("deed", "code", "words"),
        [
            ("segv", "decoder_crash", "SIGSEGV"),
            ("exit", "decoder_crash", "exit code 3"),
            ("killed", "decoder_crash", "no memory left"),
            ("bomb", "over_budget", "too much"),
        ],
    )
    def test_one_failure_and_the_next_video_decodes(self, sandbox, video, deed, code, words):
        (failure,) = items_of(sandbox, video, deed)
        assert (failure.code, failure.unit_index, failure.units) == (code, 0, 1)
        assert words in failure.message
        started = time.monotonic()
        assert codes(items_of(sandbox, video)) == [""] * UNITS
        assert time.monotonic() - started < 1.0

    def test_a_worker_that_takes_too_much_cpu_time_is_killed(self, video):
        with Sandbox(plan_of(decode=THRIFTY), module=HOSTILE) as sandbox:
            outcomes = list(sandbox.decode(video, video_id="spin:2"))
        items, seconds = zip(*outcomes, strict=True)
        assert codes(items) == ["", "", "over_budget", "over_budget"]
        assert "decode.max_cpu_seconds = 1" in items[2].message
        assert 0.9 < seconds[2] < 4.0
        assert seconds[3] == 0.0

    def test_a_hang_is_killed_at_the_deadline(self, hasty, video):
        started = time.monotonic()
        (failure,) = items_of(hasty, video, "hang")
        assert failure.code == "timeout"
        assert "decode.deadline_seconds = 2" in failure.message
        assert 1.9 < time.monotonic() - started < 8.0
        assert codes(items_of(hasty, video)) == [""] * UNITS

    def test_the_deadline_is_for_a_unit_not_for_the_consumer(self, hasty, video):
        items = hasty.decode(video, video_id="v")
        assert isinstance(next(items)[0], DecodedClips)
        time.sleep(2.2)
        assert codes([item for item, _ in items]) == [""] * (UNITS - 1)

    def test_a_crash_midway_costs_the_units_that_are_left(self, sandbox, data, video):
        items = items_of(sandbox, video, "segv:1", skip_units=frozenset({2}))
        assert_same(items[:1], in_process(data, plan_of())[:1])
        assert [(item.unit_index, item.units) for item in items] == [(0, 4), (1, 4), (3, 4)]
        assert isinstance(items[1], VideoFailure)
        assert items[2].info == items[0].info

    def test_a_hang_midway_costs_the_units_that_are_left(self, hasty, video):
        assert codes(items_of(hasty, video, "hang:2")) == ["", "", "timeout", "timeout"]

    def test_the_worker_that_ran_out_of_memory_is_not_used_again(self, sandbox, video):
        items_of(sandbox, video)
        before = template_and_worker(sandbox)
        assert codes(items_of(sandbox, video, "bomb")) == ["over_budget"]
        items_of(sandbox, video)
        after = template_and_worker(sandbox)
        assert after[0] == before[0]
        assert after[1:] != before[1:]

    def test_a_real_decoder_gets_no_more_memory_than_its_budget(self):
        small, large = Synth(frames=12).encode(), large_video()
        plan = plan_of(decode=Decode(max_memory_bytes=64 * 2**20))
        with Sandbox(plan) as sandbox:
            (failure,) = items_of(sandbox, Bytes(large))
            # libavcodec's H.264 decoder calls it invalid data when it gets no memory for a frame
            assert failure.code in {"over_budget", "corrupt"}
            assert codes(items_of(sandbox, Bytes(small))) == [""]
        with Sandbox(plan_of()) as sandbox:
            assert codes(items_of(sandbox, Bytes(large))) == [""]

    def test_survey_of_hostile_videos(self, sandbox, video):
        assert sandbox.survey(video, video_id="segv").code == "decoder_crash"
        assert sandbox.survey(video, video_id="bomb").code == "over_budget"
        assert sandbox.survey(video, video_id="v").units == UNITS

    def test_a_worker_killed_between_two_videos_costs_nothing(self, sandbox, video):
        items_of(sandbox, video)
        _, worker = template_and_worker(sandbox)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: is_gone(worker))
        assert codes(items_of(sandbox, video)) == [""] * UNITS

    def test_a_worker_killed_within_a_video(self, sandbox, video):
        items = sandbox.decode(video, video_id="v")
        next(items)
        os.kill(template_and_worker(sandbox)[1], signal.SIGKILL)
        rest = [item for item, _ in items]
        assert codes(rest) == ["decoder_crash"] * (UNITS - 1)
        assert codes(items_of(sandbox, video)) == [""] * UNITS

    def test_a_template_killed_between_two_videos_costs_nothing(self, sandbox, video):
        items_of(sandbox, video)
        template, worker = template_and_worker(sandbox)
        os.kill(template, signal.SIGKILL)
        wait_until(lambda: is_gone(worker))
        assert codes(items_of(sandbox, video)) == [""] * UNITS

    def test_a_template_killed_within_a_video(self, sandbox, video):
        items = sandbox.decode(video, video_id="v")
        next(items)
        template, worker = template_and_worker(sandbox)
        os.kill(template, signal.SIGKILL)
        wait_until(lambda: is_gone(worker))
        assert codes([item for item, _ in items]) == ["decoder_crash"] * (UNITS - 1)
        assert codes(items_of(sandbox, video)) == [""] * UNITS

    def test_a_template_that_hangs_is_replaced(self, sandbox, video, monkeypatch):
        monkeypatch.setattr(template_module, "REPLY_SECONDS", 0.3)
        items = sandbox.decode(video, video_id="v")
        next(items)
        template, worker = template_and_worker(sandbox)
        os.kill(template, signal.SIGSTOP)
        os.kill(worker, signal.SIGKILL)
        assert codes([item for item, _ in items]) == ["decoder_crash"] * (UNITS - 1)
        assert is_gone(template)
        monkeypatch.undo()
        assert codes(items_of(sandbox, video)) == [""] * UNITS

    def test_a_message_is_one_line(self, sandbox, video):
        (failure,) = items_of(sandbox, video, "multiline")
        assert failure.message == "two lines"


SPAN = {
    "clip_index": 0,
    "start_seconds": 0.0,
    "end_seconds": 1.0,
    "frame_pts_seconds": [0.0, 0.1, 0.2, 0.3],
    "frames_exact": True,
}
INFO = {
    "width": 64,
    "height": 48,
    "codec": "h264",
    "fps": 30.0,
    "rotation": 0,
    "duration_seconds": 1.0,
    "warnings": [],
}
UNIT = {
    "kind": "unit",
    "unit_index": 0,
    "units": 2,
    "info": INFO,
    "spans": [SPAN, SPAN | {"clip_index": 1}],
    "shape": SHAPE,
    "cpu_seconds": 0.1,
    "codec_seconds": 0.05,
}
SECOND = UNIT | {
    "unit_index": 1,
    "spans": [SPAN | {"clip_index": 2}, SPAN | {"clip_index": 3}],
}
FAILURE = {"code": "corrupt", "message": "", "unit_index": 0, "units": 2, "info": None}
FAILED = {"kind": "failed", "failure": FAILURE, "cpu_seconds": 0.1}
SURVEY = {
    "kind": "surveyed",
    "survey": {"duration_seconds": 1.0, "clips": 1, "units": 1, "trusted": True},
    "cpu_seconds": 0.1,
}
END = {"kind": "end"}


def said(*messages):
    lines = [line if isinstance(line, str) else json.dumps(line) for line in messages]
    return "say:" + "\n".join(lines)


class TestAnswersOfATakenOverWorker:
    def test_what_is_well_formed_passes(self, sandbox, video):
        items = items_of(sandbox, video, said(UNIT, SECOND, END))
        assert codes(items) == ["", ""], items
        assert [item.frames_NTHWC.shape for item in items] == [SHAPE] * 2

    @pytest.mark.parametrize(
        "words",
        [
            "no json",
            "[]",
            "{}",
            {"kind": "unheard of"},
            UNIT | {"more": 1},
            UNIT | {"unit_index": 2},
            UNIT | {"unit_index": -1},
            UNIT | {"units": MAX_CLIPS + 1},
            UNIT | {"unit_index": "0"},
            UNIT | {"shape": (2, 4, 32, 32)},
            UNIT | {"shape": (2, 4, 32, 33, 3)},
            UNIT | {"shape": (1, 4, 32, 32, 3)},
            UNIT | {"shape": (2, 5, 32, 32, 3)},
            UNIT | {"shape": (2, 4, 32, 32, 0)},
            UNIT | {"shape": (2, 4, 2**40, 2**40, 3)},
            UNIT | {"spans": [SPAN, SPAN]},
            UNIT | {"spans": [SPAN, SPAN | {"clip_index": 1, "frame_pts_seconds": [0.0]}]},
            UNIT | {"spans": [SPAN, SPAN | {"clip_index": 1, "end_seconds": 0.0}]},
            UNIT | {"info": INFO | {"width": 2**80}},
            UNIT | {"info": INFO | {"rotation": 45}},
            UNIT | {"info": INFO | {"fps": float("nan")}},
            UNIT | {"info": INFO | {"codec": "h" * 2000}},
            UNIT | {"info": INFO | {"warnings": ["w"] * 200}},
            UNIT | {"cpu_seconds": -1.0},
            UNIT | {"cpu_seconds": float("inf")},
            UNIT | {"codec_seconds": -1.0},
            FAILED | {"failure": FAILURE | {"code": "no such code"}},
            FAILED | {"failure": FAILURE | {"message": "m" * 2000}},
            FAILED | {"failure": FAILURE | {"unit_index": 2}},
            FAILED | {"failure": FAILURE | {"units": 10**9}},
            FAILED | {"failure": FAILURE | {"info": INFO | {"rotation": 45}}},
            SURVEY,
            END,
        ],
        ids=str,
    )
    def test_nonsense_is_a_crash(self, sandbox, video, words):
        items = items_of(sandbox, video, said(words))
        assert codes(items) == ["decoder_crash"]
        assert codes(items_of(sandbox, video)) == [""] * UNITS

    @pytest.mark.parametrize(
        "second",
        [
            UNIT,
            UNIT | {"unit_index": 1},
            SECOND | {"units": 3},
            SECOND | {"unit_index": 0},
            FAILED,
            FAILED | {"failure": FAILURE | {"units": 1}},
            END,
        ],
        ids=["again", "same clips", "other units", "same unit", "fails too", "whole video", "end"],
    )
    def test_nonsense_after_the_first_unit_costs_the_others(self, sandbox, video, second):
        items = items_of(sandbox, video, said(UNIT, second))
        assert codes(items) == ["", "decoder_crash"]
        assert [item.unit_index for item in items] == [0, 1]

    def test_a_message_larger_than_any_is_not_waited_for(self, hasty, video):
        assert codes(items_of(hasty, video, "boast")) == ["decoder_crash"]

    def test_a_unit_that_was_not_wanted(self, sandbox, video):
        items = items_of(sandbox, video, said(UNIT), skip_units=frozenset({0}))
        assert codes(items) == ["decoder_crash"]

    def test_more_clips_than_a_unit_may_have(self, sandbox, video):
        spans = [SPAN | {"clip_index": index} for index in range(3)]
        words = said(UNIT | {"spans": spans, "shape": (3, 4, 32, 32, 3)})
        assert codes(items_of(sandbox, video, words)) == ["decoder_crash"]

    @pytest.mark.parametrize(
        "words",
        [
            said(UNIT),
            said(END),
            said(SURVEY, SURVEY),
            said(SURVEY | {"survey": SURVEY["survey"] | {"clips": -1}}),
            said(SURVEY | {"survey": SURVEY["survey"] | {"units": 10}}),
            said(SURVEY | {"survey": SURVEY["survey"] | {"clips": MAX_CLIPS + 1}}),
        ],
    )
    def test_nonsense_for_a_survey(self, sandbox, video, words):
        assert sandbox.survey(video, video_id=words).code == "decoder_crash"

    def test_frames_larger_than_their_room(self, data):
        recipe = Preprocessing(8, None, "bilinear", 1, (0.5,) * 3, (0.5,) * 3)
        with Sandbox(plan_of(recipe), module=HOSTILE) as sandbox:
            words = said(UNIT | {"shape": (2, 4, 8, 1000, 3)})
            assert codes(items_of(sandbox, Bytes(data), words)) == ["decoder_crash"]
            long = Bytes(Synth(frames=12, width=640, height=16).encode())
            assert codes(items_of(sandbox, long)) == ["over_budget"]


class TestConfinement:
    @pytest.mark.parametrize(
        ("probe", "result"),
        [
            ("file", "Too many open files"),
            ("socket", "Too many open files"),
            ("pipe", "Too many open files"),
            ("memfd", "Too many open files"),
            ("files", "[0, 1, 2, 3, 4, 5]"),
            ("more files", "ValueError"),
            ("more memory", "ValueError"),
            ("capabilities", "[0, 0, 0, 0, 0, 0]"),
            ("core", "(0, 0)"),
            ("dumpable", "0"),
            ("no_new_privs", "1"),
            ("shrink frames", "Operation not permitted"),
            ("grow frames", "Operation not permitted"),
        ],
    )
    def test_what_a_worker_cannot_do(self, sandbox, video, probe, result):
        with_probe = sandbox.decode(video, video_id=f"probe:{probe}")
        assert next(with_probe)[0].message == result
        with_probe.close()

    def test_no_secret_reaches_the_children(self, monkeypatch, video):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("INDEXER_INDEX", SECRET)
        with Sandbox(plan_of(), module=HOSTILE) as sandbox:
            items = sandbox.decode(video, video_id="probe:environment")
            names = next(items)[0].message
            template, *_ = template_and_worker(sandbox)
            environment = Path(f"/proc/{template}/environ").read_bytes()
        assert "PYTHONPATH" in names
        assert not re.search("AWS|INDEXER", names)
        assert SECRET.encode() not in environment

    def test_the_kernel_short_of_memory_takes_the_worker_first(self, sandbox, video):
        items_of(sandbox, video)
        _, worker = template_and_worker(sandbox)
        assert Path(f"/proc/{worker}/oom_score_adj").read_text() == "1000\n"

    def test_an_interrupt_from_the_terminal_does_not_reach_the_children(self, sandbox, video):
        items_of(sandbox, video)
        groups = {os.getpgid(pid) for pid in template_and_worker(sandbox)}
        assert os.getpgid(0) not in groups

    def test_cuda_devices_are_passed_on_to_a_cuda_decoder_only(self, monkeypatch, video):
        seen = []
        for device, devices in [("cpu", "0"), ("cuda", "0"), ("cuda", "")]:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
            plan = plan_of(decode=Decode(device=device))
            with Sandbox(plan, module=HOSTILE) as sandbox:
                item, _ = next(sandbox.decode(video, video_id="probe:environment"))
            seen.append("CUDA_VISIBLE_DEVICES" in item.message)
        assert seen == [False, True, False]

    def test_a_cuda_decoder_may_open_its_devices(self, video):
        with Sandbox(plan_of(decode=Decode(device="cuda")), module=HOSTILE) as sandbox:
            item, _ = next(sandbox.decode(video, video_id="probe:memfd"))
        assert item.message.isdigit()


class TestLife:
    def test_nothing_starts_before_it_is_needed(self):
        with Sandbox(plan_of(), module="indexer.video.no_such_module"):
            pass

    def test_a_worker_is_recycled(self, sandbox, video, monkeypatch):
        monkeypatch.setattr(sandbox_module, "RECYCLE_VIDEOS", 2)
        seen = []
        for _ in range(5):
            items = sandbox.decode(video, video_id="v")
            next(items)
            seen.append(template_and_worker(sandbox))
            assert codes([item for item, _ in items]) == [""] * (UNITS - 1)
        templates, workers = zip(*seen, strict=True)
        assert len(set(templates)) == 1
        assert len(set(workers)) >= 3

    def test_a_video_that_nobody_wants_to_the_end(self, sandbox, data, video):
        items = sandbox.decode(video, video_id="v")
        next(items)
        items.close()
        assert_same(items_of(sandbox, video), in_process(data, plan_of()))

    def test_two_videos_at_once_are_refused(self, sandbox, video):
        items = sandbox.decode(video, video_id="v")
        next(items)
        with pytest.raises(RuntimeError, match="busy"):
            next(sandbox.decode(video, video_id="v"))
        assert len(list(items)) == UNITS - 1

    def test_it_ends_its_processes_and_starts_again(self, video):
        sandbox = Sandbox(plan_of())
        with sandbox:
            items_of(sandbox, video)
            pids = template_and_worker(sandbox)
        wait_until(lambda: all(map(is_gone, pids)))
        with sandbox:
            assert codes(items_of(sandbox, video)) == [""] * UNITS

    def test_no_descriptor_is_left_open(self, video):
        before = open_files()
        with Sandbox(plan_of(), module=HOSTILE) as sandbox:
            for video_id in ("v", "segv", "v", "segv", "v"):
                items_of(sandbox, video, video_id)
            assert open_files() == before + 3
        assert open_files() == before

    def test_a_machine_without_a_working_child_is_an_error(self, video, capfd):
        with (
            Sandbox(plan_of(), module="indexer.video.no_such_module") as sandbox,
            pytest.raises(ClusterError, match="exit code 1, 3 times"),
        ):
            items_of(sandbox, video)
        assert "no_such_module" in capfd.readouterr().err

    def test_a_child_that_does_not_get_ready_is_an_error(self, video, monkeypatch):
        monkeypatch.setattr(template_module, "START_SECONDS", 0.05)
        with Sandbox(plan_of()) as sandbox, pytest.raises(ClusterError):
            items_of(sandbox, video)

    def test_a_template_that_cannot_fork_is_an_error(self, video):
        with (
            Sandbox(plan_of(), module="tests.video.dying_template") as sandbox,
            pytest.raises(ClusterError, match="cannot be forked"),
        ):
            items_of(sandbox, video)

    def test_closing_within_a_video_fails_what_is_left(self, video):
        with Sandbox(plan_of()) as sandbox:
            items = sandbox.decode(video, video_id="v")
            next(items)
        assert codes([item for item, _ in items]) == ["decoder_crash"] * (UNITS - 1)

    def test_death_of_the_actor_ends_everything(self, data, tmp_path):
        before = set(SHARED_MEMORY.iterdir())
        with at_work(data, tmp_path) as (actor, template, worker):
            actor.kill()
            wait_until(lambda: is_gone(template) and is_gone(worker), 2.0)
        assert set(SHARED_MEMORY.iterdir()) == before

    def test_a_worker_that_hangs_ends_when_nobody_is_left_to_kill_it(self, data, tmp_path):
        with at_work(data, tmp_path, "hang:1") as (actor, template, worker):
            os.kill(actor.pid, signal.SIGSTOP)  # it would kill the worker
            os.kill(template, signal.SIGKILL)
            try:
                wait_until(lambda: is_gone(worker), 2.0)
            finally:
                actor.kill()
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)


@contextmanager
def at_work(data, folder, *words):
    """A process that decodes, as an actor does, and the pids of the two that it has started."""
    path = folder / "video.mp4"
    path.write_bytes(data)
    command = [sys.executable, "-c", ACTOR, str(path), *words]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as actor:
        assert actor.stdout is not None
        assert actor.stdout.readline() == "at work\n"
        (template,) = children(actor.pid)
        (worker,) = children(template)
        yield actor, template, worker


ACTOR = """
import sys, time
from tests.video.test_sandbox import HOSTILE, Bytes, Sandbox, plan_of
video_id = (*sys.argv[2:], "v")[0]
sandbox = Sandbox(plan_of(), **({"module": HOSTILE} if video_id != "v" else {}))
items = sandbox.decode(Bytes(open(sys.argv[1], "rb").read()), video_id=video_id)
next(items)
print("at work", flush=True)
next(items) if video_id != "v" else time.sleep(60)
"""
