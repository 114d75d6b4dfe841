"""A synthetic index, written as a job with several writers would: many small files."""

from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from indexer.manifest import video_id
from indexer.table import catalog
from indexer.table.commit import Committer
from indexer.table.lease import held
from indexer.table.paths import IndexPaths
from indexer.table.rows import clip_id, round_mantissa
from indexer.table.schema import CLIPS, EMBEDDINGS, LABELS, VIDEOS, TableSpec
from indexer.table.shard import Shard
from indexer.table.write import write_tables

TAG: Final = "synthetic"
RUN: Final = TAG
CLIPS_A_VIDEO: Final = 10
CLIP_SECONDS: Final = 8.5
LEAST_VIDEOS_A_COMMIT: Final = 400
MOST_COMMITS: Final = 250
TOP_K: Final = 5

_VERBS: Final = (
    "playing", "washing", "throwing", "catching", "riding", "folding", "cutting", "painting",
    "opening", "carrying", "pushing", "repairing", "holding", "juggling", "cleaning", "climbing",
    "tying", "watering", "drawing", "shaking",
)  # fmt: skip
_THINGS: Final = (
    "guitar", "dishes", "ball", "frisbee", "bicycle", "paper", "vegetables", "fence", "bottle",
    "baby", "cart", "engine", "ladder", "knives", "window", "rope", "shoelaces", "plants",
    "violin", "carpet",
)  # fmt: skip
LABEL_NAMES: Final = tuple(f"{verb} {thing}" for verb in _VERBS for thing in _THINGS)
"""400, like those of Kinetics: a verb and a thing."""

_NOISE: Final = 2.5
"""Spread of the logits beside the labels' own frequencies, which fall as 1 / rank."""

_NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def make_index(paths: IndexPaths, clips: int, *, width: int, keep_logits: bool) -> None:
    """Writes and commits the rows of videos of `CLIPS_A_VIDEO` clips each, without any decoding.

    Args:
        paths: of the index.
        clips: how many, in up to `MOST_COMMITS` commits.
        width: of an embedding.
        keep_logits: whether they are stored beside it.
    """
    rng = np.random.default_rng(0)
    catalog.create_index(paths)
    catalog.register_model(paths, TAG, {"model": "synthetic"}, LABEL_NAMES)
    videos = np.arange(clips // CLIPS_A_VIDEO)
    a_commit = max(LEAST_VIDEOS_A_COMMIT, -(-len(videos) // MOST_COMMITS))
    blocks = np.array_split(videos, -(-len(videos) // a_commit))
    frequencies_K = -np.log(1.0 + rng.permutation(len(LABEL_NAMES))).astype(np.float32)
    with held(paths, TAG, Shard().writer, RUN) as lease:
        committer = Committer(paths, TAG, RUN, lease)
        for task in rng.permutation(len(blocks)).tolist():
            clips_of_block = _Clips(blocks[task])
            logits_NK = _logits(rng, clips_of_block.rows, frequencies_K)
            tables = _rows(clips_of_block, logits_NK, _embeddings(rng, len(logits_NK), width))
            if not keep_logits:
                tables[EMBEDDINGS.name] = _without_logits(tables[EMBEDDINGS.name])
            committer.commit(write_tables(tables, paths, TAG, RUN, f"t{task}"))


class _Clips:
    """The clips of some videos, one after the other."""

    def __init__(self, numbers: Ints) -> None:
        uris = [f"s3://archive/videos/{n // 1000:04}/{n:08}.mp4" for n in numbers.tolist()]
        ids = [video_id(uri) for uri in uris]
        self.rows = len(uris) * CLIPS_A_VIDEO
        self.videos = {"uri": pa.array(uris), "video_id": pa.array(ids)}
        owners = pa.array(np.repeat(np.arange(len(uris)), CLIPS_A_VIDEO))
        index_N = np.tile(np.arange(CLIPS_A_VIDEO, dtype=np.int32), len(uris))
        self.columns: dict[str, Any] = {
            "clip_id": pa.array([clip_id(one, i) for one in ids for i in range(CLIPS_A_VIDEO)]),
            "video_id": self.videos["video_id"].take(owners),
            "uri": self.videos["uri"].take(owners),
            "clip_index": pa.array(index_N),
            "start_seconds": pa.array(index_N * CLIP_SECONDS),
            "end_seconds": pa.array((index_N + 1) * CLIP_SECONDS),
        }


def _logits(rng: np.random.Generator, rows: int, frequencies_K: Floats) -> Floats:
    noise_NK = rng.standard_normal((rows, len(frequencies_K)), np.float32)
    return round_mantissa(np.float32(_NOISE) * noise_NK + frequencies_K, 10)


def _embeddings(rng: np.random.Generator, rows: int, width: int) -> Floats:
    return round_mantissa(rng.standard_normal((rows, width), np.float32), 10)


def _rows(clips: _Clips, logits_NK: Floats, embeddings_ND: Floats) -> dict[str, pa.Table]:
    rows, videos = clips.rows, len(clips.videos["uri"])
    powers_NK = np.exp(logits_NK)
    best_NK = np.argpartition(-logits_NK, TOP_K, axis=1)[:, :TOP_K]
    best_NK = np.take_along_axis(
        best_NK, np.argsort(-np.take_along_axis(logits_NK, best_NK, 1), axis=1), 1
    )
    scores_NK = np.take_along_axis(powers_NK, best_NK, 1) / powers_NK.sum(axis=1, keepdims=True)
    labels = pa.array(LABEL_NAMES).take(pa.array(best_NK.reshape(-1)))
    times_N8 = clips.columns["start_seconds"].to_numpy()[:, None] + np.arange(8.0)
    owners = pa.array(np.repeat(np.arange(rows), TOP_K))
    return {
        CLIPS.name: _table(CLIPS, rows, clips.columns | {
            "frame_pts_seconds": _lists(CLIPS, "frame_pts_seconds", times_N8),
            "frames_exact": True,
            "top_labels": _lists(CLIPS, "top_labels", best_NK, labels),
            "top_scores": _lists(CLIPS, "top_scores", scores_NK),
            "unit_index": 0, "run_id": RUN, "indexed_at": _NOW,
        }),
        EMBEDDINGS.name: _table(EMBEDDINGS, rows, clips.columns | {
            "embedding": _lists(EMBEDDINGS, "embedding", embeddings_ND),
            "logits": _lists(EMBEDDINGS, "logits", logits_NK),
        }),
        LABELS.name: _table(
            LABELS, rows * TOP_K,
            {name: column.take(owners) for name, column in clips.columns.items()}
            | {
                "label": labels, "label_id": best_NK.reshape(-1),
                "score": scores_NK.reshape(-1), "rank": np.tile(np.arange(TOP_K) + 1, rows),
            },
        ),
        VIDEOS.name: _table(VIDEOS, videos, clips.videos | {
            "content_key": "10000000-abc", "status": "indexed", "error_code": None,
            "error_message": None, "attempt": 1, "unit_index": 0, "units": 1,
            "clips": CLIPS_A_VIDEO, "duration_seconds": CLIPS_A_VIDEO * CLIP_SECONDS,
            "width": 640, "height": 360, "codec": "h264", "fps": 30.0, "rotation": 0,
            "size_bytes": 10_000_000, "warnings": [], "decode_seconds": 1.0,
            "fetch_seconds": 0.1, "worker": "host:1", "run_id": RUN, "finished_at": _NOW,
            "extra": "{}",
        }),
    }  # fmt: skip


def _table(spec: TableSpec, rows: int, columns: dict[str, Any]) -> pa.Table:
    """The columns of a table in its order; a single value fills its column."""
    arrays = [_column(columns[field.name], field, rows) for field in spec.data_schema]
    table = pa.table(arrays, schema=spec.data_schema)
    return table.take(pc.sort_indices(table, sort_keys=list(spec.order)))


def _column(value: object, field: pa.Field, rows: int) -> pa.Array:
    if isinstance(value, pa.Array | np.ndarray):
        return pa.array(value).cast(field.type)
    return pa.repeat(pa.scalar(value, field.type), rows)


def _lists(
    spec: TableSpec, name: str, rows_NX: npt.NDArray[Any], values: pa.Array | None = None
) -> pa.Array:
    rows, width = rows_NX.shape
    data_type = spec.schema.field(name).type
    flat = pa.array(rows_NX.reshape(-1), data_type.value_type) if values is None else values
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, flat, type=data_type)


def _without_logits(embeddings: pa.Table) -> pa.Table:
    position = embeddings.schema.get_field_index("logits")
    nothing = pa.nulls(embeddings.num_rows, embeddings.schema.field(position).type)
    return embeddings.set_column(position, embeddings.schema.field(position), nothing)
