"""The small JSON objects beside the tables: the index itself, its models and its runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from indexer import storage
from indexer.errors import ConfigError, QueryError, StorageError
from indexer.table.paths import IndexPaths
from indexer.table.schema import FORMAT_VERSION

_FORMAT: Final = "video-label-index"
_MISSING: Final = "(absent)"
RELABEL: Final = "relabel"
"""Key of a fingerprint of rows that `indexer relabel` made from those of another model."""


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """What `models/<tag>.json` says.

    Attributes:
        tag: short name of the model and recipe, and of their partition.
        created_at: when it was registered, ISO 8601 in UTC.
        fingerprint: everything on which its rows depend.
        labels: its vocabulary, by label id.
    """

    tag: str
    created_at: str
    fingerprint: Mapping[str, Any]
    labels: tuple[str, ...]


def create_index(paths: IndexPaths) -> None:
    """Makes the folder an index, unless it is one.

    Raises:
        ConfigError: the folder holds something else, or an index of another version.
        StorageError: it cannot be written.
    """
    content = _read_json(paths.index_json)
    if content is None:
        _refuse_foreign_folder(paths)
        made = {"format": _FORMAT, "version": FORMAT_VERSION, "created_at": _now()}
        storage.create_bytes(paths.index_json, _dump(made))
        content = _read_json(paths.index_json)
    fault = _version_fault(content)
    if fault:
        message = f"{paths.root_uri}: {fault}"
        raise ConfigError(message)


def check_index(paths: IndexPaths) -> None:
    """Refuses to read what is no index.

    Raises:
        QueryError: there is no index, or one of another version.
        StorageError: it cannot be read.
    """
    content = _read_json(paths.index_json)
    if content is None:
        message = (
            f"there is no index at {paths.root_uri}; make one with: "
            f"indexer run VIDEOS --index {paths.root_uri}"
        )
        raise QueryError(message)
    fault = _version_fault(content)
    if fault:
        message = f"{paths.root_uri}: {fault}"
        raise QueryError(message)


def register_model(
    paths: IndexPaths,
    tag: str,
    fingerprint: Mapping[str, Any],
    labels: Sequence[str],
    *,
    tag_option: str = "--set output.tag=NAME",
) -> RegisteredModel:
    """Gives a tag its fingerprint, or checks that it has this one.

    Args:
        paths: of the index.
        tag: name of the model's partition.
        fingerprint: a JSON object, from `IndexConfig.fingerprint`.
        labels: the model's vocabulary, by label id.
        tag_option: how the user names another tag.

    Raises:
        ConfigError: the tag belongs to another fingerprint; the message names what differs.
        StorageError: it cannot be written.
    """
    made = {
        "tag": tag,
        "created_at": _now(),
        "fingerprint": dict(fingerprint),
        "labels": list(labels),
    }
    storage.create_bytes(paths.model_json(tag), _dump(made))
    model = read_model(paths, tag)
    _check_kind(paths, model, fingerprint, tag_option)
    asked = json.loads(_dump({"fingerprint": dict(fingerprint), "labels": list(labels)}))
    kept = {"fingerprint": model.fingerprint, "labels": list(model.labels)}
    differences = _differences(asked, kept)
    if differences:
        message = (
            f"the tag {tag!r} of {paths.root_uri} belongs to other settings:\n"
            + "\n".join(f"  {line}" for line in differences)
            + f"\nuse the same settings, or give this run a tag of its own: {tag_option}"
        )
        raise ConfigError(message)
    return model


def _check_kind(
    paths: IndexPaths, model: RegisteredModel, fingerprint: Mapping[str, Any], tag_option: str
) -> None:
    """Says plainly that decoded rows and relabelled ones do not share a tag."""
    made = RELABEL in model.fingerprint
    if made == (RELABEL in fingerprint):
        return
    how = "were made by `indexer relabel`" if made else "come from decoded videos"
    message = (
        f"the rows of {model.tag!r} in {paths.root_uri} {how}, and no other may be added;"
        f" give the new ones a tag of their own: {tag_option}"
    )
    raise ConfigError(message)


def read_model(paths: IndexPaths, tag: str) -> RegisteredModel:
    """One registered model.

    Raises:
        QueryError: the index has no such model.
        StorageError: it cannot be read.
    """
    content = _read_json(paths.model_json(tag))
    if content is None:
        message = f"{paths.root_uri} has no model {tag!r}; it has {_listed(model_tags(paths))}"
        raise QueryError(message)
    return _model(paths.model_json(tag), content)


def chosen_model(paths: IndexPaths, tag: str | None) -> RegisteredModel:
    """The model of a tag; by default the only one, else the newest.

    Raises:
        QueryError: the index has no such model, or none at all.
        StorageError: it cannot be read.
    """
    if tag is not None:
        return read_model(paths, tag)
    found = models(paths)
    if not found:
        uri = paths.root_uri
        message = f"the index {uri} is empty; fill it with: indexer run VIDEOS --index {uri}"
        raise QueryError(message)
    return found[-1]


def settle_precision(paths: IndexPaths, tag: str, dtype: str) -> None:
    """Gives a tag the dtype in which its clips are scored, or checks that it has this one.

    What `precision.model = auto` stands for is known once the cluster is, long after the
    fingerprint; without this, a run on other machines would put other numbers beside those of the
    first.

    Raises:
        ConfigError: its clips were scored in another dtype.
        StorageError: it cannot be read or written.
    """
    uri = paths.precision_json(tag)
    storage.create_bytes(uri, _dump({"model": dtype}))
    kept = (_read_json(uri) or {}).get("model")
    if kept != dtype:
        message = (
            f"the tag {tag!r} of {paths.root_uri} was scored in {kept}, which"
            f" precision.model = auto stood for then; here it stands for {dtype}:"
            f" use a cluster of the same kind, or --set precision.model={dtype}, which gives this"
            " run a tag of its own"
        )
        raise ConfigError(message)


def models(paths: IndexPaths) -> tuple[RegisteredModel, ...]:
    """The registered models, the newest last.

    Raises:
        StorageError: they cannot be read.
    """
    found = storage.list_json(paths.models)
    made = [_model(storage.join(paths.models, name), content) for name, content in found.items()]
    return tuple(sorted(made, key=lambda model: (model.created_at, model.tag)))


def model_tags(paths: IndexPaths) -> tuple[str, ...]:
    """The tags of the registered models, the newest last."""
    return tuple(model.tag for model in models(paths))


def write_run_report(paths: IndexPaths, run_id: str, report: Mapping[str, Any]) -> None:
    """Writes or replaces the report of a run.

    Raises:
        StorageError: it cannot be written.
    """
    storage.write_bytes(paths.run_json(run_id), _dump({**report, "run_id": run_id}))


def read_run_reports(paths: IndexPaths) -> tuple[dict[str, Any], ...]:
    """The reports of all runs, by their `started_at`.

    Raises:
        StorageError: they cannot be read.
    """
    reports = storage.list_json(paths.runs).values()
    return tuple(sorted(reports, key=lambda r: (str(r.get("started_at", "")), str(r["run_id"]))))


def _refuse_foreign_folder(paths: IndexPaths) -> None:
    fs, path = storage.filesystem(paths.root_uri)
    with storage.storage_errors(paths.root_uri):
        try:
            found = {entry.rstrip("/") for entry in fs.ls(path, detail=False)}
        except FileNotFoundError:
            return
    found.discard(path.rstrip("/"))  # S3 servers may list an empty folder as its own content
    entries = [entry.rpartition("/")[2] for entry in found]
    foreign = sorted(name for name in entries if not name.startswith("."))
    if foreign and "index.json" not in foreign:
        message = (
            f"{paths.root_uri} is no index, but holds {_listed(foreign[:3])};"
            " choose an empty or new folder for --index"
        )
        raise ConfigError(message)


def _version_fault(content: Mapping[str, Any] | None) -> str | None:
    if content is None or content.get("format") != _FORMAT:
        return "its index.json was not written by the indexer; choose another folder"
    version = content.get("version")
    if version != FORMAT_VERSION:
        return (
            f"it has format version {version!r}, this program knows {FORMAT_VERSION};"
            " use the release of the indexer that made it, or a newer one"
        )
    return None


def _model(uri: str, content: Mapping[str, Any]) -> RegisteredModel:
    try:
        return RegisteredModel(
            tag=content["tag"],
            created_at=content["created_at"],
            fingerprint=content["fingerprint"],
            labels=tuple(content["labels"]),
        )
    except (KeyError, TypeError) as error:
        message = f"{uri} is damaged: {error!r}; restore it, or remove the model and index anew"
        raise StorageError(message) from error


def _differences(asked: object, kept: object, key: str = "") -> list[str]:
    """Lines such as `sampling.mode: 'windows' in the index, 'uniform' asked for`."""
    if asked == kept:
        return []
    if isinstance(asked, dict) and isinstance(kept, dict):
        lines = []
        for name in sorted(asked.keys() | kept.keys()):
            below = f"{key}.{name}" if key else name
            lines += _differences(asked.get(name, _MISSING), kept.get(name, _MISSING), below)
        return lines
    if isinstance(asked, list) and isinstance(kept, list) and len(asked) == len(kept):
        pairs = enumerate(zip(asked, kept, strict=True))
        index, (new, old) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        return _differences(new, old, f"{key}[{index}]")
    return [f"{key.removeprefix('fingerprint.')}: {_short(kept)} in the index, {_short(asked)} now"]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."  # noqa: PLR2004 - a line of a terminal


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _read_json(uri: str) -> dict[str, Any] | None:
    """A JSON object, or None where there is none."""
    try:
        content = json.loads(storage.read_bytes(uri))
    except FileNotFoundError:
        return None
    except ValueError as error:
        message = f"{uri} is not JSON: {error}"
        raise StorageError(message) from error
    if not isinstance(content, dict):
        message = f"{uri} holds no JSON object"
        raise StorageError(message)
    return content


def _dump(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False).encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
