"""The parameter sets of HEVC: what slice headers leave unsaid because it holds for a whole stream.

The section numbers are those of ITU-T H.265.
"""

from dataclasses import dataclass
from typing import Final

from indexer.video.bits import Bits, UnknownError

_PROFILES: Final = frozenset({1, 2, 3, 4})
"""Main, Main 10, Main Still Picture and the format range extensions: A.3."""

_PROFILE_BITS: Final = 88
_LEVEL_BITS: Final = 8
_MOST_LAYERS: Final = 7
_CHROMA_444: Final = 3
_MOST_SIDE: Final = 2**16
_MOST_SETS: Final = 64
_MOST_LONG_TERMS: Final = 32
_MOST_ORDER_BITS: Final = 16
_MOST_TILES: Final = 64
MOST_REFERENCES: Final = 15


@dataclass(frozen=True, slots=True)
class ReferenceSet:
    """The pictures that are kept to predict this picture or later ones: 7.4.8.

    Attributes:
        before: (place in the order of output relative to the picture, whether the picture itself
            may use it), nearest first, of those that are displayed before it.
        after: the same, of those displayed after it.
    """

    before: tuple[tuple[int, bool], ...] = ()
    after: tuple[tuple[int, bool], ...] = ()


@dataclass(frozen=True, slots=True)
class SequenceSet:
    """What slice headers need of a sequence parameter set.

    Attributes:
        has_planes: whether the three colours are coded apart.
        has_chroma: whether there are colours, in slices that hold them all.
        order_bits: of a picture's place in the order of output, as a slice gives it.
        address_bits: of a slice's place in its picture.
        has_offsets: whether slices tell of sample adaptive offset.
        references: sets that slices may name.
        long_terms: number of long-term references that they may name; None where there are none.
        predicts_motion: whether slices tell of temporal motion prediction.
    """

    has_planes: bool
    has_chroma: bool
    order_bits: int
    address_bits: int
    has_offsets: bool
    references: tuple[ReferenceSet, ...]
    long_terms: int | None
    predicts_motion: bool


@dataclass(frozen=True, slots=True)
class PictureSet:
    """What slice headers need of a picture parameter set.

    Attributes:
        sequence: number of the sequence parameter set that it adds to.
        has_dependent_slices: whether slices may leave out what the one before says.
        tells_output: whether slices say if the picture is displayed.
        extra_bits: in a slice header, for later use.
        active: lengths of both lists of references, where the slice does not say.
        modifies_lists: whether slices may say what is on the lists.
    """

    sequence: int
    has_dependent_slices: bool
    tells_output: bool
    extra_bits: int
    active: tuple[int, int]
    modifies_lists: bool


def sequence_set(bits: Bits) -> tuple[int, SequenceSet]:
    """Its number and what it says, without its end, which is of no interest here: 7.3.2.2.

    Raises:
        UnknownError: it is malformed, or of a profile that is not known.
    """
    bits.number(4)
    layers = bits.number(3)
    bits.flag()
    _skip_profile(bits, layers)
    number = bits.variable(15)
    chroma = bits.variable(_CHROMA_444)
    has_planes = chroma == _CHROMA_444 and bits.flag()
    width, height = bits.variable(_MOST_SIDE), bits.variable(_MOST_SIDE)
    if bits.flag():
        bits.skip_variables(4)
    bits.skip_variables(2)
    order_bits = bits.variable(_MOST_ORDER_BITS - 4) + 4
    bits.skip_variables(3 * (layers + 1 if bits.flag() else 1))
    block_bits = bits.variable(3) + 3 + bits.variable(3)
    bits.skip_variables(4)
    if bits.flag() and bits.flag():
        _skip_scaling_lists(bits)
    bits.flag()
    has_offsets = bits.flag()
    if bits.flag():
        bits.number(8)
        bits.skip_variables(2)
        bits.flag()
    references: list[ReferenceSet] = []
    for _ in range(bits.variable(_MOST_SETS)):
        references.append(reference_set(bits, references, is_in_slice=False))
    long_terms = _skip_long_terms(bits, order_bits) if bits.flag() else None
    blocks = -(-width >> block_bits) * (-(-height >> block_bits))
    return number, SequenceSet(
        has_planes=has_planes,
        has_chroma=chroma > 0 and not has_planes,
        order_bits=order_bits,
        address_bits=(blocks - 1).bit_length(),
        has_offsets=has_offsets,
        references=tuple(references),
        long_terms=long_terms,
        predicts_motion=bits.flag(),
    )


def picture_set(bits: Bits) -> tuple[int, PictureSet]:
    """Its number and what it says: 7.3.2.3.

    Raises:
        UnknownError: it is malformed, or has extensions that change what slices say.
    """
    number, sequence = bits.variable(63), bits.variable(15)
    has_dependent_slices, tells_output = bits.flag(), bits.flag()
    extra_bits = bits.number(3)
    bits.number(2)
    active = bits.variable(MOST_REFERENCES - 1) + 1, bits.variable(MOST_REFERENCES - 1) + 1
    bits.skip_variables(1)
    bits.number(2)
    bits.skip_variables(3 if bits.flag() else 2)
    bits.number(4)
    has_tiles, _ = bits.flag(), bits.flag()
    if has_tiles:
        columns, rows = bits.variable(_MOST_TILES), bits.variable(_MOST_TILES)
        if not bits.flag():
            bits.skip_variables(columns + rows)
        bits.flag()
    bits.flag()
    if bits.flag():
        bits.flag()
        if not bits.flag():
            bits.skip_variables(2)
    if bits.flag():
        _skip_scaling_lists(bits)
    modifies_lists = bits.flag()
    bits.skip_variables(1)
    bits.flag()
    if bits.flag():
        bits.flag()  # the range extension comes after all that slices need
        if bits.number(7):
            message = "extensions for several layers, three dimensions or screen content"
            raise UnknownError(message)
    return number, PictureSet(
        sequence, has_dependent_slices, tells_output, extra_bits, active, modifies_lists
    )


def reference_set(
    bits: Bits, known: list[ReferenceSet] | tuple[ReferenceSet, ...], *, is_in_slice: bool
) -> ReferenceSet:
    """A set of references, which may be told by its difference from one before: 7.3.7.

    Args:
        bits: where it is written.
        known: the sets that were read before.
        is_in_slice: whether it stands in a slice header, and may differ from any known one.

    Raises:
        UnknownError: it is malformed.
    """
    if known and bits.flag():
        return _derived_set(bits, known, is_in_slice=is_in_slice)
    counts = bits.variable(MOST_REFERENCES), bits.variable(MOST_REFERENCES)
    before, after = (
        _told_places(bits, count, sign) for count, sign in zip(counts, (-1, 1), strict=True)
    )
    return ReferenceSet(before, after)


def _told_places(bits: Bits, count: int, sign: int) -> tuple[tuple[int, bool], ...]:
    places, place = [], 0
    for _ in range(count):
        place += sign * (bits.variable(2**15 - 1) + 1)
        places.append((place, bits.flag()))
    return tuple(places)


def _derived_set(
    bits: Bits, known: list[ReferenceSet] | tuple[ReferenceSet, ...], *, is_in_slice: bool
) -> ReferenceSet:
    """The places of another set, moved, with that set's own picture: equations 7-61 and 7-62."""
    back = bits.variable(len(known) - 1) + 1 if is_in_slice else 1
    source = known[-back]
    is_negative = bits.flag()
    shift = (bits.variable(2**15 - 1) + 1) * (-1 if is_negative else 1)
    moved = []
    for place in (*(place for place, _ in source.before + source.after), 0):
        is_used = bits.flag()
        if is_used or bits.flag():
            moved.append((place + shift, is_used))
    before = sorted((one for one in moved if one[0] < 0), reverse=True)
    after = sorted(one for one in moved if one[0] > 0)
    if max(len(before), len(after)) > MOST_REFERENCES:
        message = "too many references"
        raise UnknownError(message)
    return ReferenceSet(tuple(before), tuple(after))


def _skip_profile(bits: Bits, layers: int) -> None:
    """Passes over profile, tier and level: 7.3.3.

    Args:
        bits: where they are written.
        layers: number of temporal layers but one.
    """
    bits.number(3)
    profile = bits.number(5)
    if profile not in _PROFILES or layers >= _MOST_LAYERS:
        message = f"profile {profile} with {layers + 1} layers"
        raise UnknownError(message)
    bits.number(_PROFILE_BITS - 8 + _LEVEL_BITS)
    told = [(bits.flag(), bits.flag()) for _ in range(layers)]
    if layers:
        bits.number(2 * (8 - layers))
    for has_profile, has_level in told:
        bits.number(_PROFILE_BITS * has_profile + _LEVEL_BITS * has_level)


def _skip_scaling_lists(bits: Bits) -> None:
    """Passes over the weights of frequencies: 7.3.4."""
    for size in range(4):
        for _ in range(6 if size < 3 else 2):  # noqa: PLR2004 - of 32 x 32 there are fewer
            if not bits.flag():
                bits.variable()
            else:
                bits.skip_variables(min(64, 1 << 4 + 2 * size) + (size > 1))


def _skip_long_terms(bits: Bits, order_bits: int) -> int:
    """Passes over the long-term references that slices may name; their number."""
    count = bits.variable(_MOST_LONG_TERMS)
    bits.number(count * (order_bits + 1))
    return count
