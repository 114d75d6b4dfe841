import contextlib
import io
import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.codec.hwaccel import hwdevices_available

from indexer.config import Decode, Sampling
from indexer.records import DecodedClips, Preprocessing, VideoFailure
from indexer.video import decode as decode_module
from indexer.video import packets as packets_module
from indexer.video.decode import decode_clips
from indexer.video.picture import PictureRenderer
from indexer.video.plan import DecodePlan
from indexer.video.preprocess import preprocess_crops, preprocess_frame
from tests.video.synth import Synth, rotated

FOLDER = Path(__file__).resolve().parents[2] / "../shared/videos"
REAL_VIDEOS = sorted(path for path in FOLDER.glob("*.*") if path.suffix != ".md")
LONG_VIDEO = "v2d_test.mp4"
RECIPE = Preprocessing(32, (32, 32), "bilinear", 1 / 255, (0.45,) * 3, (0.225,) * 3)
EVERY_FORMAT = Decode(formats=(*Decode().formats, "avi", "mpeg", "mpegts", "h264"))


def plan_of(recipe=RECIPE, num_frames=4, divisor=4, decode=EVERY_FORMAT, **sampling):
    sampling = {"min_seconds": 0.1} | sampling
    return DecodePlan(Sampling(**sampling), num_frames, divisor, recipe, decode)


def decoded(source, skip_units=frozenset(), **plan):
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    return list(decode_clips(file, plan_of(**plan), video_id="v", skip_units=skip_units))


def outcome(source, **plan):
    (only,) = decoded(source, **plan)
    return only


def plain_loop(source, units):
    """What anyone would write: {seconds from the first frame: upright RGB frame}, in order.

    Only frames at times that the units name are turned into pixels. Where the container's times go
    back, frames count at the constant rate that the units' warnings speak of.
    """
    wanted = set(itertools.chain.from_iterable(times_of(units)))
    info = units[0].info
    rate = Fraction(info.fps).limit_denominator(1000)
    assumed = any("is assumed" in warning for warning in info.warnings)
    frames, first = {}, None
    with av.open(io.BytesIO(source)) as container:
        stream = max(
            container.streams.video,
            key=lambda s: (bool(s.disposition & 1), s.codec_context.width * s.codec_context.height),
        )
        for number, frame in enumerate(forgiving(container, stream)):
            first = frame.pts if first is None else first
            clock = number / rate if assumed else (frame.pts - first) * stream.time_base
            frames[float(clock)] = upright(frame) if float(clock) in wanted else None
    return frames


def forgiving(container, stream):
    for packet in container.demux(stream):
        with contextlib.suppress(av.error.InvalidDataError):
            yield from packet.decode()


def upright(frame):
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


def times_of(units):
    return [span.frame_pts_seconds for unit in units for span in unit.spans]


def assert_exact(units, frames, recipe=RECIPE):
    """Every pixel is the plain loop's, at the times that the spans name."""
    assert all(isinstance(unit, DecodedClips) for unit in units)
    for unit in units:
        for span, clip_THWC in zip(unit.spans, unit.frames_NTHWC, strict=True):
            assert span.frames_exact
            for seconds, frame_HWC in zip(span.frame_pts_seconds, clip_THWC, strict=True):
                expected_HWC = preprocess_frame(frames[seconds], recipe)
                np.testing.assert_array_equal(frame_HWC, expected_HWC, strict=True)


def nearest_times(frames, instants):
    known = np.array(list(frames))
    return [float(known[np.abs(known - instant).argmin()]) for instant in instants]


class TestRealVideos:
    """Bit for bit the frames of a plain linear loop, for every codec and container at hand."""

    RECIPE = Preprocessing(224, (224, 224), "bilinear", 1 / 255, (0.45,) * 3, (0.225,) * 3)

    @pytest.mark.skipif(not REAL_VIDEOS, reason="the folder ../shared/videos is not here")
    @pytest.mark.parametrize(
        "path",
        [
            pytest.param(path, id=path.name, marks=[pytest.mark.slow] * (path.name == LONG_VIDEO))
            for path in REAL_VIDEOS
        ],
    )
    def test_frames_equal_those_of_the_plain_loop(self, path):
        source = path.read_bytes()
        same = {"recipe": self.RECIPE, "num_frames": 8, "divisor": 32, "min_seconds": 2.0}
        windows = decoded(source, **same)
        uniform = decoded(source, mode="uniform", **same)
        frames = plain_loop(source, windows + uniform)
        assert_exact(windows, frames, self.RECIPE)
        assert_exact(uniform, frames, self.RECIPE)

        starts = [span.start_seconds for unit in windows for span in unit.spans]
        instants = [[start + i * 32 / 30 for i in range(8)] for start in starts]
        assert times_of(windows) == [pytest.approx(nearest_times(frames, row)) for row in instants]
        segment = (len(frames) - 1) / 8
        edges = np.round(segment * np.arange(9)).astype(int)
        seconds = np.array(list(frames))[(edges[:-1] + edges[1:]) // 2]
        assert times_of(uniform) == [tuple(seconds)]


SYNTHETIC = {
    "h264_mp4": Synth(),
    "h264_no_b": Synth(options={"bf": "0"}),
    "h264_open_gop": Synth(options={"x264-params": "open-gop=1:b-pyramid=2:bframes=3:keyint=12"}),
    "h264_variable_rate": Synth(
        pts=[0, 1, 2, 7, 8, 20, 21, 22, 40, 41, 44, 47], time_base=Fraction(1, 30)
    ),
    "h264_late_start": Synth(pts=range(900, 940), time_base=Fraction(1, 30)),
    "h264_full_range": Synth(pix_fmt="yuvj420p"),
    "h264_444": Synth(pix_fmt="yuv444p"),
    "h264_odd_size": Synth(width=63, height=47, pix_fmt="yuv444p"),
    "h264_fragmented": Synth(
        container_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    ),
    "h264_mkv": Synth(container="matroska"),
    "h264_raw": Synth(container="h264"),
    "h264_ts": Synth(container="mpegts"),
    "h264_avi_reordered": Synth(container="avi"),
    "mpeg4_avi": Synth(codec="mpeg4", container="avi"),
    "mpeg4_avi_reordered": Synth(codec="mpeg4", container="avi", options={"bf": "2"}),
    "mpeg2_ps": Synth(codec="mpeg2video", container="mpeg", options={"bf": "2"}),
    "mpeg1_mp4": Synth(codec="mpeg1video", container="mpeg"),
    "vp8_alt_ref": Synth(
        codec="libvpx",
        container="webm",
        options={"auto-alt-ref": "1", "lag-in-frames": "12", "cpu-used": "8"},
    ),
    "vp9": Synth(codec="libvpx-vp9", container="webm", options={"cpu-used": "8"}),
    "hevc": Synth(codec="libx265", options={"preset": "ultrafast", "x265-params": "log-level=0"}),
}


class TestSyntheticVideos:
    @pytest.mark.parametrize("synth", SYNTHETIC.values(), ids=SYNTHETIC)
    @pytest.mark.parametrize("mode", ["windows", "uniform", "kinetics", "random"])
    def test_frames_equal_those_of_the_plain_loop(self, synth, mode):
        source = synth.encode()
        units = decoded(source, mode=mode, segment_clips=2)
        assert_exact(units, plain_loop(source, units))
        assert [unit.unit_index for unit in units] == list(range(len(units)))
        assert {unit.units for unit in units} == {len(units)}


class TestPixels:
    @pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
    def test_frames_are_turned_for_display(self, matrix):
        source = rotated(Synth().encode(), matrix)
        units = decoded(source)
        assert_exact(units, plain_loop(source, units))

    def test_a_quarter_turn_to_the_right_puts_the_left_side_on_top(self):
        plain = outcome(Synth(noise=0, width=48).encode())
        turned = outcome(rotated(Synth(noise=0, width=48).encode(), (0, 1, -1, 0)))
        assert turned.info.rotation == 90
        expected_NTHWC = np.rot90(plain.frames_NTHWC, -1, axes=(2, 3))
        np.testing.assert_allclose(turned.frames_NTHWC, expected_NTHWC, atol=1)

    def test_pictures_that_grow_beyond_the_budget_are_not_decoded(self):
        source = two_shapes(width=96, height=96)
        small = Decode(formats=EVERY_FORMAT.formats, max_pixels=64 * 48)
        (unit,) = decoded(source, decode=small, mode="uniform")
        assert unit.info.duration_seconds < 21 / 30
        assert any(warning.startswith("40 packets give ") for warning in unit.info.warnings)


class TestPeculiarities:
    SAR = Synth(width=96, options={"x264-params": "sar=4/3"})
    WHOLE = Preprocessing(32, None, "bilinear", 1 / 255, (0.45,) * 3, (0.225,) * 3)

    def test_pixels_that_are_not_square_are_recorded_and_left_as_they_are(self):
        unit = outcome(self.SAR.encode(), recipe=self.WHOLE)
        assert unit.info.warnings == ("the pixels are not square: 4:3",)
        assert unit.frames_NTHWC.shape[2:] == (32, 64, 3)

    def test_and_made_square_where_that_is_asked_for(self):
        square = Decode(square_pixels=True)
        unit = outcome(self.SAR.encode(), recipe=self.WHOLE, decode=square)
        assert unit.frames_NTHWC.shape[2:] == (32, 85, 3)

    def test_interlacing_is_recorded(self):
        unit = outcome(Synth(options={"x264-params": "tff=1"}).encode())
        assert unit.info.warnings == ("the frames are interlaced",)
        assert outcome(Synth().encode()).info.warnings == ()

    def test_a_gpu_that_is_not_there_is_done_without(self):
        if "cuda" in hwdevices_available() and torch.cuda.is_available():
            pytest.skip("there is a GPU")
        source = Synth().encode()
        unit = outcome(source, decode=Decode(device="cuda"))
        (warning,) = unit.info.warnings
        assert warning.startswith("decoded on the CPU")
        np.testing.assert_array_equal(unit.frames_NTHWC, outcome(source).frames_NTHWC)

    def test_fast_resizing_gives_other_pixels_of_the_same_frames(self):
        source = Synth(width=160, height=96).encode()
        exact, fast = outcome(source), outcome(source, decode=Decode(resize="fast"))
        assert exact.spans == fast.spans
        difference = np.abs(exact.frames_NTHWC.astype(int) - fast.frames_NTHWC.astype(int))
        assert 0 < difference.mean() < 4


class TestUnits:
    def test_skipped_units_are_not_yielded_and_the_rest_is_the_same(self):
        source = Synth(frames=100).encode()
        everything = decoded(source, segment_clips=2)
        assert [len(unit.spans) for unit in everything] == [2, 2, 2, 1]
        some = decoded(source, segment_clips=2, skip_units=frozenset({0, 2}))
        assert [unit.unit_index for unit in some] == [1, 3]
        for unit in some:
            assert unit.spans == everything[unit.unit_index].spans
            np.testing.assert_array_equal(
                unit.frames_NTHWC, everything[unit.unit_index].frames_NTHWC
            )

    def test_nothing_is_decoded_where_every_unit_is_done(self):
        assert decoded(Synth().encode(), skip_units=frozenset({0})) == []

    def test_overlapping_windows_share_frames_across_units(self):
        source = Synth(frames=60).encode()
        units = decoded(source, segment_clips=1, hop_seconds=0.1)
        assert len(units) > 10
        assert_exact(units, plain_loop(source, units))

    def test_a_unit_comes_out_before_the_rest_is_decoded(self, monkeypatch):
        monkeypatch.setattr(packets_module, "KEPT_BYTES", 0)
        source = Synth(frames=400, options={"g": "12", "bf": "0"}).encode()
        file = CountedReads(source)
        units = decode_clips(file, plan_of(segment_clips=1), video_id="v")
        next(units)
        after_first = file.read_bytes
        assert len(list(units)) > 20
        assert file.read_bytes > after_first + len(source) / 2

    def test_memory_does_not_grow_with_the_video(self, monkeypatch):
        kept = []
        forget = decode_module._Pictures.forget_before

        def counting(picker, rank):
            forget(picker, rank)
            kept.append(len(picker._pictures))

        monkeypatch.setattr(decode_module._Pictures, "forget_before", counting)
        decoded(Synth(frames=300).encode(), segment_clips=1)
        assert len(kept) > 15
        assert max(kept) <= 4

    def test_the_file_stays_open(self):
        file = io.BytesIO(Synth().encode())
        decoded(file)
        assert not file.closed


class CountedReads(io.BytesIO):
    def __init__(self, source):
        super().__init__(source)
        self.read_bytes = 0

    def read(self, size=-1):
        data = super().read(size)
        self.read_bytes += len(data)
        return data


class TestDamage:
    def test_packets_that_do_not_decode_are_replaced_and_counted(self):
        source = spoilt(Synth(frames=60, options={"g": "12", "bf": "0"}), packets=(20, 21, 22, 23))
        (unit,) = decoded(source)
        inexact = [span for span in unit.spans if not span.frames_exact]
        assert inexact
        assert any("packets that failed" in warning for warning in unit.info.warnings)
        frames = plain_loop(source, [unit])
        for span, clip_THWC in zip(unit.spans, unit.frames_NTHWC, strict=True):
            for seconds, frame_HWC in zip(span.frame_pts_seconds, clip_THWC, strict=True):
                np.testing.assert_array_equal(frame_HWC, preprocess_frame(frames[seconds], RECIPE))

    def test_a_lost_frame_gives_way_to_its_nearest_neighbour(self):
        source = spoilt(Synth(frames=60, codec="mpeg4", options={"g": "1"}), packets=(4,))
        (unit,) = decoded(source)
        assert unit.spans[0].frame_pts_seconds[1] == pytest.approx(3 / 30)
        assert not unit.spans[0].frames_exact
        assert unit.spans[1].frames_exact
        assert unit.info.warnings == ("packets that failed to decode: 1",)

    def test_a_unit_without_most_of_its_frames_fails_and_the_others_stand(self):
        synth = Synth(frames=64, codec="mpeg4", options={"g": "1"})
        units = decoded(spoilt(synth, packets=range(16, 31)), segment_clips=1)
        assert [type(unit) for unit in units] == [
            DecodedClips, VideoFailure, DecodedClips, DecodedClips,
        ]  # fmt: skip
        assert (units[1].code, units[1].unit_index, units[1].units) == ("corrupt", 1, 4)
        assert units[1].info.codec == "mpeg4"

    def test_a_video_of_which_nothing_decodes_is_corrupt(self):
        synth = Synth(frames=20, codec="mpeg4", options={"g": "1"})
        failure = outcome(spoilt(synth, packets=range(20)))
        assert (failure.code, failure.unit_index, failure.units) == ("corrupt", 0, 1)

    def test_a_lost_start_and_end_give_way_to_what_is_there(self):
        synth = Synth(frames=64, codec="mpeg4", options={"g": "1"})
        (unit,) = decoded(spoilt(synth, packets=(0, 63)), num_frames=5, divisor=3)
        assert unit.spans[0].frame_pts_seconds[0] == pytest.approx(1 / 30)
        assert unit.spans[-1].frame_pts_seconds[-1] == pytest.approx(62 / 30)
        assert [span.frames_exact for span in unit.spans] == [False, True, True, True, False]

    def test_frames_that_the_decoder_patched_up_are_not_called_exact(self):
        synth = Synth(frames=60, noise=60, options={"g": "60", "bf": "0"})
        source = bytearray(synth.encode())
        start, size = payloads(source)[20]
        source[start + size // 3 : start + size] = bytes(size - size // 3)
        (unit,) = decoded(bytes(source))
        assert any(
            warning.startswith("decoded frames that are damaged") for warning in unit.info.warnings
        )
        exact = [span.frames_exact for span in unit.spans]
        assert exact[0]
        assert not all(exact)

    def test_a_clockless_video_of_which_nothing_decodes_is_corrupt(self):
        synth = Synth(frames=20, codec="mpeg4", container="avi", options={"bf": "2"})
        assert outcome(spoilt(synth, packets=range(20))).code == "corrupt"

    def test_a_video_that_gives_neither_frames_nor_errors_has_no_frames(self):
        synth = Synth(frames=12, codec="mpeg4")
        assert outcome(not_coded(synth, packets=range(12))).code == "no_frames"

    def test_what_ffmpeg_cannot_convert_is_corrupt(self, monkeypatch):
        def give_up(*_):
            raise av.error.InvalidDataError(1, "Invalid data found when processing input")

        monkeypatch.setattr(PictureRenderer, "__call__", give_up)
        failure = outcome(Synth(frames=20).encode())
        assert failure.code == "corrupt"
        assert "Invalid data" in failure.message

    def test_a_read_error_midway_fails_the_units_left(self, monkeypatch):
        monkeypatch.setattr(packets_module, "KEPT_BYTES", 0)
        source = Synth(frames=200, noise=60).encode()
        whole = FailsAfter(source, reads=10**6)
        assert all(isinstance(unit, DecodedClips) for unit in decoded(whole, segment_clips=1))
        reads = (10**6 - whole.reads) * 4 // 5
        units = decoded(FailsAfter(source, reads=reads), segment_clips=1)
        kinds = [type(unit) for unit in units]
        assert kinds == sorted(kinds, key=lambda kind: kind is VideoFailure)
        assert {DecodedClips, VideoFailure} == set(kinds)
        assert [unit.unit_index for unit in units] == list(range(len(units)))
        assert {unit.code for unit in units if isinstance(unit, VideoFailure)} == {"transient_io"}

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (OSError(5, "Input/output error"), "transient_io"),
            (MemoryError(), "over_budget"),
            (RuntimeError("at\nfault"), "internal"),
        ],
    )
    def test_no_error_gets_out(self, error, code):
        failure = outcome(FailsAfter(Synth().encode(), reads=0, error=error))
        assert (failure.code, failure.unit_index, failure.units) == (code, 0, 1)
        assert "\n" not in failure.message

    def test_an_internal_failure_names_the_exception(self):
        failure = outcome(FailsAfter(Synth().encode(), reads=0, error=KeyError("x")))
        assert failure.message == "KeyError: 'x'"

    def test_closing_early_is_no_failure(self):
        units = decode_clips(
            io.BytesIO(Synth(frames=100).encode()), plan_of(segment_clips=1), video_id="v"
        )
        next(units)
        units.close()

    def test_a_picture_that_changes_shape_is_taken_where_the_recipe_crops(self):
        source = two_shapes()
        (unit,) = decoded(source, mode="uniform")
        assert unit.frames_NTHWC.shape == (1, 4, 32, 32, 3)
        assert_exact([unit], plain_loop(source, [unit]))

    def test_a_picture_that_changes_shape_fails_without_crop(self):
        recipe = Preprocessing(32, None, "bilinear", 1 / 255, (0.45,) * 3, (0.225,) * 3)
        assert outcome(two_shapes(), recipe=recipe, mode="uniform").code == "corrupt"


class TestViewsOfOneClip:
    """Several stretches and crops of a video make one clip, whose scores are fused."""

    SOURCE = Synth(frames=60, width=96, height=48).encode()

    @pytest.mark.parametrize("segment_clips", [1, 32])
    def test_all_crops_of_a_view_lie_side_by_side_and_all_views_of_a_clip(self, segment_clips):
        (unit,) = decoded(
            self.SOURCE, mode="kinetics", views=2, crops=3, segment_clips=segment_clips
        )
        (span,) = unit.spans
        assert unit.frames_NTHWC.shape == (2 * 3, 4, 32, 32, 3)
        assert len(span.frame_pts_seconds) == 2 * 4
        frames = plain_loop(self.SOURCE, [unit])
        expected_VTPHWC = np.array(
            [preprocess_crops(frames[at], RECIPE, crops=3) for at in span.frame_pts_seconds]
        ).reshape(2, 4, 3, 32, 32, 3)
        expected_NTHWC = expected_VTPHWC.transpose(0, 2, 1, 3, 4, 5).reshape(6, 4, 32, 32, 3)
        np.testing.assert_array_equal(unit.frames_NTHWC, expected_NTHWC)

    def test_crops_need_no_views(self):
        units = decoded(self.SOURCE, crops=3, segment_clips=2)
        assert len(units) > 1
        for unit in units:
            assert len(unit.frames_NTHWC) == 3 * len(unit.spans)


class TestPromisesThatPacketsBreak:
    """Packets may give neither frame nor error, such as the pictures `not coded` of MPEG-4."""

    SYNTH = Synth(frames=64, codec="mpeg4", options={"g": "12"})

    @pytest.mark.parametrize(
        ("mode", "packets"), [("windows", (4, 9)), ("uniform", (8, 24)), ("uniform", (8, 9))]
    )
    def test_the_frames_that_come_are_counted_instead(self, mode, packets):
        source = not_coded(self.SYNTH, packets=packets)
        units = decoded(source, mode=mode)
        assert_exact(units, plain_loop(source, units))
        assert "64 packets give 62 frames" in units[-1].info.warnings

    def test_units_that_are_out_already_stand(self):
        source = not_coded(self.SYNTH, packets=(36,))
        first, *_ = units = decoded(source, segment_clips=1)
        assert_exact([first], plain_loop(source, units))
        spans = [span for unit in units for span in unit.spans]
        assert [span.frames_exact for span in spans] == [True, True, False, True]
        assert spans[2].frame_pts_seconds[1] == pytest.approx(35 / 30)


def not_coded(synth, packets):
    """Clears the bit vop_coded in the header of some pictures: ISO/IEC 14496-2, 6.2.5."""
    source = bytearray(synth.encode())
    for number in packets:
        start, _ = payloads(source)[number]
        start = source.index(b"\x00\x00\x01\xb6", start) + 4
        bits = "".join(f"{byte:08b}" for byte in source[start : start + 8])
        place = bits.index("0", 2) + 1 + 1 + 5 + 1  # modulo, marker, 5 bits of time, marker
        assert bits[place] == "1"
        source[start + place // 8] &= ~(0x80 >> place % 8)
    return bytes(source)


class FailsAfter(io.BytesIO):
    def __init__(self, source, reads, error=OSError(5, "Input/output error")):  # noqa: B008
        super().__init__(source)
        self.reads, self.error = reads, error

    def read(self, size=-1):
        self.reads -= 1
        if self.reads < 0:
            raise self.error
        return super().read(min(size, 256) if size > 0 else size)


def spoilt(synth, packets):
    """The video with the payload of some packets overwritten; their times stay."""
    source = bytearray(synth.encode())
    for number in packets:
        start, size = payloads(source)[number]
        source[start : start + size] = b"\x00" * size
    return bytes(source)


def payloads(source):
    with av.open(io.BytesIO(bytes(source))) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def two_shapes(width=48, height=64):
    """A transport stream that goes on with pictures of another shape."""
    clock = {"container": "mpegts", "codec": "mpeg2video", "time_base": Fraction(1, 30)}
    first = Synth(frames=20, pts=range(20), **clock).encode()
    return first + Synth(frames=20, width=width, height=height, pts=range(20, 40), **clock).encode()
