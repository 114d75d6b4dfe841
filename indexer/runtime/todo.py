"""What a run has to do: the manifest less what the index already holds, as one Arrow table.

Nothing here loads Ray, torch or a codec, so that a job that cannot work is refused at once.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from indexer.config import IndexConfig, fingerprint_digest
from indexer.errors import ERROR_CODES, ConfigError, VideoInternal
from indexer.manifest import discover
from indexer.model.weights import Checkpoint, resolve
from indexer.runtime.blocks import TODO_SCHEMA
from indexer.storage import check_scheme, check_writable
from indexer.table.deleted import deleted_video_ids
from indexer.table.lease import Lease
from indexer.table.paths import IndexPaths
from indexer.table.resume import finished_videos, unit_states, videos_version
from indexer.table.shard import Shard
from indexer.video.plan import DecodePlan

RETRY_ALL: Final = "all"
OVERWRITE: Final = "overwrite"

NEW: Final = "new"
CHANGED: Final = "changed"
INCOMPLETE: Final = "incomplete"
RETRIED: Final = "retried"
OVERWRITTEN: Final = "overwritten"
TODO_REASONS: Final = pa.array([NEW, CHANGED, INCOMPLETE, RETRIED, OVERWRITTEN])
"""Why a video is to do; every other reason says why it is not."""

INDEXED: Final = "indexed"
DELETED: Final = "deleted"
BEYOND_LIMIT: Final = "beyond the limit"
FAILED_CODES: Final = tuple(f"failed: {code}" for code in ERROR_CODES)
QUARANTINED_CODES: Final = tuple(f"quarantined: {code}" for code in ERROR_CODES)
_REASONS: Final = pa.array(
    [*TODO_REASONS.to_pylist(), INDEXED, DELETED, BEYOND_LIMIT, *FAILED_CODES, *QUARANTINED_CODES]
)
_POSITIONS: Final[dict[str, int]] = {
    reason: index for index, reason in enumerate(_REASONS.to_pylist())
}
_BATCH_ROWS: Final = 1 << 16

Indices = npt.NDArray[np.int64]
MANIFEST_COLUMNS: Final = TODO_SCHEMA.names[:5]


@dataclass(frozen=True, slots=True)
class JobPlan:
    """A job, checked and compared with its index, before anything is decoded.

    Attributes:
        config: the configuration.
        paths: of the index.
        checkpoint: the model, on this machine's disk.
        tag: short name of model and recipe, and of their partition.
        fingerprint: everything on which the rows depend.
        run_id: of this run.
        shard: the part of the videos that the job is about.
        manifest: the videos of that part.
        videos_version: of the index's `videos` when it was compared; None before there was one.
        done_videos: of these, the ones that need no work: indexed, failed or deleted.
        failed_videos: of the done ones, those whose outcome is a failure.
        todo: rows of `TODO_SCHEMA`.
        changed: `video_id, uri` of the videos to do that have rows which go first: those of another
            content, or all that are to be written over.
        reasons: for each row of the manifest why it is done or not.
        lease: of the shard, once the job runs.
    """

    config: IndexConfig
    paths: IndexPaths
    checkpoint: Checkpoint
    tag: str
    fingerprint: dict[str, object]
    run_id: str
    shard: Shard
    manifest: pa.Table
    videos_version: int | None
    done_videos: int
    failed_videos: int
    todo: pa.Table
    changed: pa.Table
    reasons: pa.DictionaryArray
    lease: Lease | None = None

    @property
    def listed_videos(self) -> int:
        """Videos of the job's shard in the inputs."""
        return int(self.manifest.num_rows)

    @property
    def decode_plan(self) -> DecodePlan:
        """What the decoders do with each video."""
        return DecodePlan(
            sampling=self.config.sampling,
            num_frames=self.checkpoint.num_frames,
            frame_rate_divisor=frame_rate_divisor(self.config, self.checkpoint),
            preprocessing=self.checkpoint.preprocessing,
            decode=self.config.decode,
        )

    @property
    def todo_bytes(self) -> int:
        """Size of the videos of this run."""
        return int(pc.sum(self.todo.column("size_bytes")).as_py() or 0)

    def reason_counts(self) -> dict[str, int]:
        """How many of the listed videos are done, or to do, for which reason."""
        counted = Counter[str]()
        for entry in pc.value_counts(self.reasons).to_pylist():
            counted[entry["values"]] += entry["counts"]
        return dict(sorted(counted.items()))

    def skipped(self) -> Iterator[dict[str, str]]:
        """`uri` and `reason` of every listed video that the run leaves alone."""
        rows = pc.indices_nonzero(pc.invert(pc.is_in(self.reasons, value_set=TODO_REASONS)))
        for start in range(0, len(rows), _BATCH_ROWS):
            batch = rows.slice(start, _BATCH_ROWS)
            uris = self.manifest["uri"].take(batch).to_pylist()
            reasons = self.reasons.take(batch).to_pylist()
            for uri, reason in zip(uris, reasons, strict=True):
                yield {"uri": uri, "reason": reason}


def frame_rate_divisor(config: IndexConfig, checkpoint: Checkpoint) -> int:
    """The configured divisor, else the checkpoint's own."""
    return config.sampling.frame_rate_divisor or checkpoint.frame_rate_divisor


def check_target(config: IndexConfig) -> None:
    """Refuses an index that cannot be written, before anything else takes time.

    Raises:
        ConfigError: its scheme is not allowed.
        StorageError: it cannot be written.
    """
    check_scheme(config.index, config.schemes)
    check_writable(config.index)


def plan_job(config: IndexConfig) -> JobPlan:
    """Lists the inputs and compares them with the index; writes nothing.

    Raises:
        ConfigError: the configuration does not fit the index.
        ManifestError: an input is missing or empty.
        ModelError: the checkpoint is missing or does not fit.
        StorageError: a store refuses.
    """
    _check_retry(config.retry)
    check_scheme(config.index, config.schemes)
    paths = IndexPaths(config.index)
    found = resolve(config.model.id, config.model.revision, schemes=config.schemes)
    checkpoint = found.trained_on(config.model.channel_order)
    _check_crops(config, checkpoint)
    fingerprint = config.fingerprint(
        checkpoint.facts() | {"frame_rate_divisor": frame_rate_divisor(config, checkpoint)}
    )
    tag = config.output.tag or f"{checkpoint.short_name}-{fingerprint_digest(fingerprint)[:6]}"
    shard = Shard.parse(config.shard)
    return compare(
        JobPlan(
            config=config,
            paths=paths,
            checkpoint=checkpoint,
            tag=tag,
            fingerprint=fingerprint,
            run_id=f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid4().hex[:8]}",
            shard=shard,
            manifest=_part(discover(config.inputs, schemes=config.schemes), shard),
            videos_version=None,
            done_videos=0,
            failed_videos=0,
            todo=TODO_SCHEMA.empty_table(),
            changed=pa.table(
                {"video_id": pa.array([], pa.string()), "uri": pa.array([], pa.string())}
            ),
            reasons=pa.array([], pa.string()).dictionary_encode(),
        )
    )


def compare(plan: JobPlan) -> JobPlan:
    """Compares the listed videos with what the index holds now.

    Raises:
        ConfigError: the index has rows already, and the job is not to add to them.
        StorageError: it cannot be read.
    """
    version = videos_version(plan.paths)
    found = compare_manifest(plan.manifest, plan.paths, plan.tag, plan.config)
    return replace(
        plan,
        videos_version=version,
        done_videos=found.done_videos,
        failed_videos=found.failed_videos,
        todo=found.todo,
        changed=found.changed,
        reasons=found.reasons,
    )


def _part(manifest: pa.Table, shard: Shard) -> pa.Table:
    if shard.count == 1:
        return manifest
    return manifest.filter(
        pa.array((shard.holds(name) for name in manifest["video_id"].to_pylist()), pa.bool_())
    )


def _check_crops(config: IndexConfig, checkpoint: Checkpoint) -> None:
    if config.sampling.crops > 1 and checkpoint.preprocessing.crop is None:
        message = (
            f"sampling.crops = {config.sampling.crops}: the preprocessor of {checkpoint.id}"
            " squeezes the whole frame, so there is nothing to crop; use sampling.crops = 1"
        )
        raise ConfigError(message)


def _check_retry(retry: str | None) -> None:
    if retry not in (None, RETRY_ALL, *ERROR_CODES):
        message = f"retry = {retry!r}: should be all or one of {', '.join(ERROR_CODES)}"
        raise ConfigError(message)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What of a manifest is to do; see the attributes of `JobPlan` of these names."""

    todo: pa.Table
    changed: pa.Table
    done_videos: int
    failed_videos: int
    reasons: pa.DictionaryArray


def compare_manifest(
    manifest: pa.Table, paths: IndexPaths, tag: str, config: IndexConfig
) -> Comparison:
    """Looks every listed video up in the index; see `compare`."""
    finished = finished_videos(paths, tag, manifest)
    open_rows = pc.indices_nonzero(pc.invert(finished))
    states = unit_states(paths, tag, manifest["video_id"].take(open_rows))
    known = _count(finished) + states.num_rows
    if config.if_exists == "error" and known:
        message = (
            f"{config.index} already has {known} of these videos for {tag}; "
            "use --if-exists resume to go on with it, or overwrite to replace them"
        )
        raise ConfigError(message)
    deleted = frozenset[str]()
    if config.if_exists != OVERWRITE:
        deleted = deleted_video_ids(paths, tag)
    return _compare(manifest, finished, states, config, deleted)


def _compare(
    manifest: pa.Table,
    finished: pa.BooleanArray,
    states: pa.Table,
    config: IndexConfig,
    deleted: Collection[str] = (),
) -> Comparison:
    """Decides about each video from what the index says of it.

    A video is done when each of its units has an outcome for this very content. Of a video that is
    not, or whose failure is to be tried again, the units that need no work are left out. What the
    limit leaves for later keeps its old rows until then.

    Args:
        manifest: the listed videos.
        finished: of each, whether all its units are indexed; nothing else is asked about these.
        states: of the others, as far as the index knows them.
        config: of the job.
        deleted: ids of videos that are to stay away.
    """
    overwrite = config.if_exists == OVERWRITE
    reasons = np.full(manifest.num_rows, _index(OVERWRITTEN if overwrite else INDEXED))
    rows = pc.indices_nonzero(pc.invert(finished)).to_numpy()
    decided = _decide(manifest.select(["video_id", "content_key"]).take(rows), states, config)
    reasons[rows] = decided
    away = pc.is_in(manifest["video_id"], value_set=pa.array(sorted(deleted), pa.string()))
    reasons[_mask(away)] = _index(DELETED)
    wanted = np.flatnonzero(reasons < len(TODO_REASONS))
    todo_rows = wanted[: config.limit]
    listed = manifest.take(todo_rows)
    found = states.take(pc.index_in(listed["video_id"], states["video_id"]))
    why = reasons[todo_rows]
    reasons[wanted[len(todo_rows) :]] = _index(BEYOND_LIMIT)
    failed = reasons > _index(BEYOND_LIMIT)
    return Comparison(
        todo=_todo(listed, found, why),
        changed=listed.select(["video_id", "uri"]).filter(
            pa.array((why == _index(CHANGED)) | (why == _index(OVERWRITTEN)))
        ),
        done_videos=int(np.sum(failed | np.isin(reasons, [_index(INDEXED), _index(DELETED)]))),
        failed_videos=int(np.sum(failed)),
        reasons=pa.DictionaryArray.from_arrays(pa.array(reasons.astype(np.int8)), _REASONS),
    )


def _decide(listed: pa.Table, states: pa.Table, config: IndexConfig) -> Indices:
    """The reason, as a position in `_REASONS`, for each video that is not finished."""
    found = states.take(pc.index_in(listed["video_id"], states["video_id"]))
    known = _mask(pc.is_valid(found["video_id"]))
    same = _mask(pc.equal(found["content_key"], listed["content_key"]))
    codes = pc.index_in(found["error_code"], value_set=pa.array(ERROR_CODES))
    code = pc.fill_null(codes, ERROR_CODES.index(VideoInternal.code)).to_numpy()
    outcomes = pc.add(pc.list_value_length(found["done"]), pc.list_value_length(found["failed"]))
    complete = _mask(pc.greater_equal(outcomes, found["units"]))
    failed = _mask(pc.is_valid(found["error_code"]))
    exhausted = failed & _mask(pc.greater_equal(found["attempts"], config.max_attempts))
    retried = failed & ~exhausted & _mask(_is_retried(found["error_code"], config.retry))
    cases = [
        (~known, _index(NEW)),
        (np.full(len(known), config.if_exists == OVERWRITE), _index(OVERWRITTEN)),
        (~same, _index(CHANGED)),
        (retried, _index(RETRIED)),
        (~complete, _index(INCOMPLETE)),
        (exhausted, _index(QUARANTINED_CODES[0]) + code),
        (failed, _index(FAILED_CODES[0]) + code),
    ]
    conditions, choices = zip(*cases, strict=True)
    decided: Indices = np.select(conditions, choices, _index(INDEXED))
    return decided


def _index(reason: str) -> int:
    return _POSITIONS[reason]


def _mask(answers: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    mask: npt.NDArray[np.bool_] = pc.fill_null(answers, False).to_numpy()
    return mask


def _is_retried(error_codes: pa.ChunkedArray, retry: str | None) -> pa.ChunkedArray:
    if retry == RETRY_ALL:
        return pc.is_valid(error_codes)
    return pc.equal(error_codes, pa.scalar(retry, pa.string()))


def _todo(manifest: pa.Table, found: pa.Table, why: Indices) -> pa.Table:
    """Puts attempt, units and finished units beside the rows of the manifest."""
    again = why == _index(RETRIED)
    begun = pa.array(again | (why == _index(INCOMPLETE)))
    attempts = pc.add(found["attempts"], pa.array(again).cast(pa.int32()))
    one = pa.scalar(1, pa.int32())
    return pa.table(
        [
            *(manifest[name] for name in MANIFEST_COLUMNS),
            pc.if_else(begun, attempts, one),
            pc.if_else(begun, found["units"], one),
            _done_units(found, begun, again),
        ],
        names=TODO_SCHEMA.names,
    ).cast(TODO_SCHEMA)


def _done_units(
    found: pa.Table, begun: pa.BooleanArray, again: npt.NDArray[np.bool_]
) -> pa.ListArray:
    """Units that need no work, of each row; few rows have any, for most videos are one unit."""
    lengths = np.zeros(found.num_rows, np.int32)
    units: list[int] = []
    rows = pc.indices_nonzero(begun)
    lists = (found[name].take(rows).to_pylist() for name in ("done", "failed"))
    for row, done, failed in zip(rows.to_pylist(), *lists, strict=True):
        kept = done if again[row] else [*done, *failed]
        units += kept
        lengths[row] = len(kept)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(units, pa.int32()))


def _count(mask: pa.Array) -> int:
    return int(pc.sum(mask).as_py() or 0)
