"""Files that would harm a careless reader: they name other files and hosts, or blow up.

Nothing here is a recording: each file is a small video or text with a few numbers changed. Boxes
are those of ISO/IEC 14496-12; the sequence parameter set is that of ITU-T H.264, 7.3.2.1.1.
"""

import functools
import io
import struct
import zlib
from collections.abc import Callable

import av

from tests.video.synth import Synth

GIBIBYTE = 2**30
_FULL_BOX_BYTES = {b"stsd": 8, b"dref": 8, b"avc1": 78, b"png ": 78}
"""What precedes the boxes within these boxes."""


def box(kind: bytes, *parts: bytes) -> bytes:
    payload = b"".join(parts)
    return struct.pack(">I", 8 + len(payload)) + kind + payload


def rewritten(data: bytes, path: str, change: Callable[[bytes], bytes]) -> bytes:
    """The same boxes, with the content of the first one at a path like `moov/trak` changed."""
    kind, _, rest = path.partition("/")
    name, offset = kind.ljust(4).encode(), 0
    while offset < len(data):
        stop = offset + int.from_bytes(data[offset : offset + 4])
        payload = data[offset + 8 : stop]
        if data[offset + 4 : offset + 8] == name:
            skip = _FULL_BOX_BYTES.get(name, 0)
            inside = rewritten(payload[skip:], rest, change) if rest else change(payload)
            new = box(name, payload[:skip] if rest else b"", inside)
            return data[:offset] + new + data[stop:]
        offset = stop
    raise KeyError(kind)


TABLE = "moov/trak/mdia/minf/stbl"
ENTRY = f"{TABLE}/stsd/avc1"


# Files that name others


def hls(segment: str, *lines: str) -> bytes:
    head = ("#EXTM3U", "#EXT-X-TARGETDURATION:9", *lines)
    return "\n".join([*head, "#EXTINF:9,", segment, "#EXT-X-ENDLIST", ""]).encode()


def hls_key(url: str) -> bytes:
    return hls("canary.ts", f'#EXT-X-KEY:METHOD=AES-128,URI="{url}"')


def dash(url: str) -> bytes:
    folder, _, name = url.rpartition("/")
    return f"""<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S"
 profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4">
<Representation id="1" codecs="avc1.42c00a" bandwidth="1000" width="64" height="48">
<BaseURL>{folder}/</BaseURL><SegmentList duration="1"><Initialization sourceURL="{name}"/>
<SegmentURL media="{name}"/></SegmentList></Representation></AdaptationSet></Period></MPD>
""".encode()


def ffconcat(url: str) -> bytes:
    return f"ffconcat version 1.0\nfile '{url}'\n".encode()


def sdp(port: int) -> bytes:
    return (
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
        f"m=video {port} RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
    ).encode()


def mov_reference(kind: str, url: str) -> bytes:
    """Its frames lie elsewhere, by a URL or by the alias of a Macintosh."""
    location = {"url": lambda: b"\0" * 4 + url.encode() + b"\0", "alis": lambda: _alias(url)}
    entry = box(kind.ljust(4).encode(), location[kind]())
    source = Synth(frames=8, container="mov").encode()
    path = "moov/trak/mdia/minf/dinf/dref"
    return rewritten(source, path, lambda _: struct.pack(">II", 0, 1) + entry)


def _alias(path: str) -> bytes:
    folder, _, name = path.rpartition("/")
    return b"".join(
        [
            bytes(4 + 10),
            b"\1v".ljust(28, b"\0"),
            bytes(12),
            bytes([len(name)]) + name.encode().ljust(63, b"\0"),
            bytes(16),
            struct.pack(">HH", 1, 1),
            bytes(16),
            *(_alias_part(kind, text) for kind, text in ((2, path), (18, folder))),
            struct.pack(">hH", -1, 0),
        ]
    )


def _alias_part(kind: int, text: str) -> bytes:
    return struct.pack(">hH", kind, len(text)) + text.encode() + bytes(len(text) % 2)


# Files that blow up


def png(width: int, height: int) -> bytes:
    """A picture whose header promises a size, and which ends soon after."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def png_video() -> bytes:
    """Pictures of 16,000 x 16,000 pixels in a MOV file."""
    source = Synth(frames=2, codec="png", container="mov", pix_fmt="rgb24").encode()
    picture = png(16_000, 16_000)
    place = source.index(b"\x89PNG")
    first_bytes = int.from_bytes(source[source.index(b"stsz") + 12 :][4:8])
    assert len(picture) <= first_bytes
    return source[:place] + picture.ljust(first_bytes, b"\0") + source[place + first_bytes :]


def cover_art() -> bytes:
    """A good video whose cover is a picture of 16,000 x 16,000 pixels."""
    data = box(b"data", struct.pack(">II", 14, 0), png(16_000, 16_000))
    handler = box(b"hdlr", bytes(8), b"mdirappl", bytes(10))
    meta = box(b"meta", bytes(4), handler, box(b"ilst", box(b"covr", data)))
    return rewritten(tiny(), "moov", lambda moov: moov + box(b"udta", meta))


@functools.cache
def tiny() -> bytes:
    """A good video: the one that most files here are made from."""
    return Synth(frames=8, options={"profile": "baseline", "bf": "0"}).encode()


def claiming(width: int, height: int) -> bytes:
    """A tiny stream that says in its own header that its pictures are huge."""
    return rewritten(tiny(), f"{ENTRY}/avcC", lambda config: _claiming(config, width, height))


def _claiming(config: bytes, width: int, height: int) -> bytes:
    sps_bytes = int.from_bytes(config[6:8])
    sps = with_size(config[8 : 8 + sps_bytes], width, height)
    return config[:6] + struct.pack(">H", len(sps)) + sps + config[8 + sps_bytes :]


def with_size(sps: bytes, width: int, height: int) -> bytes:
    """A sequence parameter set of the Baseline profile, with another size of picture."""
    bits = "".join(f"{byte:08b}" for byte in sps.replace(b"\0\0\3", b"\0\0"))
    place = 32
    for _ in range(2):
        _, place = _ue(bits, place)
    order, place = _ue(bits, place)
    for _ in range(2 if order == 0 else 1):
        _, place = _ue(bits, place)
    start = place + 1
    _, place = _ue(bits, start)
    _, place = _ue(bits, place)
    size = "".join(f"{n:b}".zfill(2 * n.bit_length() - 1) for n in (width // 16, height // 16))
    bits = bits[:24] + f"{62:08b}" + bits[32:start] + size + bits[place:].rstrip("0")
    bits += "0" * (-len(bits) % 8)
    changed = int(bits, 2).to_bytes(len(bits) // 8)
    for last in range(4):
        changed = changed.replace(b"\0\0" + bytes([last]), b"\0\0\3" + bytes([last]))
    return changed


def _ue(bits: str, place: int) -> tuple[int, int]:
    """A number of variable length, and where the next one begins: ITU-T H.264, 9.1."""
    zeros = bits.index("1", place) - place
    stop = place + 2 * zeros + 1
    return int(bits[place + zeros : stop], 2) - 1, stop


def growing(width: int, height: int) -> bytes:
    """After eight small pictures, the stream says that the next ones are huge."""
    raw = Synth(frames=8, container="h264", options={"profile": "baseline", "bf": "0"}).encode()
    start = raw.index(b"\0\0\0\1\x67") + 4
    stop = raw.index(b"\0\0\0\1", start)
    larger = raw[:start] + with_size(raw[start:stop], width, height) + raw[stop:]
    target = io.BytesIO()
    with (
        av.open(io.BytesIO(raw + larger), format="h264") as source,
        av.open(target, "w", format="mp4") as container,
    ):
        stream = container.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(p for p in source.demux() if p.size):
            packet.stream = stream
            packet.pts = packet.dts = number * 40_000
            packet.duration = 40_000
            container.mux(packet)
    return target.getvalue()


def time_to_sample(entries: int, samples: int, delta: int) -> bytes:
    """Says that so many frames last so long each."""
    table = struct.pack(">IIII", 0, entries, samples, delta)
    return rewritten(tiny(), f"{TABLE}/stts", lambda _: table)


def sample_sizes(size: int, count: int) -> bytes:
    """Says that there are so many frames of so many bytes; of 0 bytes: of sizes that follow."""
    table = struct.pack(">III", 0, size, count)
    return rewritten(tiny(), f"{TABLE}/stsz", lambda old: table + old[12:])


def chunk_offsets(count: int) -> bytes:
    """Says that there are so many places of frames."""
    return rewritten(tiny(), f"{TABLE}/stco", lambda old: struct.pack(">II", 0, count) + old[8:])


def sample_to_chunk(samples: int) -> bytes:
    """Says that there are so many frames in each place."""
    table = struct.pack(">IIIII", 0, 1, 1, samples, 1)
    return rewritten(tiny(), f"{TABLE}/stsc", lambda _: table)


def compressed_index(unpacked_bytes: int) -> bytes:
    """An index that takes a thousandth of what it is when it is unpacked."""
    source = tiny()
    start = source.index(b"moov") - 4
    moov, rest = source[start + 8 :], source[:start]
    zeros = unpacked_bytes - 2**16
    index = struct.pack(">I4s", 8 + len(moov) + 8 + zeros, b"moov") + moov
    index += struct.pack(">I4s", 8 + zeros, b"free")
    packed = b"\x78\x9c" + _deflated(index, 1) + _deflated(bytes(2**16), zeros // 2**16) + b"\3\0"
    low, high = (value & 0xFFFF for value in (zlib.adler32(index), zlib.adler32(index) >> 16))
    checksum = (high + zeros * low) % 65521 << 16 | low  # that of the zeros too: RFC 1950, 8.2
    movie = struct.pack(">I", len(index) + zeros) + packed + struct.pack(">I", checksum)
    return rest + box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), box(b"cmvd", movie)))


def _deflated(data: bytes, times: int) -> bytes:
    """A stretch that may be repeated: it refers to nothing before it."""
    packer = zlib.compressobj(9, wbits=-15)
    return (packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH)) * times


def nested_boxes(depth: int) -> bytes:
    """Boxes in boxes, like Russian dolls."""
    sizes = range(8 * depth, 0, -8)
    return box(b"ftyp", b"isom", bytes(4)) + b"".join(
        struct.pack(">I4s", size, b"moov" if size == 8 * depth else b"trak") for size in sizes
    )


def empty_boxes(count: int) -> bytes:
    """A good video behind very many boxes that hold nothing."""
    return box(b"ftyp", b"isom", bytes(4)) + box(b"free") * count + _shifted(8 * count + 16)


def _shifted(distance: int) -> bytes:
    """The good video with its frames so much further on."""

    def moved(table: bytes) -> bytes:
        places = struct.unpack(f">{len(table) // 4 - 2}I", table[8:])
        return table[:8] + struct.pack(f">{len(places)}I", *(place + distance for place in places))

    return rewritten(tiny(), f"{TABLE}/stco", moved)


def title_in_no_encoding() -> bytes:
    data = box(b"data", struct.pack(">II", 1, 0), b"\xff\xfe\xfd\xfc")
    handler = box(b"hdlr", bytes(8), b"mdirappl", bytes(10))
    meta = box(b"meta", bytes(4), handler, box(b"ilst", box(b"\xa9nam", data)))
    return rewritten(tiny(), "moov", lambda moov: moov + box(b"udta", meta))


def pixel_aspect(horizontal: int, vertical: int) -> bytes:
    pasp = box(b"pasp", struct.pack(">II", horizontal, vertical))
    return rewritten(tiny(), ENTRY, lambda entry: entry + pasp)


def thin(width: int, height: int) -> bytes:
    return Synth(frames=2, width=width, height=height, codec="libvpx-vp9").encode()


def many_frames(frames: int) -> bytes:
    """A grey picture, followed by others that say only "the same again"."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=1000, options={"g": "600"})
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        first, second = (
            packet
            for number in range(2)
            for packet in stream.encode(_grey(number))
        )  # fmt: skip
        head, repeated = bytes(first), bytes(second)
        for number in range(frames):
            packet = av.Packet(repeated if number else head)
            packet.stream, packet.time_base = stream, first.time_base
            packet.pts = packet.dts = number
            packet.is_keyframe = not number
            container.mux(packet)
    return target.getvalue()


def _grey(number: int) -> av.VideoFrame:
    frame = av.VideoFrame(16, 16, "yuv420p")
    for plane in frame.planes:
        plane.update(bytes([128]) * plane.buffer_size)
    frame.pts = number
    return frame
