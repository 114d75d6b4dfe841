"""Of a large MP4 only its index and the packets of the sampled frames are brought."""

import functools

import numpy as np
import pytest

from indexer.records import VideoFailure
from indexer.video import ranged
from indexer.video.decode import decode_clips
from indexer.video.packets import scan_packets
from indexer.video.probe import open_video_stream
from indexer.video.survey import survey_video
from tests.video.synth import Synth
from tests.video.test_decode import EVERY_FORMAT, decoded, plan_of
from tests.video.test_ranged import Store

AHEAD_BYTES = 4096
OPTIONS = {"bf": "2", "g": "20", "sc_threshold": "0"}
NOISY = {"frames": 400, "noise": 90, "width": 128, "height": 96}
INDEXED = {
    "index at the end": Synth(**NOISY, options=OPTIONS),
    "index in front": Synth(**NOISY, options=OPTIONS, container_options={"movflags": "faststart"}),
    "mov": Synth(**NOISY, options=OPTIONS, container="mov"),
    "open gop": Synth(
        **NOISY, options={"x264-params": "open-gop=1:bframes=3:keyint=24:scenecut=0"}
    ),
    "edit list": Synth(**NOISY | {"pts": range(-7, 393)}, options=OPTIONS),
    "hevc": Synth(
        **NOISY,
        codec="libx265",
        options={"x265-params": "log-level=0:pools=none:frame-threads=1:keyint=20"},
    ),
    "vp9": Synth(**NOISY, codec="libvpx-vp9", options={"cpu-used": "8", "g": "20"}),
    "mpeg4": Synth(**NOISY, codec="mpeg4", options={"g": "20"}),
}
UNINDEXED = {
    "fragmented": Synth(
        **NOISY, options=OPTIONS, container_options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "matroska": Synth(**NOISY, options=OPTIONS, container="matroska"),
    "mpegts": Synth(**NOISY, options=OPTIONS, container="mpegts"),
}


@functools.cache
def encoded(name):
    return (INDEXED | UNINDEXED)[name].encode()


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    monkeypatch.setattr(ranged, "AHEAD_BYTES", AHEAD_BYTES)
    monkeypatch.setattr("indexer.video.extent.AHEAD_BYTES", AHEAD_BYTES)


def sparse(source, **plan):
    store = Store(source, [(0, AHEAD_BYTES)])
    units = list(decode_clips(store.file, plan_of(**plan), video_id="v"))
    return store, units


def assert_same(units, expected):
    for unit, other in zip(units, expected, strict=True):
        assert not isinstance(unit, VideoFailure), unit
        assert unit.spans == other.spans
        assert unit.info == other.info
        np.testing.assert_array_equal(unit.frames_NTHWC, other.frames_NTHWC)


@pytest.mark.parametrize("name", INDEXED)
def test_few_frames_take_few_bytes_and_are_the_same(name):
    source = encoded(name)
    store, units = sparse(source, mode="uniform")
    assert_same(units, decoded(source, mode="uniform"))
    brought = sum(stop - start for ranges in store.asked for start, stop in ranges)
    assert brought < len(source) / 2
    assert len(store.asked) <= 8


@pytest.mark.parametrize("name", [*INDEXED, *UNINDEXED])
def test_many_frames_are_the_same_too(name):
    source = encoded(name)
    _, units = sparse(source, segment_clips=8)
    assert_same(units, decoded(source, segment_clips=8))


@pytest.mark.parametrize("name", UNINDEXED)
def test_what_has_no_index_is_brought_whole(name):
    source = encoded(name)
    store, units = sparse(source, mode="uniform")
    assert_same(units, decoded(source, mode="uniform"))
    assert store.file.complete


@pytest.mark.parametrize("name", INDEXED)
def test_the_table_is_that_of_the_whole_file(name):
    source = encoded(name)
    tables = []
    for file in (Store(source, [(0, AHEAD_BYTES)]).file, Store(source, [(0, len(source))]).file):
        with open_video_stream(file, EVERY_FORMAT) as opened:
            tables.append(scan_packets(file, opened, EVERY_FORMAT))
    hollow, whole = tables
    for column in ("pts", "dts", "keyframes", "shown", "offsets", "sizes"):
        np.testing.assert_array_equal(getattr(hollow, column), getattr(whole, column))
    assert (hollow.timeline.end_pts, hollow.timeline.fps) == (
        whole.timeline.end_pts, whole.timeline.fps,
    )  # fmt: skip
    assert hollow.distrust == whole.distrust == ""


def test_an_index_that_a_fragment_follows_is_not_all_there_is():
    """FFmpeg would read the first part, then zeros, and say nothing of the rest."""
    fragments = OPTIONS | {"g": "150"}
    movflags = {"movflags": "frag_keyframe"}
    source = Synth(**NOISY, options=fragments, container_options=movflags).encode()
    assert 0 < source.count(b"moof") < 4
    _, units = sparse(source, segment_clips=8)
    assert_same(units, decoded(source, segment_clips=8))


def test_an_index_that_calls_every_packet_a_keyframe_is_seen_through():
    options = {"g": "40", "bf": "0"}
    source = Synth(**NOISY, codec="mpeg4", options=options).encode()
    without_table = source.replace(b"stss", b"free")
    assert without_table != source
    store, units = sparse(without_table, mode="uniform")
    assert_same(units, decoded(source, mode="uniform"))
    assert not store.file.complete


def test_a_survey_takes_the_index_and_the_first_clip():
    source = encoded("index at the end")
    store = Store(source, [(0, AHEAD_BYTES)])
    survey = survey_video(store.file, plan_of(), video_id="v")
    assert survey.trusted
    assert survey.clips == sum(len(unit.spans) for unit in decoded(source))
    brought = sum(stop - start for ranges in store.asked for start, stop in ranges)
    assert brought < len(source) / 5


def test_damage_around_a_frame_is_repaired_with_bytes_brought_for_it():
    source = bytearray(encoded("mpeg4"))
    with open_video_stream(Store(bytes(source), [(0, len(source))]).file, EVERY_FORMAT) as opened:
        table = scan_packets(Store(bytes(source)).file, opened, EVERY_FORMAT)
    (unit,) = decoded(bytes(source), mode="uniform")
    rank = round(unit.spans[0].frame_pts_seconds[1] * 30)
    packet = int(table.shown[rank])
    start, size = int(table.offsets[packet]), int(table.sizes[packet])
    source[start : start + size] = bytes(size)
    _, units = sparse(bytes(source), mode="uniform")
    expected = decoded(bytes(source), mode="uniform")
    assert_same(units, expected)
    assert not units[0].spans[0].frames_exact
