"""What a run has to do: the manifest less what the index already holds, as one Arrow table.

Nothing here loads Ray, torch or a codec, so that a job that cannot work is refused at once.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from indexer.config import IndexConfig, fingerprint_digest
from indexer.errors import ERROR_CODES, ConfigError
from indexer.manifest import discover
from indexer.model.weights import Checkpoint, resolve
from indexer.runtime.blocks import TODO_SCHEMA
from indexer.storage import check_scheme, check_writable
from indexer.table.paths import IndexPaths
from indexer.table.resume import unit_states
from indexer.video.plan import DecodePlan

RETRY_ALL: Final = "all"
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
        listed_videos: videos in the inputs.
        done_videos: of these, the ones that the index has, indexed or failed.
        failed_videos: of the done ones, those whose outcome is a failure.
        todo: rows of `TODO_SCHEMA`.
        changed: `video_id, uri` of the videos to do whose indexed content is another one.
    """

    config: IndexConfig
    paths: IndexPaths
    checkpoint: Checkpoint
    tag: str
    fingerprint: dict[str, object]
    run_id: str
    listed_videos: int
    done_videos: int
    failed_videos: int
    todo: pa.Table
    changed: pa.Table

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
    manifest = discover(config.inputs, schemes=config.schemes)
    states = unit_states(paths, tag)
    if config.if_exists == "error" and states.num_rows:
        message = (
            f"{config.index} already has {states.num_rows} videos of {tag}; "
            "use --if-exists resume to go on with it"
        )
        raise ConfigError(message)
    comparison = _compare(manifest, states, config.retry, config.limit)
    return JobPlan(
        config=config,
        paths=paths,
        checkpoint=checkpoint,
        tag=tag,
        fingerprint=fingerprint,
        run_id=f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid4().hex[:8]}",
        listed_videos=manifest.num_rows,
        done_videos=comparison.done_videos,
        failed_videos=comparison.failed_videos,
        todo=comparison.todo,
        changed=comparison.changed,
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
class _Comparison:
    todo: pa.Table
    changed: pa.Table
    done_videos: int
    failed_videos: int


def _compare(
    manifest: pa.Table, states: pa.Table, retry: str | None, limit: int | None
) -> _Comparison:
    """Looks every listed video up in the index.

    A video is done when each of its units has an outcome for this very content. Of a video that is
    not, or whose failure is to be tried again, the units that need no work are left out. What the
    limit leaves for later keeps its old rows until then.
    """
    found = states.take(pc.index_in(manifest["video_id"], states["video_id"]))
    same = pc.fill_null(pc.equal(found["content_key"], manifest["content_key"]), False)
    retried = pc.and_(same, _retry_mask(found["error_code"], retry))
    outcomes = pc.add(pc.list_value_length(found["done"]), pc.list_value_length(found["failed"]))
    complete = pc.fill_null(pc.greater_equal(outcomes, found["units"]), False)
    is_done = pc.and_(pc.and_(same, complete), pc.invert(retried))
    rows = pc.indices_nonzero(pc.invert(is_done).combine_chunks()).slice(0, limit)
    listed, known = manifest.take(rows), found.take(rows)
    unchanged, again = same.take(rows), retried.take(rows)
    changed = pc.and_(pc.is_valid(known["video_id"]), pc.invert(unchanged))
    return _Comparison(
        todo=_todo(listed, known, unchanged, again),
        changed=listed.filter(changed).select(["video_id", "uri"]),
        done_videos=_count(is_done),
        failed_videos=_count(pc.and_(is_done, pc.is_valid(found["error_code"]))),
    )


def _todo(
    manifest: pa.Table, found: pa.Table, same: pa.ChunkedArray, retried: pa.ChunkedArray
) -> pa.Table:
    """Puts attempt, units and finished units beside the rows of the manifest."""
    attempts, units = [1] * manifest.num_rows, [1] * manifest.num_rows
    done_units: list[list[int]] = [[] for _ in range(manifest.num_rows)]
    # Only videos that an earlier run began have a state to speak of, and these are few.
    for row in pc.indices_nonzero(same.combine_chunks()).to_pylist():
        state = found.slice(row, 1).to_pylist()[0]
        again = retried[row].as_py()
        attempts[row] = state["attempts"] + 1 if again else state["attempts"]
        units[row] = state["units"]
        done_units[row] = state["done"] if again else [*state["done"], *state["failed"]]
    return pa.table(
        [
            *(manifest[name] for name in MANIFEST_COLUMNS),
            pa.array(attempts, pa.int32()),
            pa.array(units, pa.int32()),
            pa.array(done_units, pa.list_(pa.int32())),
        ],
        names=TODO_SCHEMA.names,
    ).cast(TODO_SCHEMA)


def _retry_mask(error_codes: pa.ChunkedArray, retry: str | None) -> pa.ChunkedArray:
    if retry == RETRY_ALL:
        return pc.is_valid(error_codes)
    return pc.fill_null(pc.equal(error_codes, pa.scalar(retry, pa.string())), False)


def _count(mask: pa.ChunkedArray) -> int:
    return int(pc.sum(mask).as_py() or 0)
