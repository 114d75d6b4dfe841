"""The stages as Ray Data operators: each builds what its plain function needs, and calls it."""

import pickle
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa

from indexer.model.classify import Classifier
from indexer.model.weights import Checkpoint
from indexer.runtime.stages import WriteReceipt, decode_videos, score_units, write_units
from indexer.table.paths import IndexPaths
from indexer.table.rows import RowContext
from indexer.video.plan import DecodePlan

RECEIPT_COLUMN = "receipt"


class DecodeVideos:
    """CPU actor: `TODO_SCHEMA` rows in, a `DECODED_SCHEMA` row per unit out, as each is ready."""

    def __init__(self, plan: DecodePlan) -> None:
        import torch

        torch.set_num_threads(1)  # one process a core; a thread pool in each would fight over them
        self._plan = plan

    def __call__(self, todo: pa.Table) -> Iterator[pa.Table]:
        """Decodes some videos."""
        yield from decode_videos(todo, self._plan)


class ScoreUnits:
    """GPU or CPU actor: `DECODED_SCHEMA` rows in, `SCORED_SCHEMA` rows out."""

    def __init__(
        self, checkpoint: Checkpoint, device: str, dtype: str, batch_size: int, threads: int
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self._classifier = Classifier(checkpoint, device=device, dtype=dtype, batch_size=batch_size)

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Scores the clips of a block."""
        return score_units(decoded, self._classifier)


def write_block(scored: pa.Table, paths: IndexPaths, context: RowContext) -> pa.Table:
    """CPU task: `SCORED_SCHEMA` rows in, one row with a pickled `WriteReceipt` out."""
    stamped = replace(context, indexed_at=datetime.now(UTC))
    receipt = write_units(scored, paths=paths, context=stamped, task=uuid.uuid4().hex[:12])
    return pa.table({RECEIPT_COLUMN: pa.array([pickle.dumps(receipt)], pa.binary())})


def receipts(table: pa.Table) -> Iterator[WriteReceipt]:
    """Reads the rows that `write_block` gives."""
    for payload in table.column(RECEIPT_COLUMN).to_pylist():
        receipt: WriteReceipt = pickle.loads(payload)  # noqa: S301 - written by our own task
        yield receipt
