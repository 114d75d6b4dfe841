import io
import socket
import struct
from fractions import Fraction
from pathlib import Path

import av
import av.logging
import numpy as np
import pytest
from av.stream import Disposition

from indexer.config import Decode
from indexer.errors import (
    VideoCorrupt,
    VideoEmpty,
    VideoError,
    VideoNoFrames,
    VideoNotAVideo,
    VideoOverBudget,
    VideoTruncated,
    VideoUnsupportedCodec,
)
from indexer.video.packets import scan_packets, timeline_of_output
from indexer.video.probe import (
    clockwise_rotation,
    describe,
    open_container,
    open_video_stream,
)
from tests.video.synth import Synth, rotated

EVERY_FORMAT = Decode(formats=(*Decode().formats, "avi", "mpeg", "mpegts", "h264"))


def scanned(source, decode=EVERY_FORMAT):
    file = io.BytesIO(source)
    with open_video_stream(file, decode) as opened:
        return scan_packets(file, opened, decode)


def refusal(source, decode=EVERY_FORMAT):
    with pytest.raises(VideoError) as caught:
        scanned(source, decode)
    assert "\n" not in str(caught.value)
    return type(caught.value)


def boxes(source):
    """{kind: (start, size)} of the outermost boxes of an MP4."""
    found, offset = {}, 0
    while offset < len(source):
        size, kind = struct.unpack_from(">I4s", source, offset)
        found[kind] = (offset, size)
        offset += size
    return found


def faststart(**synth):
    return Synth(container_options={"movflags": "faststart"}, **synth).encode()


class TestTimeline:
    @pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "mov"])
    def test_is_that_of_the_frames(self, container):
        timeline = scanned(Synth(frames=25, fps=25, container=container).encode()).timeline
        assert len(timeline) == 25
        assert timeline.fps == 25
        assert timeline.duration == 1
        assert [float(timeline.start_of(rank)) for rank in range(25)] == pytest.approx(
            np.arange(25) / 25
        )

    def test_is_exact_for_a_variable_rate(self):
        pts = [0, 1, 5, 6, 100, 103]
        source = Synth(pts=pts, time_base=Fraction(1, 50)).encode()
        timeline = scanned(source).timeline
        starts = [timeline.start_of(rank) for rank in range(6)]
        assert starts == [Fraction(tick, 50) for tick in pts]

    def test_a_declared_rate_that_lies_is_not_used(self):
        source = bytearray(Synth(frames=30, codec="libvpx", container="webm").encode())
        place = source.index(b"\x23\xe3\x83")  # DefaultDuration, from which the rate is guessed
        width = source[place + 3] & 0x0F
        source[place + 4 : place + 4 + width] = (1_000_000).to_bytes(width)
        assert scanned(bytes(source)).timeline.fps == pytest.approx(30, rel=0.05)

    @pytest.mark.parametrize(
        ("synth", "reason"),
        [
            (Synth(container="h264"), "timestamp"),
            (Synth(container="avi"), "presentation times"),
        ],
    )
    def test_is_absent_where_the_packets_cannot_be_trusted(self, synth, reason):
        scan = scanned(synth.encode())
        assert scan.timeline is None
        assert reason in scan.distrust

    def test_is_absent_where_times_go_back(self):
        once = Synth(container="mpegts", frames=24).encode()
        assert scanned(once + once).timeline is None

    def test_is_absent_where_two_frames_have_one_time(self):
        source = bytearray(Synth(frames=20, codec="mpeg4", container="matroska").encode())
        place = -1
        for tick in (33, 67):  # the block's time, relative to its cluster's, of the next frame
            place = source.index(b"\x81" + tick.to_bytes(2), place + 1)
        source[place + 1 : place + 3] = (33).to_bytes(2)
        assert scanned(bytes(source)).distrust == "two frames with one timestamp"

    def test_is_absent_without_a_keyframe_at_the_start(self):
        source = Synth(container="mpegts", frames=60, options={"g": "30", "bf": "0"}).encode()
        with av.open(io.BytesIO(source)) as container:
            fifth = [packet.pos for packet in container.demux(video=0) if packet.size][5]
        tables = source[: 188 * 3]
        assert scanned(tables + source[fifth:]).distrust == "no keyframe at the start"

    def test_of_output_keeps_times_that_increase(self):
        with av.open(io.BytesIO(Synth().encode())) as container:
            timeline, own = timeline_of_output([100, 612, 1124], container.streams.video[0])
        assert own
        assert list(timeline.pts) == [100, 612, 1124]
        assert timeline.end_pts == 1124 + 512

    @pytest.mark.parametrize("pts", [[0, None, 1024], [0, 512, 512], [512, 0, 1024]])
    def test_of_output_replaces_others_by_a_constant_rate(self, pts):
        with av.open(io.BytesIO(Synth(frames=30).encode())) as container:
            timeline, own = timeline_of_output(pts, container.streams.video[0])
        assert not own
        assert timeline.fps == 3  # three frames in the one second that the stream declares
        assert timeline.duration == 1

    def test_of_a_single_frame_lasts_as_long_as_the_rate_says(self):
        with av.open(io.BytesIO(Synth(container="h264").encode())) as container:
            timeline, own = timeline_of_output([7], container.streams.video[0])
        assert own
        assert timeline.duration == pytest.approx(1 / 25, rel=0.2)


class TestDescription:
    @pytest.mark.parametrize(
        ("matrix", "rotation", "size"),
        [
            ((0, 1, -1, 0), 90, (48, 64)),
            ((-1, 0, 0, -1), 180, (64, 48)),
            ((0, -1, 1, 0), 270, (48, 64)),
            ((1, 0, 0, 1), 0, (64, 48)),
        ],
    )
    def test_rotation_is_clockwise_and_the_size_is_the_displayed_one(self, matrix, rotation, size):
        source = rotated(Synth().encode(), matrix)
        timeline = scanned(source).timeline
        with open_video_stream(io.BytesIO(source), Decode()) as (container, stream):
            frame = next(container.decode(stream))
            assert clockwise_rotation(frame) == rotation
            info = describe(stream, timeline, frame, ("w",))
        assert (info.width, info.height, info.rotation) == (*size, rotation)
        assert (info.codec, info.fps, info.warnings) == ("h264", 30.0, ("w",))
        assert info.duration_seconds == pytest.approx(40 / 30)

    def test_the_default_stream_is_chosen_then_the_largest(self):
        assert chosen([(32, 0), (64, 0), (48, 0)]) == 64
        assert chosen([(64, 0), (32, Disposition.default), (48, 0)]) == 32

    def test_a_cover_picture_is_no_video(self):
        mjpeg_too = Decode(codecs=(*Decode().codecs, "mjpeg"))
        with open_video_stream(io.BytesIO(with_cover("mpeg4")), mjpeg_too) as (_, stream):
            assert stream.codec_context.width == 32
        assert refusal(with_cover("aac"), mjpeg_too) is VideoNotAVideo

    def test_the_codec_is_named_by_its_format_and_not_by_its_decoder(self):
        source = Synth(codec="libvpx-vp9", container="webm", options={"cpu-used": "8"}).encode()
        with open_video_stream(io.BytesIO(source), Decode()) as (container, stream):
            frame = next(container.decode(stream))
            assert describe(stream, scanned(source).timeline, frame, ()).codec == "vp9"


def chosen(streams):
    """Width of the stream that is chosen of several, given as (width, disposition)."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        made = []
        for width, disposition in streams:
            stream = container.add_stream("mpeg4", rate=30)
            stream.width, stream.height, stream.pix_fmt = width, 32, "yuv420p"
            stream.disposition = disposition
            made.append(stream)
        for stream in made:
            frame = av.VideoFrame(stream.width, 32, "yuv420p")
            frame.pts, frame.time_base = 0, Fraction(1, 30)
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    with open_video_stream(io.BytesIO(buffer.getvalue()), Decode()) as (_, stream):
        return stream.codec_context.width


def with_cover(codec):
    """An MP4 with one empty stream of the codec, 32 pixels wide, and a cover of 64."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=30 if codec == "mpeg4" else 48_000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        if codec == "mpeg4":
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            frame = av.VideoFrame(32, 32, "yuv420p")
            frame.pts = 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
        picture = av.VideoFrame(64, 64, "yuvj420p")
        picture.pts = 0
        container.mux(cover.encode(picture))
    return buffer.getvalue()


class TestRefusals:
    def test_no_bytes(self, tmp_path):
        assert refusal(b"") is VideoEmpty
        empty = tmp_path / "empty.mp4"
        empty.touch()
        with empty.open("rb") as file, pytest.raises(VideoEmpty):
            open_container(file, Decode())

    @pytest.mark.parametrize(
        "source",
        [
            b"no video at all, but some words that go on for a while. " * 20,
            bytes(range(256)) * 40,
            Synth(codec="png", container="image2pipe", frames=1, pix_fmt="rgb24").encode(),
            Synth(codec="mjpeg", container="mjpeg", frames=1, pix_fmt="yuvj420p").encode(),
        ],
        ids=["words", "bytes", "png", "jpeg"],
    )
    def test_what_is_no_video(self, source):
        assert refusal(source) is VideoNotAVideo

    def test_a_container_that_is_not_allowed(self):
        assert refusal(Synth(container="avi").encode(), Decode()) is VideoNotAVideo

    def test_sound_alone(self):
        assert refusal(sound()) is VideoNotAVideo

    def test_a_codec_that_is_not_allowed(self):
        only_vp9 = Decode(codecs=("vp9",))
        assert refusal(Synth().encode(), only_vp9) is VideoUnsupportedCodec
        source = Synth(codec="mjpeg", container="mov", pix_fmt="yuvj420p").encode()
        assert refusal(source) is VideoUnsupportedCodec

    def test_a_codec_that_nobody_knows(self):
        source = Synth().encode().replace(b"avc1", b"zzz9").replace(b"avcC", b"zzzC")
        assert refusal(source) is VideoUnsupportedCodec

    def test_encryption(self):
        scheme = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "0" * 32}
        source = Synth(container_options={**scheme, "encryption_kid": "1" * 32}).encode()
        assert refusal(source) is VideoUnsupportedCodec

    def test_too_many_bytes_pixels_or_frames(self):
        source = Synth().encode()
        assert refusal(source, Decode(max_bytes=len(source) - 1)) is VideoOverBudget
        assert refusal(source, Decode(max_pixels=64 * 48 - 1)) is VideoOverBudget
        assert refusal(source, Decode(max_frames=39)) is VideoOverBudget
        exactly = Decode(max_bytes=len(source), max_pixels=64 * 48, max_frames=40)
        assert len(scanned(source, exactly)) == 40

    def test_no_frame(self):
        source = Synth(frames=1, container_options={"movflags": "empty_moov+frag_keyframe"})
        whole = source.encode()
        start, _ = boxes(whole)[b"moof"]
        assert refusal(whole[:start]) is VideoNoFrames

    def test_a_header_that_is_damaged(self):
        source = bytearray(Synth(container="matroska").encode())
        source[4:400] = b"\x00" * 396
        assert refusal(bytes(source)) is VideoCorrupt

    @pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
    @pytest.mark.parametrize(
        "synth",
        [
            Synth(frames=60, noise=60),
            Synth(frames=60, noise=60, container_options={"movflags": "faststart"}),
            Synth(frames=60, noise=60, container="matroska"),
            Synth(frames=60, noise=60, container="avi", codec="mpeg4"),
            Synth(frames=60, container_options={"movflags": "frag_keyframe+empty_moov"}),
        ],
        ids=["mp4", "faststart", "mkv", "avi", "fragmented"],
    )
    def test_bytes_that_end_early(self, synth, share):
        source = synth.encode()
        assert refusal(source[: int(len(source) * share)]) is VideoTruncated

    def test_a_cut_on_the_boundary_of_a_frame(self):
        """FFmpeg takes this for the end of the file, and says nothing."""
        source = faststart(frames=60, options={"bf": "0"})
        with av.open(io.BytesIO(source)) as container:
            ends = [p.pos + p.size for p in container.demux(video=0) if p.size]
        assert refusal(source[: ends[30]]) is VideoTruncated

    def test_a_cut_that_takes_no_frame_is_forgiven(self):
        source = faststart() + b"\x00\x00\x10\x00mdat" + b"cut"
        assert len(scanned(source)) == 40

    def test_a_stream_of_unknown_length_is_not_called_cut(self):
        live = Synth(container="matroska", container_options={"live": "1"}).encode()
        assert len(scanned(live)) == 40


def sound():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48_000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate, frame.pts = 48_000, 0
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


class TestReach:
    """FFmpeg opens nothing but the bytes it is given, whatever they say and the file is called."""

    def test_a_list_of_files_does_not_open_its_neighbours(self, tmp_path):
        (tmp_path / "secret.mp4").write_bytes(Synth().encode())
        bait = tmp_path / "bait.mp4"
        bait.write_text("ffconcat version 1.0\nfile secret.mp4\n")
        with av.open(str(bait)) as container:  # the danger is real
            assert len(list(container.demux(video=0))) > 1
        with bait.open("rb") as file, pytest.raises(VideoNotAVideo):
            open_container(file, Decode())

    def test_ffmpeg_does_not_learn_what_the_file_is_called(self, tmp_path):
        path = tmp_path / "frame%03d.mp4"
        path.write_bytes(Synth().encode())
        with path.open("rb") as file, open_container(file, Decode()) as container:
            assert path.name not in container.name

    def test_a_list_of_files_is_followed_in_no_format(self, tmp_path, monkeypatch):
        """Even where a careless configuration allows the format."""
        (tmp_path / "secret.mp4").write_bytes(Synth().encode())
        monkeypatch.chdir(tmp_path)
        bait = io.BytesIO(b"ffconcat version 1.0\nfile secret.mp4\n")
        careless = Decode(formats=(*Decode().formats, "concat"))
        with pytest.raises(VideoError), open_video_stream(bait, careless) as opened:
            scan_packets(bait, opened, careless)

    def test_a_playlist_makes_no_request(self, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(0.2)
            address = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
            bait = tmp_path / "video.m3u8"
            bait.write_text(
                f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}\n#EXT-X-ENDLIST\n"
            )
            for decode in (Decode(), Decode(formats=(*Decode().formats, "hls"))):
                with bait.open("rb") as file, pytest.raises(VideoError):
                    open_container(file, decode)
            with pytest.raises(TimeoutError):
                server.accept()

    def test_ffmpeg_does_not_learn_the_file_s_name(self, tmp_path):
        path = tmp_path / "video.mp4"
        path.write_bytes(Synth().encode())
        with path.open("rb") as file, open_container(file, Decode()) as container:
            assert str(tmp_path) not in container.name

    def test_metadata_that_is_no_unicode_costs_no_video(self):
        source = bytearray(Synth(container_options={"movflags": "faststart"}).encode())
        place = bytes(source).index(b"Lavf")
        source[place : place + 4] = b"\xff\xfe\xfd\xfc"
        assert len(scanned(bytes(source))) == 40

    def test_the_log_is_silent(self, capfd):
        assert av.logging.get_level() is None
        with pytest.raises(VideoError):
            scanned(Synth().encode()[:-200])
        assert capfd.readouterr().err == ""


def test_a_real_file_is_read_from_its_start_and_left_open(tmp_path):
    path = Path(tmp_path / "video.mp4")
    path.write_bytes(Synth().encode())
    with path.open("rb") as file:
        file.seek(100)
        with open_video_stream(file, Decode()) as (_, stream):
            assert stream.frames == 40
        assert not file.closed
