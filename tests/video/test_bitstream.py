"""What is left out is what the codec says nothing depends on; test_frames proves it harmless."""

import io

import av
import pytest

from indexer.config import Decode
from indexer.video.bitstream import disposable_test, hidden_test
from indexer.video.probe import open_video_stream
from tests.video.synth import Synth

EVERY_FORMAT = Decode(formats=(*Decode().formats, "mpegts"))
X265 = "log-level=0:pools=none:frame-threads=1"
LAGGED = {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}


def answers(synth, make_test):
    """For each packet of a video: (is keyframe, answer), or None where the codec has no test."""
    with open_video_stream(io.BytesIO(synth.encode()), EVERY_FORMAT) as (container, stream):
        test = make_test(stream.codec_context)
        if test is None:
            return None
        return [(p.is_keyframe, test(p)) for p in container.demux(stream) if p.size]


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize("slices", [1, 4])
def test_h264_frames_between_references_are_disposable(container, slices):
    options = {"x264-params": f"bframes=3:b-adapt=0:b-pyramid=0:slices={slices}:scenecut=0"}
    found = answers(Synth(frames=41, container=container, options=options), disposable_test)
    assert not any(disposable for is_key, disposable in found if is_key)
    assert sum(disposable for _, disposable in found) >= 20


def test_h264_without_b_frames_has_none():
    found = answers(Synth(options={"bf": "0"}), disposable_test)
    assert not any(disposable for _, disposable in found)


def test_hevc_frames_between_references_are_disposable():
    options = {"x265-params": f"{X265}:bframes=3:b-adapt=0:no-b-pyramid=1:scenecut=0"}
    found = answers(Synth(codec="libx265", frames=41, options=options), disposable_test)
    assert not any(disposable for is_key, disposable in found if is_key)
    assert sum(disposable for _, disposable in found) >= 20


def test_hevc_layers_below_the_top_one_are_not():
    options = {"x265-params": f"{X265}:temporal-layers=3:bframes=3:b-adapt=0"}
    synth = Synth(codec="libx265", frames=41, options=options)
    with open_video_stream(io.BytesIO(synth.encode()), Decode()) as (container, stream):
        test = disposable_test(stream.codec_context)
        top_layer = (stream.codec_context.extradata[21] >> 3 & 7) - 1
        assert top_layer > 0
        for packet in container.demux(stream):
            if packet.size and test(packet):
                assert layer_of(bytes(packet)) == top_layer


def layer_of(data):
    offset = 0
    while data[offset + 4] >> 1 & 63 >= 32:
        offset += 4 + int.from_bytes(data[offset : offset + 4])
    return (data[offset + 5] & 7) - 1


@pytest.mark.parametrize(
    "synth",
    [
        Synth(codec="libvpx", container="webm"),
        Synth(codec="libvpx-vp9", container="webm"),
        Synth(codec="mpeg4"),
        Synth(codec="libsvtav1", options={"preset": "12"}),
        Synth(codec="libx265", container="mpegts", options={"x265-params": X265}),
    ],
    ids=["vp8", "vp9", "mpeg4", "av1", "hevc_without_header"],
)
def test_other_codecs_have_no_test(synth):
    assert answers(synth, disposable_test) is None


def test_vp8_frames_are_hidden_unless_shown():
    test = hidden_test(av.CodecContext.create("vp8", "r"))
    shows = 0x10
    assert test(av.Packet(b"\x01\x00\x00"))
    assert not test(av.Packet(bytes([1 | shows, 0, 0])))
    found = answers(Synth(codec="libvpx", container="webm"), hidden_test)
    assert [is_hidden for _, is_hidden in found] == [False] * 40


def test_vp9_frames_that_share_a_packet_are_shown():
    found = answers(
        Synth(codec="libvpx-vp9", container="webm", frames=60, options=LAGGED), hidden_test
    )
    assert [is_hidden for _, is_hidden in found] == [False] * 60


def test_vp9_frames_alone_in_a_packet_are_hidden_unless_shown():
    test = hidden_test(av.CodecContext.create("vp9", "r"))
    frame_marker, shows_existing, shows, profile_3 = 0x80, 0x08, 0x02, 0x30
    assert test(av.Packet(bytes([frame_marker, 0, 0])))
    assert not test(av.Packet(bytes([frame_marker | shows, 0, 0])))
    assert not test(av.Packet(bytes([frame_marker | shows_existing, 0, 0])))
    assert not test(av.Packet(bytes([frame_marker | profile_3, 0, 0])))


def test_bytes_that_are_cut_off_do_no_harm():
    source = Synth(frames=8, options={"bf": "2"}).encode()
    with open_video_stream(io.BytesIO(source), Decode()) as (container, stream):
        test = disposable_test(stream.codec_context)
        for packet in container.demux(stream):
            for length in range(1, 8):
                assert test(av.Packet(bytes(packet)[:length] or b"\0")) in (True, False)
