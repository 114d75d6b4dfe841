"""Makes the rows of a new head out of those of another model; tables in, tables out.

Axes: N clips, K labels, D the model's hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from indexer.errors import StorageError
from indexer.table.head import Head
from indexer.table.repair import postings_of
from indexer.table.rows import RowContext, logits_column, softmax, top_labels
from indexer.table.schema import CLIPS, EMBEDDINGS, INDEXED, LABELS, TABLES, VIDEOS

VECTORS: Final = pa.schema(
    [
        *(EMBEDDINGS.schema.field(name) for name in ("clip_id", "video_id", "clip_index")),
        EMBEDDINGS.schema.field("embedding"),
        pa.field("has_logits", pa.bool_()),
    ]
)
"""What is read of `embeddings`: new logits are kept where there were old ones."""

_SCORED_ROWS: Final = 1024


@dataclass(frozen=True, slots=True)
class RelabelledUnits:
    """Rows of whole units, and what could not be made of the rest.

    Attributes:
        tables: by name; some may have no rows.
        left_units: units whose rows in the source are not complete.
    """

    tables: Mapping[str, pa.Table]
    left_units: int


def vectors(embeddings: pa.Table) -> pa.Table:
    """The columns `VECTORS` of some rows of `embeddings`."""
    kept = embeddings.select(VECTORS.names[:-1])
    return kept.append_column(VECTORS.field("has_logits"), pc.is_valid(embeddings["logits"]))


def relabelled(
    outcomes: pa.Table, clips: pa.Table, embeddings: pa.Table, head: Head, context: RowContext
) -> RelabelledUnits:
    """The rows that units have under a new head.

    Args:
        outcomes: rows of `videos`, to be made; failures stay what they are.
        clips: rows of `clips` of these videos, among them those of all the units.
        embeddings: `vectors` of these videos.
        head: the new one.
        context: of the new model.

    Raises:
        ConfigError: the head scores a clip beyond float32.
        StorageError: the embeddings are not of the head's length.
    """
    indexed = outcomes.filter(pc.equal(outcomes["status"], INDEXED))
    clips = clips.filter(pc.is_in(_unit(clips), value_set=_unit(indexed)))
    found = pc.index_in(clips["clip_id"], value_set=embeddings["clip_id"].combine_chunks())
    whole = _whole_units(indexed, clips, clips.filter(pc.is_valid(found)))
    kept = pc.is_in(_unit(clips), value_set=whole)
    clips, vectors_ = clips.filter(kept), embeddings.take(found.filter(kept))
    stays = pc.or_(pc.not_equal(outcomes["status"], INDEXED), pc.is_in(_unit(outcomes), whole))
    tables = _tables(clips, vectors_, head, context) | {VIDEOS.name: outcomes.filter(stays)}
    sorted_ = {
        name: table.take(pc.sort_indices(table, sort_keys=list(TABLES[name].order)))
        for name, table in tables.items()
    }
    return RelabelledUnits(sorted_, indexed.num_rows - len(whole))


def matrix(embeddings: pa.ChunkedArray, width: int) -> npt.NDArray[np.float32]:
    """Embeddings as float32[N, D].

    Raises:
        StorageError: one has another length.
    """
    lengths = pc.unique(pc.list_value_length(embeddings)).to_pylist()
    if any(length != width for length in lengths):
        message = f"embeddings of {lengths} values, where the head takes {width}; run verify"
        raise StorageError(message)
    values: npt.NDArray[np.float32] = pc.list_flatten(embeddings).to_numpy()
    return values.reshape(-1, width)


def _tables(
    clips: pa.Table, embeddings: pa.Table, head: Head, context: RowContext
) -> dict[str, pa.Table]:
    vectors_ND = matrix(embeddings["embedding"], head.weight_KD.shape[1])
    logits_NK = np.empty((len(vectors_ND), len(head.labels)), np.float32)
    names, scores = [], []
    for start in range(0, len(vectors_ND), _SCORED_ROWS):
        part = slice(start, start + _SCORED_ROWS)
        logits_NK[part] = head.logits(vectors_ND[part])
        best = top_labels(softmax(logits_NK[part]), context)
        names.append(best[0])
        scores.append(best[1])
    labelled = _with(clips, CLIPS.data_schema, top_labels=names, top_scores=scores)
    has_logits = embeddings["has_logits"].to_numpy()
    logits = logits_column(logits_NK, context, has_logits)
    new = embeddings.drop_columns(["has_logits"]).append_column(
        EMBEDDINGS.schema.field("logits"), logits
    )
    return {
        CLIPS.name: labelled,
        EMBEDDINGS.name: new,
        LABELS.name: postings_of(labelled, pa.array(head.labels, pa.string())),
    }


def _with(table: pa.Table, schema: pa.Schema, **columns: list[pa.Array]) -> pa.Table:
    """The table with other values in some columns."""
    arrays = [
        pa.chunked_array(columns[field.name], field.type)
        if field.name in columns
        else table[field.name]
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _unit(rows: pa.Table) -> pa.ChunkedArray:
    """One text for each row that tells its unit."""
    index = rows["unit_index"].cast(pa.string())
    return pc.binary_join_element_wise(rows["video_id"], index, "/")


def _whole_units(indexed: pa.Table, clips: pa.Table, complete: pa.Table) -> pa.Array:
    """Units that have as many clips, all with an embedding, as their outcomes say."""
    units = _unit(indexed).combine_chunks()
    said = indexed["clips"].combine_chunks()
    same = [pc.equal(_counts(units, _unit(rows)), said) for rows in (clips, complete)]
    whole: pa.Array = pc.unique(units.filter(pc.and_(*same)))
    return whole


def _counts(units: pa.Array, owners: pa.ChunkedArray) -> pa.Array:
    """How often each unit owns something."""
    counted = owners.value_counts()
    values = counted.field("counts").take(pc.index_in(units, value_set=counted.field("values")))
    return pc.fill_null(values, 0)
