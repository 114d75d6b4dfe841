"""Train the bundled demo model: a tiny TimeSformer that names synthetic motions.

Flow: `render_pool` renders scenes of `indexer.video.motion`, sends them through real video encoders
and cuts clips as the indexer's `windows` sampling does; `train` fits the model; `save_checkpoint`
writes a Hugging Face folder; `evaluate` measures a folder on videos that training never saw.

Direction of motion is a product of position and time, which a plain classification loss finds only
after a long plateau. Three things take the plateau away, and none of them is left in the checkpoint
or costs anything when it is used:

- heads on the patch tokens learn, densely, where the object is and how each point of it moves;
- position and time embeddings start as legible ramps and slow waves instead of noise and zeros;
- mirroring, transposing and reversing a clip in time give exact new clips with known new labels.

Axes: B clips, T frames, H rows, W columns, C colour channels, N patches of a frame, D features.
"""

import argparse
import copy
import json
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, cast

import av
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save as serialise
from torch import Tensor, nn
from torch.nn import functional
from transformers import TimesformerConfig, TimesformerForVideoClassification
from transformers.utils.logging import disable_progress_bar

from indexer.records import Preprocessing
from indexer.video.motion import (
    LABELS,
    MotionScene,
    Quality,
    available_codecs,
    container_suffixes,
    encode_video,
    iter_scene,
    sample_scene,
)
from indexer.video.preprocess import preprocess_frame

DEFAULT_OUT: Final = Path(__file__).resolve().parent.parent / "indexer" / "model" / "demo"
FRAME_RATE_DIVISOR: Final = 8
TARGET_FPS: Final = 30
MIN_WINDOW_SECONDS: Final = 2.0
MEAN: Final = 0.45
STD: Final = 0.225

SIZES: Final = ((256, 144), (320, 180), (320, 240), (426, 240), (480, 270), (240, 320), (180, 320))
RATES: Final = (24, 25, 30)
QUALITIES: Final[tuple[Quality, ...]] = ("high", "medium", "low")

TRAIN_STREAM: Final = 0
HELD_OUT_STREAM: Final = 1
"""Second word of every generator's seed: the two sets of videos can never share a scene."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 0
    image_size: int = 48
    patch_size: int = 8
    num_frames: int = 8
    hidden_size: int = 96
    layers: int = 4
    heads: int = 4
    intermediate_size: int = 192
    videos: int = 2400
    windows_per_video: int = 6
    steps: int = 3000
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    ema_decay: float = 0.998


# --- Clips --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Clips:
    """Clips with all that is known about them.

    Attributes:
        frames_BTCHW: uint8 RGB in [0, 255], resized and cropped, not yet normalised.
        labels_B: Indices into `LABELS`.
        places_BT4: x, y, radius (short sides from the middle) and visibility (0 or 1) per frame.
        rates_B4: Velocity rightwards and downwards, growth rate and clockwise spin, per second.
    """

    frames_BTCHW: Tensor
    labels_B: Tensor
    places_BT4: Tensor
    rates_B4: Tensor

    def __len__(self) -> int:
        return len(self.labels_B)

    def take(self, index_B: Tensor) -> "Clips":
        """Returns the clips at `index_B`."""
        return Clips(*(part[index_B] for part in self.parts()))

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns all fields, in order."""
        return self.frames_BTCHW, self.labels_B, self.places_BT4, self.rates_B4

    @staticmethod
    def join(clips: Iterable["Clips"]) -> "Clips":
        """Returns all clips in one."""
        return Clips(*map(torch.cat, zip(*(some.parts() for some in clips), strict=True)))


@dataclass(frozen=True, slots=True)
class Plan:
    """How clips are made from video number `index`, and nothing else decides them."""

    seed: int
    stream: int
    image_size: int
    num_frames: int
    windows: int
    """Windows at random times; 0 cuts them as the indexer does, one after the other."""


def render_pool(plan: Plan, videos: int, workers: int) -> Iterator[Clips]:
    """Yields the clips of each video, in order, made by `workers` processes (0: in this one)."""
    make = partial(make_clips, plan)
    if workers == 0:
        yield from map(make, range(videos))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        yield from pool.map(make, range(videos), chunksize=10)


def make_clips(plan: Plan, index: int) -> Clips:
    """Renders and encodes video number `index`, decodes it, and cuts clips out of it."""
    rng = np.random.default_rng([plan.seed, plan.stream, index])
    scene = sample_scene(rng, LABELS[index % len(LABELS)], float(rng.uniform(3.5, 6.5)))
    fps = int(rng.choice(RATES))
    starts = _window_starts(rng, scene.seconds, plan)
    last = round(scene.seconds * fps) - 1
    wanted_WT = np.stack([_frame_indices(rng, start, fps, last, plan) for start in starts])
    with tempfile.TemporaryDirectory() as folder:
        path = _encode(rng, scene, fps, Path(folder))
        frames_by_index = decode_frames(
            path, frozenset(wanted_WT.ravel().tolist()), plan.image_size
        )
    return Clips(
        torch.stack([torch.stack([frames_by_index[i] for i in row]) for row in wanted_WT.tolist()]),
        torch.full((len(starts),), LABELS.index(scene.label)),
        torch.tensor([[_place(scene, i / fps) for i in row] for row in wanted_WT.tolist()]),
        torch.tensor([[*scene.velocity, scene.growth_rate, scene.spin]] * len(starts)),
    )


def _window_starts(rng: np.random.Generator, seconds: float, plan: Plan) -> Sequence[float]:
    latest = seconds - MIN_WINDOW_SECONDS
    if plan.windows:
        return [float(start) for start in rng.uniform(0, latest, plan.windows)]
    window = plan.num_frames * FRAME_RATE_DIVISOR / TARGET_FPS
    return [index * window for index in range(int(latest / window) + 1)]


def _frame_indices(
    rng: np.random.Generator, start: float, fps: int, last: int, plan: Plan
) -> npt.NDArray[np.int64]:
    times_T = start + np.arange(plan.num_frames) * (FRAME_RATE_DIVISOR / TARGET_FPS)
    # A sampler may take the nearest or the previous frame: the model has to be good for both.
    shift = rng.choice((0.5, 1e-6))
    indices_T: npt.NDArray[np.int64] = np.floor(times_T * fps + shift).astype(np.int64)
    return np.minimum(indices_T, last)


def _encode(rng: np.random.Generator, scene: MotionScene, fps: int, folder: Path) -> Path:
    """Encodes a scene: half of the time as H.264, else with any codec, in any of its containers."""
    codecs = available_codecs()
    codec = codecs[0] if rng.uniform() < 0.5 else str(rng.choice(codecs))  # noqa: PLR2004 - a coin
    width, height = SIZES[int(rng.integers(len(SIZES)))]
    suffixes = sorted(container_suffixes(codec))
    path = folder / f"clip{rng.choice(suffixes)}"
    frames = iter_scene(scene, scene.seconds, fps, width, height)
    encode_video(path, frames, fps, codec, quality=QUALITIES[int(rng.integers(len(QUALITIES)))])
    return path


def _place(scene: MotionScene, seconds: float) -> tuple[float, float, float, float]:
    state = scene.state_at(seconds)
    return state.x, state.y, state.radius, float(state.visible)


def decode_frames(path: Path, wanted: frozenset[int], image_size: int) -> dict[int, Tensor]:
    """Decodes the frames at some positions of a video, preprocessed, to CHW."""
    recipe = preprocessing(image_size)
    frames_by_index: dict[int, Tensor] = {}
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                frame_HWC = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
                pixels_HWC = preprocess_frame(frame_HWC, recipe)
                frames_by_index[index] = torch.from_numpy(pixels_HWC).permute(2, 0, 1)
    return frames_by_index


def preprocessing(image_size: int) -> Preprocessing:
    """Returns the recipe that `save_checkpoint` writes beside the weights."""
    return Preprocessing(
        resize=image_size,
        crop=(image_size, image_size),
        interpolation="bilinear",
        rescale_factor=1 / 255,
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
    )


# --- Augmentation -------------------------------------------------------------------------------


def _relabel(*pairs: tuple[str, str]) -> Tensor:
    """Returns the table that maps each label's index to the one after some swaps."""
    table = torch.arange(len(LABELS))
    for one, other in pairs:
        i, j = LABELS.index(one), LABELS.index(other)
        table[i], table[j] = j, i
    return table


_TURN: Final = ("rotating clockwise", "rotating counter-clockwise")
_LEFT_RIGHT: Final = ("moving left", "moving right")
_UP_DOWN: Final = ("moving up", "moving down")
MIRRORED: Final = _relabel(_LEFT_RIGHT, _TURN)
TRANSPOSED: Final = _relabel(("moving left", "moving up"), ("moving right", "moving down"), _TURN)
REVERSED: Final = _relabel(_LEFT_RIGHT, _UP_DOWN, ("growing", "shrinking"), _TURN)


def mirror(clips: Clips) -> Clips:
    """Swaps left and right."""
    return Clips(
        clips.frames_BTCHW.flip(-1),
        MIRRORED[clips.labels_B],
        clips.places_BT4 * torch.tensor([-1.0, 1, 1, 1]),
        clips.rates_B4 * torch.tensor([-1.0, 1, 1, -1]),
    )


def transpose(clips: Clips) -> Clips:
    """Swaps rows and columns."""
    return Clips(
        clips.frames_BTCHW.transpose(-1, -2),
        TRANSPOSED[clips.labels_B],
        clips.places_BT4[..., [1, 0, 2, 3]],
        clips.rates_B4[..., [1, 0, 2, 3]] * torch.tensor([1.0, 1, 1, -1]),
    )


def reverse(clips: Clips) -> Clips:
    """Runs the clips backwards."""
    return Clips(
        clips.frames_BTCHW.flip(1),
        REVERSED[clips.labels_B],
        clips.places_BT4.flip(1),
        -clips.rates_B4,
    )


def augment(clips: Clips, generator: torch.Generator) -> Clips:
    """Applies a random one of the 16 symmetries, and random colours, to each clip."""
    # The order makes every symmetry of the square equally likely: mirror left-right, exchange the
    # axes, mirror again.
    for change in (mirror, transpose, mirror, reverse):
        chosen_B = torch.rand(len(clips), generator=generator) < 0.5  # noqa: PLR2004 - a coin
        order_B = torch.argsort(chosen_B.int(), stable=True)
        kept = int((~chosen_B).sum())
        clips = Clips.join([clips.take(order_B[:kept]), change(clips.take(order_B[kept:]))])
    return Clips(
        _recolour(clips.frames_BTCHW, generator), clips.labels_B, clips.places_BT4, clips.rates_B4
    )


def _recolour(frames_BTCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Exchanges the colour channels, inverts some clips and varies their contrast."""
    count = len(frames_BTCHW)
    order_B3 = torch.rand(count, 3, generator=generator).argsort(1)
    frames_BCTHW = frames_BTCHW[torch.arange(count)[:, None], :, order_B3]
    contrast_B = torch.empty(count).uniform_(0.7, 1.2, generator=generator)
    contrast_B *= torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    levels_BCTHW = (frames_BCTHW.float() - 127.5) * contrast_B[:, None, None, None, None] + 127.5
    return levels_BCTHW.clamp_(0, 255).round_().to(torch.uint8).transpose(1, 2)


def normalise(frames_BTCHW: Tensor) -> Tensor:
    """Returns the `pixel_values` of uint8 frames."""
    return (frames_BTCHW.float() / 255 - MEAN) / STD


# --- Model --------------------------------------------------------------------------------------


def build_model(recipe: Recipe) -> TimesformerForVideoClassification:
    """Returns the untrained model."""
    config = TimesformerConfig(
        image_size=recipe.image_size,
        patch_size=recipe.patch_size,
        num_frames=recipe.num_frames,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=recipe.intermediate_size,
        # The default, 0.02, is meant for 768 features.
        initializer_range=round(recipe.hidden_size**-0.5 * 0.7, 3),
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    # Not an argument of the class, but kept and written: the indexer reads its sampling from here.
    config.update({"frame_rate_divisor": FRAME_RATE_DIVISOR})
    model = TimesformerForVideoClassification(config)
    embeddings = model.timesformer.embeddings
    grid = recipe.image_size // recipe.patch_size
    with torch.no_grad():
        embeddings.position_embeddings[0, 1:] = _legible(_grid_points(grid), recipe.hidden_size)
        moments_T1 = torch.linspace(-1, 1, recipe.num_frames)[:, None]
        embeddings.time_embeddings[0] = _legible(moments_T1, recipe.hidden_size)
    return model


def _grid_points(grid: int) -> Tensor:
    """Returns x and y of the patch centres, from -1 to 1, in the model's order of patches."""
    ticks = (torch.arange(grid) + 0.5) / grid * 2 - 1
    y_N, x_N = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack([x_N.flatten(), y_N.flatten()], dim=1)


def _legible(points_NK: Tensor, features: int) -> Tensor:
    """Embeds coordinates as ramps and slow waves, spread over all features, about 0.5 large."""
    waves = [f(math.pi * k / 2 * points_NK) for k in (1, 2, 4) for f in (torch.sin, torch.cos)]
    basis_NF = torch.cat([points_NK * math.sqrt(1.5), *waves], dim=1)
    mixing_DF, _ = torch.linalg.qr(torch.randn(features, basis_NF.shape[1]))
    scale = 0.5 * math.sqrt(2 * features / basis_NF.shape[1])
    embedding_ND: Tensor = scale * basis_NF @ mixing_DF.T
    return embedding_ND


class MotionHeads(nn.Module):
    """Training-time heads that read presence and motion from tokens."""

    RATE_SCALES = (0.15, 0.15, 0.27, 1.2)
    """Typical sizes of velocity, growth rate and spin: all targets come near 1."""
    FLOW_SCALE = 0.15

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.hidden_size
        self.middle_layer = recipe.layers // 2
        self.middle = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 7))
        self.clip = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4))
        points_N2 = _grid_points(recipe.image_size // recipe.patch_size) / 2
        self.register_buffer("points_N2", points_N2, persistent=False)
        self.points_N2: Tensor

    def forward(self, hidden_states: Sequence[Tensor], clips: Clips) -> Tensor:
        """Returns the sum of the auxiliary losses."""
        presence_BNT, flow_BNT2 = self.targets(clips)
        rates_B4 = clips.rates_B4 / clips.rates_B4.new_tensor(self.RATE_SCALES)
        frames = clips.places_BT4.shape[1]
        loss = functional.smooth_l1_loss(self.clip(hidden_states[-1][:, 0]), rates_B4)
        for head, layer in ((self.middle, self.middle_layer), (self.last, -1)):
            tokens_BMD = hidden_states[layer][:, 1:]
            output_BNTK = head(tokens_BMD).unflatten(1, (-1, frames))
            loss = loss + functional.binary_cross_entropy_with_logits(
                output_BNTK[..., 0], presence_BNT
            )
            errors_BNT = _error(output_BNTK[..., 1:3], flow_BNT2)
            if output_BNTK.shape[-1] > 3:  # noqa: PLR2004 - presence and flow come first
                errors_BNT = errors_BNT + _error(output_BNTK[..., 3:], rates_B4[:, None, None])
            loss = loss + (errors_BNT * presence_BNT).sum() / presence_BNT.sum().clamp(min=1)
        return loss

    def targets(self, clips: Clips) -> tuple[Tensor, Tensor]:
        """Returns where the object is, and how the points of it in each patch move."""
        x_BT, y_BT, radius_BT, visible_BT = clips.places_BT4.unbind(-1)
        dx_BNT = self.points_N2[:, 0, None] - x_BT[:, None]
        dy_BNT = self.points_N2[:, 1, None] - y_BT[:, None]
        depth_BNT = radius_BT[:, None] - torch.hypot(dx_BNT, dy_BNT)
        presence_BNT = torch.sigmoid(depth_BNT / 0.04) * visible_BT[:, None]
        vx, vy, growth, spin = (rate_B[:, None, None] for rate_B in clips.rates_B4.unbind(-1))
        flow_x_BNT = vx + growth * dx_BNT - spin * dy_BNT
        flow_y_BNT = vy + growth * dy_BNT + spin * dx_BNT
        return presence_BNT, torch.stack([flow_x_BNT, flow_y_BNT], dim=-1) / self.FLOW_SCALE


def _error(output: Tensor, target: Tensor) -> Tensor:
    return functional.smooth_l1_loss(output, target.expand_as(output), reduction="none").mean(-1)


# --- Training -----------------------------------------------------------------------------------


def train(recipe: Recipe, pool: Clips) -> TimesformerForVideoClassification:
    """Fits a new model to the pool and returns the running average of its weights."""
    torch.manual_seed(recipe.seed)
    model, heads = build_model(recipe), MotionHeads(recipe)
    average = copy.deepcopy(model)
    parameters = [*model.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, partial(_warm_up_then_cosine, recipe))
    started = time.monotonic()
    for step, clips in enumerate(_batches(recipe, pool)):
        output = model(normalise(clips.frames_BTCHW), output_hidden_states=True)
        label_loss = functional.cross_entropy(output.logits, clips.labels_B)
        loss = label_loss + heads(output.hidden_states, clips)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        _follow(average, model, min(recipe.ema_decay, step / (step + 10)))
        if step % 100 == 0 or step == recipe.steps - 1:
            right = (output.logits.argmax(1) == clips.labels_B).float().mean()
            seconds = time.monotonic() - started
            _say(f"step {step:5d}  loss {label_loss:.3f}  right {right:.2f}  {seconds:4.0f} s")
    return average


def _batches(recipe: Recipe, pool: Clips) -> Iterator[Clips]:
    generator = torch.Generator().manual_seed(recipe.seed)
    for _ in range(recipe.steps):
        picked_B = torch.randint(len(pool), (recipe.batch_size,), generator=generator)
        yield augment(pool.take(picked_B), generator)


def _warm_up_then_cosine(recipe: Recipe, step: int) -> float:
    warm_up = min(200, recipe.steps // 10 + 1)
    progress = max(0.0, (step - warm_up) / (recipe.steps - warm_up))
    return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * progress)) + 0.005)


def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)


def save_checkpoint(model: TimesformerForVideoClassification, out: Path) -> None:
    """Writes a folder that `from_pretrained`, and the indexer, can load."""
    out.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out)
    recipe = preprocessing(cast("int", model.config.image_size))
    preprocessor = {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": recipe.resize},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": recipe.resize, "width": recipe.resize},
        "do_rescale": True,
        "rescale_factor": recipe.rescale_factor,
        "do_normalize": True,
        "image_mean": recipe.mean,
        "image_std": recipe.std,
    }
    text = json.dumps(preprocessor, indent=2) + "\n"
    (out / "preprocessor_config.json").write_text(text, encoding="utf-8")
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    # Not `save_file`, which makes a file that its owner alone may read.
    (out / "model.safetensors").write_bytes(serialise(weights, metadata={"format": "pt"}))


# --- Evaluation ---------------------------------------------------------------------------------


def evaluate(checkpoint: Path, *, videos: int, seed: int = 0, workers: int = 0) -> Tensor:
    """Measures a checkpoint on videos of the held-out stream, windows cut as the indexer cuts.

    Returns:
        Counts of clips by true label (rows) and by the model's first label (columns).
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    model = TimesformerForVideoClassification.from_pretrained(checkpoint)
    config = model.config
    side = cast("int", config.image_size)
    plan = Plan(seed, HELD_OUT_STREAM, side, config.num_frames, windows=0)
    counts_LL = torch.zeros(len(LABELS), len(LABELS), dtype=torch.int64)
    with torch.inference_mode():
        for clips in render_pool(plan, videos, workers):
            found_B = model(normalise(clips.frames_BTCHW)).logits.argmax(1)
            for truth, found in zip(clips.labels_B.tolist(), found_B.tolist(), strict=True):
                counts_LL[truth, found] += 1
    return counts_LL


def top1(counts_LL: Tensor) -> float:
    """Returns the share of clips whose first label is the true one."""
    return float(counts_LL.diag().sum() / counts_LL.sum())


def table(counts_LL: Tensor) -> str:
    """Returns what `evaluate` counted as text: recall and mistakes of each label, and the sum."""
    lines = [f"{'label':28}{'clips':>7}{'right':>7}{'top-1':>8}  mistaken for"]
    for index, (label, row_L) in enumerate(zip(LABELS, counts_LL.tolist(), strict=True)):
        clips, right = sum(row_L), row_L[index]
        mistakes = [f"{LABELS[i]} ({n})" for i, n in enumerate(row_L) if n and i != index]
        share = right / max(clips, 1)
        lines.append(f"{label:28}{clips:7}{right:7}{share:8.1%}  {', '.join(mistakes)}".rstrip())
    clips, right = int(counts_LL.sum()), int(counts_LL.diag().sum())
    return "\n".join([*lines, f"{'all':28}{clips:7}{right:7}{right / max(clips, 1):8.1%}"])


# --- Command line -------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, or 1 if the model misses the bar."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(mode=True)
    if not options.evaluate_only:
        recipe = Recipe(seed=options.seed, steps=options.steps, videos=options.videos)
        save_checkpoint(train(recipe, _training_pool(recipe, options.workers)), options.out)
    counts_LL = evaluate(
        options.out, videos=options.held_out, seed=options.seed, workers=options.workers
    )
    _say(table(counts_LL))
    return 0 if top1(counts_LL) >= options.bar else 1


def _training_pool(recipe: Recipe, workers: int) -> Clips:
    plan = Plan(
        recipe.seed,
        TRAIN_STREAM,
        recipe.image_size,
        recipe.num_frames,
        recipe.windows_per_video,
    )
    started = time.monotonic()
    pool = Clips.join(render_pool(plan, recipe.videos, workers))
    seconds = time.monotonic() - started
    _say(f"{len(pool)} clips of {recipe.videos} videos rendered and encoded in {seconds:.0f} s")
    return pool


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(
            "Train the bundled demo model on synthetic motion and measure it on videos that it "
            "has never seen. The same seed, sizes and number of threads give the same weights, "
            "bit for bit; two cores need about half an hour."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    usual, add = Recipe(), parser.add_argument
    add("--out", type=Path, default=DEFAULT_OUT, help="the checkpoint's folder")
    add("--seed", type=int, default=usual.seed, help="decides the scenes and the weights")
    add("--steps", type=int, default=usual.steps, help="optimiser steps; the schedule fits itself")
    add("--videos", type=int, default=usual.videos, help="videos to train on")
    add("--held-out", type=int, default=600, help="videos to measure on, 2 or 3 windows each")
    add("--workers", type=int, default=2, help="processes that render and encode; 0: none")
    add("--threads", type=int, default=2, help="threads of the training; weights depend on it")
    add("--bar", type=float, default=0.97, help="top-1 below this makes the exit code 1")
    add("--evaluate-only", action="store_true", help="measure the checkpoint that is there")
    return parser


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
