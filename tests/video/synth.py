"""Small videos made with PyAV, each frame of which shows its own number."""

import io
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


@dataclass(frozen=True)
class Synth:
    """What to make; every field is a fact that a test may check.

    Attributes:
        frames: number of frames.
        pts: their timestamps in ticks of `time_base`; by default one frame each `1 / fps`.
        noise: how hard the picture is to compress, from 0.
        options: of the encoder.
        container_options: of the muxer.
    """

    frames: int = 40
    width: int = 64
    height: int = 48
    fps: int = 30
    codec: str = "libx264"
    container: str = "mp4"
    pix_fmt: str = "yuv420p"
    pts: Sequence[int] | None = None
    time_base: Fraction | None = None
    noise: int = 8
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:  # some muxers read back what they wrote
            path = Path(folder) / "video"
            self._write(str(path))
            return path.read_bytes()

    def _write(self, path: str) -> None:
        with av.open(path, "w", format=self.container, options=self.container_options) as container:
            stream = container.add_stream(self.codec, rate=self.fps, options=self._options())
            stream.width, stream.height, stream.pix_fmt = self.width, self.height, self.pix_fmt
            stream.codec_context.time_base = self.time_base or Fraction(1, self.fps)
            stream.time_base = stream.codec_context.time_base
            stream.codec_context.thread_count = 1
            for number, pts in enumerate(self.pts or range(self.frames)):
                frame = av.VideoFrame.from_ndarray(self.picture(number), format="rgb24")
                frame.pts, frame.time_base = pts, stream.codec_context.time_base
                container.mux(stream.encode(frame))
            container.mux(stream.encode())

    def _options(self) -> dict[str, str]:
        fast = {"libx264": {"preset": "ultrafast", "g": "12", "bf": "2"}}
        return fast.get(self.codec, {}) | self.options

    def picture(self, number: int) -> np.ndarray:
        """A grey ramp that moves with the frame's number, under some noise."""
        generator = np.random.default_rng(number)
        ramp = (np.arange(self.width) * 2 + number * 5) % 200
        picture = np.broadcast_to(ramp[None, :, None], (self.height, self.width, 3)).astype(int)
        picture = picture + generator.integers(0, self.noise + 1, picture.shape)
        return picture.astype(np.uint8)


def rotated(source: bytes, matrix: Sequence[int]) -> bytes:
    """The same MP4 with a display matrix in its track header: ISO/IEC 14496-12, 8.3.2."""
    a, b, c, d = (value * 0x10000 for value in matrix)
    start = source.index(b"tkhd") + 4 + 40
    patched = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    return source[:start] + patched + source[start + 36 :]


def repeated(synth: Synth, times: int, path: Path, **container_options: str) -> Path:
    """Writes an MP4 of the same frames again and again, which are coded once."""
    with (
        av.open(io.BytesIO(synth.encode())) as source,
        av.open(str(path), "w", format="mp4", options=container_options) as container,
    ):
        stream = container.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        clock = [(packet.pts, packet.dts) for packet in packets]
        lap = round(Fraction(synth.frames, synth.fps) / packets[0].time_base)
        for start in range(0, times * lap, lap):
            for packet, (pts, dts) in zip(packets, clock, strict=True):
                packet.pts, packet.dts = pts + start, dts + start
                packet.stream = stream
                container.mux(packet)
    return path


def from_keyframe(source: bytes, number: int) -> bytes:
    """The same MP4 from one of its keyframes on, without coding anything again."""
    target = io.BytesIO()
    with av.open(io.BytesIO(source)) as video, av.open(target, "w", format="mp4") as container:
        stream = container.add_stream_from_template(video.streams.video[0])
        packets = [packet for packet in video.demux(video=0) if packet.size]
        keys = [place for place, packet in enumerate(packets) if packet.is_keyframe]
        for packet in packets[keys[number] :]:
            packet.stream = stream
            container.mux(packet)
    return target.getvalue()
