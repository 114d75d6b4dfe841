"""Files made to do harm reach nothing, take little, and have one outcome.

Two lines of defence, each of which must hold without the other: FFmpeg gets a nameless file and
closed options (`probe`), and its process may open nothing (`sandbox`). `LINES` takes them away.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import pytest

from indexer.config import Decode, Sampling
from indexer.errors import ERROR_CODES, VideoMissing
from indexer.records import DecodedClips, Preprocessing, VideoFailure, VideoRef
from indexer.video.fetch import open_video
from indexer.video.plan import DecodePlan
from indexer.video.sandbox import Sandbox
from tests.video import attacks
from tests.video.attacks import GIBIBYTE
from tests.video.naked_child import NAKED, PLACE, RECKLESS
from tests.video.sandbox.abuse import Bytes, template_and_worker
from tests.video.synth import Synth
from tests.video.traps import CANARY, NUMBERED, Traps

MOST_SECONDS = 30.0
MOST_BYTES = 2**30
UNCONFINED = "tests.video.unconfined_child"
MODEST_BYTES = 640 * 2**20
"""Less than a picture of 16,000 x 16,000 pixels takes."""

RECIPE = Preprocessing(224, (224, 224), "bilinear", 1 / 255, (0.45,) * 3, (0.225,) * 3)
SHIPPED = Decode()
CARELESS = Decode(
    formats=(
        *Decode().formats, "hls", "dash", "concat", "sdp", "rtp", "image2", "image2pipe",
        "png_pipe", "tty", "mpegts",
    ),
    codecs=(*Decode().codecs, "png", "mjpeg", "ansi"),
    deadline_seconds=60.0,
)  # fmt: skip
OPENABLE = set(ERROR_CODES) - {"internal", "decoder_crash", "timeout"}


def plan_of(decode):
    return DecodePlan(Sampling(min_seconds=0.1), 8, 4, RECIPE, decode)


@dataclass(frozen=True)
class Line:
    """A way to decode.

    Attributes:
        module: that the decode process runs.
        decode: its configuration.
        naked: whether FFmpeg is left without options.
    """

    module: str = "indexer.video.sandbox.child"
    decode: Decode = SHIPPED
    naked: bool = False

    def video_id(self, name):
        return f"{NAKED}{name}" if self.naked else "v"


LINES = {
    "as shipped": Line(),
    "careless formats": Line(decode=CARELESS),
    "options alone": Line(UNCONFINED),
    "options alone, careless formats": Line(UNCONFINED, CARELESS),
    "confinement alone": Line("tests.video.naked_child", CARELESS, naked=True),
}
NO_DEFENCE = Line(UNCONFINED, CARELESS.model_copy(update={"deadline_seconds": 1.5}), naked=True)

REACH = {
    "hls, file url": ("x.m3u8", lambda t: attacks.hls(f"file://{t.elsewhere}/canary.ts")),
    "hls, path": ("x.m3u8", lambda t: attacks.hls(f"{t.elsewhere}/canary.ts")),
    "hls, neighbour": ("x.m3u8", lambda t: attacks.hls("canary.ts")),
    "hls, http": ("x.m3u8", lambda t: attacks.hls(f"{t.http}/x.ts")),
    "hls, key": ("x.m3u8", lambda t: attacks.hls_key(f"{t.http}/key")),
    "dash, file url": ("x.mpd", lambda t: attacks.dash(f"file://{t.elsewhere}/{CANARY}")),
    "dash, http": ("x.mpd", lambda t: attacks.dash(f"{t.http}/x.mp4")),
    "ffconcat, neighbour": ("x.mp4", lambda t: attacks.ffconcat(CANARY)),
    "ffconcat, path": ("x.mp4", lambda t: attacks.ffconcat(f"{t.elsewhere}/{CANARY}")),
    "ffconcat, parent": ("x.mp4", lambda t: attacks.ffconcat(f"../elsewhere/{CANARY}")),
    "ffconcat, http": ("x.mp4", lambda t: attacks.ffconcat(f"{t.http}/x.mp4")),
    "sdp": ("x.sdp", lambda t: attacks.sdp(t.datagram_port)),
    "text, subfile": ("x.mp4", lambda _: f"subfile,,start,1,end,9,,:{CANARY}".encode()),
    "text, concat": ("x.mp4", lambda _: f"concat:{CANARY}|{CANARY}".encode()),
    "text, file": ("x.mp4", lambda t: f"file:{t.elsewhere}/{CANARY}".encode()),
    "text, http": ("x.mp4", lambda t: f"{t.http}/x.mp4".encode()),
    "pictures": ("image%03d.png", lambda _: attacks.png(16, 16)),
    "mov, url": ("x.mov", lambda t: attacks.mov_reference("url", f"file://{t.elsewhere}/{CANARY}")),
    "mov, alias": ("x.mov", lambda t: attacks.mov_reference("alis", f"{t.elsewhere}/{CANARY}")),
}  # fmt: skip
DANGEROUS = {
    "hls, file url": (NAKED, "canary.ts"),
    "hls, path": (NAKED, "canary.ts"),
    "hls, neighbour": (NAKED, "canary.ts"),
    "hls, http": (NAKED, "a connection"),
    "hls, key": (NAKED, "a connection"),
    "ffconcat, neighbour": (NAKED, CANARY),
    "ffconcat, path": (RECKLESS, CANARY),
    "ffconcat, parent": (RECKLESS, CANARY),
    "ffconcat, http": (RECKLESS, "a connection"),
    "sdp": (NAKED, "a socket"),
    "text, subfile": (PLACE, CANARY),
    "text, concat": (PLACE, CANARY),
    "text, file": (PLACE, CANARY),
    "text, http": (PLACE, "a connection"),
    "pictures": (PLACE, NUMBERED),
    "mov, alias": (RECKLESS, CANARY),
}
"""What each springs, and what it takes: where only `RECKLESS` does, FFmpeg's own rules are enough
today, and may change; what `PLACE` shows is what happens to those who open what a text says."""


NAMES = (
    f"subfile,,start,1,end,9,,:{CANARY}",
    f"concat:{CANARY}|{CANARY}",
    f"file:{CANARY}",
    "http:",
    "data:,x",
    "pipe:0",
    "image%03d.png",
    "*.mp4",
    "canary[.]mp4",
    f"{CANARY}?versionId=1",
    f"{CANARY}#t=1",
    "-i",
    "x.m3u8",
    "line\nbreak.mp4",
)


@dataclass(frozen=True)
class Bomb:
    """A file that promises, or takes, more than it is worth.

    Attributes:
        make: its bytes.
        outcomes: allowed ones: `ok`, or error codes.
        needs_confinement: whether FFmpeg's options cannot stop it.
    """

    make: Callable[[], bytes]
    outcomes: tuple[str, ...]
    needs_confinement: bool = False


BOMBS = {
    "png in mov": Bomb(attacks.png_video, ("unsupported_codec",)),
    "cover art": Bomb(attacks.cover_art, ("ok",)),
    "h264, 8192x8192": Bomb(lambda: attacks.claiming(8192, 8192), ("over_budget",)),
    "h264, 16000x8000": Bomb(lambda: attacks.claiming(16_000, 8_000), ("over_budget",)),
    "h264, growing": Bomb(lambda: attacks.growing(16_000, 8_000), ("corrupt",)),
    "stts, frames": Bomb(lambda: attacks.time_to_sample(1, 2**32 - 1, 1), ("ok",)),
    "stts, entries": Bomb(
        lambda: attacks.time_to_sample(2**28, 8, 512), ("over_budget",), needs_confinement=True
    ),
    "stts, seconds": Bomb(lambda: attacks.time_to_sample(1, 8, 2**31 - 1), ("over_budget",)),
    "stsz, sizes": Bomb(
        lambda: attacks.sample_sizes(0, 2**28), ("corrupt",), needs_confinement=True
    ),
    "stsz, frames": Bomb(lambda: attacks.sample_sizes(1, 2**28), ("no_frames",)),
    "stco, places": Bomb(lambda: attacks.chunk_offsets(2**28), ("ok",), needs_confinement=True),
    "stsc, frames": Bomb(lambda: attacks.sample_to_chunk(2**28), ("ok",)),
    "index of a gigabyte": Bomb(
        lambda: attacks.compressed_index(GIBIBYTE), ("over_budget",), needs_confinement=True
    ),
    "index of half a gigabyte": Bomb(
        lambda: attacks.compressed_index(GIBIBYTE // 2), ("ok",), needs_confinement=True
    ),
    "nested boxes": Bomb(lambda: attacks.nested_boxes(100_000), ("corrupt", "not_a_video")),
    "empty boxes": Bomb(lambda: attacks.empty_boxes(500_000), ("ok",)),
    "title in no encoding": Bomb(attacks.title_in_no_encoding, ("ok",)),
    "2x20000": Bomb(lambda: attacks.thin(2, 20_000), ("ok", "over_budget"), needs_confinement=True),
    "20000x2": Bomb(lambda: attacks.thin(20_000, 2), ("ok", "over_budget"), needs_confinement=True),
    "pixels of 1:1000000": Bomb(lambda: attacks.pixel_aspect(1, 10**6), ("ok",)),
    "pixels of 1000000:1": Bomb(lambda: attacks.pixel_aspect(10**6, 1), ("ok",)),
    "100,000 frames": Bomb(lambda: attacks.many_frames(100_000), ("ok",)),
}


@pytest.fixture(scope="module")
def traps(tmp_path_factory):
    with Traps(tmp_path_factory.mktemp("traps")) as traps, contextlib.chdir(traps.folder):
        yield traps


@pytest.fixture(scope="module", params=LINES)
def line(request):
    return LINES[request.param]


@pytest.fixture(scope="module")
def sandbox(line, traps):
    """Its processes are started in the folder of the traps."""
    with ready(line) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def shipped(traps):
    with ready(LINES["as shipped"]) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def square(traps):
    with ready(Line(decode=Decode(square_pixels=True))) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def undefended(traps):
    with ready(NO_DEFENCE) as sandbox:
        yield sandbox


@contextlib.contextmanager
def ready(line):
    with Sandbox(plan_of(line.decode), module=line.module) as sandbox:
        check_good_video(sandbox)
        yield sandbox


@dataclass
class Watched:
    """What a decode came to, and took."""

    items: list
    seconds: float
    peak_bytes: int

    @property
    def outcome(self):
        (code,) = {item.code if isinstance(item, VideoFailure) else "ok" for item in self.items}
        return code


def watched(sandbox, data, video_id="v"):
    """Decodes a video with a worker whose memory is looked at all the time."""
    done, peaks = threading.Event(), [0]
    watcher = threading.Thread(target=look_at_memory, args=(waiting_worker(sandbox), done, peaks))
    watcher.start()
    started = time.monotonic()
    try:
        items = [without_frames(item) for item, _ in sandbox.decode(Bytes(data), video_id=video_id)]
    finally:
        done.set()
        watcher.join()
    return Watched(items, time.monotonic() - started, max(peaks))


def without_frames(item):
    """There may be thousands; these keep the shape of theirs."""
    if isinstance(item, VideoFailure):
        return item
    return replace(item, frames_NTHWC=np.broadcast_to(np.uint8(0), item.frames_NTHWC.shape))


def waiting_worker(sandbox):
    """Its process id; the one before may have made way."""
    while True:
        check_good_video(sandbox)
        _, *workers = template_and_worker(sandbox)
        if workers:
            return workers[0]


def look_at_memory(pid, done, peaks):
    while True:
        with contextlib.suppress(OSError, IndexError):  # it may be dead
            status = Path(f"/proc/{pid}/status").read_text()
            peaks.append(int(status.partition("VmHWM:")[2].split()[0]) * 1024)
        if done.wait(0.002):
            return


def check_outcome(watched):
    units = watched.items[0].units
    assert [(item.unit_index, item.units) for item in watched.items] == [
        (index, units) for index in range(units)
    ]
    assert watched.seconds < MOST_SECONDS
    assert 0 < watched.peak_bytes < MOST_BYTES
    for item in watched.items:
        assert isinstance(item, DecodedClips) or item.code in OPENABLE, item


def check_good_video(sandbox):
    items = [item for item, _ in sandbox.decode(Bytes(attacks.tiny()), video_id="v")]
    assert [type(item) for item in items] == [DecodedClips]


@pytest.mark.parametrize("attack", REACH)
def test_nothing_else_is_opened(sandbox, line, traps, attack):
    name, make = REACH[attack]
    data = make(traps)
    with traps.armed() as sprung:
        result = watched(sandbox, data, line.video_id(name))
    assert sprung == []
    check_outcome(result)
    if not attack.startswith(("mov", "pictures")):  # these hold something of their own to decode
        assert result.outcome != "ok"
    check_good_video(sandbox)


@pytest.mark.parametrize("container", ["avi", "mpegts", "mpeg", "flv", "h264"])
def test_a_container_that_was_not_allowed_is_not_even_tried(shipped, container):
    result = watched(shipped, Synth(frames=8, container=container).encode())
    check_outcome(result)
    assert result.outcome == "not_a_video"


@pytest.mark.parametrize("attack", DANGEROUS)
def test_without_defence_the_danger_is_real(undefended, traps, attack):
    """And the traps see it."""
    name, make = REACH[attack]
    data = make(traps)
    how, trap = DANGEROUS[attack]
    told = "" if attack.startswith("text") else name
    with traps.armed() as sprung:
        watched(undefended, data, f"{how}{told}")
    assert trap in sprung


def test_only_what_ffmpeg_never_follows_has_no_control():
    """It was built without a reader of DASH, and of a MOV's references it takes the alias only."""
    assert REACH.keys() - DANGEROUS.keys() == {"dash, file url", "dash, http", "mov, url"}
    assert "dash" not in {
        name for name in av.formats_available if av.ContainerFormat(name).is_input
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_nothing_but_a_name(shipped, traps, name):
    path = traps.folder / name
    path.write_bytes(attacks.tiny())
    status = path.stat()
    ref = VideoRef("v", str(path), status.st_size, f"{status.st_size}-{status.st_mtime_ns}")
    with traps.armed() as sprung, open_video(ref, Decode()) as video:
        items = [item for item, _ in shipped.decode(video, video_id=name)]
    path.unlink()
    assert sprung == [name]
    assert [type(item) for item in items] == [DecodedClips]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_nothing_is_missing(traps, name):
    with traps.armed() as sprung, pytest.raises(VideoMissing):
        open_video(VideoRef("v", f"{traps.folder}/{name}", 10, "10-1"), Decode())
    assert sprung == []


@pytest.mark.parametrize(
    "line", ["as shipped", "careless formats", "options alone"], indirect=True, scope="module"
)
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_no_more_than_its_budget(sandbox, line, name):
    bomb = BOMBS[name]
    if line.module == UNCONFINED and bomb.needs_confinement:
        pytest.skip("options alone do not stop it")
    result = watched(sandbox, bomb.make())
    check_outcome(result)
    assert result.outcome in bomb.outcomes or line.decode is CARELESS
    assert result.peak_bytes < MODEST_BYTES or line.module != UNCONFINED
    check_good_video(sandbox)


@pytest.mark.parametrize("aspect", [(1, 10**6), (10**6, 1), (1, 100), (100, 1)])
def test_a_picture_that_cannot_be_made_square(square, aspect):
    result = watched(square, attacks.pixel_aspect(*aspect))
    check_outcome(result)
    assert result.outcome in {"ok", "over_budget", "corrupt"}
    check_good_video(square)


def test_more_frames_than_are_allowed():
    with ready(Line(decode=Decode(max_frames=50_000))) as sandbox:
        result = watched(sandbox, attacks.many_frames(100_000))
        check_outcome(result)
        assert result.outcome == "over_budget"
        assert result.seconds < MOST_SECONDS / 10
        check_good_video(sandbox)
