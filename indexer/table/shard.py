"""Parts of an archive that several jobs index side by side: `--shard i/n`."""

import math
from dataclasses import dataclass
from typing import Final, Self

from indexer.errors import ConfigError

_ID_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several equal parts of all videos, told by their ids.

    Attributes:
        number: 1 to `count`.
        count: of parts.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `i/n`.

        Raises:
            ConfigError: it says something else.
        """
        number, slash, count = text.partition("/")
        if slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
            return cls(int(number), int(count))
        message = f"shard = {text!r}: should be i/n with 1 <= i <= n, such as 1/4"
        raise ConfigError(message)

    @property
    def writer(self) -> str:
        """Name of the lease."""
        return f"{self.number}-of-{self.count}"

    def holds(self, video_id: str) -> bool:
        """Whether a video belongs to this shard; the digits used are random in every uuid5."""
        return int(video_id[:_ID_DIGITS], 16) % self.count == self.number - 1

    def overlaps(self, writer: str) -> bool:
        """Whether the shard of another lease has videos in common with this one."""
        number, _, count = writer.partition("-of-")
        if not (number.isdecimal() and count.isdecimal()):
            return False
        common = math.gcd(self.count, int(count))
        return self.number % common == int(number) % common
