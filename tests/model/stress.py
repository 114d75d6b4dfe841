"""Checkpoints with no easy numbers: every tensor is random, LayerNorms and zero-initialised too.

A freshly built TimeSformer has unit LayerNorms, zero biases, and position and time embeddings so
small that most mistakes (a swapped axis, a dropped bias) would not show in its scores.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from indexer.model.recipe import Architecture
from indexer.model.weights import expected_shapes


def write_stress_checkpoint(
    folder: Path,
    *,
    num_frames: int = 8,
    image_size: int = 32,
    patch_size: int = 8,
    hidden_size: int = 32,
    num_layers: int = 2,
    num_heads: int = 4,
    labels: tuple[str, ...] = ("left", "right", "up", "down", "none"),
    attention_type: str = "divided_space_time",
    qkv_bias: bool = True,
    seed: int = 0,
    frame_rate_divisor: int | None = None,
    shards: int = 1,
) -> Path:
    """Writes a complete checkpoint folder, the same bytes for the same arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = Architecture(
        num_labels=len(labels),
        image_size=image_size,
        patch_size=patch_size,
        num_frames=num_frames,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=2 * hidden_size,
        qkv_bias=qkv_bias,
        attention_type=attention_type,
    )
    config = {name: getattr(shape, name) for name in shape.__slots__ if name != "num_labels"}
    config |= {
        "model_type": "timesformer",
        "architectures": ["TimesformerForVideoClassification"],
        "num_channels": 3,
        "id2label": {str(index): name for index, name in enumerate(labels)},
        "label2id": {name: index for index, name in enumerate(labels)},
    }
    if frame_rate_divisor is not None:
        config["frame_rate_divisor"] = frame_rate_divisor
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(image_size)))
    write_weights(folder, stress_tensors(shape, seed), shards=shards)
    return folder


def preprocessor(image_size: int) -> dict:
    """A processor configuration as the hub's TimeSformer checkpoints have it."""
    return {
        "do_resize": True,
        "size": {"shortest_edge": image_size},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.45, 0.40, 0.35],
        "image_std": [0.225, 0.25, 0.275],
        "image_processor_type": "VideoMAEImageProcessor",
    }


def stress_tensors(shape: Architecture, seed: int) -> dict[str, np.ndarray]:
    """Random tensors of the right shapes, scaled so that activations neither vanish nor explode."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, size in sorted(expected_shapes(shape).items()):
        values = rng.standard_normal(size, dtype=np.float32)
        if "layernorm" in name and name.endswith("weight"):
            tensors[name] = 1 + 0.3 * values
        elif name.endswith("weight"):
            tensors[name] = values * np.float32(1.5 / np.sqrt(np.prod(size[1:])))
        else:
            tensors[name] = 0.5 * values
    return tensors


def write_weights(folder: Path, tensors: dict[str, np.ndarray], *, shards: int = 1) -> None:
    """Writes tensors as `model.safetensors`, or as several shards with their index."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    weight_map = {}
    for index in range(shards):
        file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[index::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
