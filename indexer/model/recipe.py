"""What a checkpoint's JSON files say: the model's shape, its labels, and how it wants its frames.

Everything is checked here, before a tensor is read, because Hugging Face's classes fill what is
missing with defaults and would score clips with the wrong pixels or names without a word.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from indexer.errors import ModelError
from indexer.records import Preprocessing

AttentionType = Literal["divided_space_time", "joint_space_time", "space_only"]
Json = Mapping[str, Any]

_COLOURS: Final = 3
_RESAMPLE: Final[dict[int, Literal["bilinear", "bicubic"]]] = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, in which preprocessor configurations name the filter."""

_PREPROCESSORS: Final = ("video_preprocessor_config.json", "preprocessor_config.json")
_DIVISORS: Final = {8: 32, 16: 16, 96: 4}
"""Source frames between two frames of a clip, by clip length: TimeSformer, -HR and -L in the
paper (arXiv 2102.05095, section 4, "1/32", "1/16" and "1/4" sampling)."""

_DEFAULT_DIVISOR: Final = 32


@dataclass(frozen=True, slots=True)
class Architecture:
    """The numbers that shape a TimeSformer; the defaults are those of `TimesformerConfig`.

    Attributes:
        num_labels: classes of the head.
        image_size: height and width of a frame in pixels.
        patch_size: height and width of a patch in pixels.
        num_frames: frames of a clip; the module gives wrong scores for any other number.
        hidden_size: length of a token and of the embedding.
        num_hidden_layers: blocks.
        num_attention_heads: heads of each attention; divides `hidden_size`.
        intermediate_size: width of the blocks' perceptrons.
        hidden_act: their activation, by its name in transformers.
        layer_norm_eps: added to the variance in every LayerNorm.
        qkv_bias: whether queries, keys and values have a bias.
        attention_type: how a block attends over space and time.
    """

    num_labels: int
    image_size: int = 224
    patch_size: int = 16
    num_frames: int = 8
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    attention_type: AttentionType = "divided_space_time"


def flops_of(architecture: Architecture) -> float:
    """Floating-point operations of one clip in the Hugging Face module.

    Of the matrix products: two for each weight of a linear layer and token, and twice two for each
    pair of tokens that attend to each other and hidden unit.
    """
    width, wide = architecture.hidden_size, architecture.intermediate_size
    frames = architecture.num_frames
    patches = (architecture.image_size // architecture.patch_size) ** 2
    tokens = frames * patches
    embedding = tokens * 3 * architecture.patch_size**2 * width
    perceptron = (tokens + 1) * 2 * width * wide
    if architecture.attention_type == "joint_space_time":
        attention = (tokens + 1) * 4 * width**2 + (tokens + 1) ** 2 * 2 * width
    else:
        time_ = tokens * 5 * width**2 + patches * frames**2 * 2 * width
        space = frames * ((patches + 1) * 4 * width**2 + (patches + 1) ** 2 * 2 * width)
        attention = time_ + space
    layers = architecture.num_hidden_layers * (attention + perceptron)
    return 2.0 * (embedding + layers + width * architecture.num_labels)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelError: there is no such file, or it holds no JSON object.
    """
    try:
        parsed = json.loads(file.read_bytes())
    except OSError as error:
        message = f"cannot read {file}: {error.strerror}"
        raise ModelError(message) from error
    except (ValueError, RecursionError) as error:
        message = f"{file} is not JSON: {error}"
        raise ModelError(message) from error
    if not isinstance(parsed, dict):
        message = f"{file} holds no JSON object"
        raise ModelError(message)
    return parsed


def read_architecture(config: Json) -> Architecture:
    """Takes the shape of the model from its `config.json`.

    Raises:
        ModelError: it is no TimeSformer classifier, or one that cannot score clips.
    """
    if config.get("model_type") != "timesformer":
        message = (
            f"config.json: model_type is {config.get('model_type')!r}, but must be 'timesformer':"
            " only TimesformerForVideoClassification checkpoints can be used"
        )
        raise ModelError(message)
    if config.get("num_channels", _COLOURS) != _COLOURS:
        message = f"config.json: num_channels = {config['num_channels']!r}, but frames have 3"
        raise ModelError(message)
    known = {name: config[name] for name in Architecture.__slots__ if name in config}
    for name, value in known.items():
        _check_type(name, value)
    architecture = Architecture(**known | {"num_labels": len(read_labels(config))})
    _check_fit(architecture)
    return architecture


def read_labels(config: Json) -> tuple[str, ...]:
    """The label vocabulary, in the order of the logits.

    Names that stand for several classes are told apart by their number: "stretch (17)".

    Raises:
        ModelError: `id2label` does not name exactly the classes 0, 1, ... of the model.
    """
    id2label = config.get("id2label")
    if not isinstance(id2label, dict) or not id2label:
        message = "config.json: id2label is missing; without it nobody knows what the logits mean"
        raise ModelError(message)
    names = [id2label.get(str(index)) for index in range(len(id2label))]
    bad = [i for i, name in enumerate(names) if not isinstance(name, str) or not name.strip()]
    if bad or config.get("num_labels", len(names)) != len(names):
        message = (
            f"config.json: id2label has {len(names)} entries, num_labels is"
            f" {config.get('num_labels', len(names))}; without a name: {bad[:5]}"
        )
        raise ModelError(message)
    counts = Counter(names)
    return tuple(
        f"{name}" if counts[name] == 1 else f"{name} ({i})" for i, name in enumerate(names)
    )


def read_frame_rate_divisor(config: Json, num_frames: int) -> int:
    """Source frames from one frame of a clip to the next, at the rate the model was trained with.

    Raises:
        ModelError: the configuration's own `frame_rate_divisor` is not a positive integer.
    """
    own = config.get("frame_rate_divisor")
    if own is None:
        return _DIVISORS.get(num_frames, _DEFAULT_DIVISOR)
    _check_type("frame_rate_divisor", own)
    return int(own)


def read_preprocessing(folder: Path, image_size: int) -> Preprocessing:
    """Takes the preparation of frames from the checkpoint's processor configuration.

    Raises:
        ModelError: there is none, it leaves something open, or the frames it gives are not
            `image_size` high and wide.
    """
    file = next((folder / name for name in _PREPROCESSORS if (folder / name).is_file()), None)
    if file is None:
        message = f"{folder} has no preprocessor_config.json: mean, std, size and crop are unknown"
        raise ModelError(message)
    settings = read_json(file)
    if settings.get("do_resize", True) is not True:
        message = f"{file.name}: do_resize is off, but videos come in every size"
        raise ModelError(message)
    resize, crop = _resize(settings, file.name), _crop(settings, file.name)
    _check_frame_size(resize, crop, image_size, file.name)
    rescales = settings.get("do_rescale", True)
    factor = _number(settings.get("rescale_factor", 1 / 255), "rescale_factor", file.name)
    normalises = settings.get("do_normalize", True)
    return Preprocessing(
        resize=resize,
        crop=crop,
        interpolation=_interpolation(settings, file.name),
        rescale_factor=factor if rescales else 1.0,
        mean=_colours(settings, "image_mean", file.name) if normalises else (0.0, 0.0, 0.0),
        std=_colours(settings, "image_std", file.name) if normalises else (1.0, 1.0, 1.0),
    )


def _check_type(name: str, value: object) -> None:
    if name == "hidden_act":
        good = isinstance(value, str)
    elif name == "attention_type":
        good = value in ("divided_space_time", "joint_space_time", "space_only")
    elif name == "qkv_bias":
        good = isinstance(value, bool)
    elif name == "layer_norm_eps":
        good = isinstance(value, float) and value > 0
    else:
        good = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if not good:
        message = f"config.json: {name} = {value!r} is not supported"
        raise ModelError(message)


def _check_fit(architecture: Architecture) -> None:
    if architecture.hidden_size % architecture.num_attention_heads:
        message = (
            f"config.json: {architecture.num_attention_heads} attention heads do not divide"
            f" hidden_size = {architecture.hidden_size}"
        )
        raise ModelError(message)
    if architecture.attention_type == "space_only":
        message = (
            "config.json: attention_type = 'space_only' is not supported: the Hugging Face module"
            " scores single frames with it, not clips; use a divided_space_time checkpoint"
        )
        raise ModelError(message)
    if architecture.patch_size > architecture.image_size:
        message = "config.json: patch_size is larger than image_size"
        raise ModelError(message)


def _resize(settings: Json, file: str) -> int | tuple[int, int]:
    size = settings.get("size")
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        size = size["shortest_edge"]
    if isinstance(size, int):
        return _pixels(size, file)
    return _height_width(size, "size", file)


def _crop(settings: Json, file: str) -> tuple[int, int] | None:
    crops = settings.get("do_center_crop", "crop_size" in settings)
    if not crops:
        return None
    crop = settings.get("crop_size")
    if isinstance(crop, int):
        return _pixels(crop, file), _pixels(crop, file)
    return _height_width(crop, "crop_size", file)


def _height_width(size: object, name: str, file: str) -> tuple[int, int]:
    if isinstance(size, dict) and set(size) == {"height", "width"}:
        return _pixels(size["height"], file), _pixels(size["width"], file)
    message = f"{file}: {name} = {size!r} does not say how large frames become"
    raise ModelError(message)


def _pixels(value: object, file: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    message = f"{file}: {value!r} is no number of pixels"
    raise ModelError(message)


def _check_frame_size(
    resize: int | tuple[int, int], crop: tuple[int, int] | None, image_size: int, file: str
) -> None:
    """The module would take frames of some other sizes, and stretch its position embeddings."""
    square = (image_size, image_size)
    smallest = resize if isinstance(resize, int) else min(resize)
    if crop is None and resize == square:
        return
    if crop == square and smallest >= image_size:
        return
    message = (
        f"{file}: size {resize} and crop_size {crop} do not give frames of"
        f" {image_size}x{image_size}, the image_size of config.json"
    )
    raise ModelError(message)


def _interpolation(settings: Json, file: str) -> Literal["bilinear", "bicubic"]:
    resample = settings.get("resample")
    if isinstance(resample, int) and resample in _RESAMPLE:
        return _RESAMPLE[resample]
    message = f"{file}: resample = {resample!r}, but must be 2 (bilinear) or 3 (bicubic)"
    raise ModelError(message)


def _colours(settings: Json, name: str, file: str) -> tuple[float, float, float]:
    values = settings.get(name)
    if not isinstance(values, list):
        values = [values] * _COLOURS
    if len(values) != _COLOURS:
        message = f"{file}: {name} = {values!r}, but frames have 3 colours"
        raise ModelError(message)
    red, green, blue = (_number(value, name, file) for value in values)
    if name == "image_std" and not (red and green and blue):
        message = f"{file}: image_std = {values!r} would divide by zero"
        raise ModelError(message)
    return red, green, blue


def _number(value: object, name: str, file: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
        return float(value)
    message = f"{file}: {name} = {value!r} is not a finite number; it must be in the file"
    raise ModelError(message)
