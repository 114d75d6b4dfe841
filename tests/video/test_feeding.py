"""HEVC packets are left out where their headers allow it, and only there."""

import io
import random

import av
import pytest

from indexer.config import Decode
from indexer.video import feeding, hevc
from indexer.video.decoder import FrameDecoder
from indexer.video.feeding import Feed, choice_for, every_packet
from indexer.video.packets import scan_packets
from indexer.video.probe import open_video_stream
from tests.video.synth import Synth
from tests.video.test_frames import digest

X265 = "log-level=0:pools=none:frame-threads=1"
FRAMES = 60
NOTHING_CODED = b"\0\0\0\3\x46\1\x50"
"""A delimiter: a packet that FFmpeg takes without a word, and without a picture."""

END_OF_SEQUENCE = b"\0\0\0\3\x48\1\x80"


@pytest.fixture(scope="module")
def source():
    options = {"x265-params": f"{X265}:ref=1:keyint=30:min-keyint=30:open-gop=0:scenecut=0"}
    return Synth(codec="libx265", frames=FRAMES, options=options).encode()


@pytest.fixture
def stream(source):
    with open_video_stream(io.BytesIO(source), Decode()) as opened:
        yield opened


@pytest.fixture
def table(source, stream):
    return scan_packets(io.BytesIO(source), stream, Decode())


@pytest.fixture(scope="module")
def truth(source):
    with open_video_stream(io.BytesIO(source), Decode()) as (container, stream):
        return {frame.pts: digest(frame) for frame in container.decode(stream)}


def chosen(stream, packets, wanted):
    choice = choice_for(stream.stream.codec_context)
    return list(choice(enumerate(packets), frozenset(wanted) | {0}))


def replaced(packet, data):
    """Other bytes at the same time."""
    other = av.Packet(data)
    other.pts, other.dts, other.time_base = packet.pts, packet.dts, packet.time_base
    other.stream = packet.stream
    return other


def test_only_what_is_needed_is_fed(stream, table):
    simple = chosen_simply(stream, table.kept, {50})
    feeds = chosen(stream, table.kept, {50})
    assert len(feeds) < 0.7 * len(simple)
    assert {feed.ordinal for feed in feeds} >= {0, 50}


def chosen_simply(stream, packets, wanted):
    choice = feeding._WithoutDisposable(stream.stream.codec_context)
    return list(choice(enumerate(packets), frozenset(wanted) | {0}))


def test_where_nothing_more_is_saved_all_is_as_before(stream, table):
    wanted = set(range(FRAMES))
    assert chosen(stream, table.kept, wanted) == chosen_simply(stream, table.kept, wanted)


def test_where_most_are_wanted_no_headers_of_pictures_are_read(stream, table, monkeypatch):
    monkeypatch.setattr(hevc.Headers, "picture", None)
    wanted = set(range(0, FRAMES, 8)) ^ set(range(FRAMES))
    assert chosen(stream, table.kept, wanted) == chosen_simply(stream, table.kept, wanted)


@pytest.mark.parametrize("is_changed", [False, True])
def test_what_changes_where_most_are_wanted_is_seen_where_few_are(stream, table, is_changed):
    second = int(table.keyframes[1])
    packets = list(enumerate(table.kept))
    if is_changed:
        packets[3] = (3, replaced(packets[3][1], bytes(packets[3][1]) + END_OF_SEQUENCE))
    choice = choice_for(stream.stream.codec_context)
    dense = list(choice(packets[:second], frozenset(range(second))))
    sparse = list(choice(packets[second:], frozenset({second, 50})))
    assert [feed.ordinal for feed in dense] == list(range(second))
    assert {feed.is_thinned for feed in sparse} == {not is_changed}


def test_after_a_header_that_is_not_understood_all_is_as_before(stream, table):
    packets = list(table.kept)
    packets[20] = replaced(packets[20], bytes(packets[20]) + END_OF_SEQUENCE)
    assert chosen(stream, packets, {50}) == chosen_simply(stream, packets, {50})


def test_a_group_before_that_is_still_understood(stream, table):
    second = int(table.keyframes[1])
    packets = list(table.kept)
    packets[second + 1] = replaced(packets[second + 1], NOTHING_CODED)
    feeds = chosen(stream, packets, {second - 4, 50})
    assert {feed.is_thinned for feed in feeds if feed.ordinal < second} == {True}
    assert {feed.is_thinned for feed in feeds if feed.ordinal > second} == {False}


def test_a_group_that_is_too_long_to_hold_is_fed_as_before(stream, table, monkeypatch):
    monkeypatch.setattr(feeding, "_MOST_BUFFERED_BYTES", 500)
    assert chosen(stream, table.kept, {50}) == chosen_simply(stream, table.kept, {50})


def test_on_a_gpu_nothing_is_left_out_by_reference(stream, monkeypatch):
    class Accelerated:
        codec = stream.stream.codec_context.codec
        extradata = stream.stream.codec_context.extradata
        is_hwaccel = True

    assert not isinstance(choice_for(Accelerated()), feeding._ByReference)


@pytest.mark.parametrize("seed", range(12))
def test_a_reference_that_is_lost_spoils_nothing(stream, table, truth, seed):
    """FFmpeg marks both a frame without some reference and one without a needed one as damaged."""
    randomly = random.Random(seed)
    feeds = chosen(stream, table.kept[:30], set(randomly.sample(range(20, 30), 2)))
    assert feeds[0].is_thinned
    decoder = FrameDecoder(stream.stream.codec_context)
    lost = randomly.choice(feeds[1:-1]).ordinal
    check_that_a_loss_spoils_nothing(decoder, feeds, lost, NOTHING_CODED, truth)
    assert decoder.damaged == set()


def check_that_a_loss_spoils_nothing(decoder, feeds, lost, nothing_coded, truth):
    """What comes is right without one of the packets, and with it everything comes."""
    fed = [
        feed._replace(packet=replaced(feed.packet, nothing_coded)) if feed.ordinal == lost else feed
        for feed in feeds
    ]
    found = {frame.pts: digest(frame) for frame in decoder.frames(fed)}
    assert found.items() <= truth.items()
    again = {frame.pts: digest(frame) for frame in decoder.frames(feeds)}
    assert again == {pts: truth[pts] for pts in (feed.packet.pts for feed in feeds)}


def test_a_long_stretch_after_a_loss_is_not_held(stream, table):
    packets = list(table.kept)
    packets[1] = replaced(packets[1], NOTHING_CODED)
    thinned = [Feed(*numbered, is_thinned=True) for numbered in enumerate(packets)]
    decoder = FrameDecoder(stream.stream.codec_context)
    assert len(list(decoder.frames(thinned))) <= 1
    assert decoder.output < FRAMES / 2


def test_elsewhere_a_frame_without_a_reference_does_not_come(stream, table, truth):
    """As FFmpeg has it by default: afterwards, nothing is tolerated any more."""
    decoder = FrameDecoder(stream.stream.codec_context)
    thinned = chosen(stream, table.kept, {50})
    list(decoder.frames(thinned))
    kept = [packet for packet in enumerate(table.kept) if packet[0] != 1]
    found = {frame.pts: digest(frame) for frame in decoder.frames(every_packet(kept, frozenset()))}
    assert len(found) < FRAMES - 5
    assert found.items() <= truth.items()
