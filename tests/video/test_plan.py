import itertools
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from indexer.config import Sampling
from indexer.errors import VideoOverBudget
from indexer.video import plan
from indexer.video.plan import PlannedClip, Timeline, clips_at, plan_clips, units_of

# Made from the published formulas with numpy's floats, apart from our code:
#   SSv2: s = (n - 1) / T; (round(s * i) + round(s * (i + 1))) // 2 for i in range(T)
UNIFORM_100_8 = (6, 18, 31, 43, 56, 68, 80, 93)
UNIFORM_17_8 = (1, 3, 5, 7, 9, 11, 13, 15)
UNIFORM_5_8 = (0, 0, 1, 2, 2, 2, 3, 4)
#   Kinetics: linspace(start, start + 255, 8) with start = 44 * view / views, then truncated
KINETICS_300 = (0, 36, 72, 109, 145, 182, 218, 255)
KINETICS_300_VIEW_1_OF_2 = (22, 58, 94, 131, 167, 204, 240, 277)
KINETICS_100 = (0, 36, 72, 99, 99, 99, 99, 99)
KINETICS_300_AT_25_FPS = (0, 30, 60, 91, 121, 151, 182, 212)


def clock(pts, time_base="1/30", last=1, fps=None):
    ticks = np.array(sorted(pts), dtype=np.int64)
    base = Fraction(time_base)
    end = int(ticks[-1]) + last
    rate = fps or len(ticks) / ((end - int(ticks[0])) * base)
    return Timeline(ticks, base, end, Fraction(rate))


def constant(frames, fps=30, offset=0, ticks=512):
    pts = offset + np.arange(frames, dtype=np.int64) * ticks
    return Timeline(pts, Fraction(1, fps * ticks), int(pts[-1]) + ticks, Fraction(fps))


def planned(timeline, mode="windows", num_frames=8, divisor=32, video_id="v", **sampling):
    return plan_clips(
        timeline,
        Sampling(mode=mode, **sampling),
        num_frames=num_frames,
        frame_rate_divisor=divisor,
        video_id=video_id,
    )


@st.composite
def timelines(draw):
    gaps = draw(st.lists(st.integers(1, 400), min_size=0, max_size=120))
    first = draw(st.integers(-(10**6), 10**6))
    pts = np.cumsum([first, *gaps])
    base = draw(st.sampled_from(["1/1000", "1/90000", "1/15360", "1/100", "1001/30000"]))
    return clock(pts, base, last=draw(st.integers(1, 400)))


modes = st.sampled_from(["windows", "uniform", "kinetics", "random"])


class TestTimeline:
    @pytest.mark.parametrize(
        ("pts", "end", "base", "fps"),
        [
            ([], 1, 1, 1),
            ([1, 1], 3, 1, 1),
            ([2, 1], 3, 1, 1),
            ([0, 1], 1, 1, 1),
            ([0], 1, 0, 1),
            ([0], 1, 1, 0),
        ],
    )
    def test_refuses_what_is_no_clock(self, pts, end, base, fps):
        with pytest.raises(ValueError):
            Timeline(np.array(pts, np.int64), Fraction(base), end, Fraction(fps))

    def test_times_count_from_the_first_frame(self):
        timeline = clock([100, 103, 109], "1/10", last=6)
        assert len(timeline) == 3
        assert timeline.duration == Fraction(15, 10)
        assert [timeline.start_of(rank) for rank in range(3)] == [
            0,
            Fraction(3, 10),
            Fraction(9, 10),
        ]
        assert timeline.end_of(0) == Fraction(3, 10)
        assert timeline.end_of(2) == timeline.duration


class TestEveryMode:
    @given(
        timeline=timelines(),
        mode=modes,
        num_frames=st.integers(1, 16),
        divisor=st.integers(1, 40),
        fps=st.sampled_from([30.0, 29.97, 25.0, 4.0]),
    )
    def test_clips_are_well_formed(self, timeline, mode, num_frames, divisor, fps):
        clips = planned(timeline, mode, num_frames, divisor, target_fps=fps)
        assert [clip.clip_index for clip in clips] == list(range(len(clips)))
        for clip in clips:
            assert len(clip.frame_ranks) == num_frames
            assert list(clip.frame_ranks) == sorted(clip.frame_ranks)
            assert clip.frame_ranks[0] >= 0
            assert clip.frame_ranks[-1] < len(timeline)
            assert 0 <= clip.start < clip.end <= timeline.duration
        assert [clip.start for clip in clips] == sorted(clip.start for clip in clips)

    @given(timeline=timelines(), mode=modes, offset=st.integers(-(10**9), 10**9))
    def test_the_clock_s_origin_does_not_matter(self, timeline, mode, offset):
        moved = Timeline(
            timeline.pts + offset, timeline.time_base, timeline.end_pts + offset, timeline.fps
        )
        assert planned(moved, mode) == planned(timeline, mode)

    @given(timeline=timelines(), mode=modes)
    def test_one_frame_gives_a_clip_of_it(self, timeline, mode):
        alone = clock(timeline.pts[:1], timeline.time_base)
        (clip,) = planned(alone, mode)
        assert set(clip.frame_ranks) == {0}


class TestWindows:
    def test_constant_rate_gives_plain_arithmetic(self):
        clips = planned(constant(1000))
        assert [clip.frame_ranks for clip in clips[:3]] == [
            tuple(range(start, start + 256, 32)) for start in (0, 256, 512)
        ]
        assert len(clips) == 4
        assert clips[3].frame_ranks == tuple(range(768, 1000, 32))
        assert [clip.start for clip in clips] == [k * Fraction(256, 30) for k in range(4)]
        assert clips[3].end == Fraction(1000, 30)

    @given(
        frames=st.integers(1, 400),
        num_frames=st.integers(1, 8),
        divisor=st.integers(1, 32),
        fps=st.integers(1, 60),
    )
    def test_constant_rate_equals_arithmetic_at_any_rate(self, frames, num_frames, divisor, fps):
        clips = planned(
            constant(frames, fps), num_frames=num_frames, divisor=divisor, target_fps=fps
        )
        for clip in clips:
            first = clip.clip_index * num_frames * divisor
            steps = range(first, first + num_frames * divisor, divisor)
            assert clip.frame_ranks == tuple(min(rank, frames - 1) for rank in steps)

    def test_a_millisecond_clock_gives_the_frames_of_the_true_one(self):
        rounded = clock([round(rank * 1000 / 30) for rank in range(1000)], "1/1000", last=33)
        expected = [clip.frame_ranks for clip in planned(constant(1000))]
        assert [clip.frame_ranks for clip in planned(rounded)] == expected

    @given(timeline=timelines(), hop=st.sampled_from([None, 0.1, 0.7, 3.0]))
    def test_each_frame_is_the_nearest_by_brute_force(self, timeline, hop):
        for clip in planned(timeline, num_frames=4, divisor=10, hop_seconds=hop):
            for i, rank in enumerate(clip.frame_ranks):
                instant = clip.start + i * Fraction(10, 30)
                distances = [
                    abs(timeline.start_of(other) - instant) for other in range(len(timeline))
                ]
                assert rank == distances.index(min(distances))

    @given(timeline=timelines(), least=st.sampled_from([0.0, 0.5, 2.0]))
    def test_windows_cover_all_but_a_short_rest(self, timeline, least):
        clips = planned(timeline, num_frames=4, divisor=10, min_seconds=least)
        assert clips[0].start == 0
        assert all(a.end == b.start for a, b in pairwise(clips))
        rest = timeline.duration - clips[-1].end
        assert rest == 0 or rest < Fraction(str(least))

    @pytest.mark.parametrize(("frames", "clips"), [(256, 1), (315, 1), (316, 2), (512, 2)])
    def test_a_last_window_needs_its_least_seconds(self, frames, clips):
        assert len(planned(constant(frames))) == clips

    def test_a_partial_window_repeats_the_last_frame(self):
        clip = planned(constant(316))[1]
        assert clip.frame_ranks == (256, 288, 315, 315, 315, 315, 315, 315)
        assert clip.end == Fraction(316, 30)

    def test_a_video_shorter_than_the_least_gives_one_clip(self):
        (clip,) = planned(constant(3))
        assert (clip.start, clip.end) == (0, Fraction(3, 30))

    def test_a_window_shorter_than_the_least_is_kept_where_it_is_whole(self):
        clips = planned(constant(60), num_frames=2, divisor=15, min_seconds=2.0)
        assert [(clip.start, clip.end) for clip in clips] == [(0, 1), (1, 2)]

    def test_overlapping_windows_end_with_the_first_that_reaches_the_end(self):
        clips = planned(constant(90), num_frames=2, divisor=30, hop_seconds=0.5)
        assert [clip.start for clip in clips] == [0, Fraction(1, 2), 1]
        assert clips[-1].end == 3

    def test_a_hop_beyond_the_window_leaves_gaps(self):
        clips = planned(constant(300), num_frames=2, divisor=15, hop_seconds=4.0)
        assert [(clip.start, clip.end) for clip in clips] == [(0, 1), (4, 5), (8, 9)]

    def test_decimal_seconds_are_taken_as_written(self):
        clips = planned(constant(300), num_frames=2, divisor=3, hop_seconds=0.1)
        assert clips[7].start == Fraction(7, 10)

    def test_of_two_equally_near_frames_the_earlier_is_taken(self):
        timeline = clock([0, 1, 3, 5], "1/1", last=2)
        (clip, *_) = planned(timeline, num_frames=3, divisor=2, target_fps=1.0)
        assert clip.frame_ranks == (0, 1, 2)

    def test_a_lying_clock_is_refused_before_it_costs_memory(self, monkeypatch):
        monkeypatch.setattr(plan, "MAX_CLIPS", 50)
        monkeypatch.setattr(plan, "_NearestFrame", lambda _: pytest.fail("a clip was planned"))
        with pytest.raises(VideoOverBudget, match="hop_seconds"):
            planned(clock([0, 2**40], "1/1"))

    @given(
        ticks=st.integers(1, 4000),
        window=st.integers(1, 400),
        hop=st.integers(1, 500),
        least=st.integers(0, 500),
    )
    def test_windows_are_those_that_begin_in_time_and_are_long_enough(
        self, ticks, window, hop, least
    ):
        clips = planned(
            clock([0], "1/100", last=ticks),
            num_frames=1,
            divisor=window,
            target_fps=100.0,
            hop_seconds=hop / 100,
            min_seconds=least / 100,
        )
        starts = [0]
        while starts[-1] + window < ticks:
            starts.append(starts[-1] + hop)
        left = ticks - starts[-1]
        if starts[-1] and (left <= 0 or (left < window and left < least)):
            starts.pop()
        assert [clip.start * 100 for clip in clips] == starts


class TestPublishedRules:
    @pytest.mark.parametrize(
        ("frames", "expected"),
        [(100, UNIFORM_100_8), (17, UNIFORM_17_8), (5, UNIFORM_5_8)],
    )
    def test_uniform_is_the_rule_of_something_something(self, frames, expected):
        (clip,) = planned(constant(frames), "uniform")
        assert clip.frame_ranks == expected
        assert (clip.start, clip.end) == (0, Fraction(frames, 30))

    @given(frames=st.integers(1, 20_000), num_frames=st.sampled_from([4, 8, 16, 32]))
    def test_uniform_equals_numpy_for_powers_of_two(self, frames, num_frames):
        segment = float(frames - 1) / num_frames
        edges = np.round(segment * np.arange(num_frames + 1)).astype(int)
        (clip,) = planned(constant(frames), "uniform", num_frames)
        assert clip.frame_ranks == tuple((edges[:-1] + edges[1:]) // 2)

    @pytest.mark.parametrize(
        ("timeline", "views", "expected"),
        [
            (constant(300), 1, [KINETICS_300]),
            (constant(300), 2, [KINETICS_300, KINETICS_300_VIEW_1_OF_2]),
            (constant(100), 1, [KINETICS_100]),
            (constant(300, fps=25), 1, [KINETICS_300_AT_25_FPS]),
        ],
    )
    def test_kinetics_is_the_rule_of_the_paper_s_code(self, timeline, views, expected):
        (clip,) = planned(timeline, "kinetics", views=views)
        assert clip.frame_ranks == tuple(itertools.chain.from_iterable(expected))

    @given(
        frames=st.integers(1, 3000),
        fps=st.sampled_from([Fraction(30), Fraction(25), Fraction(30000, 1001)]),
        views=st.integers(1, 10),
    )
    def test_kinetics_differs_from_float32_only_beside_whole_numbers(self, frames, fps, views):
        timeline = Timeline(np.arange(frames, dtype=np.int64), 1 / fps, frames, fps)
        size = float(32 * 8 * fps / 30)
        delta = max(frames - size, 0)
        (clip,) = planned(timeline, "kinetics", views=views)
        for view in range(views):
            start = delta * view / views
            theirs = torch.linspace(start, start + size - 1, 8).clamp(0, frames - 1)
            ranks = clip.frame_ranks[8 * view : 8 * (view + 1)]
            for rank, value in zip(ranks, theirs.tolist(), strict=True):
                assert rank == int(value) or abs(value - round(value)) < 1e-3

    def test_kinetics_spans_reach_to_the_end_of_the_last_frame(self):
        (clip,) = planned(constant(300), "kinetics", views=2)
        assert (clip.start, clip.end) == (0, Fraction(278, 30))

    @given(
        frames=st.integers(1, 2000),
        num_frames=st.sampled_from([4, 8, 16]),
        divisor=st.integers(1, 40),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_random_is_the_rule_of_the_document(self, frames, num_frames, divisor, seed):
        (clip,) = planned(
            constant(frames), "random", num_frames, divisor, seed=seed, video_id=""
        )  # the hash of an empty id is 0
        length = num_frames * divisor
        end = frames
        if frames > length:
            end = np.random.RandomState(seed).randint(length, frames)
        start = max(end - length, 0) if frames > length else 0
        spaced = np.linspace(start, end, num=num_frames)
        truncated = np.clip(spaced, start, end - 1).astype(np.int64)
        beside = np.abs(spaced - np.round(spaced)) < 1e-6
        assert np.all((truncated == clip.frame_ranks) | beside)

    def test_random_depends_on_the_video_and_the_seed_alone(self):
        draws = {
            (video_id, seed): planned(constant(5000), "random", video_id=video_id, seed=seed)
            for video_id in ("a", "b")
            for seed in (0, 1, 2**32 - 1)
        }
        assert len({draw[0].frame_ranks for draw in draws.values()}) == len(draws)
        assert planned(constant(5000), "random", video_id="a", seed=1) == draws["a", 1]


@given(clips=st.integers(1, 50), size=st.integers(1, 20))
def test_units_are_full_but_for_the_last(clips, size):
    made = [PlannedClip(i, Fraction(i), Fraction(i + 1), (0,)) for i in range(clips)]
    units = units_of(made, size)
    assert [clip for unit in units for clip in unit] == made
    assert all(len(unit) == size for unit in units[:-1])
    assert 1 <= len(units[-1]) <= size


@given(timelines(), st.data())
def test_the_moments_of_a_run_find_its_frames_again(timeline, data):
    ranks = sorted(data.draw(st.sets(st.integers(0, len(timeline) - 1), min_size=1)))
    moments = [float(timeline.start_of(rank)) for rank in ranks]
    clips = clips_at(timeline, moments)
    assert [clip.frame_ranks for clip in clips] == [(rank,) for rank in ranks]
    assert [clip.clip_index for clip in clips] == list(range(len(ranks)))
    assert all(clip.start == timeline.start_of(clip.frame_ranks[0]) for clip in clips)
    assert all(clip.start < clip.end for clip in clips)


def test_a_moment_between_frames_takes_the_nearest_of_two_the_earlier():
    timeline = clock([0, 10, 20], "1/10", last=10)
    clips = clips_at(timeline, [-1.0, 0.4, 0.5, 0.6, 99.0])
    assert [clip.frame_ranks[0] for clip in clips] == [0, 0, 0, 1, 2]
