"""The stages as Ray Data operators: each builds what its plain function needs, and calls it.

Their imports are late: a process loads only what its own stage needs; torch alone takes seconds.
"""

import logging
import os
import pickle
import socket
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

import pyarrow as pa

from indexer.errors import ClusterError, IndexerError, ModelError
from indexer.metrics import Counts
from indexer.model.weights import Checkpoint
from indexer.redaction import redact_text
from indexer.runtime.blocks import packed
from indexer.runtime.writing import WriteReceipt
from indexer.table.paths import IndexPaths
from indexer.table.rows import RowContext
from indexer.video.plan import DecodePlan

RECEIPT_COLUMN = "receipt"

_LOGGER = logging.getLogger(__name__)


@contextmanager
def public_errors() -> Iterator[None]:
    """Lets only errors of the package leave a worker, and those without their causes.

    Ray writes the traceback of whatever leaves a worker into logs of its own, and a foreign error
    may quote a signed address or a header.
    """
    try:
        yield
    except IndexerError as error:
        raise error from None
    except Exception as error:  # noqa: BLE001 - whatever it is, Ray would print it
        _LOGGER.error("%s", redact_text(traceback.format_exc()))  # noqa: TRY400 - unredacted
        where = f"{socket.gethostname()}:{os.getpid()}"
        message = f"the pipeline failed on {where}: {type(error).__name__}: {error}"
        raise ClusterError(message) from None


class DecodeVideos:
    """CPU actor: `TODO_SCHEMA` rows in, a `DECODED_SCHEMA` row per unit out, some at a time."""

    def __init__(self, plan: DecodePlan, block_clips: int) -> None:
        from indexer.runtime.decoding import decode_videos
        from indexer.video.sandbox import Sandbox

        self._decode_videos = decode_videos
        with public_errors():
            self._plan, self._sandbox, self._block_clips = plan, Sandbox(plan), block_clips
        self._idle_since = time.perf_counter()

    def __call__(self, todo: pa.Table) -> Iterator[pa.Table]:
        """Decodes some videos."""
        with public_errors():
            since = self._idle_since
            rows = self._decode_videos(todo, self._plan, self._sandbox, idle_since=since)
            yield from packed(rows, self._block_clips)
        self._idle_since = time.perf_counter()


def survey_todo(todo: pa.Table, plan: DecodePlan) -> int:
    """CPU task: the number of units of the video of a `TODO_SCHEMA` row; 0 where nobody can say."""
    from indexer.runtime.decoding import survey_videos
    from indexer.video.sandbox import Sandbox

    with public_errors(), Sandbox(plan) as sandbox:
        (survey,) = survey_videos(todo, plan, sandbox)
    return 0 if survey is None else survey.units


class ScoreUnits:
    """GPU or CPU actor: `DECODED_SCHEMA` rows in, `SCORED_SCHEMA` rows out."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str,
        dtype: str,
        backend: Literal["native", "transformers"],
        batch_size: int | None,
        expected_clips: int,
        threads: int,
        fusion: Literal["probabilities", "logits"],
    ) -> None:
        import torch

        from indexer.model.classify import Classifier
        from indexer.runtime.scoring import score_units

        torch.set_num_threads(threads)
        self._score_units, self._fusion = score_units, fusion
        self._fault: ModelError | None = None
        try:
            with public_errors():
                self._classifier = Classifier(
                    checkpoint,
                    device=device,
                    dtype=dtype,
                    backend=backend,
                    batch_size=batch_size,
                    expected_clips=expected_clips,
                )
        except ModelError as error:  # raised here, it would reach the driver as a dead actor's text
            self._fault = error

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Scores the clips of a block."""
        if self._fault is not None:
            raise self._fault
        with public_errors():
            return self._score_units(decoded, self._classifier, self._fusion)


class WriteUnits:
    """CPU actor: `SCORED_SCHEMA` rows in, one row with a pickled `WriteReceipt` out."""

    def __init__(self, paths: IndexPaths, context: RowContext) -> None:
        from indexer.runtime.writing import write_units

        self._write_units = write_units
        self._paths, self._context = paths, context
        self._idle_since = time.perf_counter()

    def __call__(self, scored: pa.Table) -> pa.Table:
        """Writes the rows of a block."""
        context = replace(self._context, indexed_at=datetime.now(UTC))
        task = uuid.uuid4().hex[:12]
        waited = Counts(write_wait_seconds=time.perf_counter() - self._idle_since)
        with public_errors():
            receipt = self._write_units(scored, paths=self._paths, context=context, task=task)
        self._idle_since = time.perf_counter()
        receipt = replace(receipt, counts=receipt.counts + waited)
        return pa.table({RECEIPT_COLUMN: pa.array([pickle.dumps(receipt)], pa.binary())})


def receipts(table: pa.Table) -> Iterator[WriteReceipt]:
    """Reads the rows that `WriteUnits` gives."""
    for payload in table.column(RECEIPT_COLUMN).to_pylist():
        receipt: WriteReceipt = pickle.loads(payload)  # noqa: S301 - written by our own actor
        yield receipt
