"""The job's configuration: sections with checked values, merged from file, environment and flags.

A later source wins: the defaults here, then a TOML file, then `INDEXER_SECTION_KEY` variables, then
flags. Every refusal names the key, the value and what is allowed.
"""

import hashlib
import json
import os
import tomllib
import types
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from indexer.errors import ConfigError
from indexer.storage import check_public, read_bytes, redact

SCHEMA_VERSION: Final = 1
ENV_PREFIX: Final = "INDEXER_"


def _split_commas(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]
"""A list of words; in the environment and in flags, separated by commas."""


TAG_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""What the short name of a model may look like: it is part of paths."""


class Section(BaseModel):
    """Base of the sections: immutable, and no unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Sampling(Section):
    """Which frames of a video make its clips.

    Attributes:
        mode: `windows` for archives, `uniform` for short clips (one clip a video), `kinetics` for
            the paper's test protocol, `random` for the Hugging Face document's example.
        target_fps: clock of the windows: a window lasts
            `num_frames * frame_rate_divisor / target_fps` seconds.
        frame_rate_divisor: source frames, at `target_fps`, from one frame of a clip to the next; by
            default the checkpoint's own (32 where it does not say).
        hop_seconds: from one window's start to the next; by default the length of a window.
        min_seconds: a last, partial window is kept if it has at least this many seconds.
        views: stretches of a video, in `kinetics` mode, whose scores are fused into one.
        crops: 3 scores both ends and the middle of a frame's longer side, and fuses them.
        fusion: of views and crops: `probabilities` averages them (the TimeSformer paper), `logits`
            averages what is before the softmax (its code sums them, which ranks labels alike).
        seed: of `random` mode, mixed with the video's id.
        segment_clips: a long video is cut into units of at most this many clips.
    """

    mode: Literal["windows", "uniform", "kinetics", "random"] = "windows"
    target_fps: Annotated[float, Field(gt=0, le=1000)] = 30.0
    frame_rate_divisor: Annotated[int, Field(ge=1, le=10_000)] | None = None
    hop_seconds: Annotated[float, Field(gt=0, le=86_400)] | None = None
    min_seconds: Annotated[float, Field(ge=0, le=86_400)] = 2.0
    views: Annotated[int, Field(ge=1, le=100)] = 1
    crops: Literal[1, 3] = 1
    fusion: Literal["probabilities", "logits"] = "probabilities"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    segment_clips: Annotated[int, Field(ge=1, le=4096)] = 32


class Decode(Section):
    """What is accepted as a video, and how much one may cost.

    Attributes:
        formats: FFmpeg's names of the containers that may be opened.
        codecs: FFmpeg's names of the codecs that may be decoded.
        resize: `exact` gives the pixels of the Hugging Face processor; `fast` scales in one step
            with FFmpeg, for a fraction of the time and a difference that the docs state.
        square_pixels: stretch frames whose pixels are not square to their displayed shape, which
            the Hugging Face processor does not.
        device: `cuda` decodes on an NVIDIA GPU where there is one (experimental).
        max_pixels: width times height of the largest frame.
        max_frames: frames of the longest video.
        max_bytes: size of the largest object.
        max_memory_bytes: that decoding may take beyond what an idle decode process has.
        max_cpu_seconds: for one unit of a video, or for opening it.
        deadline_seconds: wall time for the same, after which the decode process is killed.
    """

    formats: Names = ("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm")
    codecs: Names = (
        "h264", "hevc", "av1", "libdav1d", "vp8", "libvpx", "vp9", "libvpx-vp9",
        "mpeg4", "mpeg1video", "mpeg2video",
    )  # fmt: skip
    resize: Literal["exact", "fast"] = "exact"
    square_pixels: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    max_pixels: Annotated[int, Field(ge=1)] = 8192 * 4320
    max_frames: Annotated[int, Field(ge=1)] = 5_000_000
    max_bytes: Annotated[int, Field(ge=1)] = 64 * 2**30
    max_memory_bytes: Annotated[int, Field(ge=64 * 2**20)] = 768 * 2**20
    max_cpu_seconds: Annotated[int, Field(ge=1)] = 1200
    deadline_seconds: Annotated[float, Field(gt=0)] = 1800.0


class Model(Section):
    """Which checkpoint labels the clips.

    Attributes:
        id: `demo` for the bundled model, a Hugging Face hub id, a folder, or an fsspec URL of one.
        revision: branch, tag or commit of a hub id.
        backend: `native` runs our own forward pass, `transformers` the Hugging Face module.
        device: `auto` takes a GPU where the cluster has one.
        batch_size: clips of one forward pass; by default 1 on a CPU, and measured on a GPU.
        channel_order: of the colours that the checkpoint was trained on; see docs/models.md for
            Something-Something v2.
        top_k: labels kept for each clip.
        min_score: labels below this probability are not kept, except the best one.
    """

    id: Annotated[str, Field(min_length=1)] = "facebook/timesformer-base-finetuned-k400"
    revision: str | None = None
    backend: Literal["native", "transformers"] = "native"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    channel_order: Literal["rgb", "bgr"] = "rgb"
    top_k: Annotated[int, Field(ge=1, le=1000)] = 5
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.0


class Cluster(Section):
    """Where the job runs and how it is spread.

    Attributes:
        address: of a running Ray cluster; by default the one this process belongs to, else a local
            one is started for the job.
        decode_actors: decoding processes; by default worked out from the cluster.
        model_actors: model processes; by default one for each GPU, or one on a CPU cluster.
        gpus_per_model_actor: less than 1 lets several model actors share a GPU.
        autoscaling: the cluster starts nodes when actors wait for them: the pools begin with one
            actor each and grow up to `decode_actors` and `model_actors`, which this needs, as it
            needs `model.device` to be `cpu` or `cuda`.
        no_progress_seconds: a job in which nothing has moved for so long ends with exit code 3;
            give it as long as nodes may take to come, and more than `decode.deadline_seconds`.
        block_clips: clips that travel together from the decoders to the model; by default 64, and
            on CPUs fewer, down to 8, where the model is so large that they would take minutes.
        cpu_hour_price: of one CPU, in any currency; with it the report says what the job cost.
        gpu_hour_price: of one GPU, likewise.
    """

    address: str | None = None
    decode_actors: Annotated[int, Field(ge=1)] | None = None
    model_actors: Annotated[int, Field(ge=1)] | None = None
    gpus_per_model_actor: Annotated[float, Field(gt=0, le=1)] = 1.0
    autoscaling: bool = False
    no_progress_seconds: Annotated[float, Field(gt=0)] = 3600.0
    block_clips: Annotated[int, Field(ge=1, le=4096)] | None = None
    cpu_hour_price: Annotated[float, Field(ge=0)] | None = None
    gpu_hour_price: Annotated[float, Field(ge=0)] | None = None


class Output(Section):
    """What is written, and when.

    Attributes:
        tag: short name of the model and recipe, and of their partition; by default worked out.
        logits: whether `embeddings` keeps the logits beside the embedding.
        commit_seconds: so long after a commit the next one follows while rows arrive; longer, up to
            12 times, where commits would take more than 3 % of the time.
    """

    tag: Annotated[str, Field(pattern=TAG_PATTERN)] | None = None
    logits: bool = True
    commit_seconds: Annotated[float, Field(gt=0, le=3600)] = 5.0


class Precision(Section):
    """Numbers' precision, in the model and on disk.

    Attributes:
        model: of the weights and activations; `auto` is float16 on a GPU, bfloat16 on a CPU with
            instructions for it, and float32 elsewhere, and stays what it was in the first run.
        stored_mantissa_bits: bits of mantissa kept of logits and embeddings; 23 keeps all.
    """

    model: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    stored_mantissa_bits: Annotated[int, Field(ge=1, le=23)] = 10


class IndexConfig(Section):
    """A whole job: what to read, where to write, and how.

    Attributes:
        inputs: files, folders, globs, `s3://` prefixes or manifests.
        index: folder or URL of the index.
        schemes: URL schemes that inputs, the index and the model may use.
        if_exists: what to do where the index already has rows of this model: `resume` skips what is
            done, `error` refuses, `overwrite` indexes the listed videos again in place of their
            rows.
        retry: an error code whose failed videos are tried again, or `all`.
        max_attempts: a video that failed this often is left alone, whatever `retry` says.
        shard: `i/n` for the i-th of n equal parts of the videos, so that n jobs may share the work.
        limit: at most this many videos.
        plan: what `indexer plan --format json` printed of the job, a path or a URL; the run's
            report holds its estimate against what came.
    """

    inputs: Annotated[tuple[str, ...], Field(min_length=1)]
    index: Annotated[str, Field(min_length=1)]
    schemes: Names = ("file", "s3")
    if_exists: Literal["resume", "error", "overwrite"] = "resume"
    retry: str | None = None
    max_attempts: Annotated[int, Field(ge=1)] = 3
    shard: Annotated[str, Field(pattern=r"^[0-9]+/[0-9]+$")] = "1/1"
    limit: Annotated[int, Field(ge=1)] | None = None
    plan: str | None = None
    sampling: Sampling = Sampling()
    decode: Decode = Decode()
    model: Model = Model()
    cluster: Cluster = Cluster()
    output: Output = Output()
    precision: Precision = Precision()

    @model_validator(mode="after")
    def _check_public(self) -> Self:
        others = (self.plan or "", self.cluster.address or "")
        for uri in (*self.inputs, self.index, self.model.id, *others):  # a run's report has them
            check_public(uri)
        return self

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.sampling.views > 1 and self.sampling.mode != "kinetics":
            message = f"sampling.views = {self.sampling.views} needs sampling.mode = kinetics"
            raise ValueError(message)
        if self.cluster.no_progress_seconds <= self.decode.deadline_seconds:
            message = (
                f"cluster.no_progress_seconds = {self.cluster.no_progress_seconds:g} must be more "
                f"than decode.deadline_seconds = {self.decode.deadline_seconds:g}"
            )
            raise ValueError(message)
        bounds = (self.cluster.decode_actors, self.cluster.model_actors)
        if self.cluster.autoscaling and (None in bounds or self.model.device == "auto"):
            message = (
                "cluster.autoscaling needs cluster.decode_actors and cluster.model_actors as upper "
                "bounds, and model.device = cpu or cuda"
            )
            raise ValueError(message)
        return self

    @classmethod
    def load(
        cls,
        file: str | os.PathLike[str] | None = None,
        *,
        env: Mapping[str, str] | None = None,
        overrides: Mapping[str, object] | None = None,
    ) -> Self:
        """Merges a TOML file, the environment and flags, and checks the result.

        Args:
            file: path or URL of a TOML file with the sections of this class.
            env: the environment; only names that begin with `INDEXER_` are looked at.
            overrides: dotted keys with values, as from flags; a value of None is passed over.

        Raises:
            ConfigError: a key is unknown or a value is impossible.
            StorageError: the file cannot be read.
        """
        tree: dict[str, Any] = {} if file is None else _read_toml(os.fspath(file))
        for name, value in sorted((env or {}).items()):
            if name.startswith(ENV_PREFIX):
                _put(tree, _env_key(cls, name), value)
        for key, override in (overrides or {}).items():
            if override is not None:
                _put(tree, key, override)
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise ConfigError(_explain(cls, error)) from error

    def fingerprint(self, model_facts: Mapping[str, object]) -> dict[str, object]:
        """Everything on which the rows of this job depend, as a JSON object.

        Args:
            model_facts: id, revision, weights_sha256, preprocessing and clip length of the
                checkpoint, as `indexer.model.weights.Checkpoint.facts()` gives them.
        """
        return {
            "schema_version": SCHEMA_VERSION,
            "model": dict(model_facts),
            "resize": self.decode.resize,
            "square_pixels": self.decode.square_pixels,
            "sampling": self.sampling.model_dump(mode="json"),
            "precision": self.precision.model_dump(mode="json"),
            "top_k": self.model.top_k,
            "min_score": self.model.min_score,
        }


def fingerprint_digest(fingerprint: Mapping[str, object]) -> str:
    """Sha256 of a fingerprint's canonical JSON, in hex."""
    canonical = json.dumps(fingerprint, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _read_toml(uri: str) -> dict[str, Any]:
    try:
        return tomllib.loads(read_bytes(uri).decode())
    except FileNotFoundError as error:
        message = f"cannot read the configuration file {redact(uri)}: there is nothing of this name"
        raise ConfigError(message) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        message = f"{redact(uri)} is not a TOML file: {error}"
        raise ConfigError(message) from error


def _env_key(cls: type[IndexConfig], name: str) -> str:
    """`INDEXER_SAMPLING_SEED` names `sampling.seed`, `INDEXER_LIMIT` names `limit`."""
    key = name.removeprefix(ENV_PREFIX).lower()
    section, _, rest = key.partition("_")
    if key not in cls.model_fields and section in cls.model_fields and rest:
        return f"{section}.{rest}"
    return key


def _put(tree: dict[str, Any], dotted: str, value: object) -> None:
    *sections, key = dotted.split(".")
    node: object = tree
    for section in sections:
        node = node.setdefault(section, {}) if isinstance(node, dict) else node
    if not isinstance(node, dict):
        message = f"{dotted}: {'.'.join(sections)} is a value ({node!r}), not a section"
        raise ConfigError(message)
    node[key] = value


def _explain(cls: type[IndexConfig], error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        place = tuple(part for part in problem["loc"] if isinstance(part, str))
        key = ".".join(_known_prefix(cls, place)) or "configuration"
        if problem["type"] == "extra_forbidden":
            section, known = _fields_beside(cls, place)
            lines.append(
                f"{'.'.join(place)}: no such key; {section} has {', '.join(sorted(known))}"
            )
        elif problem["type"] == "missing":
            lines.append(f"{key}: is required")
        else:
            reason = problem["msg"].removeprefix("Value error, ")
            reason = reason[0].lower() + reason[1:]
            lines.append(f"{key} = {problem['input']!r}: {reason}" if place else reason)
    return "\n".join(dict.fromkeys(lines))


def _known_prefix(cls: type[BaseModel], place: tuple[str, ...]) -> tuple[str, ...]:
    """Drops what pydantic appends to a location for the branches of a union."""
    known: list[str] = []
    level: type[BaseModel] | None = cls
    for part in place:
        if level is None or part not in level.model_fields:
            break
        known.append(part)
        level = _section_type(level.model_fields[part].annotation)
    return tuple(known)


def _section_type(annotation: object) -> type[BaseModel] | None:
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = get_args(annotation)[0]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _fields_beside(cls: type[BaseModel], place: tuple[str, ...]) -> tuple[str, set[str]]:
    level = cls
    for part in place[:-1]:
        below = (
            _section_type(level.model_fields[part].annotation)
            if part in level.model_fields
            else None
        )
        level = below or level
    name = ".".join(place[:-1])
    return (f"section {name}" if name else "a configuration"), set(level.model_fields)
