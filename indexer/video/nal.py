"""NAL units, in which H.264 and HEVC are coded, and the numbers in their headers.

Nothing here knows what a number means.
"""

from collections.abc import Iterator
from typing import Final

_START_CODE: Final = b"\x00\x00\x01"
_ESCAPED: Final = b"\x00\x00\x03"
_LONGEST_PREFIX: Final = 32


class UnknownError(Exception):
    """A header holds something that is not understood for sure."""


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


class Bits:
    """Reads numbers of so many bits, one after the other.

    Args:
        payload: of a NAL unit, behind its header. Bytes that were put in so that no start code
            appears are left out: ITU-T H.265, 7.4.2.

    Attributes:
        left: number of bits that are still unread.
    """

    def __init__(self, payload: bytes) -> None:
        plain = payload.replace(_ESCAPED, b"\x00\x00") if _ESCAPED in payload else payload
        self._value = int.from_bytes(plain)
        self.left = 8 * len(plain)

    def number(self, bits: int) -> int:
        """An unsigned number.

        Raises:
            UnknownError: the payload ends before.
        """
        self.left -= bits
        if self.left < 0:
            message = "the header ends early"
            raise UnknownError(message)
        return self._value >> self.left & ((1 << bits) - 1)

    def flag(self) -> bool:
        """One bit."""
        return bool(self.number(1))

    def variable(self, most: int = 2**32 - 2) -> int:
        """A number of variable length, `ue(v)`: ITU-T H.265, 9.2.

        Args:
            most: that it may be.

        Raises:
            UnknownError: it is more, or the payload ends before.
        """
        rest = self._value & ((1 << self.left) - 1)
        zeros = self.left - rest.bit_length()
        if zeros > _LONGEST_PREFIX:
            message = "a number is too long"
            raise UnknownError(message)
        value = self.number(2 * zeros + 1) - 1
        if value > most:
            message = f"{value} where at most {most} may be"
            raise UnknownError(message)
        return value

    def skip_variables(self, count: int) -> None:
        """Passes over numbers of variable length, signed or not."""
        for _ in range(count):
            self.variable()
