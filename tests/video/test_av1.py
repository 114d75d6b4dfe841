"""What AV1 headers say is read as encoders mean it, and nothing else than that is believed."""

import functools
import io
import random

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.config import Decode
from indexer.video import av1, feeding
from indexer.video.av1 import SLOTS, Frame, Headers, Packet
from indexer.video.bits import Bits, UnknownError
from indexer.video.decoder import FrameDecoder
from indexer.video.feeding import choice_for
from indexer.video.packets import scan_packets
from indexer.video.probe import open_video_stream
from indexer.video.references import needed_packets
from tests.video.synth import Synth
from tests.video.test_feeding import check_that_a_loss_spoils_nothing
from tests.video.test_frames import assert_exact, digest

FRAMES = 100
ALL = frozenset(range(SLOTS))
DELIMITER = bytes([0x12, 0])


def synth(frames=FRAMES, **options):
    pix_fmt = options.pop("pix_fmt", "yuv420p")
    options = {"preset": "10", "g": "64", **options}
    return Synth(codec="libsvtav1", frames=frames, pix_fmt=pix_fmt, options=options)


@functools.cache
def source():
    return synth().encode()


@pytest.fixture
def stream():
    with open_video_stream(io.BytesIO(source()), Decode()) as opened:
        yield opened


@pytest.fixture
def table(stream):
    return scan_packets(io.BytesIO(source()), stream, Decode())


@functools.cache
def coded():
    """(extradata, packets) of a video."""
    with open_video_stream(io.BytesIO(source()), Decode()) as (video, stream):
        packets = [bytes(packet) for packet in video.demux(stream) if packet.size]
        return bytes(stream.codec_context.extradata), packets


VARIANTS = {
    "short_groups": {"g": "9"},
    "long_group": {"g": "-1"},
    "low_delay": {"svtav1-params": "pred-struct=1"},
    "flat": {"svtav1-params": "hierarchical-levels=2"},
    "deep": {"svtav1-params": "hierarchical-levels=5"},
    "forward_keys": {"svtav1-params": "enable-fwd-kf=1:irefresh-type=1"},
    "refresh_without_keys": {"svtav1-params": "irefresh-type=1", "g": "32"},
    "screen": {"svtav1-params": "scm=1"},
    "grain": {"svtav1-params": "film-grain=20"},
    "overlays": {"svtav1-params": "enable-overlays=1"},
    "resized": {"svtav1-params": "resize-mode=1:resize-denom=12"},
    "ten_bit": {"pix_fmt": "yuv420p10le"},
    "slow": {"preset": "5", "g": "40"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_frames_are_those_of_the_whole_stream(name):
    assert_exact(synth(**VARIANTS[name]).encode(), seed=name)


def chosen(stream, packets, wanted):
    choice = choice_for(stream.stream.codec_context)
    return list(choice(enumerate(packets), frozenset(wanted) | {0}))


def test_only_what_is_needed_is_fed(stream, table):
    feeds = chosen(stream, table.kept, {50})
    assert len(feeds) < 20
    assert {feed.ordinal for feed in feeds} >= {0, 50}


@pytest.mark.parametrize("seed", range(8))
def test_a_packet_that_is_lost_spoils_nothing(stream, table, seed):
    """What is predicted from it does not come, or comes as it is."""
    with open_video_stream(io.BytesIO(source()), Decode()) as (container, whole):
        truth = {frame.pts: digest(frame) for frame in container.decode(whole)}
    randomly = random.Random(seed)
    feeds = chosen(stream, table.kept[:64], set(randomly.sample(range(30, 64), 2)))
    decoder = FrameDecoder(stream.stream.codec_context)
    lost = randomly.choice(feeds[1:-1]).ordinal
    check_that_a_loss_spoils_nothing(decoder, feeds, lost, DELIMITER, truth)


def test_the_first_frame_fills_all_slots_and_others_name_some():
    extradata, packets = coded()
    headers = Headers.of(extradata)
    found = [headers.picture(memoryview(packet)) for packet in packets]
    assert [position for position, packet in enumerate(found) if packet.breaks] == [0, 64]
    assert found[0].frames[0] == Frame(frozenset(), ALL, is_key=True)
    assert all(frame.named for packet in found[1:64] for frame in packet.frames)
    assert any(len(packet.frames) > 1 for packet in found)
    assert any(packet.frames[0].is_shown_again for packet in found)


# What is not understood


def unit(kind, *payload, extension=False):
    return bytes([kind << 3 | extension << 2 | 2, len(payload), *payload])


def other_sequence():
    """Like that of the stream, but for the bits of a frame's place in the order of output."""
    _, packets = coded()
    (payload,) = [found.payload for found in av1._units(memoryview(packets[0])) if found.kind == 1]
    for place in range(8 * len(payload)):
        changed = int.from_bytes(payload) ^ 1 << place
        data = changed.to_bytes(len(payload))
        try:
            sequence = av1._sequence(Bits(data))
        except UnknownError:
            continue
        if sequence.order_bits != 7:
            return unit(1, *data)
    raise AssertionError


STRANGE = {
    "nothing": lambda _: b"",
    "no frame": lambda _: DELIMITER,
    "another sequence header": lambda packet: other_sequence() + packet,
    "a sequence header that is cut off": lambda packet: unit(1, 0, 0, 0) + packet,
    "a layer": lambda packet: unit(15, 0, extension=True) + packet,
    "a reserved bit": lambda packet: bytes([packet[0] | 1]) + packet[1:],
    "a list of tiles": lambda packet: packet + unit(8, 0),
    "a reserved type": lambda packet: packet + unit(9, 0),
    "a frame that is cut off": lambda packet: packet + unit(6),
    "a unit that is cut off": lambda packet: packet + b"\x32\x7f\0",
    "a size without end": lambda packet: packet + b"\x32" + b"\xff" * 9,
    "a switch frame": lambda packet: packet + unit(6, 0b0_11_1_0000, 0, 0, 0),
    "slots that are checked": lambda packet: packet + unit(6, 0b0_01_1_1000, 0, 0, 0),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_what_is_strange_is_unknown(strange):
    extradata, packets = coded()
    headers = Headers.of(extradata)
    headers.picture(memoryview(packets[3]))
    with pytest.raises(UnknownError):
        headers.picture(memoryview(STRANGE[strange](packets[3])))


@pytest.mark.parametrize("harmless", [DELIMITER, unit(5, 1, 0, 0), unit(15, 0, 0)])
def test_what_is_harmless_is_passed_over(harmless):
    extradata, packets = coded()
    headers = Headers.of(extradata)
    plain = headers.picture(memoryview(packets[3]))
    assert headers.picture(memoryview(harmless + packets[3])) == plain


def test_another_sequence_header_is_seen_where_no_frames_are_read():
    extradata, packets = coded()
    headers = Headers.of(extradata)
    headers.pass_over(memoryview(packets[0]))
    with pytest.raises(UnknownError):
        headers.pass_over(memoryview(other_sequence() + packets[3]))


@pytest.mark.parametrize("extradata", [b"", b"\x81\0\0\0", b"\x01" + bytes(20), b"\x81" * 40])
def test_without_a_sequence_header_no_frame_is_known(extradata):
    with pytest.raises(UnknownError):
        Headers.of(extradata)


def test_of_a_stream_that_is_not_understood_everything_is_fed(stream, table, monkeypatch):
    monkeypatch.setattr(av1, "_AV1C_BYTES", 1000)
    choice = choice_for(stream.stream.codec_context)
    assert not isinstance(choice, feeding._ByReference)
    assert len(list(choice(enumerate(table.kept), frozenset({0, 50})))) == FRAMES


@given(st.binary(max_size=60))
def test_no_bytes_make_it_stumble(data):
    extradata, packets = coded()
    headers = Headers.of(extradata)
    for damaged in (data, packets[0][:20] + data, packets[5][: len(data)] + data):
        try:
            headers.picture(memoryview(damaged))
            headers.pass_over(memoryview(damaged))
        except UnknownError:
            continue
    try:
        Headers.of(b"\x81\0\0\0" + data)
    except UnknownError:
        return


def test_a_packet_of_pyav_is_read_where_it_lies():
    extradata, packets = coded()
    assert Headers.of(extradata).picture(memoryview(av.Packet(packets[0]))).breaks


# Which packets are needed


KEY = Frame(frozenset(), ALL, is_key=True)
slots = st.frozensets(st.integers(0, SLOTS - 1), max_size=4)
frames = st.builds(lambda named, filled: Frame(named, filled, is_key=False), slots, slots)
hidden_keys = st.builds(lambda filled: Frame(frozenset(), filled, is_key=True), slots)
shown_again = st.builds(
    lambda slot: Frame(frozenset({slot}), frozenset(), is_key=False, is_shown_again=True),
    st.integers(0, SLOTS - 1),
)
streams = st.lists(
    st.lists(frames | hidden_keys | shown_again, min_size=1, max_size=3), max_size=12
)


def seen(packets, fed):
    """What the frames of some packets look like, each made of all that is in the slots it names."""
    pictures, looks = [("start", False)] * SLOTS, {}
    for position, packet in enumerate(packets):
        if position not in fed:
            continue
        for number, frame in enumerate(packet.frames):
            named = tuple(pictures[slot] for slot in sorted(frame.named))
            picture = (position, number, named)
            filled = frame.filled
            is_key = frame.is_key
            if frame.is_shown_again:
                picture, is_key = named[0]
                filled = ALL if is_key else frozenset()
            for slot in filled:
                pictures[slot] = (picture, is_key)
            looks[position, number] = picture
    return looks


@given(streams, st.sets(st.integers(0, 12), max_size=3))
def test_the_needed_packets_alone_give_the_wanted_frames(stream, wanted):
    packets = [Packet((KEY,)), *(Packet(tuple(packet)) for packet in stream)]
    wanted = {position for position in wanted if position < len(packets)}
    needed = needed_packets(packets, wanted)
    everything = seen(packets, set(range(len(packets))))
    found = seen(packets, needed)
    assert {at: look for at, look in everything.items() if at[0] in wanted}.items() <= found.items()


def test_a_key_frame_that_is_shown_again_fills_all_slots():
    hidden = Frame(frozenset(), frozenset({3}), is_key=True)
    again = Frame(frozenset({3}), frozenset(), is_key=False, is_shown_again=True)
    between = Frame(frozenset({5}), frozenset({5}), is_key=False)
    packets = [Packet((frame,)) for frame in (KEY, hidden, between, again, between)]
    assert needed_packets(packets, [4]) == {0, 1, 3, 4}
    inter = Frame(frozenset({5}), frozenset({3}), is_key=False)
    packets = [Packet((frame,)) for frame in (KEY, inter, between, again, between)]
    assert needed_packets(packets, [4]) == {0, 2, 4}


def test_decoding_begins_at_a_frame_that_fills_all_slots():
    for packets in ([], [Packet((Frame(frozenset(), frozenset({1}), is_key=True),))]):
        with pytest.raises(UnknownError):
            needed_packets(packets, [0])
    assert needed_packets([Packet((KEY,))], []) == frozenset()
