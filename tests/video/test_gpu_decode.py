"""Decoding on an NVIDIA GPU gives the frames that decoding on the CPU gives."""

import os

import av
import numpy as np
import pytest

from indexer.config import Decode
from indexer.video.probe import open_video_stream
from tests.video.synth import Synth
from tests.video.test_decode import decoded

pytestmark = pytest.mark.gpu

ON_GPU = Decode(device="cuda")
LARGE = {"frames": 90, "width": 320, "height": 240}
VIDEOS = {
    "h264": Synth(**LARGE, options={"bf": "3", "g": "30"}),
    "h264_open_gop": Synth(**LARGE, options={"x264-params": "open-gop=1:bframes=3:keyint=24"}),
    "hevc": Synth(**LARGE, codec="libx265", options={"x265-params": "log-level=0"}),
    "hevc_10_bit": Synth(
        **LARGE, codec="libx265", pix_fmt="yuv420p10le", options={"x265-params": "log-level=0"}
    ),
    "vp9": Synth(**LARGE, codec="libvpx-vp9", container="webm", options={"cpu-used": "8"}),
    "mpeg4": Synth(**LARGE, codec="mpeg4"),
}


@pytest.fixture(autouse=True, scope="module")
def _gpu(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "probe.mp4"
    path.write_bytes(Synth(**LARGE).encode())
    with path.open("rb") as file, open_video_stream(file, ON_GPU) as (_, stream):
        if stream.codec_context.is_hwaccel:
            return
    reason = "PyAV finds no NVIDIA decoder"
    if os.environ.get("REQUIRE_GPU") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.mark.parametrize("mode", ["windows", "uniform"])
@pytest.mark.parametrize("name", VIDEOS)
def test_frames_are_those_of_the_cpu(name, mode):
    source = VIDEOS[name].encode()
    for on_gpu, on_cpu in zip(
        decoded(source, mode=mode, decode=ON_GPU),
        decoded(source, mode=mode, decode=Decode()),
        strict=True,
    ):
        assert on_gpu.spans == on_cpu.spans
        assert not on_gpu.info.warnings
        # NVDEC's planes are interleaved; FFmpeg converts these to RGB with another rounding
        difference = np.abs(on_gpu.frames_NTHWC.astype(int) - on_cpu.frames_NTHWC)
        assert difference.max() <= 2


@pytest.mark.parametrize("name", ["h264", "h264_open_gop", "hevc", "vp9"])
def test_planes_are_those_of_the_cpu(name, tmp_path):
    path = tmp_path / "video"
    path.write_bytes(VIDEOS[name].encode())
    planes = []
    for decode in (ON_GPU, Decode()):
        with path.open("rb") as file, open_video_stream(file, decode) as (container, stream):
            frames = [frame.reformat(format="yuv420p") for frame in container.decode(stream)]
            planes.append([[bytes(plane) for plane in frame.planes] for frame in frames])
    assert planes[0] == planes[1]


def test_a_codec_that_the_gpu_does_not_know_is_decoded_on_the_cpu():
    source = Synth(codec="libvpx", container="webm").encode()
    assert av.codec.Codec("vp8", "r").name == "vp8"
    assert decoded(source, decode=ON_GPU)
