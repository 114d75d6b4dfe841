"""The whole TimeSformer (arXiv 2102.05095) in one forward pass: uint8 frames in, scores out.

It computes what transformers' `TimesformerForVideoClassification` computes from the same tensors,
with less work:

- Tokens lie frame by frame, and each frame carries a copy of the CLS token, so that everything but
  attention over time runs on the tokens as they lie.
- What is affine is multiplied out once, in float64: the normalisation of pixels into the patch
  embedding, the LayerNorms' gains and shifts into the layers behind them, and the two projections
  behind attention over time into one.
- Of the last layer only the CLS token is computed, on which alone the scores depend.

Axes in array names: B clips, T frames (U: the frames attended to), H height, W width, C colours,
N patches of a frame, S = 1 + N tokens of a frame with the CLS token first, D hidden size, A heads,
E = D / A, F pixels of a patch, K labels. Where attention is joint over space and time, the whole
clip is one such frame.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from indexer.errors import ModelError
from indexer.model.recipe import Architecture
from indexer.records import Preprocessing

State = Mapping[str, Tensor]

_ELEMENTWISE_FRAMES: Final = 16
"""Compiled, attention over so few frames is plain arithmetic: see `_attend_over_time`."""


class TimeSformer(nn.Module):
    """A TimeSformer video classifier, for inference.

    Args:
        state: float tensors by the names of transformers' module.
        architecture: the shape of the model.
        preprocessing: how its pixels are normalised.
        dtype: of weights and activations; the final LayerNorm and the head have at least float32.

    Raises:
        ModelError: the activation is not GELU.
    """

    norm_weight_D: Tensor
    norm_bias_D: Tensor

    def __init__(
        self,
        state: State,
        architecture: Architecture,
        preprocessing: Preprocessing,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if architecture.hidden_act != "gelu":
            message = (
                f"config.json: hidden_act = {architecture.hidden_act!r}, but the native backend"
                " knows only 'gelu'; set model.backend = transformers"
            )
            raise ModelError(message)
        *names, last = (
            f"timesformer.encoder.layer.{index}." for index in range(architecture.num_hidden_layers)
        )
        self.embedding = _Embedding(state, architecture, preprocessing, dtype)
        self.layers = nn.ModuleList(_Layer(state, name, architecture, dtype) for name in names)
        self.last_layer = _LastLayer(state, last, architecture, dtype)
        self.eps = architecture.layer_norm_eps
        head_dtype = torch.promote_types(dtype, torch.float32)
        norm = _affine(state, "timesformer.layernorm")
        self.register_buffer("norm_weight_D", norm.weight.to(head_dtype))
        self.register_buffer("norm_bias_D", norm.bias.to(head_dtype))
        self.head = _linear(_affine(state, "classifier"), head_dtype)

    def forward(self, frames_BTHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Scores clips.

        Args:
            frames_BTHWC: uint8 RGB frames of the model's number and size.

        Returns:
            Logits (B, K), and the final-LayerNorm CLS vectors (B, D) that the head itself sees;
            float32, or float64 of a float64 model.
        """
        x_BTSD = self.embedding(frames_BTHWC)
        for layer in self.layers:
            x_BTSD = layer(x_BTSD)
        cls_BD = self.last_layer(x_BTSD).to(self.norm_bias_D.dtype)
        embeddings_BD = functional.layer_norm(
            cls_BD, cls_BD.shape[-1:], self.norm_weight_D, self.norm_bias_D, self.eps
        )
        return self.head(embeddings_BD), embeddings_BD


class _Embedding(nn.Module):
    """From pixels to tokens that know their place in space and time."""

    weight_DF: Tensor
    centre_C: Tensor
    place_TND: Tensor
    cls_D: Tensor

    def __init__(
        self,
        state: State,
        architecture: Architecture,
        preprocessing: Preprocessing,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.patch = architecture.patch_size
        self.joint = architecture.attention_type == "joint_space_time"
        base = "timesformer.embeddings."
        weight_DCHW, bias_D = _affine(state, base + "patch_embeddings.projection")
        patches = _Affine(weight_DCHW.permute(0, 2, 3, 1).flatten(1), bias_D)  # as pixels lie
        centre_C, pixels = _pixels(preprocessing)
        patches = patches.after(_Affine(*(value_C.repeat(self.patch**2) for value_C in pixels)))
        position_SD = state[base + "position_embeddings"][0].double()
        time_TD = state[base + "time_embeddings"][0].double()
        place_TND = patches.bias + position_SD[1:] + time_TD[:, None]
        cls_D = state[base + "cls_token"][0, 0].double() + position_SD[0]
        self.register_buffer("weight_DF", patches.weight.to(dtype))
        self.register_buffer("centre_C", centre_C.to(dtype))
        self.register_buffer("place_TND", place_TND.to(dtype))
        self.register_buffer("cls_D", cls_D.to(dtype))

    def forward(self, frames_BTHWC: Tensor) -> Tensor:
        batch, frames, height, width, _ = frames_BTHWC.shape
        rows, columns = height // self.patch, width // self.patch
        # differences of small integers are exact in every dtype
        pixels_BTHWC = frames_BTHWC.to(self.centre_C.dtype) - self.centre_C
        pixels_BTHWC = pixels_BTHWC[:, :, : rows * self.patch, : columns * self.patch]
        patches_BTNF = (
            pixels_BTHWC.reshape(batch, frames, rows, self.patch, columns, -1)
            .transpose(3, 4)
            .reshape(batch, frames, rows * columns, -1)
        )
        x_BTND = functional.linear(patches_BTNF, self.weight_DF) + self.place_TND
        if self.joint:
            x_BTND = x_BTND.flatten(1, 2).unsqueeze(1)
        return torch.cat((self.cls_D.expand(*x_BTND.shape[:2], 1, -1), x_BTND), 2)


class _Block(nn.Module):
    """What all layers have in common: everything up to attention over space."""

    def __init__(
        self, state: State, prefix: str, architecture: Architecture, dtype: torch.dtype
    ) -> None:
        super().__init__()

        def affine(name: str) -> _Affine:
            return _affine(state, prefix + name)

        self.heads = architecture.num_attention_heads
        self.eps = architecture.layer_norm_eps
        self.divided = architecture.attention_type == "divided_space_time"
        if self.divided:
            projection = affine("temporal_dense").after(affine("temporal_attention.output.dense"))
            qkv = affine("temporal_attention.attention.qkv").after(affine("temporal_layernorm"))
            self.time_qkv = _linear(qkv, dtype)
            self.time_out = _linear(projection, dtype)
        qkv = affine("attention.attention.qkv").after(affine("layernorm_before"))
        self.qkv = _linear(qkv, dtype)
        self.out = _linear(affine("attention.output.dense"), dtype)
        self.wide = _linear(affine("intermediate.dense").after(affine("layernorm_after")), dtype)
        self.narrow = _linear(affine("output.dense"), dtype)

    def normalised(self, x: Tensor) -> Tensor:
        """LayerNorm without gain and shift, which the layers behind it do."""
        return functional.layer_norm(x, x.shape[-1:], eps=self.eps)

    def add_time(self, x_BTSD: Tensor) -> Tensor:
        """Lets each patch attend to the same patch in all frames; CLS tokens stay as they are."""
        if self.divided:
            qkv_BTSD = self.time_qkv(self.normalised(x_BTSD))
            q, k, v = (
                part_BTND.reshape(*part_BTND.shape[:3], self.heads, -1)
                for part_BTND in qkv_BTSD[:, :, 1:].chunk(3, -1)
            )
            x_BTSD[:, :, 1:] += self.time_out(_attend_over_time(q, k, v).flatten(3))
        return x_BTSD

    def perceive(self, x: Tensor) -> Tensor:
        """The perceptron and the residual connection around it."""
        y: Tensor = self.narrow(functional.gelu(self.wide(self.normalised(x))))
        return x + y


class _Layer(_Block):
    """A whole layer, of all tokens."""

    def forward(self, x_BTSD: Tensor) -> Tensor:
        x_BTSD = self.add_time(x_BTSD)
        q_BTSD, k_BTSD, v_BTSD = self.qkv(self.normalised(x_BTSD)).chunk(3, -1)
        y_BTSD = self.out(_attend_over_space(q_BTSD, k_BTSD, v_BTSD, self.heads))
        y_BTSD[:, :, :1] = y_BTSD[:, :, :1].mean(1, keepdim=True)  # all are one token
        return self.perceive(x_BTSD + y_BTSD)


class _LastLayer(_Block):
    """The last layer, of the CLS token only."""

    def forward(self, x_BTSD: Tensor) -> Tensor:
        x_BTSD = self.add_time(x_BTSD)
        normalised_BTSD = self.normalised(x_BTSD)
        weight, bias, width = self.qkv.weight, self.qkv.bias, x_BTSD.shape[-1]
        q_BTSD = functional.linear(normalised_BTSD[:, :, :1], weight[:width], bias[:width])
        kv_BTSD = functional.linear(normalised_BTSD, weight[width:], bias[width:])
        k_BTSD, v_BTSD = kv_BTSD.chunk(2, -1)
        heads_BTSD = _attend_over_space(q_BTSD, k_BTSD, v_BTSD, self.heads)
        # the mean of projections is the projection of the mean
        return self.perceive(x_BTSD[:, 0, 0] + self.out(heads_BTSD[:, :, 0].mean(1)))


def _attend_over_space(q_BTSD: Tensor, k_BTSD: Tensor, v_BTSD: Tensor, heads: int) -> Tensor:
    """Attention within each frame; there may be fewer queries than keys."""
    width = q_BTSD.shape[-1]
    q, k, v = (
        part_BTSD.reshape(-1, part_BTSD.shape[2], heads, width // heads).transpose(1, 2)
        for part_BTSD in (q_BTSD, k_BTSD, v_BTSD)
    )
    attended: Tensor = functional.scaled_dot_product_attention(q, k, v)
    return attended.transpose(1, 2).reshape(q_BTSD.shape)


def _attend_over_time(q_BTNAE: Tensor, k_BTNAE: Tensor, v_BTNAE: Tensor) -> Tensor:
    """Attention within each patch and head, over the frames.

    These are thousands of tiny problems, of 8 x 8 for the base model, for which a kernel for
    attention fills the smallest part of a tile. Compiled, plain arithmetic in the order in which
    the tokens lie becomes two loops without any copy. Its cost grows with the square of the frames,
    and uncompiled it would fill memory, so that then attention's kernel is taken.
    """
    if torch.compiler.is_compiling() and q_BTNAE.shape[1] <= _ELEMENTWISE_FRAMES:
        return _attend_elementwise(q_BTNAE, k_BTNAE, v_BTNAE)
    q, k, v = (part.flatten(2, 3).transpose(1, 2) for part in (q_BTNAE, k_BTNAE, v_BTNAE))
    attended: Tensor = functional.scaled_dot_product_attention(q, k, v)
    return attended.transpose(1, 2).reshape(q_BTNAE.shape)


def _attend_elementwise(q_BTNAE: Tensor, k_BTNAE: Tensor, v_BTNAE: Tensor) -> Tensor:
    dtype = torch.promote_types(q_BTNAE.dtype, torch.float32)
    q_BTUNAE, k_BTUNAE = q_BTNAE.unsqueeze(2).to(dtype), k_BTNAE.unsqueeze(1).to(dtype)
    scores_BTUNA = (q_BTUNAE * k_BTUNAE).sum(-1) * q_BTNAE.shape[-1] ** -0.5
    weights_BTUNA = scores_BTUNA.softmax(2)
    attended: Tensor = (weights_BTUNA.unsqueeze(-1) * v_BTNAE.unsqueeze(1).to(dtype)).sum(2)
    return attended.to(q_BTNAE.dtype)


class _Affine(NamedTuple):
    """`weight @ x + bias` in float64; a weight of one axis multiplies element by element."""

    weight: Tensor
    bias: Tensor

    def after(self, first: "_Affine") -> "_Affine":
        """One affine map that does what `first` and then this one do."""
        bias = self.weight @ first.bias + self.bias
        if first.weight.ndim == 1:
            return _Affine(self.weight * first.weight, bias)
        return _Affine(self.weight @ first.weight, bias)


def _affine(state: State, name: str) -> _Affine:
    weight = state[f"{name}.weight"].double()
    bias = state.get(f"{name}.bias")
    return _Affine(weight, weight.new_zeros(len(weight)) if bias is None else bias.double())


def _linear(affine: _Affine, dtype: torch.dtype) -> nn.Linear:
    outputs, inputs = affine.weight.shape
    linear = nn.Linear(inputs, outputs, device="meta", dtype=dtype)
    linear.weight = nn.Parameter(affine.weight.to(dtype), requires_grad=False)
    linear.bias = nn.Parameter(affine.bias.to(dtype), requires_grad=False)
    return linear


def _pixels(preprocessing: Preprocessing) -> tuple[Tensor, _Affine]:
    """Whole numbers to take off the pixels, and what then normalises them.

    Around zero, as the training saw them, pixels do not carry the rounding of low-precision weights
    into the sums; folded in uncentred, they would raise the error of bfloat16 by a quarter.
    """
    rescale = preprocessing.rescale_factor
    mean_C = torch.tensor(preprocessing.mean, dtype=torch.float64)
    std_C = torch.tensor(preprocessing.std, dtype=torch.float64)
    centre_C = (mean_C / rescale).round().clamp(0, 255)
    return centre_C, _Affine(rescale / std_C, (rescale * centre_C - mean_C) / std_C)
