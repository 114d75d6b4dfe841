"""Sparse decoding gives, bit for bit, the planes that decoding everything gives."""

import hashlib
import io
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from indexer.config import Decode
from indexer.video import frames as frames_module
from indexer.video import packets as packets_module
from indexer.video.decoder import FrameDecoder
from indexer.video.frames import ordered_frames, sparse_frames
from indexer.video.packets import PacketReader, scan_packets, timeline_of_output
from indexer.video.probe import open_video_stream
from tests.video.synth import Synth, from_keyframe

FOLDER = Path(__file__).resolve().parents[2] / "../shared/videos"
REAL_VIDEOS = sorted(path for path in FOLDER.glob("*.*") if path.suffix != ".md")
LONG_VIDEO = "v2d_test.mp4"
TARGETS = 75
EVERY_FORMAT = Decode(
    formats=(*Decode().formats, "avi", "flv", "asf", "mpeg", "mpegts", "ogg", "h264"),
    codecs=(*Decode().codecs, "flv", "wmv2", "ffv1"),
)

X264 = {"bf": "3", "g": "40", "sc_threshold": "0"}
X265 = "log-level=0:pools=none:frame-threads=1"  # with threads it crashed once in a while
FRAMES = 150
GENERATED = {
    "h264_b_pyramid": Synth(options=X264 | {"b-pyramid": "normal", "refs": "4"}),
    "h264_no_b": Synth(options={"bf": "0", "g": "30"}),
    "h264_open_gop": Synth(
        options={"x264-params": "open-gop=1:bframes=3:b-pyramid=2:keyint=24:min-keyint=24"}
    ),
    "h264_open_gop_ts": Synth(
        container="mpegts", options={"x264-params": "open-gop=1:bframes=3:keyint=24"}
    ),
    "h264_mbaff": Synth(options=X264 | {"x264-params": "tff=1"}),
    "h264_fake_interlaced": Synth(options=X264 | {"x264-params": "fake-interlaced=1"}),
    "h264_multi_slice": Synth(options=X264 | {"x264-params": "slices=4"}),
    "h264_intra_refresh": Synth(options={"x264-params": "intra-refresh=1:keyint=30:bframes=2"}),
    "h264_10_bit": Synth(options=X264, pix_fmt="yuv420p10le"),
    "h264_422": Synth(options=X264, pix_fmt="yuv422p"),
    "h264_444": Synth(options=X264, pix_fmt="yuv444p"),
    "h264_full_range": Synth(options=X264, pix_fmt="yuvj420p"),
    "h264_one_keyframe": Synth(options=X264 | {"g": "1000"}),
    "h264_fragmented": Synth(
        options=X264,
        container_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"},
    ),
    "h264_edit_list": Synth(options=X264, pts=range(-7, FRAMES - 7), time_base=Fraction(1, 30)),
    "h264_late_start": Synth(options=X264, pts=range(900, 900 + FRAMES), time_base=Fraction(1, 30)),
    "h264_variable_rate": Synth(
        options=X264,
        pts=np.cumsum([1, 1, 5, 2, 9] * (FRAMES // 5)).tolist(),
        time_base=Fraction(1, 90),
    ),
    "h264_mkv": Synth(container="matroska", options=X264),
    "h264_ts": Synth(container="mpegts", options=X264),
    "h264_ps": Synth(container="mpeg", options=X264),
    "h264_flv": Synth(container="flv", options=X264),
    "h264_avi": Synth(container="avi", options=X264),
    "h264_raw": Synth(container="h264", options=X264),
    "hevc": Synth(codec="libx265", options={"x265-params": f"{X265}:bframes=4:keyint=40"}),
    "hevc_open_gop": Synth(
        codec="libx265", options={"x265-params": f"{X265}:open-gop=1:keyint=20:bframes=4"}
    ),
    "hevc_temporal_layers": Synth(
        codec="libx265",
        options={"x265-params": f"{X265}:temporal-layers=3:b-adapt=0:bframes=3:keyint=32"},
    ),
    "hevc_mkv": Synth(codec="libx265", container="matroska", options={"x265-params": f"{X265}"}),
    "hevc_ts": Synth(codec="libx265", container="mpegts", options={"x265-params": f"{X265}"}),
    "hevc_10_bit": Synth(
        codec="libx265", pix_fmt="yuv420p10le", options={"x265-params": f"{X265}"}
    ),
    "av1": Synth(codec="libsvtav1", options={"preset": "12", "g": "40"}),
    "av1_mkv": Synth(codec="libsvtav1", container="matroska", options={"preset": "12", "g": "40"}),
    "vp8_alt_ref": Synth(
        codec="libvpx",
        container="webm",
        options={"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8", "g": "40"},
    ),
    "vp9_alt_ref": Synth(
        codec="libvpx-vp9",
        container="webm",
        options={"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8", "g": "40"},
    ),
    "vp9_mp4": Synth(codec="libvpx-vp9", options={"cpu-used": "8", "g": "40"}),
    "mpeg1_ps": Synth(codec="mpeg1video", container="mpeg", options={"bf": "2", "g": "12"}),
    "mpeg2_ps": Synth(codec="mpeg2video", container="mpeg", options={"bf": "2", "g": "12"}),
    "mpeg2_ts": Synth(codec="mpeg2video", container="mpegts", options={"bf": "2", "g": "12"}),
    "mpeg2_interlaced": Synth(
        codec="mpeg2video", container="mpegts", options={"flags": "+ildct+ilme", "g": "12"}
    ),
    "mpeg4_mp4": Synth(codec="mpeg4", options={"bf": "2", "g": "12"}),
    "mpeg4_avi": Synth(codec="mpeg4", container="avi", options={"g": "12"}),
    "mpeg4_avi_b": Synth(codec="mpeg4", container="avi", options={"bf": "2", "g": "12"}),
    "flv1": Synth(codec="flv", container="flv", options={"g": "12"}),
    "wmv2_asf": Synth(codec="wmv2", container="asf", options={"g": "12"}),
    "vp8_ogg": Synth(codec="libvpx", container="ogg", options={"g": "12", "cpu-used": "8"}),
}
X265_VARIANTS = {
    **{f"refs_{refs}": f"ref={refs}:keyint=60" for refs in range(1, 6)},
    "one_ref_no_b": "ref=1:bframes=0:keyint=50",
    "no_pyramid": "bframes=5:b-adapt=0:b-pyramid=0:keyint=50",
    "pyramid": "bframes=7:b-adapt=0:b-pyramid=1:ref=4:keyint=64",
    "open_gop_many_refs": "open-gop=1:keyint=17:min-keyint=17:bframes=6:b-adapt=0:ref=5:scenecut=0",
    "weighted": "weightp=2:weightb=1:bframes=3",
    "intra_refresh": "intra-refresh=1:keyint=30:bframes=0",
    "slices": "pools=1:slices=4:ctu=16:keyint=50",  # which crashes without any thread
    "wavefronts": "pools=1:wpp=1:ctu=16:keyint=40",
    "headers_in_band": "repeat-headers=1:aud=1:hrd=1:vbv-maxrate=900:vbv-bufsize=900:keyint=30",
    "scaling_lists": "scaling-list=default:keyint=50",
    "interlaced": "interlace=tff:keyint=50",
    "long_group": "keyint=1000:min-keyint=1000:scenecut=0:ref=2:bframes=4",
}


@pytest.fixture(autouse=True)
def _nothing_is_repaired(monkeypatch):
    """Nothing here is damaged: what is planned must do."""

    def repair(*_):
        pytest.fail("a frame did not come out of its run")

    monkeypatch.setattr(frames_module, "_repaired", repair)


def digest(frame):
    hashed = hashlib.blake2b(f"{frame.width}x{frame.height} {frame.format.name}".encode())
    for plane in frame.planes:
        samples = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        bits = frame.format.components[0].bits
        row_bytes = plane.width * (2 if bits > 8 else 1)
        hashed.update(np.ascontiguousarray(samples[:, :row_bytes]))
    return hashed.hexdigest()


def linear(source, decode):
    """Digests of all frames of a plain loop, in order of output, with their timestamps."""
    with open_video_stream(io.BytesIO(source), decode) as (container, stream):
        return [(frame.pts, digest(frame)) for frame in container.decode(stream)]


def sampled(source, ranks, decode):
    """{rank: (pts, digest)}, and how many packets were decoded for it."""
    file = io.BytesIO(source)
    with open_video_stream(file, decode) as opened:
        table = scan_packets(file, opened, decode)
        decoder = FrameDecoder(opened.stream.codec_context)
        if table.timeline is not None:
            with PacketReader(file, table, decode) as reader:
                frames = sparse_frames(decoder, reader, table, ranks, frozenset(ranks))
                return collect(frames), decoder.output
    with open_video_stream(file, decode) as opened:
        pts = [frame.pts for frame in opened.container.decode(opened.stream)]
        timeline, _ = timeline_of_output(pts, opened.stream)
    with open_video_stream(file, decode) as opened:
        decoder = FrameDecoder(opened.stream.codec_context)
        return collect(ordered_frames(decoder, opened, timeline, ranks)), decoder.output


def collect(frames):
    found = {}
    for item in frames:
        assert item.exact
        found[item.wanted] = (item.frame.pts, digest(item.frame))
    return found


def assert_exact(source, seed, decode=EVERY_FORMAT):
    """75 targets at once, and as many alone or in small groups, are those of the plain loop."""
    truth = linear(source, decode)
    randomly = random.Random(seed)
    everything = range(len(truth))
    many = sorted(randomly.sample(everything, min(TARGETS, len(truth))))
    few = [sorted(randomly.sample(everything, min(size, len(truth)))) for size in (1, 1, 2, 3, 5)]
    for ranks in [many, *few]:
        found, _ = sampled(source, ranks, decode)
        assert found == {rank: truth[rank] for rank in ranks}


@pytest.mark.skipif(not REAL_VIDEOS, reason="the folder ../shared/videos is not here")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.name, marks=[pytest.mark.slow] * (path.name == LONG_VIDEO))
        for path in REAL_VIDEOS
    ],
)
def test_real_videos(path):
    assert_exact(path.read_bytes(), seed=path.name)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "read_again"])
@pytest.mark.parametrize("name", GENERATED)
def test_generated_videos(name, kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(packets_module, "KEPT_BYTES", 0)
        monkeypatch.setattr(packets_module, "_SEEK_BYTES", 1000)
    synth = GENERATED[name]
    synth = synth if synth.pts is not None else synth.__class__(**vars(synth) | {"frames": FRAMES})
    assert_exact(synth.encode(), seed=name)


def hevc(params, pix_fmt="yuv420p", frames=100):
    """Tall enough for several slices and rows of blocks."""
    options = {"x265-params": f"{X265}:{params}"}
    return Synth(codec="libx265", frames=frames, height=160, pix_fmt=pix_fmt, options=options)


@pytest.mark.parametrize("name", X265_VARIANTS)
def test_hevc_by_reference(name):
    assert_exact(hevc(X265_VARIANTS[name]).encode(), seed=name)


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv444p", "gray"])
def test_hevc_of_other_formats(pix_fmt):
    assert_exact(hevc("ref=2", pix_fmt).encode(), seed=pix_fmt)


def test_hevc_that_begins_with_pictures_of_a_group_that_is_cut_off():
    """Its leading pictures do not decode: ITU-T H.265, 8.3.3."""
    source = hevc(
        "open-gop=1:keyint=20:min-keyint=20:bframes=4:b-adapt=0:ref=3:scenecut=0"
    ).encode()
    assert_exact(from_keyframe(source, 2), seed="cut", decode=EVERY_FORMAT)


@pytest.mark.parametrize(
    "synth",
    [
        Synth(frames=FRAMES, codec="mpeg4", options={"g": "12"}),
        Synth(frames=FRAMES, codec="mpeg4", options={"g": "1000"}),
        Synth(
            frames=FRAMES,
            codec="libx265",
            options={"x265-params": f"{X265}:bframes=0:keyint=40"},
        ),
        Synth(frames=FRAMES, options={"bf": "0", "g": "30"}),
        Synth(frames=FRAMES, codec="libvpx-vp9", options={"cpu-used": "8", "g": "40"}),
    ],
    ids=["mpeg4", "mpeg4_one_keyframe", "hevc", "h264", "vp9"],
)
def test_every_packet_is_called_a_keyframe(synth):
    """An MP4 without its table of keyframes says so: ISO/IEC 14496-12, 8.6.2."""
    source = synth.encode()
    without_table = source.replace(b"stss", b"free")
    assert without_table != source
    assert linear(without_table, EVERY_FORMAT) == linear(source, EVERY_FORMAT)
    assert_exact(without_table, seed=synth.codec)
