"""Clips planted in real videos, through decoder, model and tables."""

import pytest

from benchmarks._planted import make_videos
from benchmarks.duplicates import compare, index_videos
from indexer import LabelIndex


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_clips_that_were_re_encoded_and_rescaled_are_found_at_their_time(tmp_path):
    truth = make_videos(tmp_path / "videos", videos=14, planted=3, seed=5, jobs=2)
    index = tmp_path / "index"
    index_videos(tmp_path / "videos", index, hop_seconds=0.5, model="demo")
    found = LabelIndex.open(str(index)).duplicates(top=3)
    facts = compare(found.to_pylist(), truth, tolerance_seconds=0.55)
    assert (facts["found"], facts["missed"], facts["false"]) == (3, [], [])
