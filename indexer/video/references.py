"""Which pictures of a stretch some others need, themselves and by way of others."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from indexer.video.av1 import SLOTS, Packet
from indexer.video.bits import UnknownError
from indexer.video.hevc import Picture


def needed_pictures(pictures: Sequence[Picture], wanted: Iterable[int]) -> frozenset[int]:
    """The pictures of HEVC that must be decoded for the wanted ones to come out as they are.

    Args:
        pictures: in the order of decoding, from one at which it can begin.
        wanted: their positions in it.

    Returns:
        Positions: of the wanted ones, of what they need, and of the first one, to which the others'
        places are relative; none where none is wanted.

    Raises:
        UnknownError: a reference is not among them, or is decoded later; or a decoder that got the
            needed ones alone would put them in another order.
    """
    if not pictures or not pictures[0].is_random_access:
        message = "decoding cannot begin here"
        raise UnknownError(message)
    everything = range(len(pictures))
    orders = dict(zip(everything, _orders(pictures, everything), strict=True))
    position_of = {order: position for position, order in orders.items()}
    if len(position_of) < len(pictures):
        message = "two pictures in one place"
        raise UnknownError(message)
    needed = _closure(
        wanted,
        lambda position: _references(pictures[position], position, orders[position], position_of),
    )
    fed = sorted(needed)
    if fed and list(_orders(pictures, fed)) != [orders[position] for position in fed]:
        message = "too far from one picture to the next"
        raise UnknownError(message)
    return needed


def needed_packets(packets: Sequence[Packet], wanted: Iterable[int]) -> frozenset[int]:
    """The packets of AV1 that must be decoded for the wanted ones to come out as they are.

    Args:
        packets: in the order of decoding, from one that fills all slots.
        wanted: their positions in it.

    Returns:
        Positions: of the wanted ones, of what they need, and of the first one; none where none is
        wanted.

    Raises:
        UnknownError: the first packet does not fill all slots.
    """
    if not packets or not packets[0].breaks:
        message = "decoding cannot begin here"
        raise UnknownError(message)
    references = list(_slot_references(packets))
    return _closure(wanted, lambda position: references[position])


class _Slot(NamedTuple):
    """What lies in a slot: a frame of the packet at a position."""

    position: int
    is_key: bool


def _slot_references(packets: Sequence[Packet]) -> Iterator[frozenset[int]]:
    """Of each packet: the positions of those whose frames lie in the slots that it names."""
    slots = [_Slot(0, is_key=True)] * SLOTS
    for position, packet in enumerate(packets):
        named = set[int]()
        for frame in packet.frames:
            named.update(slots[slot].position for slot in frame.named)
            filled = frame.filled
            if frame.is_shown_again and any(slots[slot].is_key for slot in frame.named):
                filled = frozenset(range(SLOTS))
            here = _Slot(position, frame.is_key or frame.is_shown_again)
            for slot in filled:
                slots[slot] = here
        yield frozenset(named - {position})


def _closure(wanted: Iterable[int], references: Callable[[int], Iterable[int]]) -> frozenset[int]:
    """The wanted positions and all that they refer to, with the first of all; none for none."""
    needed, pending = set[int](), list(wanted)
    pending += [0] if pending else []
    while pending:
        if (position := pending.pop()) not in needed:
            needed.add(position)
            pending += references(position)
    return frozenset(needed)


def _references(
    picture: Picture, position: int, order: int, position_of: Mapping[int, int]
) -> Iterator[int]:
    for distance in picture.references:
        reference = position_of.get(order + distance, position)
        if reference >= position:
            message = "a reference is not there"
            raise UnknownError(message)
        yield reference


def _orders(pictures: Sequence[Picture], decoded: Iterable[int]) -> Iterator[int]:
    """The full places in the order of output that a decoder derives: ITU-T H.265, 8.3.1."""
    anchor: int | None = None
    for position in decoded:
        picture = pictures[position]
        span = 1 << picture.order_bits
        order = picture.order
        if anchor is not None and not picture.breaks:
            order += anchor - anchor % span
            if anchor - order >= span // 2:
                order += span
            elif order - anchor > span // 2:
                order -= span
        if picture.is_anchor or anchor is None:
            anchor = order
        yield order
