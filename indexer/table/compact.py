"""Rewrites many small data files as few large sorted ones.

    clips       by (uri, clip_index)        small files only; large ones stay as they are
    embeddings  by (video_id, clip_index)   the same
    labels      by (label, score desc)      all of them, so that a label lies in one place
    videos      by (uri, unit, attempt)     small files only

Then each file of `embeddings` that has no part of the similarity sidecar gets one (`sidecar`), and
parts of files that are gone go.

Each table changes in one commit, which takes the old files out and puts the new ones in: a reader
of the log sees the old rows or the new, which are the same. Files that a running job adds
meanwhile stay. At last each log is summed up in a checkpoint, which is all that a reader has to
read of it. Killed anywhere, the command is given again: tables that were done stay done, files
that no commit names are removed first. At the end the old files are deleted, which is what makes
`model=*/**/*.parquet` right again for readers who glob; a reader who opened the index before and
still follows that snapshot finds its files gone, and opens it again.

Memory: one old file and one new one (twice, while it is handed over), and what `sorting` holds.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from indexer import storage
from indexer.errors import CommitConflict, ConfigError, StorageError
from indexer.table.delta import LiveFile
from indexer.table.lease import Waiting, say_nothing
from indexer.table.maintenance import Maintainer, maintaining
from indexer.table.paths import SIMILARITY, IndexPaths
from indexer.table.read import file_batches
from indexer.table.schema import EMBEDDINGS, LABELS, TABLES, TableSpec
from indexer.table.sidecar import part_sizes, remove_stale, write_missing
from indexer.table.sorting import sorted_rows
from indexer.table.write import DataFile, write_sorted

TARGET_BYTES: Final = 256_000_000
COMMAND: Final = "compact"

_TRIES: Final = 3
_BATCH_ROWS: Final = 8192


@dataclass(frozen=True, slots=True)
class CompactedTable:
    """What became of one table, or of the similarity sidecar, of one model.

    Attributes:
        model: tag of the model.
        table: name of the table, or of the folder of sidecars.
        rows: rows that were rewritten, or coded.
        files_before: files of the model before.
        files_after: files of the model after.
        bytes_before: of the files before.
        bytes_after: of the files after.
    """

    model: str
    table: str
    rows: int
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int


def compact(
    paths: IndexPaths,
    tag: str,
    *,
    target_bytes: int = TARGET_BYTES,
    keep_history: bool = False,
    lists: bool = False,
    progress: Callable[[CompactedTable], None] = lambda _: None,
    waiting: Waiting = say_nothing,
) -> tuple[CompactedTable, ...]:
    """Compacts one model of an index.

    Args:
        paths: of the index.
        tag: of the model.
        target_bytes: size at which a new file ends.
        keep_history: leave the old files, so that readers can travel in time.
        lists: give the similarity sidecar inverted lists, for approximate answers.
        progress: is told of each table when it is done.
        waiting: is told where the lease of a dead command is waited for.

    Raises:
        ConfigError: the target is no size.
        LeaseHeld: another compaction, deletion or repair of this model is at work.
        CommitConflict: a running job took out files of a table again and again.
        StorageError: a file is missing or damaged, or the storage refuses.
    """
    if target_bytes < 1:
        message = f"target file size = {target_bytes}: should be 1 byte or more"
        raise ConfigError(message)
    done = []
    with maintaining(paths, tag, COMMAND, waiting) as (maintainer, _):
        for spec in TABLES.values():
            done.append(_compact_table(maintainer, spec, target_bytes))
            progress(done[-1])
        done.append(_code_embeddings(maintainer, lists=lists))
        progress(done[-1])
        if not keep_history:
            maintainer.vacuum()
        maintainer.checkpoint()
    return tuple(done)


def _compact_table(maintainer: Maintainer, spec: TableSpec, target_bytes: int) -> CompactedTable:
    for _ in range(_TRIES):
        before = maintainer.live(spec)
        old = _chosen(before, spec, target_bytes)
        new = tuple(_rewritten(maintainer, spec, old, target_bytes))
        if not old or maintainer.replace(spec, old, new, same_rows=True):
            return _summary(maintainer, spec, before, old, new)
        for file in new:
            storage.delete(maintainer.paths.data_file(spec.name, file.path))
    message = (
        f"{storage.redact(maintainer.paths.table(spec.name))}: a running job replaced files that"
        f" were being compacted {_TRIES} times; compact again when it is done"
    )
    raise CommitConflict(message)


def _code_embeddings(maintainer: Maintainer, *, lists: bool) -> CompactedTable:
    """Brings the similarity sidecar up to date."""
    paths, tag = maintainer.paths, maintainer.tag
    before = part_sizes(paths, tag)
    written = write_missing(paths, tag, maintainer.live(EMBEDDINGS), lists=lists)
    rows = sum(file.rows for file in written)
    remove_stale(paths, tag, maintainer.live(EMBEDDINGS))
    after = part_sizes(paths, tag)
    return CompactedTable(
        model=tag,
        table=SIMILARITY,
        rows=rows,
        files_before=len(before),
        files_after=len(after),
        bytes_before=sum(before.values()),
        bytes_after=sum(after.values()),
    )


def _chosen(files: Sequence[LiveFile], spec: TableSpec, target_bytes: int) -> list[LiveFile]:
    """The files to rewrite; none where that would change nothing."""
    if spec is LABELS:
        apart = _writers(files) == {COMMAND} and _apart(files)
        return [] if len(files) < 2 or apart else list(files)  # noqa: PLR2004 - one is sorted
    small = [file for file in files if file.size_bytes < target_bytes // 2]
    return small if len(small) > 1 else []


def _writers(files: Sequence[LiveFile]) -> set[str]:
    return {file.path.rpartition("/")[2].split("-")[1] for file in files}


def _apart(files: Sequence[LiveFile]) -> bool:
    """Whether no label begins before another file's last one ends."""
    bounds = sorted((file.lower["label"], file.upper["label"]) for file in files)
    return all(before[1] <= after[0] for before, after in itertools.pairwise(bounds))


def _rewritten(
    maintainer: Maintainer, spec: TableSpec, old: Sequence[LiveFile], target_bytes: int
) -> Iterator[DataFile]:
    rows = 0
    for file in write_sorted(
        sorted_rows(_batches(maintainer, spec, old), spec.order),
        spec,
        maintainer.paths,
        maintainer.tag,
        maintainer.lease.run_id,
        target_bytes,
    ):
        rows += file.rows
        yield file
    expected = sum(file.rows for file in old)
    if rows != expected:
        message = (
            f"{storage.redact(maintainer.paths.table(spec.name))}: the log says {expected} rows,"
            f" the files have {rows}; run `indexer verify`"
        )
        raise StorageError(message)


def _batches(
    maintainer: Maintainer, spec: TableSpec, files: Sequence[LiveFile]
) -> Iterator[pa.Table]:
    for file in files:
        yield from file_batches(maintainer.paths, spec, file, _BATCH_ROWS)


def _summary(
    maintainer: Maintainer,
    spec: TableSpec,
    before: Sequence[LiveFile],
    old: Sequence[LiveFile],
    new: Sequence[DataFile],
) -> CompactedTable:
    bytes_before = sum(file.size_bytes for file in before)
    change = sum(file.size_bytes for file in new) - sum(file.size_bytes for file in old)
    return CompactedTable(
        model=maintainer.tag,
        table=spec.name,
        rows=sum(file.rows for file in old),
        files_before=len(before),
        files_after=len(before) - len(old) + len(new),
        bytes_before=bytes_before,
        bytes_after=bytes_before + change,
    )
