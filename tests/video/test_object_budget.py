"""What eight frames of a large object cost the object store: a real one, and real requests."""

import io

import numpy as np
import pytest

from indexer.manifest import discover, refs
from indexer.video.decode import decode_clips
from indexer.video.fetch import open_video
from tests.video.synth import Synth, repeated
from tests.video.test_decode import EVERY_FORMAT, plan_of

MINUTES = 10
FPS = 25
GOP = 50


def film(path, *, index_in_front):
    """Ten minutes in some 120 MB, of two seconds that are repeated; a keyframe begins each."""
    synth = Synth(
        frames=GOP, fps=FPS, width=192, height=128, noise=90, options={"g": str(GOP), "bf": "2"}
    )
    options = {"movflags": "faststart"} if index_in_front else {}
    return repeated(synth, MINUTES * 60 * FPS // GOP, path, **options).read_bytes()


@pytest.mark.parametrize(
    ("index_in_front", "most_bytes", "most_requests"), [(True, 4e6, 12), (False, 5e6, 15)]
)
def test_eight_frames_of_a_large_object(
    tmp_path, s3, s3_folder, index_in_front, most_bytes, most_requests
):
    source = film(tmp_path / "film.mp4", index_in_front=index_in_front)
    assert len(source) > 100e6
    bucket, _, folder = s3_folder.removeprefix("s3://").partition("/")
    uri = s3.put(bucket, f"{folder}/film.mp4", source)
    (ref,) = refs(discover([uri], schemes=("s3",)))
    plan = plan_of(num_frames=8, mode="uniform")
    with open_video(ref, EVERY_FORMAT) as video:
        (unit,) = decode_clips(video.as_file(), plan, video_id="v")
        assert video.fetched_bytes <= most_bytes
        assert video.requests <= most_requests
    (expected,) = decode_clips(io.BytesIO(source), plan, video_id="v")
    assert unit.spans == expected.spans
    np.testing.assert_array_equal(unit.frames_NTHWC, expected.frames_NTHWC)
