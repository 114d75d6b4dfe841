"""Memory does not grow with the length of a video."""

import os
from pathlib import Path

import pytest

from indexer.config import Decode, Sampling
from indexer.manifest import discover, refs
from indexer.records import DecodedClips, Preprocessing
from indexer.video.fetch import open_video
from indexer.video.plan import DecodePlan
from indexer.video.sandbox import Sandbox
from tests.video.synth import Synth, repeated

RECIPE = Preprocessing(224, (224, 224), "bilinear", 1 / 255, (0.45,) * 3, (0.225,) * 3)
FPS, GOP = 30, 60


def film(path, *, seconds, width, height, noise):
    """Two seconds, coded once, again and again."""
    synth = Synth(
        frames=GOP,
        fps=FPS,
        width=width,
        height=height,
        noise=noise,
        options={"g": str(GOP), "bf": "2", "preset": "ultrafast"},
    )
    return repeated(synth, seconds * FPS // GOP, path)


def peak_bytes(path):
    """Of the decode process, and how many clips it gave."""
    (ref,) = refs(discover([str(path)], schemes=("file",)))
    plan = DecodePlan(Sampling(), 8, 32, RECIPE, Decode())
    peak = clips = 0
    with Sandbox(plan) as sandbox, open_video(ref, plan.decode) as video:
        for item, _ in sandbox.decode(video, video_id="v"):
            assert isinstance(item, DecodedClips)
            clips += len(item.spans)
            peak = max(peak, *map(resident_bytes, descendants(os.getpid())))
    return peak, clips


def descendants(pid):
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            yield child
            yield from descendants(child)


def resident_bytes(pid):
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return 1024 * int(status.partition("VmHWM:")[2].split()[0]) if "VmHWM:" in status else 0


def test_a_longer_video_takes_no_more_memory(tmp_path):
    facts = {"width": 320, "height": 180, "noise": 60}
    short, few = peak_bytes(film(tmp_path / "short.mp4", seconds=120, **facts))
    long, many = peak_bytes(film(tmp_path / "long.mp4", seconds=1200, **facts))
    assert many > 9 * few
    assert long < short + 48 * 2**20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_hours_of_1080p_take_less_than_700_megabytes(tmp_path):
    path = film(tmp_path / "film.mp4", seconds=3 * 3600, width=1920, height=1080, noise=8)
    peak, clips = peak_bytes(path)
    assert clips == 1266
    assert peak < 700e6
