"""The numbers that the headers of coded pictures are made of; knows what none of them means."""

from typing import Final

_LONGEST_PREFIX: Final = 32


class UnknownError(Exception):
    """A header holds something that is not understood for sure."""


class Bits:
    """Reads numbers of so many bits, one after the other.

    Attributes:
        left: number of bits that are still unread.
    """

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data)
        self.left = 8 * len(data)

    def number(self, bits: int) -> int:
        """An unsigned number.

        Raises:
            UnknownError: the data end before.
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
        """A number of variable length: `ue(v)` of ITU-T H.265, 9.2, and `uvlc()` of AV1, 4.10.3.

        Args:
            most: that it may be.

        Raises:
            UnknownError: it is more, or the data end before.
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
