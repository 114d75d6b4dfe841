"""A checkpoint that has been checked to be what it says, and its tensors.

Nothing here imports torch before tensors are loaded: a job's driver resolves its model, and learns
what is wrong with it, in a fraction of a second.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self

from safetensors import SafetensorError, safe_open

from indexer.errors import ModelError
from indexer.model.fetch import WEIGHTS, WEIGHTS_INDEX, Found, fetch
from indexer.model.recipe import (
    Architecture,
    read_architecture,
    read_frame_rate_divisor,
    read_json,
    read_labels,
    read_preprocessing,
)
from indexer.records import Preprocessing

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
ChannelOrder = Literal["rgb", "bgr"]

_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})
_SHARD: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")
_PATCH_WEIGHT: Final = "timesformer.embeddings.patch_embeddings.projection.weight"
_NAMED: Final = 5
"""So many tensors are named in a message, the others counted."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A TimeSformer video classifier on this machine's disk; small, and safe to pickle.

    Attributes:
        id: `demo`, the hub id, the URL, or the folder's name.
        source: what `resolve` takes to find it again.
        revision: commit of a hub id, digest of what a URL held; None for folders.
        folder: where its files are on the machine that resolved it.
        weights_files: names of its safetensors files, in order.
        weights_sha256: over the bytes of these files, in order, in hex.
        architecture: the numbers that shape the model.
        labels: one distinct name for each logit, in order.
        preprocessing: how it wants its frames.
        frame_rate_divisor: source frames from one frame of a clip to the next.
        channel_order: of the colours that its weights were trained on.
    """

    id: str
    source: str
    revision: str | None
    folder: Path
    weights_files: tuple[str, ...]
    weights_sha256: str
    architecture: Architecture
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    frame_rate_divisor: int
    channel_order: ChannelOrder = "rgb"

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        return self.architecture.num_frames

    @property
    def image_size(self) -> int:
        """Height and width of a frame in pixels."""
        return self.architecture.image_size

    @property
    def num_labels(self) -> int:
        """Length of a clip's logits."""
        return self.architecture.num_labels

    @property
    def hidden_size(self) -> int:
        """Length of a clip's embedding."""
        return self.architecture.hidden_size

    @property
    def attention_type(self) -> str:
        """`divided_space_time` or `joint_space_time`."""
        return self.architecture.attention_type

    @property
    def short_name(self) -> str:
        """The last part of the id, fit for a tag: `timesformer-base-finetuned-k400`."""
        last = self.id.rstrip("/").rpartition("/")[2]
        return re.sub(r"[^A-Za-z0-9._-]+", "-", last).lstrip("._-")[:80] or "model"

    def trained_on(self, channel_order: ChannelOrder) -> Self:
        """The same checkpoint, with its colours taken in another order.

        Frames are RGB throughout. A checkpoint that was trained on BGR gets its mean, its deviation
        and, when it is loaded, its patch weights turned round instead.
        """
        if channel_order == self.channel_order:
            return self
        recipe = self.preprocessing
        mean, std = recipe.mean[::-1], recipe.std[::-1]
        turned = replace(recipe, mean=mean, std=std)
        return replace(self, channel_order=channel_order, preprocessing=turned)

    def facts(self) -> dict[str, object]:
        """What the scores depend on, for the fingerprint of an index; JSON-able."""
        labels = json.dumps(self.labels).encode()
        return {
            "id": self.id,
            "revision": self.revision,
            "weights_sha256": self.weights_sha256,
            "num_frames": self.num_frames,
            "image_size": self.image_size,
            "frame_rate_divisor": self.frame_rate_divisor,
            "attention_type": self.attention_type,
            "channel_order": self.channel_order,
            "preprocessing": json.loads(json.dumps(asdict(self.preprocessing))),
            "labels_sha256": hashlib.sha256(labels).hexdigest(),
        }


def resolve(model_id: str, revision: str | None = None, *, schemes: Collection[str]) -> Checkpoint:
    """Finds a model, fetches it where needed, and checks it without loading a tensor.

    Args:
        model_id: `demo`, a folder, an fsspec URL of a folder, or a Hugging Face hub id.
        revision: branch, tag or commit of a hub id; by default its main branch.
        schemes: URL schemes that may be used.

    Raises:
        ConfigError: the URL's scheme is not allowed.
        StorageError: the storage under a URL cannot be read.
        ModelError: the model cannot be had, or is not a complete TimeSformer classifier.
    """
    found = fetch(model_id, revision, schemes=schemes)
    try:
        return _check(found)
    except ModelError as error:
        message = f"{found.id}: {error}"
        raise ModelError(message) from error


def load_state(checkpoint: Checkpoint) -> "dict[str, torch.Tensor]":
    """All tensors of a checkpoint as float32, on the CPU.

    On a machine that does not have the files, they are fetched first.

    Raises:
        ModelError: they cannot be read, or are not those that `resolve` saw.
    """
    from safetensors.torch import load_file

    here = _here(checkpoint)
    state: dict[str, torch.Tensor] = {}
    for name in here.weights_files:
        try:
            state |= load_file(here.folder / name)
        except (OSError, SafetensorError) as error:
            message = f"{checkpoint.id}: cannot load {name}: {error}"
            raise ModelError(message) from error
    state = {name: tensor.float() for name, tensor in state.items()}
    if checkpoint.channel_order == "bgr":
        state[_PATCH_WEIGHT] = state[_PATCH_WEIGHT].flip(1)
    return state


def expected_shapes(architecture: Architecture) -> dict[str, Shape]:
    """Names and shapes of the tensors of `TimesformerForVideoClassification`."""
    hidden = architecture.hidden_size
    patches = (architecture.image_size // architecture.patch_size) ** 2
    patch = (3, architecture.patch_size, architecture.patch_size)
    base = "timesformer."
    shapes: dict[str, Shape] = {
        base + "embeddings.cls_token": (1, 1, hidden),
        base + "embeddings.position_embeddings": (1, patches + 1, hidden),
        _PATCH_WEIGHT: (hidden, *patch),
        base + "embeddings.patch_embeddings.projection.bias": (hidden,),
        **_linear("classifier", hidden, architecture.num_labels),
        **_layer_norm(base + "layernorm", hidden),
    }
    if architecture.attention_type != "space_only":
        shapes[base + "embeddings.time_embeddings"] = (1, architecture.num_frames, hidden)
    for index in range(architecture.num_hidden_layers):
        shapes |= _layer_shapes(f"{base}encoder.layer.{index}.", architecture)
    return shapes


def _layer_shapes(prefix: str, architecture: Architecture) -> dict[str, Shape]:
    hidden, wide = architecture.hidden_size, architecture.intermediate_size
    shapes = {
        **_attention(prefix + "attention", architecture),
        **_linear(prefix + "intermediate.dense", hidden, wide),
        **_linear(prefix + "output.dense", wide, hidden),
        **_layer_norm(prefix + "layernorm_before", hidden),
        **_layer_norm(prefix + "layernorm_after", hidden),
    }
    if architecture.attention_type == "divided_space_time":
        shapes |= _layer_norm(prefix + "temporal_layernorm", hidden)
        shapes |= _attention(prefix + "temporal_attention", architecture)
        shapes |= _linear(prefix + "temporal_dense", hidden, hidden)
    return shapes


def _attention(name: str, architecture: Architecture) -> dict[str, Shape]:
    hidden = architecture.hidden_size
    shapes = _linear(f"{name}.attention.qkv", hidden, 3 * hidden)
    if not architecture.qkv_bias:
        del shapes[f"{name}.attention.qkv.bias"]
    return shapes | _linear(f"{name}.output.dense", hidden, hidden)


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _layer_norm(name: str, size: int) -> dict[str, Shape]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _here(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint itself where its files are on this machine, else a copy fetched here."""
    if checkpoint.folder.is_dir():
        _check_unchanged(checkpoint)
        return checkpoint
    if checkpoint.source == str(checkpoint.folder):
        message = (
            f"{checkpoint.folder} is not on this machine: every node needs the model's folder at"
            " the same path; give an object storage URL or a hub id instead"
        )
        raise ModelError(message)
    from indexer.storage import scheme_of

    # the driver has checked the scheme against the job's own list
    again = resolve(checkpoint.source, checkpoint.revision, schemes=(scheme_of(checkpoint.source),))
    if again.weights_sha256 != checkpoint.weights_sha256:
        message = f"{checkpoint.id}: has other weights now than when the job began"
        raise ModelError(message)
    return again


def _check_unchanged(checkpoint: Checkpoint) -> None:
    names = ", ".join(checkpoint.weights_files)
    try:
        digest = _sha256(checkpoint.folder / name for name in checkpoint.weights_files)
    except OSError as error:
        message = f"{checkpoint.id}: cannot load {names}: {error}"
        raise ModelError(message) from error
    if digest != checkpoint.weights_sha256:
        message = f"{checkpoint.id}: {names} has other weights here than the job's driver found"
        raise ModelError(message)


def _check(found: Found) -> Checkpoint:
    config = read_json(found.folder / "config.json")
    architecture = read_architecture(config)
    weights_files = _weights_files(found.folder)
    _check_tensors(_headers(found.folder, weights_files), expected_shapes(architecture))
    return Checkpoint(
        id=found.id,
        source=found.source,
        revision=found.revision,
        folder=found.folder,
        weights_files=weights_files,
        weights_sha256=_sha256(found.folder / name for name in weights_files),
        architecture=architecture,
        labels=read_labels(config),
        preprocessing=read_preprocessing(found.folder, architecture.image_size),
        frame_rate_divisor=read_frame_rate_divisor(config, architecture.num_frames),
    )


def _weights_files(folder: Path) -> tuple[str, ...]:
    if (folder / WEIGHTS).is_file():
        return (WEIGHTS,)
    weight_map = read_json(folder / WEIGHTS_INDEX).get("weight_map")
    shards = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    # a name with a path in it would reach out of the folder
    if not shards or not all(isinstance(name, str) and _SHARD.fullmatch(name) for name in shards):
        message = f"{WEIGHTS_INDEX}: weight_map does not name safetensors files of the same folder"
        raise ModelError(message)
    return tuple(sorted(shards))


def _headers(folder: Path, names: Iterable[str]) -> dict[str, Shape]:
    """Shapes of all tensors, from the files' headers, which are checked against their sizes."""
    shapes: dict[str, Shape] = {}
    for name in names:
        try:
            with safe_open(folder / name, framework="numpy") as tensors:
                slices = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118
                dtypes = {tensor.get_dtype() for tensor in slices.values()}
                shapes |= {key: tuple(tensor.get_shape()) for key, tensor in slices.items()}
        except (OSError, SafetensorError) as error:
            message = f"{name} is not a complete safetensors file: {error}"
            raise ModelError(message) from error
        if not dtypes <= _FLOATS:
            message = f"{name}: quantised weights ({', '.join(sorted(dtypes))}) are not supported"
            raise ModelError(message)
    return shapes


def _check_tensors(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Hugging Face would fill missing tensors with random numbers and drop unexpected ones."""
    wrong = {
        f"{name} is {found[name]}, not {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    }
    problems = {
        "missing": expected.keys() - found.keys(),
        "unexpected": found.keys() - expected.keys(),
        "of the wrong shape": wrong,
    }
    parts = [
        f"{len(names)} {kind}: {', '.join(sorted(names)[:_NAMED])}"
        + (", ..." if len(names) > _NAMED else "")
        for kind, names in problems.items()
        if names
    ]
    if parts:
        message = f"the weights do not fit config.json: tensors {'; '.join(parts)}"
        raise ModelError(message)


def _sha256(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
