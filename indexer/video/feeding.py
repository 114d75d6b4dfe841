"""Chooses the packets of a run that its frames need, by what the packets' headers say.

Where these say it of each picture (HEVC, AV1), a picture is fed if a wanted frame is predicted from
it, directly or by way of others. Elsewhere, and wherever a header leaves a doubt, all are fed but
those from which nothing is predicted.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from av.video.codeccontext import VideoCodecContext

from indexer.video import av1, hevc
from indexer.video.bits import UnknownError
from indexer.video.bitstream import VideoPacket, disposable_test
from indexer.video.references import needed_packets, needed_pictures

Numbered: TypeAlias = tuple[int, VideoPacket]
_Read = TypeVar("_Read")

_MOST_BUFFERED_BYTES: Final = 64 * 2**20
"""Of a group of pictures that is held until all of its headers have been read."""

_DENSE: Final = 0.75
"""Share of a run's pictures that are wanted, from which on reading headers costs what it saves."""


class Feed(NamedTuple):
    """A packet for the decoder.

    Attributes:
        ordinal: its number in the stream.
        packet: itself.
        is_thinned: whether pictures that its header speaks of may have been left out.
    """

    ordinal: int
    packet: VideoPacket
    is_thinned: bool = False


Choice: TypeAlias = Callable[[Iterable[Numbered], frozenset[int]], Iterator[Feed]]


def all_packets(packets: Iterable[VideoPacket]) -> Iterator[Feed]:
    """Every packet of a stream."""
    return every_packet(enumerate(packets), frozenset())


def every_packet(packets: Iterable[Numbered], _wanted: frozenset[int]) -> Iterator[Feed]:
    """The choice of all."""
    return (Feed(ordinal, packet) for ordinal, packet in packets)


def choice_for(context: VideoCodecContext) -> Choice:
    """What chooses packets, which come with their ordinals, for the ordinals of wanted frames."""
    simple, extradata = _WithoutDisposable(context), context.extradata or b""
    if not context.is_hwaccel:
        with suppress(UnknownError):
            if context.codec.canonical_name == "hevc":
                return _ByReference(hevc.Headers.of(extradata), needed_pictures, simple)
            if context.codec.canonical_name == "av1":
                return _ByReference(av1.Headers.of(extradata), needed_packets, simple)
    return simple


class _Picture(Protocol):
    """What one packet codes."""

    @property
    def breaks(self) -> bool:
        """Whether nothing later is predicted from anything earlier."""


_P = TypeVar("_P", bound=_Picture)
_P_co = TypeVar("_P_co", bound=_Picture, covariant=True)


class _Headers(Protocol[_P_co]):
    """Reads the headers of a codec; where they are not understood, raises `UnknownError`."""

    def picture(self, data: memoryview) -> _P_co: ...

    def pass_over(self, data: memoryview) -> None: ...


_Needed: TypeAlias = Callable[[Sequence[_P], Iterable[int]], frozenset[int]]


class _WithoutDisposable:
    """Leaves out packets from which nothing is predicted."""

    def __init__(self, context: VideoCodecContext) -> None:
        self._is_disposable = disposable_test(context)

    def __call__(self, packets: Iterable[Numbered], wanted: frozenset[int]) -> Iterator[Feed]:
        for ordinal, packet in packets:
            is_disposable = self._is_disposable
            if is_disposable is None or ordinal in wanted or not is_disposable(packet):
                yield Feed(ordinal, packet)


class _ByReference(Generic[_P]):
    """Leaves out packets from which no wanted frame is predicted.

    Packets are held until no later one can refer to them: for one closed group of pictures. Where
    most are wanted, or no fewer would be fed than in the simple way, that is taken. Once a header
    is not understood, all that follows is left to the simple way, because that header may be the
    one that changes what the later ones mean.
    """

    def __init__(self, headers: _Headers[_P], needed: _Needed[_P], simple: Choice) -> None:
        self._headers = headers
        self._needed = needed
        self._simple = simple
        self._understands = True

    def __call__(self, packets: Iterable[Numbered], wanted: frozenset[int]) -> Iterator[Feed]:
        if len(wanted) >= _DENSE * (1 + max(wanted) - min(wanted)):
            yield from self._simple(self._passed_over(packets), wanted)
            return
        for group, pictures in self._groups(packets):
            simple = list(self._simple(group, wanted))
            positions = [at for at, (ordinal, _) in enumerate(group) if ordinal in wanted]
            try:
                needed = self._needed(pictures, positions)
            except UnknownError:
                yield from simple
                continue
            thinned = [Feed(*group[position], is_thinned=True) for position in sorted(needed)]
            is_safe = not any(feed.packet.is_discard for feed in thinned)  # they do not come out
            yield from thinned if is_safe and len(thinned) < len(simple) else simple

    def _groups(self, packets: Iterable[Numbered]) -> Iterator[tuple[list[Numbered], list[_P]]]:
        """Closed groups and their pictures; without these, what is not understood or too long."""
        group: list[Numbered] = []
        pictures: list[_P] = []
        is_whole, size_bytes = True, 0
        for ordinal, packet in packets:
            picture = self._picture(packet)
            breaks = picture is not None and picture.breaks
            if breaks or picture is None or size_bytes > _MOST_BUFFERED_BYTES:
                yield group, pictures if is_whole and breaks else []
                group, pictures, size_bytes, is_whole = [], [], 0, breaks
            group.append((ordinal, packet))
            pictures += [] if picture is None else [picture]
            size_bytes += packet.size
        yield group, pictures if is_whole else []

    def _passed_over(self, packets: Iterable[Numbered]) -> Iterator[Numbered]:
        for ordinal, packet in packets:
            self._read(packet, self._headers.pass_over)
            yield ordinal, packet

    def _picture(self, packet: VideoPacket) -> _P | None:
        return self._read(packet, self._headers.picture)

    def _read(self, packet: VideoPacket, how: Callable[[memoryview], _Read]) -> _Read | None:
        """What the headers of a packet say; None once they are not understood."""
        if self._understands and not packet.has_sidedata("new_extradata"):
            with suppress(UnknownError):
                return how(memoryview(packet))
        self._understands = False
        return None
