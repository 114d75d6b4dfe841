"""What HEVC headers say is read as encoders mean it, and nothing else than that is believed."""

import functools
import io
import random

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.config import Decode
from indexer.video.bits import Bits, UnknownError
from indexer.video.hevc import Headers, Picture
from indexer.video.hevc_sets import MOST_REFERENCES, ReferenceSet, reference_set
from indexer.video.nal import delimited_units, sized_units
from indexer.video.probe import open_video_stream
from indexer.video.references import needed_pictures
from tests.video.synth import Synth

X265 = "log-level=0:pools=none:frame-threads=1"
EVERY_FORMAT = Decode(formats=(*Decode().formats, "mpegts"))
SLICE_OF_REFERENCE = 1
IDR = 20


@functools.cache
def coded(params, container="mp4", frames=24):
    """(extradata, packets) of a video."""
    options = {"x265-params": f"{X265}:{params}"}
    source = Synth(codec="libx265", frames=frames, container=container, options=options).encode()
    with open_video_stream(io.BytesIO(source), EVERY_FORMAT) as (video, stream):
        packets = [bytes(packet) for packet in video.demux(stream) if packet.size]
        return bytes(stream.codec_context.extradata), packets


def pictures(params, container="mp4"):
    extradata, packets = coded(params, container)
    headers = Headers.of(extradata)
    return [headers.picture(memoryview(packet)) for packet in packets]


RICH = "ref=4:bframes=3:b-pyramid=1:keyint=12:weightp=1:temporal-layers=2:scaling-list=default"


def test_without_b_frames_each_picture_needs_the_one_before():
    found = pictures("ref=1:bframes=0:keyint=100:scenecut=0")
    assert [picture.references for picture in found] == [frozenset(), *[{-1}] * 23]
    assert [picture.order for picture in found] == list(range(24))


@pytest.mark.parametrize("refs", range(1, 6))
def test_there_are_as_many_references_as_the_encoder_was_told(refs):
    found = pictures(f"ref={refs}:bframes=0:keyint=100:scenecut=0")
    assert [len(picture.references) for picture in found] == [min(n, refs) for n in range(24)]


@pytest.mark.parametrize("container", ["mp4", "mpegts"])
def test_b_frames_need_what_is_on_both_sides(container):
    found = pictures("ref=1:bframes=1:b-adapt=0:keyint=100:scenecut=0:b-pyramid=0", container)
    between = [p.references for p in found if p.references and max(p.references) > 0]
    assert len(between) >= 10
    assert set(between) == {frozenset({-1, 1})}


def test_keyframes_break_unless_the_group_is_open():
    closed = pictures("keyint=8:min-keyint=8:bframes=2:scenecut=0:open-gop=0")
    opened = pictures("keyint=8:min-keyint=8:bframes=2:scenecut=0:open-gop=1")
    assert sum(picture.breaks for picture in closed) == 3
    assert sum(picture.breaks for picture in opened) < 3
    assert sum(picture.is_random_access for picture in opened) == 3


# What is not understood


def unit(kind, *payload, layer=0, temporal=1):
    return (kind << 9 | layer << 3 | temporal).to_bytes(2) + bytes(payload)


def sized(*units):
    return b"".join(len(one).to_bytes(4) + one for one in units)


STRANGE = {
    "no picture": lambda packet: sized(unit(35, 0x50)),
    "two pictures": lambda packet: packet + packet,
    "end of sequence": lambda packet: packet + sized(unit(36, 0x80)),
    "another parameter set": lambda packet: sized(unit(34, 0xC1, 0x80)) + packet,
    "film grain": lambda packet: sized(unit(39, 19, 1, 0, 0x80)) + packet,
    "orientation": lambda packet: sized(unit(39, 47, 1, 0, 0x80)) + packet,
    "a message that is cut off": lambda packet: sized(unit(39, 5, 200, 0, 0x80)) + packet,
    "another layer": lambda packet: packet + sized(unit(1, 0, 0, layer=1)),
    "a reserved kind": lambda packet: packet + sized(unit(22, 0x80, 0)),
    "an empty unit": lambda packet: packet + sized(b"\x46"),
    "a slice that is cut off": lambda packet: sized(unit(SLICE_OF_REFERENCE, 0x80)),
    "a parameter set that is missing": lambda packet: sized(unit(SLICE_OF_REFERENCE, 0x90, 0xFF)),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_what_is_strange_is_unknown(strange):
    extradata, packets = coded(RICH)
    headers = Headers.of(extradata)
    headers.picture(memoryview(packets[3]))
    with pytest.raises(UnknownError):
        headers.picture(memoryview(STRANGE[strange](packets[3])))


@pytest.mark.parametrize("harmless", [unit(39, 5, 1, 0, 0x80), unit(62, 1), unit(35, 0x50)])
def test_what_is_harmless_is_passed_over(harmless):
    extradata, packets = coded(RICH)
    headers = Headers.of(extradata)
    plain = headers.picture(memoryview(packets[3]))
    assert headers.picture(memoryview(sized(harmless) + packets[3])) == plain


@pytest.mark.parametrize("profile", [0, 5, 6, 9, 11])
def test_other_profiles_are_unknown(profile):
    extradata, _ = coded(RICH)
    place = extradata.index(unit(33))
    changed = extradata[: place + 3] + bytes([profile]) + extradata[place + 4 :]
    with pytest.raises(UnknownError):
        Headers.of(changed)


@pytest.mark.parametrize("extradata", [b"", b"\1", bytes(40), b"\1" + bytes(30)])
def test_without_parameter_sets_no_picture_is_known(extradata):
    _, packets = coded(RICH)
    with pytest.raises(UnknownError):
        Headers.of(extradata).picture(memoryview(packets[0]))


@st.composite
def mutated(draw, source):
    """A few bytes of it changed, taken out or put in."""
    data = bytearray(source)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, max(min(len(data) - 1, 160), 0)))
        match draw(st.sampled_from(["change", "cut", "insert", "delete"])):
            case "change" if data:
                data[place] = draw(st.integers(0, 255))
            case "cut":
                del data[place:]
            case "insert":
                data[place:place] = draw(st.binary(max_size=4))
            case "delete":
                del data[place : place + draw(st.integers(0, 4))]
    return bytes(data)


@given(st.data())
def test_no_bytes_make_it_stumble(data):
    """The outcome is a picture or `UnknownError`."""
    extradata, packets = coded(*data.draw(st.sampled_from([(RICH,), (RICH, "mpegts")])))
    changed = data.draw(st.one_of(mutated(extradata), st.just(extradata), st.binary(max_size=80)))
    packet = data.draw(st.one_of(mutated(data.draw(st.sampled_from(packets))), st.binary()))
    try:
        picture = Headers.of(changed).picture(memoryview(packet))
    except UnknownError:
        return
    assert isinstance(picture, Picture)
    assert 0 not in picture.references


@given(st.binary(), st.integers(1, 4))
def test_units_are_parts_of_their_packet(data, length_bytes):
    for units in (sized_units(memoryview(data), length_bytes), delimited_units(memoryview(data))):
        found = list(units)
        assert sum(map(len, found)) <= len(data)
        assert all(bytes(one) in data for one in found)


# Sets of references


class Writer:
    """Writes what `Bits` reads."""

    def __init__(self):
        self.bits = ""

    def flag(self, value):
        self.bits += "01"[value]

    def variable(self, value):
        coded = f"{value + 1:b}"
        self.bits += "0" * (len(coded) - 1) + coded

    def read(self):
        data = int("1" + self.bits + "0" * (-len(self.bits) % 8), 2)
        return Bits(data.to_bytes(data.bit_length() // 8 + 1)[1:])


places = st.sets(st.integers(1, 40), max_size=6).flatmap(
    lambda found: st.tuples(*(st.tuples(st.just(place), st.booleans()) for place in sorted(found)))
)
sets = st.builds(
    lambda before, after: ReferenceSet(tuple((-p, used) for p, used in before), after),
    places,
    places,
)


def write_told(writer, kept):
    writer.variable(len(kept.before))
    writer.variable(len(kept.after))
    for side in (kept.before, kept.after):
        last = 0
        for place, is_used in side:
            writer.variable(abs(place - last) - 1)
            writer.flag(is_used)
            last = place


@given(sets)
def test_a_set_is_read_as_it_is_written(kept):
    writer = Writer()
    write_told(writer, kept)
    assert reference_set(writer.read(), [], is_in_slice=False) == kept


@given(st.lists(sets, min_size=1, max_size=3), st.data())
def test_a_set_that_is_told_by_its_difference(known, data):
    in_slice = data.draw(st.booleans())
    back = data.draw(st.integers(1, len(known))) if in_slice else 1
    source = known[-back]
    shift = data.draw(st.integers(-20, 20).filter(bool))
    count = len(source.before) + len(source.after) + 1
    flags = st.lists(st.booleans(), min_size=count, max_size=count)
    used, kept = data.draw(flags), data.draw(flags)
    writer = Writer()
    writer.flag(True)
    if in_slice:
        writer.variable(back - 1)
    writer.flag(shift < 0)
    writer.variable(abs(shift) - 1)
    for is_used, is_kept in zip(used, kept, strict=True):
        writer.flag(is_used)
        if not is_used:
            writer.flag(is_kept)
    delta = [a or b for a, b in zip(used, kept, strict=True)]
    found = reference_set(writer.read(), known, is_in_slice=in_slice)
    assert found == ReferenceSet(*derived(source, shift, used, delta))
    assert max(len(found.before), len(found.after)) <= MOST_REFERENCES


def derived(source, shift, used, delta):
    """Equations 7-61 and 7-62, in the order in which these go through the places."""
    s0, s1 = ([place for place, _ in side] for side in (source.before, source.after))
    n0, n1 = len(s0), len(s1)
    own = [(shift, n0 + n1)]
    of_s0 = [(s0[j] + shift, j) for j in range(n0)]
    of_s1 = [(s1[j] + shift, n0 + j) for j in range(n1)]
    before = [*reversed(of_s1), *own, *of_s0]
    after = [*reversed(of_s0), *own, *of_s1]
    return (
        tuple((place, used[j]) for place, j in before if place < 0 and delta[j]),
        tuple((place, used[j]) for place, j in after if place > 0 and delta[j]),
    )


# Which pictures are needed


def picture(order, *references, kind=SLICE_OF_REFERENCE, bits=8):
    return Picture(kind, 0, order % 2**bits, bits, frozenset(r - order for r in references))


def group(seed):
    """Pictures in the order of decoding with their full places, each with earlier references."""
    randomly = random.Random(seed)
    orders = [0, *randomly.sample(range(1, 60), 20)]
    found = [picture(0, kind=IDR)]
    for position, order in enumerate(orders[1:], 1):
        references = randomly.sample(orders[:position], min(position, randomly.randint(0, 3)))
        found.append(picture(order, *references))
    return orders, found


@given(st.integers(0, 10**6), st.sets(st.integers(0, 20), max_size=4))
def test_what_is_needed_is_the_wanted_and_what_they_need(seed, wanted):
    orders, found = group(seed)
    expected = {0, *wanted} if wanted else set()
    for position in reversed(range(21)):
        if position in expected:
            expected |= {orders.index(orders[position] + r) for r in found[position].references}
    assert needed_pictures(found, wanted) == expected


def test_a_reference_that_is_not_there_is_unknown():
    with pytest.raises(UnknownError):
        needed_pictures([picture(0, kind=IDR), picture(5, 3)], [1])
    assert needed_pictures([picture(0, kind=IDR), picture(5, 3)], [0]) == {0}


def test_a_reference_that_comes_later_is_unknown():
    with pytest.raises(UnknownError):
        needed_pictures([picture(0, kind=IDR), picture(1, 2), picture(2, 0)], [1])


def test_two_pictures_in_one_place_are_unknown():
    with pytest.raises(UnknownError):
        needed_pictures([picture(0, kind=IDR), picture(1, 0), picture(1, 0)], [1])


def test_decoding_begins_at_a_keyframe():
    for found in ([], [picture(0), picture(1, 0)]):
        with pytest.raises(UnknownError):
            needed_pictures(found, [0])


def test_places_that_a_decoder_would_get_wrong_are_unknown():
    """A place is told by its last bits: what is left out must not hide that they went round."""
    found = [picture(0, kind=IDR, bits=4), *(picture(order, 0, bits=4) for order in range(1, 30))]
    assert needed_pictures(found, [7]) == {0, 7}
    with pytest.raises(UnknownError):
        needed_pictures(found, [20])


def test_layers_are_read_from_each_unit():
    layers = {picture.layer for picture in pictures("temporal-layers=3:bframes=3:b-adapt=0")}
    assert layers > {0}


def test_a_packet_of_pyav_is_read_where_it_lies():
    extradata, packets = coded(RICH)
    assert Headers.of(extradata).picture(memoryview(av.Packet(packets[0]))).is_random_access
