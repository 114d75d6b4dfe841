import io

import pytest

from indexer.config import Decode
from indexer.errors import VideoError
from indexer.video.packets import scan_packets
from indexer.video.probe import open_video_stream
from indexer.video.survey import survey_video
from tests.video.synth import Synth
from tests.video.test_decode import decoded, not_coded, plan_of


def surveyed(source, **plan):
    return survey_video(io.BytesIO(source), plan_of(**plan), video_id="v")


@pytest.mark.parametrize("mode", ["windows", "uniform", "kinetics", "random"])
def test_tells_what_decoding_will_do(mode):
    source = Synth(frames=100).encode()
    survey = surveyed(source, mode=mode, segment_clips=2)
    units = decoded(source, mode=mode, segment_clips=2)
    assert survey.trusted
    assert survey.units == len(units)
    assert survey.clips == sum(len(unit.spans) for unit in units)
    assert survey.duration_seconds == units[0].info.duration_seconds


@pytest.mark.parametrize(
    "source",
    [
        Synth(container="h264").encode(),
        not_coded(Synth(frames=64, codec="mpeg4", options={"g": "12"}), packets=(4, 9)),
    ],
    ids=["no timestamps", "frames that never come"],
)
def test_does_not_promise_what_the_packets_cannot_tell(source):
    assert not surveyed(source).trusted


def test_reads_no_more_than_the_packets_and_the_first_clip():
    source = Synth(frames=300, noise=40, options={"bf": "0", "g": "10"}).encode()
    with open_video_stream(io.BytesIO(source), Decode()) as opened:
        table = scan_packets(io.BytesIO(source), opened, Decode())
    spoiled = bytearray(source)
    for offset, size in zip(table.offsets[40:], table.sizes[40:], strict=True):
        spoiled[offset + 5 : offset + size] = bytes(size - 5)
    assert surveyed(bytes(spoiled)) == surveyed(source)


def test_what_is_no_video_raises():
    with pytest.raises(VideoError):
        surveyed(b"words")
