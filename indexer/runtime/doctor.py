"""`indexer doctor`: what a job will need, checked before the job does; nothing is left behind."""

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from indexer.config import Decode, IndexConfig
from indexer.errors import IndexerError
from indexer.manifest import discover
from indexer.model.weights import resolve
from indexer.render import size_text
from indexer.storage import check_writable, redact

PACKAGES = ("video-indexer", "ray", "torch", "transformers", "av", "pyarrow", "deltalake", "duckdb")
SCHEMES: tuple[str, ...] = IndexConfig.model_fields["schemes"].default


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the examination.

    Attributes:
        name: what was looked at.
        ok: whether a job can rely on it.
        detail: what was found, or what to do.
    """

    name: str
    ok: bool
    detail: str


def examine(
    *, index: str | None = None, model: str | None = None, input_: str | None = None
) -> Iterator[Check]:
    """Runs the checks one by one.

    Args:
        index: an index that a job is to write.
        model: a checkpoint that it is to run.
        input_: a path that it is to list.
    """
    yield Check("python", True, f"{platform.python_version()} on {platform.machine()}")
    yield from (_package(name) for name in PACKAGES)
    yield _codecs()
    yield _device()
    yield Check("cpus", True, f"{os.cpu_count()}")
    yield _ray_address()
    if index is not None:
        yield _attempt("index", lambda: _check_index(index))
    if model is not None:
        yield _attempt("model", lambda: _check_model(model))
    if input_ is not None:
        yield _attempt("input", lambda: _check_input(input_))


def _package(name: str) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, name == "video-indexer", "not installed; pip install video-indexer")


def _codecs() -> Check:
    import av

    missing = [
        names
        for names in (("h264",), ("hevc",), ("av1", "libdav1d"), ("vp8",), ("vp9",), ("mpeg4",))
        if not av.codecs_available.intersection(names)
    ]
    if missing:
        lacking = ", ".join("/".join(names) for names in missing)
        return Check("codecs", False, f"FFmpeg has no decoder for {lacking}; use PyAV's own wheel")
    return Check("codecs", True, ", ".join(sorted(Decode().codecs)))


def _device() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("gpu", True, "none on this machine; the model runs on the CPU")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check("gpu", True, ", ".join(names))


def _ray_address() -> Check:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Check("cluster", True, "RAY_ADDRESS is not set; jobs start a local Ray")
    mode = os.environ.get("RAY_AUTH_MODE", "")
    advice = "" if mode == "token" else "; set RAY_AUTH_MODE=token on every node"
    return Check("cluster", mode == "token", f"{redact(address)}{advice}")


def _attempt(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except IndexerError as error:
        return Check(name, False, str(error))


def _check_index(index: str) -> str:
    check_writable(index)
    return f"{redact(index)} can be written"


def _check_model(model: str) -> str:
    checkpoint = resolve(model, None, schemes=SCHEMES)
    return (
        f"{checkpoint.id}: {checkpoint.num_labels} labels, {checkpoint.num_frames} frames of "
        f"{checkpoint.image_size}x{checkpoint.image_size}"
    )


def _check_input(input_: str) -> str:
    manifest = discover([input_], schemes=SCHEMES)
    total_bytes = sum(manifest.column("size_bytes").to_pylist())
    return f"{manifest.num_rows:,} videos, {size_text(total_bytes)}"
