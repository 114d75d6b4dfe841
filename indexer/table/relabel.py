"""Relabels an index: a new linear head over the stored embeddings, without decoding anything.

The result is a model of its own beside its source: a partition in all four tables, with the
source's clips, embeddings and outcomes, failures among them, and new labels, scores and logits. It
is committed like a run, in whole units, under the lease of its own tag: killed anywhere, the same
command goes on. Given again later it follows the source: new units are added, those of videos that
were indexed again are replaced, those of deleted ones go.

The outcomes are compared first (`relabel_diff`). Then clips and embeddings of the videos to do are
sorted by video in a temporary folder, and labelled a few thousand at a time (`relabel_rows`).
Memory: one data file, what `sorting` holds, some 100 bytes for each video to do, and the rows of
`GROUP_CLIPS` clips or of the longest video.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from indexer import storage
from indexer.config import TAG_PATTERN, fingerprint_digest
from indexer.errors import ConfigError, LeaseHeld, QueryError, StorageError
from indexer.table import catalog, recovery
from indexer.table.by_video import ByVideo, by_video, checked_rows
from indexer.table.commit import Committer
from indexer.table.delete import COMMAND as DELETE
from indexer.table.deleted import deleted_video_ids
from indexer.table.delta import LiveFile, live_files, open_or_create, open_table
from indexer.table.head import Head
from indexer.table.lease import held, live_leases
from indexer.table.lookup import VideoLookup
from indexer.table.maintenance import new_run_id
from indexer.table.paths import IndexPaths
from indexer.table.patience import patiently
from indexer.table.read import model_rows
from indexer.table.relabel_diff import Difference, Files, differences, groups, settled_files
from indexer.table.relabel_rows import VECTORS, relabelled, vectors
from indexer.table.rows import RowContext
from indexer.table.schema import CLIPS, EMBEDDINGS, FAILED, VIDEOS, TableSpec
from indexer.table.shard import Shard
from indexer.table.write import write_tables

COMMAND: Final = "relabel"

GROUP_CLIPS: Final = 8192
"""Clips that are labelled, written and committed together."""

_PASSES: Final = 3
_DIGEST_IN_TAG: Final = re.compile(r"-[0-9a-f]{6}$")
_NOT_IN_TAG: Final = re.compile(r"[^A-Za-z0-9._-]+")
_NAME_CHARS: Final = 40

Progress = Callable[[int, int], None]
"""Is told how many clips are done, and of how many."""


@dataclass(slots=True)
class Relabelled:
    """What a relabelling has done.

    Attributes:
        model: tag of the new model.
        source: tag of the model whose embeddings it labels.
        run_id: of this run; its report is `runs/<run_id>.json` in the index.
        units: that were made, failures among them.
        clips: of these.
        failed_units: of these.
        removed_videos: whose rows went because the source has other ones, or none.
        left_units: whose rows in the source are not complete, and which were left out.
    """

    model: str
    source: str
    run_id: str
    units: int = 0
    clips: int = 0
    failed_units: int = 0
    removed_videos: int = 0
    left_units: int = 0


def relabel(
    paths: IndexPaths,
    head: Head,
    *,
    source: str | None = None,
    tag: str | None = None,
    name: str = "head",
    progress: Progress = lambda _done, _of: None,
) -> Relabelled:
    """Brings the rows of a head in line with those of its source.

    Args:
        paths: of the index.
        head: the new one.
        source: tag of the model whose embeddings it labels; by default the newest that decoded.
        tag: of the new model; by default worked out from the source, the name and the fingerprint.
        name: of the head, for the tag.
        progress: is told after each commit.

    Raises:
        ConfigError: the head does not fit the source, or the tag is another model's.
        QueryError: there is no index, or no such model in it.
        LeaseHeld: another job is at work on the tag, or a deletion on the index.
        StorageError: the storage refuses; give the command again.
    """
    catalog.check_index(paths)
    model = _source(paths, source)
    _check_width(paths, model.tag, head)
    fingerprint = _fingerprint(model, head)
    tag = tag or _default_tag(model.tag, name, fingerprint)
    if not re.match(TAG_PATTERN, tag):
        message = f"the tag {tag!r} should be letters, digits and . _ - only, at most 100"
        raise ConfigError(message)
    patiently(catalog.register_model, paths, tag, fingerprint, head.labels, tag_option="--tag NAME")
    done = Relabelled(tag, model.tag, new_run_id(COMMAND))
    with held(paths, tag, Shard().writer, done.run_id) as lease:
        _refuse_beside_deletion(paths)
        patiently(recovery.begin, paths, tag, lease)
        committer = patiently(Committer, paths, tag, done.run_id, lease)
        _Relabelling(paths, head, _context(model, head, done), committer, progress, done).run()
    return done


def _source(paths: IndexPaths, tag: str | None) -> catalog.RegisteredModel:
    if tag is not None:
        model = catalog.read_model(paths, tag)
        made_from = model.fingerprint.get(catalog.RELABEL, {}).get("source")
        if made_from:
            message = (
                f"{tag} is itself relabelled, with the embeddings of another: --model {made_from}"
            )
            raise ConfigError(message)
        return model
    found = [m for m in catalog.models(paths) if catalog.RELABEL not in m.fingerprint]
    if not found:
        message = (
            f"{storage.redact(paths.root_uri)} has no model yet whose rows could be relabelled"
        )
        raise QueryError(message)
    return found[-1]


def _check_width(paths: IndexPaths, source: str, head: Head) -> None:
    table = open_table(paths, EMBEDDINGS)
    if table is None or not live_files(table, source):
        return
    try:
        first = model_rows(table, source).head(1, columns=["embedding"])["embedding"]
    except (pa.ArrowException, OSError) as error:
        message = f"the embeddings of {source} cannot be read: {error}; run indexer verify"
        raise StorageError(message) from error
    found, wanted = pc.list_value_length(first)[0].as_py(), head.weight_KD.shape[1]
    if found != wanted:
        message = f"the head takes embeddings of {wanted} values, those of {source} have {found}"
        raise ConfigError(message)


def _fingerprint(source: catalog.RegisteredModel, head: Head) -> dict[str, object]:
    """The source's, from whose frames the embeddings come, and what the head changes."""
    return {
        **source.fingerprint,
        catalog.RELABEL: {
            "source": source.tag,
            "source_fingerprint_sha256": fingerprint_digest(source.fingerprint),
            "head_sha256": head.sha256,
            "labels_sha256": fingerprint_digest({"labels": list(head.labels)}),
        },
    }


def _default_tag(source: str, name: str, fingerprint: dict[str, object]) -> str:
    stem = _DIGEST_IN_TAG.sub("", source)
    own = _NOT_IN_TAG.sub("-", name)[:_NAME_CHARS].strip("-.") or "head"
    return f"{stem[:_NAME_CHARS]}-{own}-{fingerprint_digest(fingerprint)[:6]}"


def _context(source: catalog.RegisteredModel, head: Head, done: Relabelled) -> RowContext:
    """What is kept of the scores, as of the source's; times and runs stay those of its rows."""
    settings = source.fingerprint
    return RowContext(
        tag=done.model,
        run_id=done.run_id,
        labels=head.labels,
        top_k=settings.get("top_k", 5),
        min_score=settings.get("min_score", 0.0),
        keep_logits=True,
        stored_mantissa_bits=settings.get("precision", {}).get("stored_mantissa_bits", 23),
        indexed_at=datetime.now(UTC),
    )


def _refuse_beside_deletion(paths: IndexPaths) -> None:
    """A deletion that began before our tag was there does not wait for us: its lease tells of it.

    One that begins later finds our tag, and its lease taken.
    """
    for tag in catalog.model_tags(paths):
        for lease in live_leases(paths, tag):
            if lease.run_id.startswith(f"{DELETE}-"):
                message = f"{lease.run_id} on {lease.host} is deleting videos; wait for its end"
                raise LeaseHeld(message)


@dataclass
class _Relabelling:
    """One run of the command, under its lease."""

    _paths: IndexPaths
    _head: Head
    _context: RowContext
    _committer: Committer
    _progress: Progress
    _done: Relabelled
    _started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    _video_seconds: float = 0.0

    def run(self) -> None:
        """Follows the source, again where its files were replaced meanwhile; reports always."""
        status = "failed"
        self._report("running")
        try:
            for number in range(_PASSES):
                files = settled_files(self._paths, self._done.source)
                try:
                    self._follow(files)
                    break
                except StorageError:
                    if number + 1 == _PASSES or not self._moved(files):
                        raise
            status = "finished"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            self._report(status)

    def _moved(self, files: Files) -> bool:
        """Whether others have taken out files that were to be read, such as a compaction."""
        now = settled_files(self._paths, self._done.source)
        return any(
            not {f.path for f in now[name]}.issuperset(f.path for f in old)
            for name, old in files.items()
        )

    def _follow(self, files: Files) -> None:
        stale, todo, of = self._survey(files)
        if stale:
            patiently(self._committer.remove_videos, list(stale), list(stale.values()))
            self._done.removed_videos += len(stale)
        if not len(todo):
            return
        lookup = VideoLookup(todo)
        clips = self._stream(files, CLIPS, lookup)
        embeddings = self._stream(files, EMBEDDINGS, lookup)
        of += self._done.clips
        self._done.left_units = 0
        parts = (
            g for found in self._differences(files, lookup) for g in groups(found.todo, GROUP_CLIPS)
        )
        for number, outcomes in enumerate(parts):
            last = str(outcomes["video_id"][-1])
            self._add(number, outcomes, clips.through(last), embeddings.through(last))
            self._progress(self._done.clips, of)

    def _survey(self, files: Files) -> tuple[dict[str, str], pa.ChunkedArray, int]:
        """URIs of the stale videos by id; ids of the videos to do; their clips."""
        stale: dict[str, str] = {}
        todo: list[pa.Array] = []
        clips = 0
        for found in self._differences(files):
            ids, uris = (found.stale[name].to_pylist() for name in ("video_id", "uri"))
            stale |= dict(zip(ids, uris, strict=True))
            todo.append(pc.unique(found.todo["video_id"]))
            clips += pc.sum(found.todo["clips"]).as_py() or 0
        return stale, pa.chunked_array(todo, pa.string()), clips

    def _differences(self, files: Files, lookup: VideoLookup | None = None) -> Iterator[Difference]:
        """Between the source and what we have now; of the looked-up videos only, where given."""
        own = live_files(open_or_create(self._paths, VIDEOS), self._done.model)
        return differences(self._paths, self._outcomes(files[VIDEOS.name], lookup), own)

    def _outcomes(
        self, files: Iterable[LiveFile], lookup: VideoLookup | None
    ) -> Iterator[pa.Table]:
        """The source's rows of `videos`, without the deleted ones."""
        tags = (self._done.model, self._done.source)
        deleted = frozenset().union(*(deleted_video_ids(self._paths, tag) for tag in tags))
        gone = pa.array(sorted(deleted), pa.string())
        for rows in checked_rows(self._paths, VIDEOS, list(files)):
            kept = rows.filter(pc.invert(pc.is_in(rows["video_id"], value_set=gone)))
            yield kept if lookup is None else _looked_up(kept, lookup)

    def _stream(self, files: Files, spec: TableSpec, lookup: VideoLookup) -> ByVideo:
        rows = checked_rows(self._paths, spec, files[spec.name])
        chosen = (_looked_up(piece, lookup) for piece in rows)
        if spec is EMBEDDINGS:
            return by_video(map(vectors, chosen), VECTORS, "clip_index")
        return by_video(chosen, spec.data_schema, "clip_index")

    def _add(self, number: int, outcomes: pa.Table, clips: pa.Table, embeddings: pa.Table) -> None:
        made = relabelled(outcomes, clips, embeddings, self._head, self._context)
        self._done.left_units += made.left_units
        task = f"{number:06}"
        files = patiently(
            write_tables, made.tables, self._paths, self._done.model, self._done.run_id, task
        )
        if files:
            patiently(self._committer.commit, files)
        rows = made.tables[VIDEOS.name]
        self._done.units += rows.num_rows
        self._done.clips += made.tables[CLIPS.name].num_rows
        self._done.failed_units += pc.sum(pc.equal(rows["status"], FAILED)).as_py() or 0
        first = pc.equal(rows["unit_index"], 0)
        self._video_seconds += pc.sum(rows["duration_seconds"].filter(first)).as_py() or 0.0

    def _report(self, status: str) -> None:
        now = datetime.now(UTC)
        seconds = (now - self._started_at).total_seconds()
        done, hours = self._done, self._video_seconds / 3600
        report = {
            "run_id": done.run_id,
            "command": COMMAND,
            "model": done.model,
            "source": done.source,
            "status": status,
            "started_at": self._started_at.isoformat(),
            "updated_at": now.isoformat(),
            "elapsed_seconds": round(seconds, 3),
            "units": done.units,
            "clips": done.clips,
            "removed_videos": done.removed_videos,
            "left_units": done.left_units,
            "video_hours": round(hours, 6),
            "clips_per_second": round(done.clips / seconds, 3) if seconds else 0.0,
            "video_hours_per_hour": round(hours / (seconds / 3600), 3) if seconds else 0.0,
            "bottleneck": None,
        }
        patiently(catalog.write_run_report, self._paths, done.run_id, report)


def _looked_up(rows: pa.Table, lookup: VideoLookup) -> pa.Table:
    return rows.filter(pa.array(lookup.rows(rows["video_id"].combine_chunks()) >= 0))
