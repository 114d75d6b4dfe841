"""The contestants: ours and its peers, each given a file and the ranks of the wanted frames.

All decode on one thread. A library is imported when its contestant is loaded, so that a process
holds one of them only, and a missing one costs the others nothing.

Axes: T frames, H height, W width, C colour (RGB), K cells of a thumbnail's side.
"""

import importlib
import importlib.metadata
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from indexer.records import DecodedClips, VideoFailure
from indexer.video.plan import DecodePlan

Pixels: TypeAlias = npt.NDArray[np.uint8]

SHORT_SIDE: Final = 224
_CELLS: Final = 16
_LOOKED_AT: Final = 512
_CHUNK_FRAMES: Final = 64
"""Frames that a peer may hold at full size: 400 MB at 1080p."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted of one video.

    Attributes:
        path: of the file.
        ranks: of the frames, in presentation order; increasing.
        plan: which makes our decoder choose the same frames.
        skip_units: of the plan, which are not wanted.
    """

    path: str
    ranks: tuple[int, ...]
    plan: DecodePlan
    skip_units: frozenset[int]


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a contestant returns.

    Attributes:
        frames_HWC: RGB, at the source's or the model's size; None where it returns no pixels.
        seconds: of each frame, counted from the first frame of the video; None where unknown.
    """

    frames_HWC: Sequence[Pixels] | None = None
    seconds: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to decode.

    Attributes:
        about: what it is, in a line.
        modules: imported before anything is measured.
        distributions: whose versions are reported.
        run: what is measured; it gets what `prepare` made.
        prepare: what is not measured.
        ffmpeg: version of the FFmpeg that decodes.
    """

    about: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    run: Callable[[Any], Decoded]
    ffmpeg: Callable[[], str]
    prepare: Callable[[Order], Any] = lambda order: order

    def load(self) -> dict[str, str]:
        """Imports the libraries and tells their versions.

        Raises:
            ImportError, OSError, RuntimeError: they are not installed, or do not load.
        """
        for module in self.modules:
            importlib.import_module(module)
        versions = {name: importlib.metadata.version(name) for name in self.distributions}
        return versions | {"FFmpeg": self.ffmpeg()}


def thumbnail(frame_HWC: Pixels) -> Pixels:
    """Mean colours of the cells of a grid over the middle square: uint8[K, K, C].

    Of a large frame only each second pixel or fewer is looked at.
    """
    height, width = frame_HWC.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    step = max(side // _LOOKED_AT, 1)
    square_HWC = frame_HWC[top : top + side : step, left : left + side : step].astype(np.uint32)
    edges = np.linspace(0, len(square_HWC), _CELLS + 1).astype(np.int64)
    sums_KKC = np.add.reduceat(np.add.reduceat(square_HWC, edges[:-1], 0), edges[:-1], 1)
    cells_KK = np.multiply.outer(np.diff(edges), np.diff(edges))
    means_KKC: Pixels = (sums_KKC / cells_KK[..., None]).round().astype(np.uint8)
    return means_KKC


def _ours(order: Order, resize: Literal["fast", "exact"]) -> Decoded:
    decode = importlib.import_module("indexer.video.decode")
    plan = replace(order.plan, decode=order.plan.decode.model_copy(update={"resize": resize}))
    frames_HWC: list[Pixels] = []
    seconds: list[float] = []
    with Path(order.path).open("rb") as file:
        items: Iterable[DecodedClips | VideoFailure] = decode.decode_clips(
            file, plan, video_id="benchmark", skip_units=order.skip_units
        )
        for item in items:
            if isinstance(item, VideoFailure):
                message = f"{item.code}: {item.message}"
                raise RuntimeError(message)  # noqa: TRY004 - the value is right, the video is not
            frames_HWC.extend(frame for clip in item.frames_NTHWC for frame in clip)
            seconds.extend(at for span in item.spans for at in span.frame_pts_seconds)
    return Decoded(frames_HWC, tuple(seconds))


def _exact(order: Order) -> Decoded:
    return _ours(order, "exact")


def _fast(order: Order) -> Decoded:
    return _ours(order, "fast")


@dataclass(frozen=True, slots=True)
class _Packets:
    """What our decoder sends to FFmpeg's, read beforehand.

    Attributes:
        context: FFmpeg's decoder.
        runs: packets, each list from a keyframe on.
        resources: which the decoder needs open.
    """

    context: Any
    runs: list[list[Any]]
    resources: ExitStack


def _read_packets(order: Order) -> _Packets:
    frames: Any = importlib.import_module("indexer.video.frames")
    packets: Any = importlib.import_module("indexer.video.packets")
    probe: Any = importlib.import_module("indexer.video.probe")
    decode = order.plan.decode
    resources = ExitStack()
    with Path(order.path).open("rb") as file:
        opened = resources.enter_context(probe.open_video_stream(file, decode))
        table = packets.scan_packets(file, opened, decode)
        if table.timeline is None:
            message = f"ours decodes all packets: {table.distrust}"
            raise RuntimeError(message)
        choice = frames.choice_for(opened.stream.codec_context)
        wanted = frozenset(int(table.shown[rank]) for rank in order.ranks)
        with packets.PacketReader(file, table, decode) as reader:
            runs = [
                [
                    packet
                    for _, packet, _ in choice(
                        enumerate(reader.packets(run.first, run.last), run.first),
                        wanted | {run.first},
                    )
                ]
                for run in frames.plan_runs(table, order.ranks)
            ]
    return _Packets(opened.stream.codec_context, runs, resources)


def _decode_packets(packets: _Packets) -> Decoded:
    packets.context.flags |= importlib.import_module("av.codec.context").Flags.output_corrupt
    for run in packets.runs:
        for packet in (*run, None):
            packets.context.decode(packet)
        packets.context.flush_buffers()
    return Decoded()


def _document_loop(order: Order) -> Decoded:
    """The loop of the Hugging Face document on TimeSformer, and the resizing of its processor."""
    av: Any = importlib.import_module("av")
    wanted = set(order.ranks)
    frames_HWC: list[Pixels] = []
    with av.open(order.path) as container:
        for rank, frame in enumerate(container.decode(video=0)):
            if rank in wanted:
                frames_HWC.append(frame.to_ndarray(format="rgb24"))
            if rank == order.ranks[-1]:
                break
    return Decoded([_resized_by_pillow(frame_HWC) for frame_HWC in frames_HWC])


def _resized_by_pillow(frame_HWC: Pixels) -> Pixels:
    image: Any = importlib.import_module("PIL.Image")
    height, width = frame_HWC.shape[:2]
    short = min(height, width)
    size = (SHORT_SIDE * width // short, SHORT_SIDE * height // short)
    resized_HWC = np.asarray(image.fromarray(frame_HWC).resize(size, image.Resampling.BILINEAR))
    top, left = (size[1] - SHORT_SIDE) // 2, (size[0] - SHORT_SIDE) // 2
    return resized_HWC[top : top + SHORT_SIDE, left : left + SHORT_SIDE]


def _torchcodec_batches(order: Order) -> Iterator[Any]:
    """Batches of uint8[T, C, H, W]."""
    decoders: Any = importlib.import_module("torchcodec.decoders")
    decoder = decoders.VideoDecoder(order.path, seek_mode="exact", num_ffmpeg_threads=1)
    for ranks in batched_ranks(order):
        yield decoder.get_frames_at(ranks).data


def _torchcodec(order: Order) -> Decoded:
    batches = (batch.permute(0, 2, 3, 1).numpy() for batch in _torchcodec_batches(order))
    return Decoded([frame_HWC for frames_THWC in batches for frame_HWC in frames_THWC])


def _torchcodec_resized(order: Order) -> Decoded:
    functional: Any = importlib.import_module("torch.nn.functional")
    frames_HWC: list[Pixels] = []
    for batch_TCHW in _torchcodec_batches(order):
        height, width = batch_TCHW.shape[2:]
        short = min(height, width)
        size = (SHORT_SIDE * height // short, SHORT_SIDE * width // short)
        top, left = ((length - SHORT_SIDE) // 2 for length in size)
        small_TCHW = functional.interpolate(batch_TCHW, size, mode="bilinear", antialias=True)
        cropped_TCHW = small_TCHW[..., top : top + SHORT_SIDE, left : left + SHORT_SIDE]
        frames_HWC.extend(cropped_TCHW.permute(0, 2, 3, 1).contiguous().numpy())
    return Decoded(frames_HWC)


def _decord(order: Order) -> Decoded:
    decord: Any = importlib.import_module("decord")
    reader = decord.VideoReader(order.path, num_threads=1)
    batches = (reader.get_batch(ranks).asnumpy() for ranks in batched_ranks(order))
    return Decoded([frame_HWC for frames_THWC in batches for frame_HWC in frames_THWC])


def _opened_by_opencv(order: Order) -> Any:  # noqa: ANN401 - a class without types
    cv2: Any = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    return cv2.VideoCapture(order.path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])


def _opencv(order: Order) -> Decoded:
    """Every frame is decoded; only the wanted ones are converted."""
    capture = _opened_by_opencv(order)
    wanted = set(order.ranks)
    frames_HWC: list[Pixels] = []
    for rank in range(order.ranks[-1] + 1):
        if not capture.grab():
            break
        if rank in wanted:
            frames_HWC.append(capture.retrieve()[1][..., ::-1])
    return Decoded(frames_HWC)


def _opencv_seek(order: Order) -> Decoded:
    cv2: Any = importlib.import_module("cv2")
    capture = _opened_by_opencv(order)
    frames_HWC: list[Pixels] = []
    for rank in order.ranks:
        capture.set(cv2.CAP_PROP_POS_FRAMES, rank)
        found, frame_HWC = capture.read()
        if found:
            frames_HWC.append(frame_HWC[..., ::-1])
    return Decoded(frames_HWC)


def _ffmpeg_cli(order: Order) -> Decoded:
    """Decodes the whole video and throws it away; the start of the program is counted."""
    imageio_ffmpeg: Any = importlib.import_module("imageio_ffmpeg")
    quiet = ("-nostdin", "-v", "error", "-threads", "1", "-filter_threads", "1")
    output = ("-map", "0:v:0", "-fps_mode", "passthrough", "-f", "null", "-")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *quiet, "-i", order.path, *output]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - a fixed program
    return Decoded()


def batched_ranks(order: Order) -> Iterator[list[int]]:
    """The ranks, in lists of what a peer may hold at a time."""
    for start in range(0, len(order.ranks), _CHUNK_FRAMES):
        yield list(order.ranks[start : start + _CHUNK_FRAMES])


def _pyav_ffmpeg() -> str:
    return str(importlib.import_module("av").ffmpeg_version_info)


def _torchcodec_ffmpeg() -> str:
    core: Any = importlib.import_module("torchcodec._core")
    return str(core.get_ffmpeg_library_versions()["ffmpeg_version"])


def _opencv_ffmpeg() -> str:
    information = importlib.import_module("cv2").getBuildInformation()
    lines = (line.split() for line in information.splitlines())
    return next((f"libavcodec {line[-1].strip('()')}" for line in lines if "avcodec:" in line), "?")


def _cli_ffmpeg() -> str:
    return str(importlib.import_module("imageio_ffmpeg").get_ffmpeg_version())


_OURS: Final = ("indexer.video.decode",)
_TORCHCODEC: Final = ("torchcodec.decoders", "torchcodec._core", "torch.nn.functional")

CONTESTANTS: Final[Mapping[str, Contestant]] = {
    "fast": Contestant("ours, resized by FFmpeg", _OURS, ("av",), _fast, _pyav_ffmpeg),
    "exact": Contestant(
        "ours, resized by torch", (*_OURS, "torch"), ("av", "torch"), _exact, _pyav_ffmpeg
    ),
    "packets": Contestant(
        "decoding of the packets that ours needs, and nothing else",
        _OURS, ("av",), _decode_packets, _pyav_ffmpeg, _read_packets,
    ),
    "hf": Contestant(
        "the Hugging Face document's loop: all frames to the last one",
        ("av", "PIL.Image"), ("av", "pillow"), _document_loop, _pyav_ffmpeg,
    ),
    "torchcodec": Contestant(
        "get_frames_at, exact, frames left at full size",
        _TORCHCODEC, ("torchcodec", "torch"), _torchcodec, _torchcodec_ffmpeg,
    ),
    "torchcodec+resize": Contestant(
        "the same, resized by torch",
        _TORCHCODEC, ("torchcodec", "torch"), _torchcodec_resized, _torchcodec_ffmpeg,
    ),
    "decord2": Contestant(
        "get_batch, frames left at full size", ("decord",), ("decord2",), _decord, lambda: "bundled"
    ),
    "opencv": Contestant(
        "grab all, retrieve the wanted", ("cv2",), ("opencv-python-headless",), _opencv,
        _opencv_ffmpeg,
    ),
    "opencv-seek": Contestant(
        "CAP_PROP_POS_FRAMES and read", ("cv2",), ("opencv-python-headless",), _opencv_seek,
        _opencv_ffmpeg,
    ),
    "ffmpeg": Contestant(
        "ffmpeg -f null: the whole video", ("imageio_ffmpeg",), ("imageio-ffmpeg",), _ffmpeg_cli,
        _cli_ffmpeg,
    ),
}  # fmt: skip
