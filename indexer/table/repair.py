"""Repairs what can be made right without the videos, and names what cannot.

Half-done commits are finished and files of nobody removed, as every job does. A data file of which
the log says what is not true, or whose rows are out of order, is written anew. One that is missing
or damaged is taken out of its table, for nobody could read it (its bytes stay until the
next compaction). A part of the similarity sidecar that is wrong is removed: the next compaction
makes it again. Postings are made again from the clips where they differ from these. What then is
still broken needs the videos: they are named, and a run with `--if-exists overwrite` indexes them.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexer import storage
from indexer.table import catalog
from indexer.table.compact import TARGET_BYTES
from indexer.table.lease import Waiting, held, say_nothing
from indexer.table.maintenance import Maintainer, maintaining, new_run_id
from indexer.table.paths import SIMILARITY, IndexPaths
from indexer.table.read import file_batches
from indexer.table.recovery import begin
from indexer.table.schema import CLIPS, EMBEDDINGS, LABELS, TABLES, TableSpec
from indexer.table.shard import Shard
from indexer.table.sidecar import remove_stale
from indexer.table.sorting import sorted_rows
from indexer.table.verify import DESCRIBED, Verification, verify
from indexer.table.write import DataFile, write_sorted

COMMAND: Final = "repair"

_BATCH_ROWS: Final = 8192


@dataclass(frozen=True, slots=True)
class Repair:
    """What was repaired, and what is left.

    Attributes:
        commits: half-done commits that were finished.
        orphans: files of nobody that were removed.
        dropped_files: (table, path) of missing or damaged files that were taken out.
        rewritten_files: (table, path) of files that were written anew with the same rows.
        postings: models whose postings were made again from the clips.
        left: what `verify` says now.
    """

    commits: int
    orphans: int
    dropped_files: tuple[tuple[str, str], ...]
    rewritten_files: tuple[tuple[str, str], ...]
    postings: tuple[str, ...]
    left: Verification


def repair(paths: IndexPaths, tag: str | None = None, *, waiting: Waiting = say_nothing) -> Repair:
    """Repairs an index as far as its own bytes allow.

    Args:
        paths: of the index.
        tag: of the only model to repair; None repairs all.
        waiting: is told where the lease of a dead job is waited for.

    Raises:
        QueryError: there is no index, or no such model.
        LeaseHeld: a job is at work on a model.
        StorageError: the storage refuses.
    """
    catalog.check_index(paths)
    tags = catalog.model_tags(paths) if tag is None else (catalog.read_model(paths, tag).tag,)
    commits = orphans = 0
    dropped: list[tuple[str, str]] = []
    rewritten: list[tuple[str, str]] = []
    postings: list[str] = []
    with ExitStack() as stack:
        for name in tags:
            maintainer, tidied = stack.enter_context(maintaining(paths, name, COMMAND, waiting))
            run_id = new_run_id(COMMAND)
            lease = stack.enter_context(held(paths, name, Shard().writer, run_id, waiting=waiting))
            recovered = begin(paths, name, lease)
            commits += len(tidied.rolled_forward) + len(recovered.rolled_forward)
            orphans += len(tidied.orphans_removed) + len(recovered.orphans_removed)
            found = verify(paths, name)
            dropped += _drop_damaged(maintainer, found)
            rewritten += _rewrite_misdescribed(maintainer, found)
            if _postings_differ(found):
                _derive_postings(maintainer, catalog.read_model(paths, name).labels)
                postings.append(name)
            _drop_wrong_parts(maintainer, found)
        return Repair(
            commits=commits,
            orphans=orphans,
            dropped_files=tuple(dropped),
            rewritten_files=tuple(rewritten),
            postings=tuple(postings),
            left=verify(paths, tag),
        )


def _drop_damaged(maintainer: Maintainer, found: Verification) -> Iterator[tuple[str, str]]:
    for spec in TABLES.values():
        damaged = {path for table, path in found.damaged_files if table == spec.name}
        files = [file for file in maintainer.live(spec) if file.path in damaged]
        if files:
            maintainer.replace(spec, files, (), same_rows=False)
            yield from ((spec.name, file.path) for file in files)


def _drop_wrong_parts(maintainer: Maintainer, found: Verification) -> None:
    """Removes what of the similarity sidecar is wrong, or belongs to no data file by now."""
    for finding in found.findings:
        if finding.table == SIMILARITY:
            storage.delete(storage.join(maintainer.paths.root_uri, SIMILARITY, finding.file))
    remove_stale(maintainer.paths, maintainer.tag, maintainer.live(EMBEDDINGS))


def _rewrite_misdescribed(maintainer: Maintainer, found: Verification) -> Iterator[tuple[str, str]]:
    for spec in TABLES.values():
        wrong = {
            finding.file
            for finding in found.findings
            if finding.table == spec.name and finding.promise in (DESCRIBED, "sorted")
        }
        for file in (file for file in maintainer.live(spec) if file.path in wrong):
            rows = file_batches(maintainer.paths, spec, file, _BATCH_ROWS)
            maintainer.replace(spec, [file], _written(maintainer, spec, rows), same_rows=True)
            yield spec.name, file.path


def _written(
    maintainer: Maintainer, spec: TableSpec, rows: Iterator[pa.Table]
) -> tuple[DataFile, ...]:
    paths, tag, writer = maintainer.paths, maintainer.tag, maintainer.lease.run_id
    return tuple(
        write_sorted(sorted_rows(rows, spec.order), spec, paths, tag, writer, TARGET_BYTES)
    )


def _postings_differ(found: Verification) -> bool:
    return any(
        finding.broken and (finding.table == LABELS.name or finding.promise == "postings")
        for finding in found.findings
    ) or any(table == CLIPS.name for table, _ in found.damaged_files)


def _derive_postings(maintainer: Maintainer, vocabulary: Sequence[str]) -> None:
    """Puts the top labels of all clips in the place of the postings."""
    labels = pa.array(vocabulary, pa.string())
    new = _written(maintainer, LABELS, _postings(maintainer, labels))
    maintainer.replace(LABELS, maintainer.live(LABELS), new, same_rows=False)


def _postings(maintainer: Maintainer, vocabulary: pa.Array) -> Iterator[pa.Table]:
    for file in maintainer.live(CLIPS):
        for clips in file_batches(maintainer.paths, CLIPS, file, _BATCH_ROWS):
            yield postings_of(clips, vocabulary)


def postings_of(clips: pa.Table, vocabulary: pa.Array) -> pa.Table:
    """The rows of `labels` that belong to some rows of `clips`, in the order of these.

    Args:
        clips: rows of `clips`.
        vocabulary: the model's labels, by label id.
    """
    names = clips["top_labels"].combine_chunks()
    counts = pc.list_value_length(names).to_numpy()
    owners = pa.array(np.repeat(np.arange(len(counts)), counts))
    begins = np.repeat(np.cumsum(counts) - counts, counts)
    label = pc.list_flatten(names)
    columns = {
        "label": label,
        "label_id": pc.index_in(label, value_set=vocabulary),
        "score": pc.list_flatten(clips["top_scores"].combine_chunks()),
        "rank": pa.array(np.arange(len(label)) - begins + 1, pa.int32()),
        **{name: clips[name].take(owners) for name in LABELS.data_schema.names[4:]},
    }
    return pa.table(columns, schema=LABELS.data_schema)
