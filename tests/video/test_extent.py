import io
import struct

import pytest

from indexer.video.extent import cut_short, looks_like_container, single_index
from tests.video.synth import Synth


def box(kind, payload=b"", size=None):
    return struct.pack(">I4s", 8 + len(payload) if size is None else size, kind) + payload


def wide_box(kind, payload=b"", size=None):
    total = 16 + len(payload) if size is None else size
    return struct.pack(">I4sQ", 1, kind, total) + payload


def matroska(length, payload=b"12345", header=b"\x83abc"):
    return b"\x1a\x45\xdf\xa3" + header + b"\x18\x53\x80\x67" + length + payload


FTYP, MOOV = box(b"ftyp", b"isom"), box(b"moov", b"facts")

WHOLE = {
    "mp4": FTYP + MOOV + box(b"mdat", b"data"),
    "mp4 of 64 bits": FTYP + wide_box(b"mdat", b"data") + MOOV,
    "mp4 with an open end": FTYP + MOOV + box(b"mdat", b"data", size=0),
    "mp4 with a cut filler": FTYP + MOOV + box(b"mdat", b"data") + box(b"free", b"", size=99),
    "mp4 with a stray tail": FTYP + MOOV + b"\x00\x00",
    "mkv": matroska(b"\x85"),
    "mkv with a long length": matroska(b"\x10\x00\x00\x05"),
    "mkv of unknown length": matroska(b"\xff"),
    "mkv of unknown long length": matroska(b"\x01" + b"\xff" * 7),
    "mkv with a bad length": matroska(b"\x00"),
    "mkv without a segment": b"\x1a\x45\xdf\xa3\x83abc",
    "avi": b"RIFF\x08\x00\x00\x00AVI data",
    "words": b"no container at all",
    "nothing": b"",
}
CUT = {
    "mp4 data": (FTYP + MOOV + box(b"mdat", b"data", size=100), "88 bytes of box mdat"),
    "mp4 data of 64 bits": (FTYP + wide_box(b"mdat", b"", size=2**40), "box mdat"),
    "mp4 header": (FTYP + box(b"moov", b"fa", size=50), "40 bytes of box moov"),
    "mp4 fragment": (FTYP + MOOV + box(b"moof", b"", size=9), "1 bytes of box moof"),
    "mp4 without header": (FTYP + box(b"mdat", b"data"), "moov is missing"),
    "mkv": (matroska(b"\x87"), "2 of "),
    "mkv with a long length": (matroska(b"\x10\x00\x01\x05"), "256 of "),
    "avi": (b"RIFF\x09\x00\x00\x00AVI data", "1 of 17 bytes"),
}


@pytest.mark.parametrize("source", WHOLE.values(), ids=WHOLE)
def test_a_whole_file_lacks_nothing(source):
    assert cut_short(io.BytesIO(source)) == ""


@pytest.mark.parametrize(("source", "message"), CUT.values(), ids=CUT)
def test_a_cut_file_says_what_it_lacks(source, message):
    assert message in cut_short(io.BytesIO(source))


def test_containers_are_known_by_their_first_bytes():
    assert looks_like_container(io.BytesIO(WHOLE["mp4"]))
    assert looks_like_container(io.BytesIO(WHOLE["mkv"]))
    assert not looks_like_container(io.BytesIO(WHOLE["avi"]))
    assert not looks_like_container(io.BytesIO(b""))


@pytest.mark.parametrize("movflags", ["frag_keyframe", "frag_keyframe+empty_moov"])
def test_fragments_are_not_described_in_one_place(movflags):
    source = Synth(options={"g": "20"}, container_options={"movflags": movflags}).encode()
    assert not single_index(io.BytesIO(source))


@pytest.mark.parametrize("movflags", ["", "faststart"])
def test_one_index_may_describe_everything(movflags):
    options = {"movflags": movflags} if movflags else {}
    source = Synth(container_options=options).encode()
    file = io.BytesIO(source)
    file.seek(123)
    assert single_index(file)
    assert file.tell() == 123
    assert not single_index(io.BytesIO(source[:-1]))
    assert not single_index(io.BytesIO(source + b"more"))
