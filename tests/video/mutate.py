"""Damages small videos in ways that depend on a number only, so that a failure can be had again.

`mutant(n)` is the same bytes wherever the same encoders are: a video of `SEEDS`, changed by one to
three of `MUTATORS`.
"""

import functools
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from random import Random

from indexer.config import Decode
from tests.video.synth import Synth

SMALL = {"frames": 24}
ONE_THREAD = "log-level=0:pools=none:frame-threads=1:keyint=8:bframes=2"
SEEDS = {
    "h264 mp4": Synth(**SMALL),
    "h264 mp4 in fragments": Synth(
        **SMALL, container_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    ),
    "h264 mp4, index in front": Synth(**SMALL, container_options={"movflags": "faststart"}),
    "h264 mp4 with an edit list": Synth(**SMALL | {"pts": range(-5, 19)}),
    "hevc mp4": Synth(**SMALL, codec="libx265", options={"x265-params": ONE_THREAD}),
    "av1 mp4": Synth(**SMALL, codec="libsvtav1", options={"preset": "12", "g": "8"}),
    "h264 matroska": Synth(**SMALL, container="matroska"),
    "vp9 webm": Synth(
        **SMALL, codec="libvpx-vp9", container="webm", options={"cpu-used": "8", "g": "8"}
    ),
    "vp8 webm": Synth(
        **SMALL, codec="libvpx", container="webm", options={"cpu-used": "8", "g": "8"}
    ),
    "mpeg4 avi": Synth(**SMALL, codec="mpeg4", container="avi", options={"bf": "2"}),
    "mpeg2 ts": Synth(**SMALL, codec="mpeg2video", container="mpegts", options={"bf": "2"}),
    "mpeg2 ps": Synth(**SMALL, codec="mpeg2video", container="mpeg"),
    "h264 flv": Synth(**SMALL, container="flv"),
}
INDEXED_SEEDS = {
    f"long {name}": replace(synth, frames=120, pts=synth.pts and range(-5, 115), noise=30)
    for name, synth in SEEDS.items()
    if " mp4" in name and "fragments" not in name
}
FORMATS = (*Decode().formats, "avi", "mpegts", "mpeg", "flv")

MARGIN_BYTES = 2048
"""Most of what a container says of itself lies this near to its start or end."""

EXTREMES = (0, 1, 2, 7, 0x7F, 0xFF, 0xFFFF, 2**24, 2**28, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
EBML_LENGTHS = (
    b"\x01" + b"\xff" * 7,  # unknown
    b"\x01" + b"\xff" * 6 + b"\xfe",  # the longest
    b"\x08\xff\xff\xff\xff",
    b"\xff",
    b"\x80",
    b"\x00",
)
_NAMES = re.compile(rb"[A-Za-z][A-Za-z0-9]{2}[A-Za-z0-9 ]")


@functools.cache
def seed(name: str) -> bytes:
    return (SEEDS | INDEXED_SEEDS)[name].encode()


@dataclass(frozen=True)
class Mutant:
    """One damaged video; `str` of it says how to have it again."""

    number: int
    seed: str
    mutators: tuple[str, ...]
    data: bytes

    def __str__(self) -> str:
        return f"mutant {self.number}: {self.seed}, {' then '.join(self.mutators)}"


def index_mutant(number: int) -> Mutant:
    """Of an MP4 in one piece; every byte outside its index, and the index's place, are kept."""
    rng = Random(number)
    name = rng.choice(list(INDEXED_SEEDS))
    names = tuple(rng.choices(["flip_bits", "set_bytes", "zero_stretch", "set_number"], k=2))
    data = seed(name)
    start = data.index(b"moov") + 4
    stop = start - 8 + int.from_bytes(data[start - 8 : start - 4])
    index = data[start:stop]
    for mutator in names[: rng.randint(1, 2)]:
        index = MUTATORS[mutator](rng, index)
    return Mutant(number, name, names, data[:start] + index + data[stop:])


def mutant(number: int, seeds: Iterable[str] = SEEDS) -> Mutant:
    rng = Random(number)
    name = rng.choice(list(seeds))
    names = tuple(rng.choices(list(MUTATORS), k=rng.choice((1, 1, 2, 3))))
    data = seed(name)
    for mutator in names:
        data = MUTATORS[mutator](rng, data) if data else data
    return Mutant(number, name, names, data)


def flip_bits(rng: Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(_few(rng, 64)):
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def set_bytes(rng: Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(_few(rng, 64)):
        damaged[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(damaged)


def damage_margins(rng: Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(_few(rng, 16)):
        distance = rng.randrange(min(MARGIN_BYTES, len(data)))
        place = rng.choice((distance, len(data) - 1 - distance))
        damaged[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))
    return bytes(damaged)


def zero_stretch(rng: Random, data: bytes) -> bytes:
    start, stop = _stretch(rng, data)
    return data[:start] + bytes(stop - start) + data[stop:]


def swap_stretches(rng: Random, data: bytes) -> bytes:
    first, second, third, last = sorted(rng.randrange(len(data) + 1) for _ in range(4))
    return data[:first] + data[third:last] + data[second:third] + data[first:second] + data[last:]


def truncate(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def behead(rng: Random, data: bytes) -> bytes:
    return data[_few(rng, len(data)) :]


def insert(rng: Random, data: bytes) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.randbytes(_few(rng, 1024)) + data[place:]


def remove(rng: Random, data: bytes) -> bytes:
    start, stop = _stretch(rng, data)
    return data[:start] + data[stop:]


def repeat(rng: Random, data: bytes) -> bytes:
    start, stop = _stretch(rng, data)
    return data[:stop] + data[start:stop] * rng.randint(1, 4) + data[stop:]


def splice(rng: Random, data: bytes) -> bytes:
    other = seed(rng.choice(list(SEEDS)))
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]


def set_number(rng: Random, data: bytes) -> bytes:
    """Around the names of boxes and chunks stand their sizes, versions, counts and clocks."""
    damaged = bytearray(data)
    names = [match.start() for match in _NAMES.finditer(data)] or [0]
    for _ in range(rng.randint(1, 3)):
        place = rng.choice(names) + 4 * rng.randint(-1, 6)
        number = struct.pack(rng.choice((">I", "<I")), rng.choice(EXTREMES))
        place = min(max(place, 0), len(data) - len(number))
        damaged[place : place + len(number)] = number
    return bytes(damaged[: len(data)])


def set_ebml_length(rng: Random, data: bytes) -> bytes:
    place = rng.randrange(min(MARGIN_BYTES, len(data)))
    length = rng.choice(EBML_LENGTHS)
    return data[:place] + length + data[place + len(length) :]


MUTATORS: dict[str, Callable[[Random, bytes], bytes]] = {
    mutator.__name__: mutator
    for mutator in (
        flip_bits,
        set_bytes,
        damage_margins,
        zero_stretch,
        swap_stretches,
        truncate,
        behead,
        insert,
        remove,
        repeat,
        splice,
        set_number,
        set_ebml_length,
    )
}


def _few(rng: Random, most: int) -> int:
    """From 1 to `most`; as often below its square root as above."""
    return min(most, max(1, round(most ** rng.random())))


def _stretch(rng: Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(start + _few(rng, len(data)), len(data))
