"""Which pictures a coded HEVC picture is predicted from, read from its headers.

The section numbers are those of ITU-T H.265. What single-layer streams of its first two versions
hold is read, long-term references excepted. Whatever else a header holds, and whatever is
malformed, raises `UnknownError` and nothing else. Nothing here decodes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Self, TypeAlias, TypeVar

from indexer.video.bits import Bits, UnknownError
from indexer.video.hevc_sets import (
    MOST_REFERENCES,
    PictureSet,
    ReferenceSet,
    SequenceSet,
    picture_set,
    reference_set,
    sequence_set,
)
from indexer.video.nal import delimited_units, payload_bits, sized_units

_Set = TypeVar("_Set")
Split: TypeAlias = Callable[[memoryview], Iterator[memoryview]]

# Kinds of NAL units: table 7-1
_SLICES: Final = frozenset({*range(10), *range(16, 22)})
_RANDOM_ACCESS: Final = frozenset(range(16, 22))
_BREAKS: Final = frozenset(range(16, 21))
_REFRESH: Final = frozenset({19, 20})
_LEADING: Final = frozenset(range(6, 10))
_SUBLAYER_NON_REFERENCE: Final = frozenset(range(0, 16, 2))
_VIDEO_SET, _SEQUENCE_SET, _PICTURE_SET = 32, 33, 34
_PARAMETERS: Final = frozenset({_VIDEO_SET, _SEQUENCE_SET, _PICTURE_SET})
_MESSAGES: Final = frozenset({39, 40})
_HARMLESS: Final = frozenset({35, 38, *range(48, 64)})
"""Delimiters, filler, and what is not specified; Dolby Vision is there, which leaves pixels be."""

_HARMLESS_MESSAGES: Final = frozenset({0, 1, 2, 4, 5, 6, 129, 132, 136, 137, 144, 147, 148})
"""Those that do not change a later picture, as film grain and orientation do: D.2.1."""

_HEADER_BYTES: Final = 2
_SLICE_BYTES: Final = 160
"""More than most slice headers take up to the end of their lists of references."""

_HVCC_BYTES: Final = 23
_B, _P, _I = range(3)


@dataclass(frozen=True, slots=True)
class Picture:
    """What the headers of one picture say.

    Attributes:
        kind: of its NAL units: table 7-1.
        layer: temporal one, from 0.
        order: its place in the order of output, of which only the last `order_bits` bits are told.
        order_bits: how many these are.
        references: places of the pictures that it is predicted from, relative to its own.
    """

    kind: int
    layer: int
    order: int
    order_bits: int
    references: frozenset[int]

    @property
    def is_random_access(self) -> bool:
        """Whether decoding can begin here."""
        return self.kind in _RANDOM_ACCESS

    @property
    def breaks(self) -> bool:
        """Whether no later picture is predicted from an earlier one than this."""
        return self.kind in _BREAKS

    @property
    def is_anchor(self) -> bool:
        """Whether the places of later pictures are told relative to this one's: 8.3.1."""
        return not (self.layer or self.kind in _LEADING or self.kind in _SUBLAYER_NON_REFERENCE)


class Headers:
    """Reads the headers of a stream's pictures.

    Args:
        split: gives the NAL units of a packet.
        parameters: the NAL units that precede the stream.

    Raises:
        UnknownError: they are not understood.
    """

    def __init__(self, split: Split, parameters: Iterable[memoryview]) -> None:
        self._split = split
        self._known = {_without_padding(unit) for unit in parameters}
        self._sequences: dict[int, SequenceSet] = {}
        self._pictures: dict[int, PictureSet] = {}
        for unit in self._known:
            kind, _ = _kind_and_layer(unit)
            bits = payload_bits(unit[_HEADER_BYTES:])
            if kind == _SEQUENCE_SET:
                _add(self._sequences, *sequence_set(bits))
            elif kind == _PICTURE_SET:
                _add(self._pictures, *picture_set(bits))

    @classmethod
    def of(cls, extradata: bytes) -> Self:
        """Reads what a container says of a stream: ISO/IEC 14496-15, 8.3.3, or annex B."""
        if extradata[:3] in {b"\0\0\0", b"\0\0\1"}:
            return cls(delimited_units, delimited_units(memoryview(extradata)))
        if len(extradata) < _HVCC_BYTES or extradata[0] != 1:
            message = "no parameter sets"
            raise UnknownError(message)
        length_bytes = (extradata[21] & 3) + 1
        return cls(lambda data: sized_units(data, length_bytes), _configured(extradata))

    def picture(self, data: memoryview) -> Picture:
        """The picture in a packet.

        Raises:
            UnknownError: not exactly one, or something is not understood.
        """
        picture: Picture | None = None
        for unit in self._split(data):
            kind, layer = _kind_and_layer(unit)
            if kind in _SLICES:
                bits = payload_bits(bytes(unit[_HEADER_BYTES:_SLICE_BYTES]))
                picture = self._with_slice(picture, bits, kind, layer)
            else:
                self._require_harmless(kind, unit)
        if picture is None:
            message = "no picture"
            raise UnknownError(message)
        return picture

    def pass_over(self, data: memoryview) -> None:
        """Makes sure that a packet changes nothing for those after the next keyframe.

        Raises:
            UnknownError: it may, or something is not understood.
        """
        for unit in self._split(data):
            kind, _ = _kind_and_layer(unit)
            if kind not in _SLICES:
                self._require_harmless(kind, unit)

    def _require_harmless(self, kind: int, unit: memoryview) -> None:
        if kind in _PARAMETERS:
            _require(_without_padding(unit) in self._known, "the parameter sets change")
        elif kind in _MESSAGES:
            _require(_is_harmless(unit), "a message that may change later pictures")
        else:
            _require(kind in _HARMLESS, f"a NAL unit of kind {kind}")

    def _with_slice(self, picture: Picture | None, bits: Bits, kind: int, layer: int) -> Picture:
        """What is known of a picture after one more slice: 7.3.6.1."""
        _require(bits.flag() == (picture is None), "a picture without beginning, or a second one")
        if kind in _RANDOM_ACCESS:
            bits.flag()
        pictures = self._pictures.get(bits.variable())
        sequence = self._sequences.get(pictures.sequence) if pictures else None
        if pictures is None or sequence is None:
            message = "a parameter set is missing"
            raise UnknownError(message)
        if picture is not None:
            is_dependent = pictures.has_dependent_slices and bits.flag()
            bits.number(sequence.address_bits)
            if is_dependent:
                return picture
        order, references = _slice(bits, kind, pictures, sequence)
        if picture is None:
            return Picture(kind, layer, order, sequence.order_bits, references)
        agrees = (kind, layer, order) == (picture.kind, picture.layer, picture.order)
        _require(agrees, "slices that disagree")
        return replace(picture, references=picture.references | references)


def _slice(
    bits: Bits, kind: int, pictures: PictureSet, sequence: SequenceSet
) -> tuple[int, frozenset[int]]:
    """The picture's place in the order of output, and its references' places."""
    bits.number(pictures.extra_bits)
    slice_type = bits.variable(_I)
    if pictures.tells_output:
        _require(bits.flag(), "a picture that is not displayed")
    if sequence.has_planes:
        bits.number(2)
    order, kept = 0, ReferenceSet()
    if kind not in _REFRESH:
        order = bits.number(sequence.order_bits)
        kept = _kept(bits, sequence)
        if sequence.predicts_motion:
            bits.flag()
    if sequence.has_offsets:
        bits.number(2 if sequence.has_chroma else 1)
    return order, frozenset() if slice_type == _I else _listed(bits, slice_type, kept, pictures)


def _kept(bits: Bits, sequence: SequenceSet) -> ReferenceSet:
    known = sequence.references
    if not bits.flag():
        kept = reference_set(bits, known, is_in_slice=True)
    else:
        index = bits.number(max(len(known) - 1, 0).bit_length())
        _require(index < len(known), "a set of references is missing")
        kept = known[index]
    if sequence.long_terms is not None:
        named = bits.variable() if sequence.long_terms else 0
        _require(named + bits.variable() == 0, "long-term references")
    return kept


def _listed(
    bits: Bits, slice_type: int, kept: ReferenceSet, pictures: PictureSet
) -> frozenset[int]:
    """The pictures on the lists of references: 7.3.6.2 and 8.3.4."""
    lengths = pictures.active[: 2 if slice_type == _B else 1]
    if bits.flag():
        lengths = tuple(bits.variable(MOST_REFERENCES - 1) + 1 for _ in lengths)
    before = [place for place, is_used in kept.before if is_used]
    after = [place for place, is_used in kept.after if is_used]
    usable = len(before) + len(after)
    _require(usable > 0, "a predicted picture without references")
    listed = set[int]()
    for candidates, length in zip((before + after, after + before), lengths, strict=False):
        entries = list(range(min(length, usable)))
        if pictures.modifies_lists and usable > 1 and bits.flag():
            entries = [bits.number((usable - 1).bit_length()) for _ in range(length)]
            _require(max(entries) < usable, "a reference is missing")
        listed.update(candidates[entry] for entry in entries)
    return frozenset(listed)


def _configured(extradata: bytes) -> Iterator[memoryview]:
    """The NAL units of a decoder configuration record: ISO/IEC 14496-15, 8.3.3.1."""
    data, offset = memoryview(extradata), _HVCC_BYTES
    for _ in range(extradata[_HVCC_BYTES - 1]):
        units = int.from_bytes(data[offset + 1 : offset + 3])
        offset += 3
        for _ in range(units):
            start = offset + 2
            offset = start + int.from_bytes(data[offset:start])
            yield data[start:offset]


def _kind_and_layer(unit: memoryview | bytes) -> tuple[int, int]:
    """Of a NAL unit: its kind and its temporal layer: 7.3.1.2."""
    _require(len(unit) > _HEADER_BYTES, "an empty NAL unit")
    header = int.from_bytes(unit[:_HEADER_BYTES])
    layer = (header & 7) - 1
    _require(header & 0x81F8 == 0 and layer >= 0, "several layers")
    return header >> 9, layer


def _is_harmless(unit: memoryview) -> bool:
    """Whether its messages do not change later pictures: 7.3.5."""
    bits = payload_bits(bytes(unit[_HEADER_BYTES:]).rstrip(b"\0"))
    while bits.left > 8:  # noqa: PLR2004 - the last byte marks the end
        kind, size_bytes = (_long_number(bits) for _ in range(2))
        if kind not in _HARMLESS_MESSAGES:
            return False
        bits.number(8 * size_bytes)
    return True


def _long_number(bits: Bits) -> int:
    value = 0
    while (byte := bits.number(8)) == 0xFF:  # noqa: PLR2004 - more follows
        value += byte
    return value + byte


def _without_padding(unit: memoryview) -> bytes:
    return bytes(unit).rstrip(b"\0")


def _add(known: dict[int, _Set], number: int, new: _Set) -> None:
    _require(known.setdefault(number, new) == new, "parameter sets that disagree")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UnknownError(message)
