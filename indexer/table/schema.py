"""The four tables of an index: columns, order of rows, and the order in which they are committed.

Only types that Delta, Spark, DuckDB, Polars and pandas share. Lists name their field `element`, as
Delta does. A column that may be null says so; everything else is required. No float is ever NaN or
infinite: a unit whose model output is not finite becomes a failure (`rows.checked`).
"""

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

FORMAT_VERSION: Final = 1
"""Version of the whole layout, in `index.json`; a reader refuses what it does not know."""

PARTITION: Final = "model"
"""Every table is partitioned by the tag of the model that made its rows."""

_TIMESTAMP: Final = pa.timestamp("us", tz="UTC")


def _column(name: str, data_type: pa.DataType) -> pa.Field:
    return pa.field(name, data_type, nullable=False)


def _list(value_type: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", value_type, nullable=False))


@dataclass(frozen=True, slots=True)
class TableSpec:
    """One table.

    Attributes:
        name: of the table and of its folder.
        schema: all columns, the partition column last.
        order: (column, direction) by which the rows of a file are sorted.
        row_group_rows: most rows of a row group; what a reader fetches follows it.
        looked_up: columns by whose values single rows are asked for, though rows are not in their
            order: large files have a Bloom filter of each.
    """

    name: str
    schema: pa.Schema
    order: tuple[tuple[str, str], ...]
    row_group_rows: int
    looked_up: tuple[str, ...] = ()

    @property
    def data_schema(self) -> pa.Schema:
        """The columns inside the data files: the partition is in their path."""
        return self.schema.remove(self.schema.get_field_index(PARTITION))


CLIPS: Final = TableSpec(
    name="clips",
    schema=pa.schema(
        [
            _column("clip_id", pa.string()),
            _column("video_id", pa.string()),
            _column("uri", pa.string()),
            _column("clip_index", pa.int32()),
            _column("start_seconds", pa.float64()),
            _column("end_seconds", pa.float64()),
            _column("frame_pts_seconds", _list(pa.float64())),
            _column("frames_exact", pa.bool_()),
            _column("top_labels", _list(pa.string())),
            _column("top_scores", _list(pa.float32())),
            _column("unit_index", pa.int32()),
            _column("run_id", pa.string()),
            _column("indexed_at", _TIMESTAMP),
            _column(PARTITION, pa.string()),
        ]
    ),
    order=(("uri", "ascending"), ("clip_index", "ascending")),
    row_group_rows=64 * 1024,
    looked_up=("clip_id",),
)

EMBEDDINGS: Final = TableSpec(
    name="embeddings",
    schema=pa.schema(
        [
            _column("clip_id", pa.string()),
            _column("video_id", pa.string()),
            _column("clip_index", pa.int32()),
            _column("embedding", _list(pa.float32())),
            pa.field("logits", _list(pa.float32()), nullable=True),
            _column(PARTITION, pa.string()),
        ]
    ),
    order=(("video_id", "ascending"), ("clip_index", "ascending")),
    row_group_rows=4 * 1024,
    looked_up=("clip_id",),
)

LABELS: Final = TableSpec(
    name="labels",
    schema=pa.schema(
        [
            _column("label", pa.string()),
            _column("label_id", pa.int32()),
            _column("score", pa.float32()),
            _column("rank", pa.int32()),
            _column("clip_id", pa.string()),
            _column("uri", pa.string()),
            _column("clip_index", pa.int32()),
            _column("start_seconds", pa.float64()),
            _column("end_seconds", pa.float64()),
            _column(PARTITION, pa.string()),
        ]
    ),
    order=(
        ("label", "ascending"),
        ("score", "descending"),
        ("uri", "ascending"),
        ("clip_index", "ascending"),
    ),
    row_group_rows=16 * 1024,
)

VIDEOS: Final = TableSpec(
    name="videos",
    schema=pa.schema(
        [
            _column("video_id", pa.string()),
            _column("uri", pa.string()),
            _column("content_key", pa.string()),
            _column("status", pa.string()),
            pa.field("error_code", pa.string()),
            pa.field("error_message", pa.string()),
            _column("attempt", pa.int32()),
            _column("unit_index", pa.int32()),
            _column("units", pa.int32()),
            _column("clips", pa.int32()),
            pa.field("duration_seconds", pa.float64()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("codec", pa.string()),
            pa.field("fps", pa.float64()),
            pa.field("rotation", pa.int32()),
            _column("size_bytes", pa.int64()),
            _column("warnings", _list(pa.string())),
            _column("decode_seconds", pa.float64()),
            _column("fetch_seconds", pa.float64()),
            _column("worker", pa.string()),
            _column("run_id", pa.string()),
            _column("finished_at", _TIMESTAMP),
            _column("extra", pa.string()),
            _column(PARTITION, pa.string()),
        ]
    ),
    order=(("uri", "ascending"), ("unit_index", "ascending"), ("attempt", "ascending")),
    row_group_rows=128 * 1024,
)

TABLES: Final = {spec.name: spec for spec in (CLIPS, EMBEDDINGS, LABELS, VIDEOS)}
"""All tables in the order of their commits: `videos` last, for it says that a unit is done."""

INDEXED: Final = "indexed"
FAILED: Final = "failed"
