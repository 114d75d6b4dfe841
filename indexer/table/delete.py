"""Deletes videos so that no byte of their rows is left anywhere below the index.

1. The videos are marked as deleted (`deleted`), so that a run does not bring them back.
2. Run reports forget them.
3. Their rows are taken out of all tables, by a commit like that of a run.
4. The data files that held them are deleted, and the parts of the similarity sidecar of these.
5. The logs forget them: bounds of columns and records of commits name URIs too. Each log goes on
   from a new checkpoint, and all that is older is deleted; time travel to before ends with it.

Killed anywhere, the command is given again. It has the index to itself: no run, compaction or
repair of any model may be at work. What a store keeps by itself, such as old versions in a bucket
with versioning, is not below the index and beyond its reach.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from indexer import storage
from indexer.errors import ConfigError, LeaseHeld, QueryError
from indexer.manifest import video_id
from indexer.table import catalog
from indexer.table.commit import Committer
from indexer.table.deleted import deleted_video_ids, mark_deleted
from indexer.table.delta import delta_errors, open_table
from indexer.table.lease import Lease, Waiting, held, say_nothing
from indexer.table.maintenance import Maintainer, maintaining, new_run_id
from indexer.table.paths import IndexPaths
from indexer.table.read import model_rows, read
from indexer.table.recovery import begin
from indexer.table.schema import EMBEDDINGS, TABLES, VIDEOS, TableSpec
from indexer.table.shard import Shard
from indexer.table.sidecar import remove_stale
from indexer.table.strays import LOG

COMMAND: Final = "delete"
DELETED: Final = "(deleted)"
"""What a run report says in place of a video's URI."""

_ID: Final = re.compile(r"^[0-9a-f]{32}$")
_LOG_VERSION: Final = re.compile(r"^(\d{20})\.")
_THREADS: Final = 16


@dataclass(frozen=True, slots=True)
class Deletion:
    """What was deleted.

    Attributes:
        video_ids: of the videos, in the order in which they were named.
        models: tags of the models whose rows are gone.
        files: data files that were deleted.
        log_files: entries and checkpoints of the logs that were deleted.
        reports: run reports that named a video.
    """

    video_ids: tuple[str, ...]
    models: tuple[str, ...]
    files: int
    log_files: int
    reports: int


def delete_videos(
    paths: IndexPaths,
    videos: Sequence[str],
    tag: str | None = None,
    *,
    waiting: Waiting = say_nothing,
) -> Deletion:
    """Deletes videos for good.

    Args:
        paths: of the index.
        videos: their URIs or ids.
        tag: of the only model to delete them from; None deletes them from all.
        waiting: is told where the lease of a dead job is waited for.

    Raises:
        QueryError: there is no index, no such model, or no such video in it.
        LeaseHeld: a job is at work on the index.
        StorageError: the storage refuses; give the command again.
    """
    catalog.check_index(paths)
    every = catalog.model_tags(paths)
    chosen = every if tag is None else (catalog.read_model(paths, tag).tag,)
    run_id = new_run_id(COMMAND)
    with ExitStack() as stack:
        maintainers, leases = {}, {}
        for name in every:  # the logs are common to all models, and so their writers must rest
            maintainers[name], _ = stack.enter_context(maintaining(paths, name, COMMAND, waiting))
            leases[name] = stack.enter_context(
                held(paths, name, Shard().writer, run_id, waiting=waiting)
            )
            begin(paths, name, leases[name])
        if catalog.model_tags(paths) != every:  # its rows may be copied from those that go
            message = f"{storage.redact(paths.root_uri)} got a new model just now; delete again"
            raise LeaseHeld(message)
        known = _known(paths, chosen, videos)
        mark_deleted(paths, tag, known)
        reports = _forget_in_reports(paths, chosen, known)
        for name in chosen:
            _remove_rows(paths, name, leases[name], known)
            remove_stale(paths, name, maintainers[name].live(EMBEDDINGS))
        return Deletion(
            video_ids=tuple(known),
            models=tuple(chosen),
            files=sum(maintainers[name].vacuum() for name in chosen),
            log_files=sum(_forget_in_log(maintainers[chosen[0]], s) for s in TABLES.values()),
            reports=reports,
        )


def _known(paths: IndexPaths, tags: Sequence[str], videos: Sequence[str]) -> dict[str, str]:
    """The URIs of the named videos by their ids; that of a video without rows is as it was named.

    A video without rows is one that an interrupted command had marked as deleted.
    """
    named = {video if _ID.match(video) else _id_of(video): video for video in videos}
    uris: dict[str, str] = {}
    table = open_table(paths, VIDEOS)
    wanted = pc.field("video_id").isin(pa.array(list(named), pa.string()))
    for tag in tags:
        if table is not None:
            rows = read(model_rows(table, tag), ["video_id", "uri"], wanted)
            uris |= dict(zip(rows["video_id"].to_pylist(), rows["uri"].to_pylist(), strict=True))
        uris |= {v: named[v] for v in deleted_video_ids(paths, tag) if v in named and v not in uris}
    missing = [name for video_id_, name in named.items() if video_id_ not in uris]
    if missing:
        message = (
            f"{storage.redact(paths.root_uri)} has no video {missing[0]!r}"
            + (f" (nor {len(missing) - 1} others)" if len(missing) > 1 else "")
            + "; nothing was deleted. Name videos by `uri` or `video_id` of the table `videos`"
        )
        raise QueryError(message)
    return {video_id_: uris[video_id_] for video_id_ in named}


def _id_of(uri: str) -> str:
    try:
        return video_id(uri)
    except ConfigError as error:
        message = f"{uri!r} is no URI of a video: {error}"
        raise QueryError(message) from error


def _remove_rows(paths: IndexPaths, tag: str, lease: Lease, known: Mapping[str, str]) -> None:
    committer = Committer(paths, tag, lease.run_id, lease)
    committer.remove_videos(known.keys(), [uri for uri in known.values() if not _ID.match(uri)])


def _forget_in_reports(paths: IndexPaths, tags: Sequence[str], known: Mapping[str, str]) -> int:
    names = {*known.keys(), *known.values()}
    changed = 0
    for report in catalog.read_run_reports(paths):
        cleaned = _without(report, names)
        if report.get("model") in tags and cleaned != report:
            catalog.write_run_report(paths, report["run_id"], cleaned)
            changed += 1
    return changed


def _without(value: Any, names: set[str]) -> Any:  # noqa: ANN401 - any JSON
    """A JSON value in which no text names a video."""
    if isinstance(value, dict):
        return {key: _without(below, names) for key, below in value.items()}
    if isinstance(value, list):
        return [_without(below, names) for below in value]
    if isinstance(value, str) and _mentions(value, names):
        return DELETED
    return value


def _mentions(text: str, names: set[str]) -> bool:
    if any(name in text for name in names):
        return True
    try:
        return storage.absolute_uri(text) in names
    except (ConfigError, ValueError):  # not every text is a path
        return False


def _forget_in_log(maintainer: Maintainer, spec: TableSpec) -> int:
    """Lets a log begin anew at its newest version; how many of its files were deleted.

    The newest entry is that of the removal or of the fence, which name no video of these.
    """
    table = maintainer.fresh(spec)
    with delta_errors(table.table_uri):
        table.create_checkpoint()
    folder = maintainer.paths.data_file(spec.name, LOG)
    old = [storage.join(folder, name) for name in _before(folder, table.version())]
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(storage.delete, old))
    return len(old)


def _before(folder: str, version: int) -> Iterator[str]:
    for name in storage.list_names(folder):
        found = _LOG_VERSION.match(name)
        if found and int(found[1]) < version:
            yield name
