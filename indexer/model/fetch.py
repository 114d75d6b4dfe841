"""From what the user calls a model to a folder on this machine's disk.

A model is `demo`, a folder, an fsspec URL of a folder, or a Hugging Face hub id. Only JSON and
safetensors files are ever fetched: nothing that comes with a checkpoint is executed.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Final

from indexer.errors import ModelError

DEMO: Final = "demo"
WEIGHTS: Final = "model.safetensors"
WEIGHTS_INDEX: Final = "model.safetensors.index.json"

_PATTERNS: Final = ("*.json", "*.safetensors")
_HUB_SECONDS: Final = 4.0
_CHANGES: Final = ("ETag", "etag", "LastModified", "mtime", "created")
"""What the file systems of fsspec tell of a file that changes with its content."""

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_UNSAFE_WEIGHTS: Final = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint on this machine's disk.

    Attributes:
        id: how reports and fingerprints call it; the same on every machine.
        source: what finds it again, also from another working directory.
        revision: commit of a hub id, digest of what a URL held; None for folders.
        folder: where its files are.
    """

    id: str
    source: str
    revision: str | None
    folder: Path


def fetch(model_id: str, revision: str | None, *, schemes: Collection[str]) -> Found:
    """Brings a checkpoint's files onto this machine, or finds them there.

    Raises:
        ConfigError: the URL's scheme is not among `schemes`.
        StorageError: the storage under a URL cannot be read.
        ModelError: there is no such model, or it has no safetensors weights.
    """
    if model_id == DEMO:
        found = Found(DEMO, DEMO, None, Path(str(files("indexer.model").joinpath("demo"))))
    elif "://" in model_id:
        found = _from_url(model_id, schemes)
    elif (folder := Path(model_id).expanduser()).is_dir():
        absolute = folder.resolve()
        found = Found(absolute.name, str(absolute), None, absolute)
    elif model_id.startswith((".", "/", "~")):
        message = f"{model_id}: no such folder"
        raise ModelError(message)
    else:
        found = _from_hub(model_id, revision)
    check_safetensors((file.name for file in found.folder.iterdir()), model_id)
    return found


def check_safetensors(names: Iterable[str], model_id: str) -> None:
    """Refuses a checkpoint that has no safetensors weights.

    Raises:
        ModelError: it has none; the message says how to convert others.
    """
    listed = set(names)
    if listed & {WEIGHTS, WEIGHTS_INDEX}:
        return
    if not any(name.endswith(_UNSAFE_WEIGHTS) for name in listed):
        message = f"{model_id}: no {WEIGHTS} or {WEIGHTS_INDEX} there; is this a checkpoint?"
        raise ModelError(message)
    message = (
        f"{model_id}: has only pickled weights (.bin), which can run code and are never loaded."
        " Convert it where you trust it: TimesformerForVideoClassification.from_pretrained(ID)"
        ".save_pretrained(FOLDER), copy preprocessor_config.json into FOLDER, and use the folder;"
        " for a hub id, a revision such as refs/pr/1 may hold its safetensors"
    )
    raise ModelError(message)


def _from_hub(repo: str, revision: str | None) -> Found:
    """Asks the hub once, without retries, and falls back to what is cached.

    `snapshot_download` alone retries for 23 seconds when a commit is given and the hub is away.
    """
    from huggingface_hub import HfApi, errors

    # of httpx or httpx2, whichever this release of the hub's client is built on
    connection_error = errors.HTTPError  # type: ignore[attr-defined]
    cached = _cached(repo, revision) if _COMMIT.fullmatch(revision or "") else None
    if cached is not None:
        return cached
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=_HUB_SECONDS)
        check_safetensors((file.rfilename for file in info.siblings or ()), repo)
        return _download(repo, revision)
    except errors.HFValidationError as error:
        message = f"{repo}: neither a folder, nor a URL, nor a hub id (NAME or OWNER/NAME)"
        raise ModelError(message) from error
    except errors.GatedRepoError as error:
        message = f"{repo}: is gated; accept its terms on the hub, then set HF_TOKEN"
        raise ModelError(message) from error
    except errors.RepositoryNotFoundError as error:
        message = (
            f"{repo}: no such folder here, and the hub knows no such model"
            " (a private one needs HF_TOKEN)"
        )
        raise ModelError(message) from error
    except errors.RevisionNotFoundError as error:
        message = f"{repo}: has no revision {revision!r}"
        raise ModelError(message) from error
    except (connection_error, OSError) as error:
        cached = _cached(repo, revision)
        if cached is not None:
            return cached
        reason = str(error).partition("\n")[0]
        message = (
            f"{repo}: no such folder here, not in the Hugging Face cache, and the hub does not give"
            f" it ({type(error).__name__}: {reason}); where there is a network, fetch it once with"
            f" `hf download {repo}`, or use --model demo, which needs none"
        )
        raise ModelError(message) from error


def _cached(repo: str, revision: str | None) -> Found | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=[*_PATTERNS], local_files_only=True
            )
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return Found(repo, repo, folder.name, folder)


def _download(repo: str, revision: str | None) -> Found:
    from huggingface_hub import snapshot_download

    # by the branch's name, so that the cache can answer for it when the hub is away
    folder = Path(
        snapshot_download(
            repo, revision=revision, allow_patterns=[*_PATTERNS], etag_timeout=_HUB_SECONDS
        )
    )
    return Found(repo, repo, folder.name, folder)


def _from_url(url: str, schemes: Collection[str]) -> Found:
    from indexer.storage import absolute_uri, check_scheme, redact, scheme_of

    check_scheme(url, schemes)
    uri = absolute_uri(url.rstrip("/"))
    if scheme_of(url) == "file":
        return fetch(uri, None, schemes=schemes)
    sizes = _list(uri)
    check_safetensors((PurePosixPath(path).name for path in sizes), redact(uri))
    wanted = {path: what for path, what in sizes.items() if path.endswith((".json", WEIGHTS[5:]))}
    digest = hashlib.sha256(repr((uri, sorted(wanted.items()))).encode()).hexdigest()
    folder = _cache_root() / digest
    if not folder.is_dir():
        _fetch_all(uri, wanted, folder)
    return Found(redact(uri), uri, digest[:40], folder)


def _cache_root() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "video-indexer" / "checkpoints"


def _list(uri: str) -> dict[str, tuple[int, str]]:
    """Size, and what changes with the content, of each file directly in a remote folder."""
    from indexer.storage import filesystem, redact, storage_errors

    fs, path = filesystem(uri)
    try:
        with storage_errors(uri):
            entries = fs.ls(path, detail=True)
    except FileNotFoundError as error:
        message = f"{redact(uri)}: there is no such folder"
        raise ModelError(message) from error
    return {
        entry["name"]: (entry["size"], str([entry.get(key) for key in _CHANGES]))
        for entry in entries
        if entry["type"] == "file"
    }


def _fetch_all(uri: str, wanted: dict[str, tuple[int, str]], folder: Path) -> None:
    """Downloads beside the cache entry, which then appears whole, in one step, or not at all."""
    from indexer.storage import redact

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        sizes = _copy(uri, wanted, partial)
        if sizes != {path: size_bytes for path, (size_bytes, _) in wanted.items()}:
            message = f"{redact(uri)}: the files changed while they were read; try again"
            raise ModelError(message)
        _publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy(uri: str, paths: Iterable[str], into: Path) -> dict[str, int]:
    """Sizes of the remote files as they arrived; without those that are gone."""
    from indexer.storage import filesystem, storage_errors

    fs, _ = filesystem(uri)
    sizes = {}
    for path in paths:
        local = into / PurePosixPath(path).name
        with suppress(FileNotFoundError), storage_errors(uri):
            fs.get_file(path, str(local))
            sizes[path] = local.stat().st_size
    return sizes


def _publish(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster with the same files
            raise
