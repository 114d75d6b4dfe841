"""How long a container says it is, by its own outermost sizes, against the bytes that are there.

FFmpeg takes bytes that stop on the boundary of a frame for the end of the video and says nothing.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

from indexer.video.ranged import AHEAD_BYTES, RangedFile, Readable

_ISO_DATA: Final = frozenset({b"mdat", b"moov", b"moof"})
_ISO_OPENERS: Final = _ISO_DATA | {b"ftyp", b"styp", b"free", b"skip", b"wide", b"pnot"}
_MOST_BOXES: Final = 16
_MOST_INDEX_BYTES: Final = 64 * 2**20
_EBML: Final = b"\x1a\x45\xdf\xa3"
_EBML_SEGMENT: Final = b"\x18\x53\x80\x67"


def looks_like_container(file: Readable) -> bool:
    """Whether the first bytes are those of an MP4 or Matroska file."""
    file.seek(0)
    head = file.read(8)
    return head[4:8] in _ISO_OPENERS or head[:4] == _EBML


def cut_short(file: Readable) -> str:
    """What an MP4, Matroska or AVI file lacks at its end, in words; empty where nothing is known.

    Args:
        file: seekable; its position afterwards is undefined.
    """
    size_bytes = file.seek(0, 2)
    file.seek(0)
    head = file.read(12)
    if head[4:8] in _ISO_OPENERS:
        return _iso_cut_short(file, size_bytes)
    if head[:4] == _EBML:
        declared_bytes = _ebml_declared_bytes(file)
    elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        declared_bytes = 8 + int.from_bytes(head[4:8], "little")
    else:
        return ""
    if declared_bytes <= size_bytes:
        return ""
    return f"{declared_bytes - size_bytes} of {declared_bytes} bytes are missing at the end"


def single_index(file: Readable) -> bool:
    """Whether an MP4 describes all its frames in one place: it is whole, and has no fragments.

    The position of the file is left where it was.
    """
    position = file.tell()
    size_bytes = file.seek(0, 2)
    boxes = list(islice(_iso_boxes(file, size_bytes), _MOST_BOXES + 1))
    file.seek(position)
    kinds = [box.kind for box in boxes]
    whole = bool(boxes) and len(boxes) <= _MOST_BOXES and boxes[-1].end == size_bytes
    return whole and b"moov" in kinds and b"moof" not in kinds


def read_index(file: RangedFile) -> None:
    """Brings the index of an MP4 at once, with the first bytes of what follows it."""
    for box in islice(_iso_boxes(file, file.size_bytes), _MOST_BOXES):
        if box.kind == b"moov":
            file.require([(box.start, min(box.end, box.start + _MOST_INDEX_BYTES) + AHEAD_BYTES)])
            return


class _Box(NamedTuple):
    kind: bytes
    start: int
    end: int


def _iso_boxes(file: Readable, size_bytes: int) -> Iterator[_Box]:
    """The outermost boxes of an MP4, as far as they make sense: ISO/IEC 14496-12, 4.2."""
    offset = 0
    while offset + 8 <= size_bytes:
        file.seek(offset)
        head = file.read(16)
        box_bytes, kind = int.from_bytes(head[:4]), head[4:8]
        if box_bytes == 0:
            box_bytes = size_bytes - offset
        elif box_bytes == 1:
            box_bytes = int.from_bytes(head[8:16])
        if box_bytes < 8:  # noqa: PLR2004 - less than its own header: no box at all
            return
        yield _Box(kind, offset, offset + box_bytes)
        offset += box_bytes


def _iso_cut_short(file: Readable, size_bytes: int) -> str:
    seen = set[bytes]()
    for kind, _, end in _iso_boxes(file, size_bytes):
        seen.add(kind)
        if end > size_bytes and kind in _ISO_DATA:
            return f"the last {end - size_bytes} bytes of box {kind.decode()} are missing"
    return "" if b"moov" in seen else "the box moov is missing; was the recording finished?"


def _ebml_declared_bytes(file: Readable) -> int:
    """Where the Segment of a Matroska file ends; 0 where it does not say: RFC 8794, 6.1."""
    file.seek(4)
    header_bytes = _ebml_length(file)
    file.seek(header_bytes, 1)
    if file.read(4) != _EBML_SEGMENT:
        return 0
    length = _ebml_length(file)
    return file.tell() + length if length else 0


def _ebml_length(file: Readable) -> int:
    """A variable-length number; 0 for the one with all bits set, which means "unknown"."""
    first = file.read(1)
    if not first or first == b"\x00":
        return 0
    extra = 8 - first[0].bit_length()
    bits = 7 * (extra + 1)
    value = int.from_bytes(first + file.read(extra)) & ((1 << bits) - 1)
    return 0 if value == (1 << bits) - 1 else value
