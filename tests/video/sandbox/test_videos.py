import io
import time
from dataclasses import replace

import pytest

from indexer.config import Decode
from indexer.errors import VideoTransientIO
from indexer.records import Preprocessing
from indexer.video.sandbox import Sandbox
from indexer.video.survey import survey_video
from tests.video.sandbox.abuse import (
    UNITS,
    Bytes,
    assert_same,
    codes,
    in_process,
    items_of,
    plan_of,
)
from tests.video.synth import Synth


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
