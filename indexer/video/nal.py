"""NAL units, in which H.264 and HEVC are coded."""

from collections.abc import Iterator
from typing import Final

from indexer.video.bits import Bits

_START_CODE: Final = b"\x00\x00\x01"
_ESCAPED: Final = b"\x00\x00\x03"


def sized_units(data: memoryview, length_bytes: int) -> Iterator[memoryview]:
    """The NAL units of a packet where each one's length stands before it: ISO/IEC 14496-15."""
    offset = 0
    while offset + length_bytes < len(data):
        start = offset + length_bytes
        offset = start + int.from_bytes(data[offset:start])
        yield data[start:offset]


def delimited_units(data: memoryview) -> Iterator[memoryview]:
    """The NAL units of a packet where a start code is before each: annex B of both standards."""
    found = bytes(data)
    start = found.find(_START_CODE) + len(_START_CODE)
    while start >= len(_START_CODE):
        following = found.find(_START_CODE, start)
        stop = following if following >= 0 else len(found)
        yield data[start:stop]
        start = following + len(_START_CODE)


def payload_bits(payload: bytes) -> Bits:
    """The bits of a NAL unit behind its header.

    Bytes that were put in so that no start code appears are left out: ITU-T H.265, 7.4.2.
    """
    plain = payload.replace(_ESCAPED, b"\x00\x00") if _ESCAPED in payload else payload
    return Bits(plain)
