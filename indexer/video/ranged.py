"""A file of which only some bytes are here: the rest is asked for when it is read.

FFmpeg reads a container in steps that nobody can foresee, and of a large object it needs little. It
gets this file: what is here is read from a descriptor, what is not is brought by a callback first,
and in a `hollow` reading, where only the container's own index matters, missing bytes are zeros.
"""

import io
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol, TypeAlias

Range: TypeAlias = tuple[int, int]
"""First byte, and the one after the last."""

AHEAD_BYTES: Final = 256 * 2**10
"""Asked for at a time where FFmpeg reads on and on."""

_ZEROS: Final = bytes(2**20)


class Readable(Protocol):
    """What is needed of a file that a video is read from."""

    def read(self, size: int = -1, /) -> bytes:
        """Reads up to `size` bytes from the position on."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Moves the position."""

    def tell(self) -> int:
        """Tells the position."""


class Ranges:
    """A set of byte offsets, kept as disjoint ranges in order."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in ranges:
            self.add(start, stop)

    def __iter__(self) -> Iterator[Range]:
        return zip(self._starts, self._stops, strict=True)

    @property
    def total_bytes(self) -> int:
        """Number of offsets in the set."""
        return sum(self._stops) - sum(self._starts)

    def add(self, start: int, stop: int) -> None:
        """Adds a range; it may overlap others. An empty one adds nothing."""
        if start >= stop:
            return
        low = bisect_right(self._stops, start - 1)  # the first that ends at `start` or after
        high = bisect_right(self._starts, stop)  # the first that begins after `stop`
        if low < high:
            start = min(start, self._starts[low])
            stop = max(stop, self._stops[high - 1])
        self._starts[low:high] = [start]
        self._stops[low:high] = [stop]

    def stop_of(self, offset: int) -> int:
        """Where the range that holds an offset ends; the offset itself where none does."""
        index = bisect_right(self._starts, offset) - 1
        return max(self._stops[index], offset) if index >= 0 else offset

    def start_after(self, offset: int) -> int | None:
        """Where the first range begins that begins after an offset."""
        index = bisect_right(self._starts, offset)
        return self._starts[index] if index < len(self._starts) else None

    def missing(self, start: int, stop: int) -> Iterator[Range]:
        """The parts of a range that are not in the set, in order."""
        while (start := self.stop_of(start)) < stop:
            following = self.start_after(start)
            end = stop if following is None else min(following, stop)
            yield start, end
            start = end


class RangedFile(io.RawIOBase):
    """A readable, seekable file over a descriptor whose bytes may still be missing.

    Args:
        descriptor: of a file of `size_bytes` bytes; it is not closed with this object.
        size_bytes: size of the whole object.
        present: ranges that are there; by default all.
        fetch: brings ranges that are not; called with at least what is needed. Once it returns
            they are there, else it raises.
    """

    def __init__(
        self,
        descriptor: int,
        size_bytes: int,
        present: Iterable[Range] | None = None,
        fetch: Callable[[Sequence[Range]], None] | None = None,
    ) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._size_bytes = size_bytes
        self._present = Ranges([(0, size_bytes)] if present is None else present)
        self._fetch = fetch
        self._position = 0
        self._hollow = False

    @property
    def size_bytes(self) -> int:
        """Size of the whole object, whatever of it is here."""
        return self._size_bytes

    @property
    def complete(self) -> bool:
        """Whether every byte is here."""
        return self._present.stop_of(0) >= self._size_bytes

    def require(self, ranges: Iterable[Range]) -> None:
        """Brings all of these at once, so that reading them later asks for nothing.

        Raises:
            VideoError: they cannot be had.
        """
        clipped = [(start, min(stop, self._size_bytes)) for start, stop in ranges]
        missing = [gap for start, stop in clipped for gap in self._present.missing(start, stop)]
        if not missing:
            return
        if self._fetch is None:
            message = f"{len(missing)} ranges are missing, and nothing brings them"
            raise OSError(message)
        self._fetch(missing)
        for start, stop in missing:
            self._present.add(start, stop)

    @contextmanager
    def hollow(self) -> Iterator[None]:
        """Within the block, bytes that are not here read as zeros, at no cost."""
        self._hollow = True
        try:
            yield
        finally:
            self._hollow = False

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Position of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves the position; nothing is read."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}[whence]
        if base + offset < 0:
            message = f"cannot seek to {base + offset}"
            raise OSError(message)
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes: fewer where the bytes at hand end; none at the end of the file."""
        start = self._position
        stop = self._size_bytes if size < 0 else min(start + size, self._size_bytes)
        if start >= stop:
            return b""
        here = min(self._present.stop_of(start), stop)
        if here == start:
            if self._hollow:
                return self._zeros(start, stop)
            self.require([(start, max(stop, start + AHEAD_BYTES))])
            here = stop
        data = os.pread(self._descriptor, here - start, start)
        self._position += len(data)
        return data

    def _zeros(self, start: int, stop: int) -> bytes:
        following = self._present.start_after(start)
        length = min(stop if following is None else min(following, stop), start + len(_ZEROS))
        length -= start
        self._position += length
        return _ZEROS if length == len(_ZEROS) else _ZEROS[:length]
