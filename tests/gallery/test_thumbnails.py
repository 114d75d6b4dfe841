from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from indexer.config import Decode, Sampling
from indexer.gallery.thumbnails import RECIPE, Thumbnail, take_pictures
from indexer.manifest import discover, refs
from indexer.records import Preprocessing
from indexer.storage import write_bytes
from indexer.video.decode import decode_clips
from indexer.video.plan import DecodePlan
from indexer.video.preprocess import preprocess_crops
from tests.video.synth import Synth, rotated

MODEL = Preprocessing(32, (32, 32), "bilinear", 1 / 255, (0.45,) * 3, (0.225,) * 3)
RUN = DecodePlan(Sampling(min_seconds=0.1), 4, 4, MODEL, Decode())
QUARTER_TURN = (0, 1, -1, 0)
VIDEOS = {
    "b-frames.mp4": Synth(frames=90, options={"g": "30", "bf": "3"}).encode(),
    "variable.mkv": Synth(
        frames=40,
        container="matroska",
        time_base=Fraction(1, 1000),
        pts=[0, 7, 90, 101, *range(150, 1590, 40)],
    ).encode(),
    "vp9.webm": Synth(frames=40, codec="libvpx-vp9", container="webm").encode(),
    "upright.mp4": rotated(Synth(frames=40).encode(), QUARTER_TURN),
}


def listed(folder):
    """By name: the videos of a folder."""
    found = refs(discover([folder], schemes=("file", "s3")))
    return {Path(ref.uri).name: ref for ref in found}


def moments_of_a_run(path):
    """The times of the frames that a run's clips are made of."""
    with path.open("rb") as file:
        units = list(decode_clips(file, RUN, video_id="v"))
    spans = [span for unit in units for span in unit.spans]
    return [span.frame_pts_seconds[2] for span in spans]


def frames_of(path):
    """Every frame by its time, from decoding the whole file in order: RGB, upright."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        first = frames[0].pts
        return {
            float((frame.pts - first) * stream.time_base): np.rot90(
                frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)
            )
            for frame in frames
        }


def expected(frame_HWC):
    return preprocess_crops(np.ascontiguousarray(frame_HWC), RECIPE)[0]


def taken(moments):
    """By name: the pictures of videos."""
    found = take_pictures(moments, Decode(), ("file", "s3"))
    return {Path(ref.uri).name: pictures for ref, pictures in found}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, real_videos):
    folder = tmp_path_factory.mktemp("films")
    for name, data in VIDEOS.items():
        (folder / name).write_bytes(data)
    (folder / "real.mp4").write_bytes(real_videos[0].read_bytes())
    return folder


@pytest.fixture(scope="module")
def moments(folder):
    """By name: the frames that a run's clips are made of."""
    return {path.name: moments_of_a_run(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def found(folder, moments):
    """By name: their pictures, with those of some moments at which no frame begins."""
    return taken({ref: [*moments[name], 0.05, 99.0] for name, ref in listed(str(folder)).items()})


@pytest.mark.parametrize("name", [*VIDEOS, "real.mp4"])
def test_pictures_are_the_frames_that_the_model_saw_pixel_by_pixel(name, folder, moments, found):
    frames = frames_of(folder / name)
    wanted = set(moments[name])
    assert found[name].keys() == wanted | {0.05, 99.0}
    for seconds in wanted:
        np.testing.assert_array_equal(found[name][seconds], expected(frames[seconds]))
        others = [frame for time, frame in frames.items() if time != seconds]
        assert not any(np.array_equal(found[name][seconds], expected(f)) for f in others[:5])
    assert len(moments["b-frames.mp4"]) > 3


def test_a_moment_at_which_no_frame_begins_has_no_picture(found):
    assert {pictures[99.0] for pictures in found.values()} == {"no_such_frame"}
    assert found["b-frames.mp4"][0.05] == "no_such_frame"


def test_a_picture_has_the_shape_in_which_the_video_is_shown(found, moments):
    shapes = {found["upright.mp4"][seconds].shape for seconds in moments["upright.mp4"]}
    assert shapes == {(288, 216, 3)}


def test_what_cannot_be_had_is_said_and_stops_nothing(tmp_path):
    for name in ("a.mp4", "changed.mp4", "z.mp4"):
        (tmp_path / name).write_bytes(VIDEOS["b-frames.mp4"])
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    by_name = listed(str(tmp_path))
    (tmp_path / "changed.mp4").write_bytes(VIDEOS["vp9.webm"])
    gone = replace(by_name["a.mp4"], uri=str(tmp_path / "gone.mp4"))
    foreign = replace(by_name["a.mp4"], uri="https://evil.invalid/x.mp4")
    nameless = replace(by_name["a.mp4"], uri="nul\0.mp4")
    found = taken({ref: [0.0, 0.1] for ref in (gone, foreign, nameless, *by_name.values())})
    assert found["gone.mp4"] == {0.0: "missing", 0.1: "missing"}
    assert found["changed.mp4"] == {0.0: "changed", 0.1: "changed"}
    assert found["broken.mp4"] == {0.0: "not_a_video", 0.1: "not_a_video"}
    assert found["x.mp4"] == found["nul\0.mp4"] == {0.0: "not_allowed", 0.1: "not_allowed"}
    for name in ("a.mp4", "z.mp4"):
        assert all(isinstance(picture, np.ndarray) for picture in found[name].values())


def test_compressing_changes_little(folder):
    frames = frames_of(folder / "real.mp4")
    picture_HWC = expected(next(iter(frames.values())))
    made = Thumbnail.compress(picture_HWC)
    assert (made.height, made.width) == picture_HWC.shape[:2]
    assert len(made.webp) < 25_000
    error = np.abs(np.asarray(made.decompress(), int) - picture_HWC)
    assert error.mean() < 5
    assert made.data_uri.startswith("data:image/webp;base64,UklGR")


def test_pictures_of_objects_in_s3(folder, s3_folder):
    write_bytes(f"{s3_folder}/b.mp4", VIDEOS["b-frames.mp4"])
    (ref,) = listed(s3_folder).values()
    found = taken({ref: [0.5, 0.0]})["b.mp4"]
    frames = frames_of(folder / "b-frames.mp4")
    for seconds in (0.0, 0.5):
        np.testing.assert_array_equal(found[seconds], expected(frames[seconds]))
