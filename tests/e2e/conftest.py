"""Small inputs whose every row is known."""

import pytest

from tests.model.stress import write_stress_checkpoint
from tests.video.synth import Synth


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A seeded stress checkpoint: clips of 4 frames, 4 apart, 0.53 s at 30 frames a second."""
    folder = tmp_path_factory.mktemp("model") / "stress"
    return str(write_stress_checkpoint(folder, num_frames=4, frame_rate_divisor=4))


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """Three good videos, one of them long, and two bad ones."""
    folder = tmp_path_factory.mktemp("archive")
    (folder / "sub folder").mkdir()
    (folder / "a.mp4").write_bytes(Synth(frames=40).encode())
    (folder / "sub folder" / "b #1 é.mkv").write_bytes(
        Synth(frames=33, fps=25, container="matroska").encode()
    )
    (folder / "long.mp4").write_bytes(Synth(frames=200, width=32, height=32).encode())
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 64)
    return folder


ARCHIVE_CLIPS = {"a.mp4": 3, "b #1 é.mkv": 3, "long.mp4": 13}
