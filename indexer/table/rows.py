"""Turns the outcomes of units into rows of the four tables; arrays in, Arrow tables out.

Axes: N clips, K labels, D the model's hidden size.
"""

import dataclasses
import math
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from indexer.errors import VideoBadOutput
from indexer.records import ClipSpan, UnitOutcome, VideoFailure, VideoInfo
from indexer.table.schema import CLIPS, EMBEDDINGS, FAILED, INDEXED, LABELS, VIDEOS, TableSpec

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_MANTISSA_BITS: Final = 23


@dataclass(frozen=True, slots=True)
class RowContext:
    """What the rows of a job have in common.

    Attributes:
        tag: the model's partition.
        run_id: of the run that makes the rows.
        labels: the model's vocabulary, by label id.
        top_k: labels kept for each clip.
        min_score: labels below this probability are not kept, except the best one.
        keep_logits: whether the logits are stored beside the embedding.
        stored_mantissa_bits: bits of mantissa kept of logits and embeddings; 23 keeps all.
        indexed_at: when, in UTC; for people, nothing is ordered by it.
    """

    tag: str
    run_id: str
    labels: tuple[str, ...]
    top_k: int
    min_score: float
    keep_logits: bool
    stored_mantissa_bits: int
    indexed_at: datetime


@dataclass(frozen=True, slots=True)
class _Clip:
    outcome: UnitOutcome
    span: ClipSpan

    @property
    def clip_id(self) -> str:
        return clip_id(self.outcome.ref.video_id, self.span.clip_index)


def clip_id(video_id: str, clip_index: int) -> str:
    """Stable id of a clip: `uuid5(video_id, clip_index)` in hex."""
    return uuid.uuid5(uuid.UUID(video_id), str(clip_index)).hex


def unit_tables(outcomes: Sequence[UnitOutcome], context: RowContext) -> dict[str, pa.Table]:
    """The rows of some units, without the partition column, each table sorted as files are.

    Args:
        outcomes: whole units; one whose numbers are not finite becomes a failure.
        context: of the job.

    Returns:
        A table for each name in `schema.TABLES`; some may have no rows.

    Raises:
        ValueError: the scores do not fit the vocabulary.
    """
    units = sorted(map(checked, outcomes), key=lambda unit: (unit.ref.uri, unit.unit_index))
    clips = [_Clip(unit, span) for unit in units for span in unit.spans]
    order = sorted(
        range(len(clips)), key=lambda i: (clips[i].outcome.ref.uri, clips[i].span.clip_index)
    )
    clips = [clips[i] for i in order]
    scored = [unit.scores for unit in units if unit.scores is not None and unit.spans]
    if scored:
        logits_NK = np.concatenate([scores.logits_NK for scores in scored])[order]
        embeddings_ND = np.concatenate([scores.embeddings_ND for scores in scored])[order]
    else:
        logits_NK = np.empty((0, len(context.labels)), np.float32)
        embeddings_ND = np.empty((0, 0), np.float32)
    if logits_NK.shape[1] != len(context.labels):
        message = f"{logits_NK.shape[1]} scores a clip for {len(context.labels)} labels"
        raise ValueError(message)
    kept = _keep(softmax(logits_NK), context)
    return {
        CLIPS.name: _clip_rows(clips, kept, context),
        EMBEDDINGS.name: _embedding_rows(clips, logits_NK, embeddings_ND, context),
        LABELS.name: _label_rows(clips, kept),
        VIDEOS.name: _video_rows(units, context),
    }


def checked(outcome: UnitOutcome) -> UnitOutcome:
    """The outcome itself, or a failure in its place where a number to be stored is not finite."""
    fault = next(_not_finite(outcome), None)
    if fault is None:
        return outcome
    info = outcome.info if outcome.info is not None and _finite_info(outcome.info) else None
    failure = outcome.failure or VideoFailure(
        code=VideoBadOutput.code,
        message=f"{fault} is not finite; the unit's clips are not stored",
        unit_index=outcome.unit_index,
        units=outcome.units,
        info=info,
    )
    return dataclasses.replace(outcome, info=info, spans=(), scores=None, failure=failure)


def softmax(logits_NK: Floats) -> Floats:
    """Probabilities, worked out in float64, as float32[N, K]."""
    wide_NK = logits_NK.astype(np.float64)
    powers_NK = np.exp(wide_NK - wide_NK.max(axis=1, keepdims=True, initial=-np.inf))
    scores_NK: Floats = (powers_NK / powers_NK.sum(axis=1, keepdims=True)).astype(np.float32)
    return scores_NK


def top_labels(scores_NK: Floats, context: RowContext) -> tuple[pa.Array, pa.Array]:
    """The columns `top_labels` and `top_scores` of clips.

    Args:
        scores_NK: probabilities of the labels of `context`.
        context: says how many labels are kept, and from which score.
    """
    return _top_columns(_keep(scores_NK, context))


def logits_column(
    logits_NK: Floats, context: RowContext, kept_N: npt.NDArray[np.bool_] | None = None
) -> pa.Array:
    """The column `logits`, in the precision in which it is stored.

    Args:
        logits_NK: of the clips.
        context: says the precision.
        kept_N: the clips whose logits are stored; by default all.
    """
    column = _matrix("logits", round_mantissa(logits_NK, context.stored_mantissa_bits))
    return column if kept_N is None else pc.if_else(pa.array(kept_N), column, None)


def round_mantissa(values: Floats, bits: int) -> Floats:
    """Rounds float32 values to `bits` bits of mantissa, ties to even, so that they compress.

    A normal value moves by at most 2^-(bits + 1) of itself. What is not finite stays as it is; what
    would overflow becomes the largest finite value of that precision.

    Args:
        values: float32, any shape.
        bits: 1 to 23; 23 changes nothing.
    """
    if bits == _MANTISSA_BITS:
        return values
    pattern = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    dropped = np.uint32(_MANTISSA_BITS - bits)
    mask = ~np.uint32((1 << (_MANTISSA_BITS - bits)) - 1)
    half = np.uint32((1 << (_MANTISSA_BITS - bits - 1)) - 1)
    odd = (pattern >> dropped) & np.uint32(1)
    down = (pattern & mask).view(np.float32)
    rounded = ((pattern + half + odd) & mask).view(np.float32)
    rounded = np.where(np.isfinite(rounded), rounded, down)
    result: Floats = np.where(np.isfinite(values), rounded, values)
    return result


def _not_finite(outcome: UnitOutcome) -> Iterator[str]:
    if outcome.scores is not None:
        if not np.isfinite(outcome.scores.logits_NK).all():
            yield "a logit"
        if not np.isfinite(outcome.scores.embeddings_ND).all():
            yield "an embedding"
    for span in outcome.spans:
        if not all(map(math.isfinite, (span.end_seconds, *span.frame_pts_seconds))):
            yield "a timestamp"
    if outcome.info is not None and not _finite_info(outcome.info):
        yield "the frame rate or duration"


def _finite_info(info: VideoInfo) -> bool:
    return math.isfinite(info.fps) and math.isfinite(info.duration_seconds)


@dataclass(frozen=True, slots=True)
class _Kept:
    """Kept labels of all clips, one entry each: by clip, then best first.

    Attributes:
        clip: int64[M], position of the clip.
        label_id: int64[M].
        rank: int64[M], 1 for the clip's best label.
        score: float32[M].
        offsets: int64[N + 1], where each clip's entries begin.
        label: string[M].
    """

    clip: Ints
    label_id: Ints
    rank: Ints
    score: Floats
    offsets: Ints
    label: pa.Array


def _keep(scores_NK: Floats, context: RowContext) -> _Kept:
    """Picks each clip's best labels; among equal scores the lower label id comes first."""
    best_NK = np.argsort(-scores_NK, axis=1, kind="stable")[:, : context.top_k]
    best_scores_NK = np.take_along_axis(scores_NK, best_NK, axis=1)
    wanted_NK = best_scores_NK >= np.float32(context.min_score)
    wanted_NK[:, :1] = True
    clip, position = np.nonzero(wanted_NK)
    label_id = best_NK[clip, position]
    return _Kept(
        clip=clip,
        label_id=label_id,
        rank=position + 1,
        score=best_scores_NK[clip, position],
        offsets=np.concatenate([[0], np.cumsum(wanted_NK.sum(axis=1))]),
        label=pa.array(context.labels, pa.string()).take(pa.array(label_id)),
    )


def _top_columns(kept: _Kept) -> tuple[pa.Array, pa.Array]:
    return (
        _lists(CLIPS, "top_labels", kept.label, kept.offsets),
        _lists(CLIPS, "top_scores", kept.score, kept.offsets),
    )


def _clip_rows(clips: Sequence[_Clip], kept: _Kept, context: RowContext) -> pa.Table:
    top_labels, top_scores = _top_columns(kept)
    columns = {
        "clip_id": [clip.clip_id for clip in clips],
        "video_id": [clip.outcome.ref.video_id for clip in clips],
        "uri": [clip.outcome.ref.uri for clip in clips],
        "clip_index": [clip.span.clip_index for clip in clips],
        "start_seconds": [clip.span.start_seconds for clip in clips],
        "end_seconds": [clip.span.end_seconds for clip in clips],
        "frame_pts_seconds": [clip.span.frame_pts_seconds for clip in clips],
        "frames_exact": [clip.span.frames_exact for clip in clips],
        "top_labels": top_labels,
        "top_scores": top_scores,
        "unit_index": [clip.outcome.unit_index for clip in clips],
        "run_id": [context.run_id] * len(clips),
        "indexed_at": [context.indexed_at] * len(clips),
    }
    return pa.table(columns, schema=CLIPS.data_schema)


def _embedding_rows(
    clips: Sequence[_Clip], logits_NK: Floats, embeddings_ND: Floats, context: RowContext
) -> pa.Table:
    bits = context.stored_mantissa_bits
    columns = {
        "clip_id": [clip.clip_id for clip in clips],
        "video_id": [clip.outcome.ref.video_id for clip in clips],
        "clip_index": [clip.span.clip_index for clip in clips],
        "embedding": _matrix("embedding", round_mantissa(embeddings_ND, bits)),
        "logits": logits_column(logits_NK, context) if context.keep_logits else [None] * len(clips),
    }
    table = pa.table(columns, schema=EMBEDDINGS.data_schema)
    return table.take(pc.sort_indices(table, sort_keys=list(EMBEDDINGS.order)))


def _label_rows(clips: Sequence[_Clip], kept: _Kept) -> pa.Table:
    owners = [clips[i] for i in kept.clip]
    columns = {
        "label": kept.label,
        "label_id": kept.label_id,
        "score": kept.score,
        "rank": kept.rank,
        "clip_id": [clip.clip_id for clip in owners],
        "uri": [clip.outcome.ref.uri for clip in owners],
        "clip_index": [clip.span.clip_index for clip in owners],
        "start_seconds": [clip.span.start_seconds for clip in owners],
        "end_seconds": [clip.span.end_seconds for clip in owners],
    }
    table = pa.table(columns, schema=LABELS.data_schema)
    return table.take(pc.sort_indices(table, sort_keys=list(LABELS.order)))


def _video_rows(units: Sequence[UnitOutcome], context: RowContext) -> pa.Table:
    rows = [_video_row(unit, context) for unit in units]
    table = pa.Table.from_pylist(rows, schema=VIDEOS.data_schema)
    return table.take(pc.sort_indices(table, sort_keys=list(VIDEOS.order)))


def _video_row(unit: UnitOutcome, context: RowContext) -> dict[str, Any]:
    info, failure = unit.info, unit.failure
    return {
        "video_id": unit.ref.video_id,
        "uri": unit.ref.uri,
        "content_key": unit.ref.content_key,
        "status": INDEXED if failure is None else FAILED,
        "error_code": None if failure is None else failure.code,
        "error_message": None if failure is None else _text(failure.message),
        "attempt": unit.attempt,
        "unit_index": unit.unit_index,
        "units": unit.units,
        "clips": len(unit.spans),
        "duration_seconds": None if info is None else info.duration_seconds,
        "width": None if info is None else info.width,
        "height": None if info is None else info.height,
        "codec": None if info is None else _text(info.codec),
        "fps": None if info is None else info.fps,
        "rotation": None if info is None else info.rotation,
        "size_bytes": unit.ref.size_bytes,
        "warnings": [] if info is None else [_text(warning) for warning in info.warnings],
        "decode_seconds": unit.decode_seconds,
        "fetch_seconds": unit.fetch.seconds,
        "worker": _text(unit.worker),
        "run_id": context.run_id,
        "finished_at": context.indexed_at,
        "extra": unit.ref.extra,
    }


def _text(value: str) -> str:
    """What decoders and systems say may hold surrogates, which UTF-8 cannot."""
    return value.encode("utf-8", "backslashreplace").decode()


def _matrix(name: str, values_NX: Floats) -> pa.Array:
    rows, width = values_NX.shape
    return _lists(EMBEDDINGS, name, values_NX.reshape(-1), np.arange(rows + 1) * width)


def _lists(
    spec: TableSpec, name: str, values: Floats | pa.Array, offsets: Iterable[int]
) -> pa.Array:
    data_type = spec.schema.field(name).type
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(values, data_type.value_type), type=data_type
    )
