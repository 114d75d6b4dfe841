"""The motion videos show what their labels say, measured on their pixels, in any codec."""

import dataclasses
import itertools
import math
import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.video import motion
from indexer.video.motion import (
    LABELS,
    Backdrop,
    MotionScene,
    Segment,
    available_codecs,
    colour_pairs,
    container_suffixes,
    encode_video,
    iter_scene,
    iter_sequence,
    luma,
    render_scene,
    sample_scene,
    sequence_segments,
)

WINDOW_SECONDS = 32 / 15
SHORTEST_WINDOW_SECONDS = 2.0
FRAME_GAP_SECONDS = 8 / 30

seeds = st.integers(0, 2**32 - 1)
durations = st.floats(3.5, 6.5)
labels = st.sampled_from(LABELS)


def scene_of(label: str, seed: int = 0, seconds: float = 5.0) -> MotionScene:
    return sample_scene(np.random.default_rng(seed), label, seconds)


def bare(scene: MotionScene) -> MotionScene:
    """The scene without noise, before a black backdrop, one half of its square red, one green."""
    black = Backdrop("plain", (0, 0, 0), (0, 0, 0), 1.0, 0.0)
    return dataclasses.replace(
        scene,
        shape="square",
        colour=(255, 0, 0),
        accent=(0, 255, 0),
        backdrop=black,
        noise_levels=0.0,
    )


def centroid(mask_HW: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """x and y of the middle of a mask, in pixels."""
    return np.flip(np.argwhere(mask_HW).mean(axis=0))


def stretch(scene: MotionScene, start: float) -> npt.NDArray[np.uint8]:
    """Two seconds of a scene: the first and the last frame of the shortest window."""
    frames_THWC = render_scene(scene, scene.seconds, 30, 160, 160)
    first, last = round(start * 30), round((start + SHORTEST_WINDOW_SECONDS) * 30) - 1
    return frames_THWC[first : last + 1]


# --- What the labels say ------------------------------------------------------------------------


def test_the_labels_are_the_model_s_classes_in_order():
    assert LABELS == (
        "moving left",
        "moving right",
        "moving up",
        "moving down",
        "growing",
        "shrinking",
        "rotating clockwise",
        "rotating counter-clockwise",
        "standing still",
        "blinking",
    )


@pytest.mark.parametrize("start", [0.0, 1.7, 3.0])
@pytest.mark.parametrize(
    ("label", "direction"),
    [
        ("moving left", (-1, 0)),
        ("moving right", (1, 0)),
        ("moving up", (0, -1)),
        ("moving down", (0, 1)),
    ],
)
def test_a_slide_moves_its_way_in_every_window(label, direction, start):
    frames_THWC = stretch(bare(scene_of(label)), start)
    before, after = (centroid(frame.any(axis=-1)) for frame in (frames_THWC[0], frames_THWC[-1]))
    moved = (after - before) / 160
    along = moved @ np.array(direction)
    across = moved @ np.array(direction[::-1])
    assert along > 0.2
    assert abs(across) < 0.1 * along + 0.01


@pytest.mark.parametrize("start", [0.0, 3.0])
def test_growing_and_shrinking_change_the_area_by_half_or_more(start):
    for label, sign in (("growing", 1), ("shrinking", -1)):
        areas = [int(f.any(axis=-1).sum()) for f in stretch(bare(scene_of(label)), start)[[0, -1]]]
        assert sign * math.log(areas[1] / areas[0]) > math.log(1.5)


@pytest.mark.parametrize(
    ("label", "sign"), [("rotating clockwise", 1), ("rotating counter-clockwise", -1)]
)
def test_turning_goes_the_right_way_round(label, sign):
    frames_THWC = stretch(bare(scene_of(label)), 1.0)
    arms = np.array(
        [centroid(frame[..., 0] > 128) - centroid(frame[..., 1] > 128) for frame in frames_THWC]
    )
    # With y pointing down, an angle that increases turns clockwise.
    turned = np.unwrap(np.arctan2(arms[:, 1], arms[:, 0]))
    assert math.radians(80) < sign * (turned[-1] - turned[0]) < math.radians(190)
    assert (sign * np.diff(turned) > -0.02).all()


def test_standing_still_shows_one_picture():
    frames_THWC = stretch(bare(scene_of("standing still")), 0.5)
    assert (frames_THWC == frames_THWC[0]).all()
    assert frames_THWC.any()


@given(seed=seeds, duration=durations, start=st.floats(0, 1))
def test_blinking_is_both_on_and_off_in_every_window(seed, duration, start):
    scene = scene_of("blinking", seed, duration)
    first = start * (duration - SHORTEST_WINDOW_SECONDS)
    times = first + np.arange(8) * FRAME_GAP_SECONDS
    visible = [scene.state_at(min(t, duration)).visible for t in times]
    assert any(visible)
    assert not all(visible)


def test_blinking_off_shows_the_backdrop_alone():
    scene = bare(scene_of("blinking"))
    frames_THWC = render_scene(scene, 5.0, 30, 64, 64)
    shown = [scene.state_at(index / 30).visible for index in range(len(frames_THWC))]
    assert frames_THWC.any(axis=(1, 2, 3)).tolist() == shown


# --- Scenes -------------------------------------------------------------------------------------


@given(seed=seeds, label=labels, duration=durations)
def test_the_object_stays_in_the_central_square_for_the_whole_scene(seed, label, duration):
    scene = scene_of(label, seed, duration)
    assert scene.seconds == duration
    for seconds in np.linspace(0, duration, 9):
        state = scene.state_at(float(seconds))
        assert max(abs(state.x), abs(state.y)) < 0.46
        assert 0.05 < state.radius < 0.5
        assert max(abs(state.x), abs(state.y)) + 0.5 * state.radius < 0.55


@given(seed=seeds, label=labels)
def test_only_the_labelled_motion_happens(seed, label):
    scene = scene_of(label, seed)
    kind = label.split()[0]
    assert (scene.velocity != (0.0, 0.0)) == (kind == "moving")
    assert (scene.growth_rate != 0) == (kind in {"growing", "shrinking"})
    assert (scene.spin != 0) == (kind == "rotating")
    assert (scene.blink_period_seconds != 0) == (kind == "blinking")


@given(seed=seeds)
def test_turning_shows_and_does_not_alias(seed):
    scene = scene_of("rotating clockwise", seed)
    assert scene.shape in motion.TURNABLE_SHAPES
    # A cross looks the same after a quarter turn: less than an eighth between frames is safe.
    assert 0 < scene.spin * FRAME_GAP_SECONDS < math.radians(45)


@given(seed=seeds, label=labels)
def test_the_object_stands_out_from_the_backdrop(seed, label):
    scene = scene_of(label, seed)
    backdrop = [luma(scene.backdrop.dark), luma(scene.backdrop.light)]
    for colour in (scene.colour, scene.accent):
        assert min(abs(luma(colour) - level) for level in backdrop) >= motion.MIN_CONTRAST
    if scene.colour != scene.accent:
        assert abs(luma(scene.colour) - luma(scene.accent)) >= motion.MIN_ACCENT_CONTRAST


@pytest.mark.parametrize("level", [14 - 16 + 30, 60, 90, 140, 170, 245])
def test_every_backdrop_leaves_colours_to_choose_from(level):
    grey = (level, level, level)
    assert colour_pairs(Backdrop("plain", grey, grey, 1.0, 0.0))


@given(seed=seeds)
def test_a_scene_is_a_value(seed):
    one, same = (sample_scene(np.random.default_rng(seed)) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.label = "growing"


def test_scenes_vary():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(300)]
    assert {scene.label for scene in scenes} == set(LABELS)
    assert {scene.shape for scene in scenes} == set(motion.SHAPES)
    assert {scene.backdrop.kind for scene in scenes} == set(motion.BACKDROPS)


@pytest.mark.parametrize(("label", "seconds"), [("moving sideways", 5.0), ("growing", 0.0)])
def test_an_impossible_scene_is_refused(label, seconds):
    with pytest.raises(ValueError, match="no scene"):
        sample_scene(np.random.default_rng(0), label, seconds)


# --- Rendering ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backdrop", motion.BACKDROPS)
@pytest.mark.parametrize("shape", sorted(motion.SHAPES))
def test_every_shape_and_backdrop_renders(shape, backdrop):
    scene = scene_of("standing still", seed=4)
    scene = dataclasses.replace(
        scene,
        shape=shape,
        noise_levels=0.0,
        backdrop=dataclasses.replace(scene.backdrop, kind=backdrop),
    )
    frame_HWC = render_scene(scene, 0.1, 10, 128, 96)[0]
    colours_PC = frame_HWC.reshape(-1, 3).astype(int)
    of_object = np.zeros(len(colours_PC), bool)
    for colour in (scene.colour, scene.accent):
        of_object |= np.abs(colours_PC - colour).max(axis=1) <= 1
    full = (scene.radius * 96) ** 2 * math.pi
    assert 0.15 * full < of_object.sum() < 1.05 * full
    dark, light = np.array(scene.backdrop.dark), np.array(scene.backdrop.light)
    of_backdrop = ((colours_PC >= dark - 1) & (colours_PC <= light + 1)).all(axis=1)
    assert of_backdrop.mean() > 0.3
    assert (of_object | of_backdrop).mean() > 0.9  # the rest is the object's soft edge


@pytest.mark.parametrize(("width", "height"), [(256, 144), (240, 320), (64, 64)])
@pytest.mark.parametrize("fps", [24, 25, Fraction(30000, 1001)])
def test_frames_have_the_asked_size_and_count(width, height, fps):
    frames_THWC = render_scene(scene_of("moving up"), 1.5, fps, width, height)
    assert frames_THWC.dtype == np.uint8
    assert frames_THWC.shape == (round(1.5 * fps), height, width, 3)


@settings(max_examples=15)
@given(seed=seeds, label=labels)
def test_rendering_repeats_itself_and_starts_alike_whatever_the_length(seed, label):
    scene = scene_of(label, seed)
    whole = render_scene(scene, 1.0, 12, 96, 64)
    assert (whole == render_scene(scene, 1.0, 12, 96, 64)).all()
    assert (whole[:6] == render_scene(scene, 0.5, 12, 96, 64)).all()


def test_frames_come_one_at_a_time():
    frames = iter_scene(scene_of("growing", seconds=1e6), 1e6, 30, 64, 64)
    assert next(frames).shape == (64, 64, 3)


def test_noise_has_the_level_that_the_scene_says():
    scene = dataclasses.replace(bare(scene_of("standing still")), noise_levels=3.0)
    grey = Backdrop("plain", (128, 128, 128), (128, 128, 128), 1.0, 0.0)
    scene = dataclasses.replace(scene, radius=1e-3, backdrop=grey)
    frames_THWC = render_scene(scene, 1.0, 10, 96, 64).astype(float)
    assert np.std(frames_THWC[:, :20]) == pytest.approx(3.0, rel=0.1)
    assert np.mean(frames_THWC[:, :20]) == pytest.approx(128.0, abs=0.2)
    assert (frames_THWC[0] != frames_THWC[1]).mean() > 0.5


@pytest.mark.parametrize("seconds", [5.1, 0.0])
def test_a_scene_cannot_last_longer_than_its_motion(seconds):
    with pytest.raises(ValueError, match="cannot fill"):
        render_scene(scene_of("moving left"), seconds, 30, 64, 64)


def test_a_sequence_shows_each_scene_in_its_segment():
    parts = [(scene_of(label, seconds=3.0), 1.01) for label in LABELS[:3]]
    frames_THWC = np.stack(list(iter_sequence(parts, 25, 96, 64)))
    segments = sequence_segments(parts, 25)
    assert segments[1] == Segment("moving right", 1.0, 2.0)
    assert [segment.label for segment in segments] == list(LABELS[:3])
    assert all(
        one.end_seconds == other.start_seconds for one, other in itertools.pairwise(segments)
    )
    for (scene, seconds), segment in zip(parts, segments, strict=True):
        shown = slice(round(segment.start_seconds * 25), round(segment.end_seconds * 25))
        assert (frames_THWC[shown] == render_scene(scene, seconds, 25, 96, 64)).all()


# --- Encoding -----------------------------------------------------------------------------------


def decode(path: Path) -> npt.NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


COMBINATIONS = [
    pytest.param(codec, suffix, id=f"{codec}{suffix}")
    for codec in motion.CODECS
    for suffix in sorted(container_suffixes(codec))
]


@pytest.mark.parametrize(("codec", "suffix"), COMBINATIONS)
def test_every_codec_writes_its_containers_faithfully_and_repeatably(tmp_path, codec, suffix):
    if codec not in available_codecs():
        pytest.skip(f"this FFmpeg has no {codec}")
    frames_THWC = render_scene(scene_of("moving right"), 1.0, 25, 176, 100)
    paths = [tmp_path / f"{name}{suffix}" for name in ("one", "two")]
    for path in paths:
        encode_video(path, frames_THWC, 25, codec)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    decoded_THWC = decode(paths[0])
    assert decoded_THWC.shape == frames_THWC.shape
    assert np.abs(decoded_THWC.astype(int) - frames_THWC).mean() < 6
    with av.open(str(paths[0])) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 25
        stamps = sorted(float(p.pts * p.time_base) for p in container.demux(video=0) if p.size)
    assert np.diff(stamps) == pytest.approx(np.full(24, 0.04), abs=0.001)


def test_the_usual_codecs_are_there():
    assert {"libx264", "libvpx-vp9", "mpeg4"} <= set(available_codecs())


def test_h264_is_the_same_in_every_run(tmp_path):
    # Sizes that are no multiple of a macroblock, where the encoder's lookahead once was not.
    scene = scene_of("rotating clockwise", seed=7)
    paths = [tmp_path / f"{number}.mp4" for number in range(4)]
    for path in paths:
        encode_video(path, iter_scene(scene, 4.0, 24, 180, 320), 24)
    assert len({path.read_bytes() for path in paths}) == 1


def test_quality_and_keyframes_are_the_caller_s_choice(tmp_path):
    frames_THWC = render_scene(scene_of("moving right"), 2.0, 25, 176, 144)
    sizes = []
    for quality in ("low", "medium", "high"):
        path = tmp_path / f"{quality}.mp4"
        encode_video(path, frames_THWC, 25, quality=quality, keyframe_interval=10)
        sizes.append(path.stat().st_size)
        with av.open(str(path)) as container:
            keys = sum(packet.is_keyframe for packet in container.demux(video=0) if packet.size)
        assert keys == 5
    assert sizes == sorted(set(sizes))


def test_fractional_frame_rates_are_exact(tmp_path):
    fps = Fraction(30000, 1001)
    path = tmp_path / "ntsc.mkv"
    encode_video(path, iter_scene(scene_of("growing"), 1.0, fps, 96, 64), fps)
    with av.open(str(path)) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(float(fps), 1e-3)
    assert len(decode(path)) == 30


@pytest.mark.parametrize(
    ("name", "codec"), [("a.webm", "libx264"), ("a.mp4", "libx263"), ("a", "libx264")]
)
def test_a_container_that_cannot_hold_the_codec_is_refused(tmp_path, name, codec):
    with pytest.raises(ValueError, match="cannot write"):
        encode_video(tmp_path / name, render_scene(scene_of("growing"), 0.2, 10, 64, 64), 10, codec)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(0, 64, 64, 3), (2, 63, 64, 3), (2, 64, 63, 3)])
def test_frames_that_no_codec_takes_are_refused(tmp_path, shape):
    with pytest.raises(ValueError, match="even sides"):
        encode_video(tmp_path / "a.mp4", np.zeros(shape, np.uint8), 10)
    assert not list(tmp_path.iterdir())
