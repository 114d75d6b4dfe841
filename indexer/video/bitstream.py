"""What the first bytes of a coded frame say about it: whether others need it, whether it is shown.

Nothing here decodes. Where the bytes leave a doubt, the answer is the safe one: needed, and shown.
"""

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from indexer.video.nal import delimited_units, sized_units

VideoPacket: TypeAlias = "Packet[VideoStream]"
PacketTest: TypeAlias = Callable[[VideoPacket], bool]

_NAL_HEADER_BYTES: Final = 2

_H264_SLICES: Final = range(1, 6)
_HEVC_SLICES: Final = range(32)
_HEVC_SUBLAYER_NON_REFERENCE: Final = range(0, 15, 2)

_AVCC_HEADER_BYTES: Final = 7
_HVCC_HEADER_BYTES: Final = 23


def disposable_test(context: VideoCodecContext) -> PacketTest | None:
    """A test for packets that no other frame is predicted from; None where the codec has none.

    H.264 marks them with `nal_ref_idc` 0 (ITU-T H.264, 7.4.1). HEVC calls them sub-layer
    non-reference pictures (ITU-T H.265, table 7-1), which frames of higher temporal layers may
    still refer to: only those of the highest layer count, and only where the header says how many
    layers there are. Decoders ignore the like of VP8 and VP9, and AV1's is not at a fixed place.
    """
    extradata = context.extradata or b""
    is_iso = len(extradata) >= _AVCC_HEADER_BYTES and extradata[0] == 1
    match context.codec.canonical_name:
        case "h264" if is_iso:
            length_bytes = (extradata[4] & 3) + 1
            return lambda packet: _h264_disposable(sized_units(memoryview(packet), length_bytes))
        case "h264":
            return lambda packet: _h264_disposable(delimited_units(memoryview(packet)))
        case "hevc" if is_iso and len(extradata) >= _HVCC_HEADER_BYTES:
            length_bytes = (extradata[21] & 3) + 1
            layers = extradata[21] >> 3 & 7
            if layers:
                return lambda packet: _hevc_disposable(
                    sized_units(memoryview(packet), length_bytes), top_layer=layers - 1
                )
    return None


def hidden_test(context: VideoCodecContext) -> PacketTest | None:
    """A test for packets that give no frame to show; None where the codec has none.

    VP8 has the flag in its frame tag (RFC 6386, 9.1), VP9 in its uncompressed header (section 6.2
    of its specification) unless several frames share the packet, of which the last is shown.
    """
    return {"vp8": _vp8_hidden, "vp9": _vp9_hidden}.get(context.codec.canonical_name)


def _h264_disposable(units: Iterator[memoryview]) -> bool:
    references = [unit[0] >> 5 & 3 for unit in units if unit and unit[0] & 31 in _H264_SLICES]
    return bool(references) and not any(references)


def _hevc_disposable(units: Iterator[memoryview], *, top_layer: int) -> bool:
    slices = 0
    for unit in units:
        if len(unit) < _NAL_HEADER_BYTES:
            return False
        kind, layer = unit[0] >> 1 & 63, (unit[1] & 7) - 1
        if kind in _HEVC_SLICES:
            slices += 1
            if kind not in _HEVC_SUBLAYER_NON_REFERENCE or layer != top_layer:
                return False
    return slices > 0


def _vp8_hidden(packet: VideoPacket) -> bool:
    return not memoryview(packet)[0] & 0x10


def _vp9_hidden(packet: VideoPacket) -> bool:
    data = memoryview(packet)
    first, last = data[0], data[-1]
    is_superframe = last & 0xE0 == 0xC0  # noqa: PLR2004 - the marker of its index
    is_profile_3 = first & 0x30 == 0x30  # noqa: PLR2004 - whose flags lie one bit further
    shows_existing, shows = first & 0x08, first & 0x02
    return not (is_superframe or is_profile_3 or shows_existing or shows)
