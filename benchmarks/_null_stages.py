"""Operators for measuring: those of a job, but that they start together, and some cost nothing.

Each is the real operator, or that around another plain function. Starting Ray and its actors takes
more CPU time than a short job, and not the same each time: so decoders wait until all are there.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from indexer.metrics import Counts, FetchEffort
from indexer.model.weights import Checkpoint
from indexer.records import ClipScores, ClipSpan, DecodedClips, VideoInfo
from indexer.runtime import blocks
from indexer.runtime.scoring import score_units
from indexer.runtime.workers import DecodeVideos, ScoreUnits, WriteUnits
from indexer.runtime.writing import WriteReceipt
from indexer.table.paths import IndexPaths
from indexer.table.rows import RowContext
from indexer.video.plan import DecodePlan

CLIP_SECONDS: Final = 8.5
FEW_CLIPS: Final = 64
"""As many different clips are made by a null decoder."""

SLOW_CLIPS_PER_SECOND: Final = 128.0

Clips = npt.NDArray[np.uint8]


GATE: Final = "BENCHMARK_GATE"
"""Environment variable: a folder where actors say that they are there, and the start is given."""

OPEN: Final = "open"


class _Announced:
    """An operator that says when it has been built."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        Path(os.environ[GATE], f"{type(self).__name__}-{os.getpid()}").touch()


def _wait_for_start() -> None:
    while not Path(os.environ[GATE], OPEN).exists():
        time.sleep(0.05)


class Decode(_Announced, DecodeVideos):
    """Decodes, once the start is given."""

    def __call__(self, todo: pa.Table) -> Iterator[pa.Table]:
        """Decodes some videos."""
        _wait_for_start()
        yield from super().__call__(todo)


class Score(_Announced, ScoreUnits):
    """Scores."""


class Write(_Announced, WriteUnits):
    """Writes."""


class _NullDecoder(DecodeVideos):
    def __init__(self, plan: DecodePlan, block_clips: int) -> None:
        crop = plan.preprocessing.crop
        if crop is None:
            message = "the plan of a null decoder needs a crop"
            raise ValueError(message)
        shape = (FEW_CLIPS, plan.num_frames, *crop, 3)
        self._clips_NTHWC = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        self._segment_clips, self._block_clips = plan.sampling.segment_clips, block_clips

    def __call__(self, todo: pa.Table) -> Iterator[pa.Table]:
        _wait_for_start()
        rows = null_decode(todo, self._clips_NTHWC, self._segment_clips)
        yield from blocks.packed(rows, self._block_clips)


class NullDecode(_Announced, _NullDecoder):
    """Gives each video the clips that its manifest's column `clips` says, of noise."""


def null_decode(todo: pa.Table, clips_NTHWC: Clips, segment_clips: int) -> Iterator[pa.Table]:
    """Rows of `DECODED_SCHEMA` for rows of `TODO_SCHEMA`, as long as each says."""
    for video in blocks.todos(todo):
        clips = int(json.loads(video.ref.extra)["clips"])
        starts = range(0, clips, segment_clips)
        info = VideoInfo(320, 240, "h264", 30.0, 0, clips * CLIP_SECONDS)
        for unit, start in enumerate(starts):
            number = min(segment_clips, clips - start)
            spans = tuple(
                _span(index, len(clips_NTHWC[0])) for index in range(start, start + number)
            )
            decoded = DecodedClips(unit, len(starts), info, spans, clips_NTHWC[:number])
            yield blocks.decoded_row(
                video.ref,
                video.attempt,
                decoded,
                fetch=FetchEffort(),
                decode_seconds=0.0,
                decode_wall_seconds=0.0,
                decode_wait_seconds=0.0,
                worker="null:1",
            )


def _span(index: int, frames: int) -> ClipSpan:
    start = index * CLIP_SECONDS
    return ClipSpan(index, start, start + CLIP_SECONDS, tuple(start + at for at in range(frames)))


class NullClassifier:
    """Gives every clip the same scores; at most so many clips a second, where a speed is given."""

    recomputed_batches = 0
    compile_seconds = 0.0
    problems: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, checkpoint: Checkpoint, clips_per_second: float | None) -> None:
        size = checkpoint.image_size
        self.clip_shape_THWC = (checkpoint.num_frames, size, size, 3)
        self.busy_seconds = self.wait_seconds = 0.0
        self._sizes = checkpoint.num_labels, checkpoint.hidden_size
        self._clips_per_second = clips_per_second
        self._idle_since: float | None = None

    def classify(self, *frames_NTHWC: Clips) -> ClipScores:
        """Scores clips; what passed before the first counts as no waiting."""
        clips = sum(map(len, frames_NTHWC))
        started = time.perf_counter()
        if self._idle_since is not None:
            self.wait_seconds += started - self._idle_since
        if self._clips_per_second is not None:
            time.sleep(clips / self._clips_per_second)
        self._idle_since = time.perf_counter()
        self.busy_seconds += self._idle_since - started
        labels, hidden = self._sizes
        return ClipScores(
            logits_NK=np.zeros((clips, labels), np.float32),
            embeddings_ND=np.ones((clips, hidden), np.float32),
        )


class _NullScorer(ScoreUnits):
    clips_per_second: ClassVar[float | None] = None

    def __init__(self, checkpoint: Checkpoint, **_: object) -> None:
        self._score_units = score_units
        self._fusion, self._fault = "probabilities", None
        stand_in: Any = NullClassifier(checkpoint, self.clips_per_second)
        self._classifier = stand_in


class NullScore(_Announced, _NullScorer):
    """Scores without a model."""


class SlowScore(NullScore):
    """Takes its time, as a GPU that has a little more to do than the decoders."""

    clips_per_second: ClassVar[float | None] = SLOW_CLIPS_PER_SECOND


class _NullWriter(WriteUnits):
    def __init__(self, paths: IndexPaths, context: RowContext) -> None:
        super().__init__(paths, context)
        self._write_units = null_write


class NullWrite(_Announced, _NullWriter):
    """Writes nothing, and says what there was to write."""


def null_write(scored: pa.Table, **_: object) -> WriteReceipt:
    """The receipt of no files."""
    clips = sum(scored.column("clips").to_pylist())
    counts = Counts(units=scored.num_rows, clips=clips, model=blocks.effort_of(scored))
    return WriteReceipt((), (), counts)
