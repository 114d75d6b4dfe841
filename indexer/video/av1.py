"""Which reference slots the frames of an AV1 packet are predicted from, and which they fill.

The section numbers are those of the AV1 bitstream specification, version 1.0.0 with errata 1. What
a frame leaves behind, be it pixels, motion vectors, probabilities or film grain, it leaves in the
slots that it fills (7.20), and a later frame gets at it by way of the slots that it names. Streams
of one layer are read. Whatever else a header holds, and whatever is malformed, raises
`UnknownError` and nothing else. Nothing here decodes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from indexer.video.bits import Bits, UnknownError

# Types of OBUs: 6.2.2
_SEQUENCE, _DELIMITER, _FRAME_HEADER, _TILES, _METADATA, _FRAME, _AGAIN, _PADDING = (
    *(1, 2, 3, 4),
    *(5, 6, 7, 15),
)
_FRAMES: Final = frozenset({_FRAME_HEADER, _FRAME})
_HARMLESS: Final = frozenset({_DELIMITER, _TILES, _METADATA, _AGAIN, _PADDING})

_HEADER_BYTES: Final = 32
"""More than a frame's header takes up to the slots that it names."""

_AV1C_BYTES: Final = 4
_SELECT: Final = 2
_KEY, _INTRA_ONLY, _SWITCH = 0, 2, 3
_TIERED_LEVEL: Final = 7
SLOTS: Final = 8
_ALL: Final = frozenset(range(SLOTS))
_FILLED: Final = [
    frozenset(slot for slot in _ALL if mask >> slot & 1) for mask in range(1 << SLOTS)
]
_NAMED: Final = 7
"""References of a predicted frame; often several are the same."""

_LEB128_BYTES: Final = 8


class _Unit(NamedTuple):
    kind: int
    payload: memoryview


class Frame(NamedTuple):
    """What the header of one frame says.

    Attributes:
        named: slots that it is predicted from; of one that is shown again, where it is.
        filled: slots that it is put in.
        is_key: whether it is a key frame.
        is_shown_again: whether it was decoded before; a key frame then fills all slots (7.21).
    """

    named: frozenset[int]
    filled: frozenset[int]
    is_key: bool
    is_shown_again: bool = False


@dataclass(frozen=True, slots=True)
class Packet:
    """The frames that come together: one that is shown, and hidden ones before it.

    Attributes:
        frames: in the order of decoding.
    """

    frames: tuple[Frame, ...]

    @property
    def breaks(self) -> bool:
        """Whether no later packet is predicted from an earlier one than this."""
        return self.frames[0].is_key and self.frames[0].filled == _ALL


class _Sequence(NamedTuple):
    """What a sequence header says of the headers of its frames: 5.5.

    Attributes:
        screen_content, integer_motion: whether frames use these, or `_SELECT`: each says so.
        order_bits: of a frame's place in the order of output.
    """

    screen_content: int
    integer_motion: int
    order_bits: int


class Headers:
    """Reads the headers of a stream's frames.

    Args:
        configuration: the OBUs that a container gives ahead of the stream.

    Raises:
        UnknownError: they hold no sequence header that is understood.
    """

    def __init__(self, configuration: memoryview) -> None:
        found = [unit.payload for unit in _units(configuration) if unit.kind == _SEQUENCE]
        if len(found) != 1:
            message = "not one sequence header"
            raise UnknownError(message)
        self._sequence = _sequence(Bits(bytes(found[0])))

    @classmethod
    def of(cls, extradata: bytes) -> Self:
        """Reads a configuration record: section 2.3 of AV1 in ISOBMFF."""
        if len(extradata) <= _AV1C_BYTES or extradata[0] != 0x81:  # noqa: PLR2004 - version 1
            message = "no configuration"
            raise UnknownError(message)
        return cls(memoryview(extradata)[_AV1C_BYTES:])

    def picture(self, data: memoryview) -> Packet:
        """The frames in a packet.

        Raises:
            UnknownError: there is none, or something is not understood.
        """
        frames = tuple(
            _frame(Bits(bytes(unit.payload[:_HEADER_BYTES])), self._sequence)
            for unit in self._harmless(data)
            if unit.kind in _FRAMES
        )
        _require(bool(frames), "no frame")
        return Packet(frames)

    def pass_over(self, data: memoryview) -> None:
        """Makes sure that a packet changes nothing for those after the next key frame.

        Raises:
            UnknownError: it may, or something is not understood.
        """
        for _ in self._harmless(data):
            pass

    def _harmless(self, data: memoryview) -> Iterator[_Unit]:
        for unit in _units(data):
            if unit.kind == _SEQUENCE:
                # encoders may change, from the container's to the stream's, what is not read here
                same = _sequence(Bits(bytes(unit.payload))) == self._sequence
                _require(same, "the sequence header changes")
            elif unit.kind not in _FRAMES:
                _require(unit.kind in _HARMLESS, f"an OBU of type {unit.kind}")
            yield unit


def _frame(bits: Bits, sequence: _Sequence) -> Frame:
    """A frame, by its header up to its references: 5.9.2."""
    if bits.flag():
        return Frame(frozenset({bits.number(3)}), frozenset(), is_key=False, is_shown_again=True)
    kind = bits.number(2)
    _require(kind != _SWITCH, "a switch frame")
    is_shown = bits.flag()
    if not is_shown:
        bits.flag()  # whether it may be shown later
    if kind == _KEY and is_shown:
        return Frame(frozenset(), _ALL, is_key=True)
    is_resilient = bits.flag()
    _require(not (is_resilient and sequence.order_bits), "slots that are checked")
    bits.flag()  # disable_cdf_update
    if _selected(bits, sequence.screen_content):
        _selected(bits, sequence.integer_motion)
    bits.flag()  # frame_size_override_flag
    bits.number(sequence.order_bits)
    is_intra = kind in {_KEY, _INTRA_ONLY}
    if not (is_intra or is_resilient):
        bits.number(3)  # primary_ref_frame: one of those below
    filled = _FILLED[bits.number(SLOTS)]
    if is_intra:
        return Frame(frozenset(), filled, is_key=kind == _KEY)
    _require(not (sequence.order_bits and bits.flag()), "references that are not told")
    named = bits.number(3 * _NAMED)
    return Frame(frozenset(named >> 3 * place & 7 for place in range(_NAMED)), filled, is_key=False)


def _selected(bits: Bits, choice: int) -> int:
    return bits.number(1) if choice == _SELECT else choice


def _sequence(bits: Bits) -> _Sequence:
    bits.number(3)  # profile
    bits.flag()  # still picture
    _require(not bits.flag(), "a still picture")
    if bits.flag():
        _skip_timing(bits)
    has_delays = bits.flag()
    for _ in range(1 + bits.number(5)):
        _require(bits.number(12) == 0, "several layers")
        if bits.number(5) > _TIERED_LEVEL:
            bits.flag()
        if has_delays and bits.flag():
            bits.number(4)
    width_bits, height_bits = 1 + bits.number(4), 1 + bits.number(4)
    bits.number(width_bits + height_bits)
    _require(not bits.flag(), "frames with numbers")
    bits.number(3 + 4)  # tools
    has_order = bits.flag()
    if has_order:
        bits.number(2)  # tools
    screen_content = _SELECT if bits.flag() else bits.number(1)
    integer_motion = _SELECT
    if screen_content and not bits.flag():
        integer_motion = bits.number(1)
    order_bits = 1 + bits.number(3) if has_order else 0
    return _Sequence(screen_content, integer_motion, order_bits)


def _skip_timing(bits: Bits) -> None:
    """Passes over 5.5.3 and refuses 5.5.4, which puts times into frame headers."""
    bits.number(64)
    if bits.flag():
        bits.variable()
    _require(not bits.flag(), "a model of the decoder")


def _units(data: memoryview) -> Iterator[_Unit]:
    """The OBUs of a packet: 5.3."""
    offset = 0
    while offset < len(data):
        header = data[offset]
        _require(header & 0x85 == 0, "a layer, or a reserved bit")
        offset += 1
        size = len(data) - offset
        if header & 2:
            size, offset = _leb128(data, offset)
        _require(offset + size <= len(data), "an OBU is cut off")
        yield _Unit(header >> 3, data[offset : offset + size])
        offset += size


def _leb128(data: memoryview, offset: int) -> tuple[int, int]:
    """A number, and where it ends: 4.10.5."""
    value = 0
    for position, byte in enumerate(data[offset : offset + _LEB128_BYTES]):
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:  # noqa: PLR2004 - the last byte has no mark
            return value, offset + position + 1
    message = "a size that does not end"
    raise UnknownError(message)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UnknownError(message)
