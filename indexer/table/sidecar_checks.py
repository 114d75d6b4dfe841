"""What is wrong with a part of the similarity sidecar, if anything is."""

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from indexer.errors import StorageError
from indexer.table.codes import SLACK, directions, distances
from indexer.table.sidecar import Batch, Part, content_digest, covered_digest, matrix


def part_fault(name: str, content: bytes, tables: Iterable[pa.Table]) -> str | None:
    """How a part differs from what its data file needs; None where a search may trust it.

    Args:
        name: of the part.
        content: its bytes.
        tables: the rows of the data file, in pieces.
    """
    found = hashlib.sha256(content).hexdigest()
    if found[:16] != content_digest(name):
        return f"its sha256 is {found}, its name says {content_digest(name)}"
    try:
        part = Part(covered_digest(name) or "", pa.py_buffer(content), name)
    except StorageError as error:
        return str(error)
    if part.lists is not None and not _within(part.batches, len(part.lists.centroids_LD)):
        return f"a row is in none of its {len(part.lists.centroids_LD)} lists"
    begin = 0
    for table in tables:
        piece = part.rows.slice(begin, table.num_rows)
        fault = _rows_fault(table, piece)
        if fault:
            return f"rows {begin} to {begin + table.num_rows - 1}: {fault}"
        begin += table.num_rows
    if begin != part.rows.num_rows:
        return f"it has {part.rows.num_rows} rows, its data file has {begin}"
    return None


def _within(batches: Iterable[Batch], lists: int) -> bool:
    return all(((batch.lists_N >= 0) & (batch.lists_N < lists)).all() for batch in batches)


def _rows_fault(table: pa.Table, piece: pa.Table) -> str | None:
    if any(not table[name].equals(piece[name]) for name in ("clip_id", "video_id")):
        return "they are not the rows of its data file"
    batch = Batch(piece.combine_chunks().to_batches()[0])
    vectors_ND = matrix(table["embedding"])
    if not np.array_equal(batch.vectors(np.arange(len(vectors_ND))), vectors_ND):
        return "the embeddings are not those of its data file"
    directions_ND, has_direction_N = directions(vectors_ND)
    codes = batch.codes
    distances_N = distances(directions_ND, codes.codes_ND, codes.scales_N)
    if not np.array_equal(codes.scales_N != 0, has_direction_N):
        return "a scale does not say whether the embedding has a direction"
    if not (distances_N <= codes.errors_N + SLACK).all():
        return "a code is farther from its embedding than it says"
    return None
