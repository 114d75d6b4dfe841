"""Small units of work and small indexes made of them."""

import itertools
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from indexer.metrics import FetchEffort
from indexer.records import ClipScores, ClipSpan, UnitOutcome, VideoFailure, VideoInfo, VideoRef
from indexer.table import catalog
from indexer.table.commit import Committer
from indexer.table.paths import IndexPaths
from indexer.table.rows import RowContext, unit_tables
from indexer.table.write import DataFile, write_tables

TAG = "demo-3f9a1c"
NOW = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)
VOCABULARY = ("growing", "moving left", "Moving Right", "it's; DROP TABLE labels", "日本\n語")
INFO = VideoInfo(640, 360, "h264", 29.97, 90, 12.5, ("12 packets failed to decode",))
FINGERPRINT = {"model": {"id": "demo", "revision": None}, "sampling": {"mode": "windows"}}


def ref(uri: str, content_key: str = "10-abc") -> VideoRef:
    return VideoRef(
        video_id=uuid.uuid5(uuid.NAMESPACE_URL, uri).hex,
        uri=uri,
        size_bytes=3_000_000_000,
        content_key=content_key,
        extra='{"camera": 7}',
    )


def span(clip_index: int) -> ClipSpan:
    start = clip_index * 8.5
    return ClipSpan(clip_index, start, start + 8.5, (start, start + 0.1), clip_index % 2 == 0)


def unit(
    uri: str = "s3://videos/a.mp4",
    clips: Sequence[int] = (0, 1),
    *,
    logits_NK: np.ndarray | None = None,
    embeddings_ND: np.ndarray | None = None,
    failure: str | None = None,
    unit_index: int = 0,
    units: int = 1,
    attempt: int = 1,
    content_key: str = "10-abc",
    info: VideoInfo | None = INFO,
) -> UnitOutcome:
    """One outcome; its numbers depend on the uri and the clips only."""
    clips = () if failure else clips
    rng = np.random.default_rng(list(f"{uri}{clips}".encode()))
    if logits_NK is None:
        logits_NK = rng.normal(size=(len(clips), len(VOCABULARY))).astype(np.float32)
    if embeddings_ND is None:
        embeddings_ND = rng.normal(size=(len(clips), 8)).astype(np.float32)
    return UnitOutcome(
        ref=ref(uri, content_key),
        attempt=attempt,
        unit_index=unit_index,
        units=units,
        info=info,
        spans=tuple(map(span, clips)),
        scores=None if failure else ClipScores(logits_NK, embeddings_ND),
        failure=VideoFailure(failure, f"{failure} it is", unit_index, units) if failure else None,
        fetch=FetchEffort(0.25),
        decode_seconds=1.5,
        codec_seconds=1.25,
        decode_wall_seconds=2.0,
        worker="host:123",
    )


def context(**changes: object) -> RowContext:
    settings: dict[str, object] = {
        "tag": TAG,
        "run_id": "run-1",
        "labels": VOCABULARY,
        "top_k": 3,
        "min_score": 0.0,
        "keep_logits": True,
        "stored_mantissa_bits": 23,
        "indexed_at": NOW,
    }
    return RowContext(**(settings | changes))  # type: ignore[arg-type]


_NUMBERS = itertools.count(1)


def write_units(
    paths: IndexPaths, run_id: str, *units: UnitOutcome, tag: str = TAG, **changes: object
) -> tuple[DataFile, ...]:
    """Data files of some units, which no commit names yet."""
    rows = unit_tables(units, context(tag=tag, run_id=run_id, **changes))
    return write_tables(rows, paths, tag, run_id, f"t{next(_NUMBERS)}")


@dataclass
class Run:
    """One run into an index that exists."""

    paths: IndexPaths
    tag: str = TAG
    run_id: str = "run-1"
    committer: Committer = field(init=False)
    tasks: int = 0

    def __post_init__(self) -> None:
        self.committer = Committer(self.paths, self.tag, self.run_id)

    def write(self, *units: UnitOutcome, **changes: object) -> tuple[DataFile, ...]:
        self.tasks += 1
        rows = unit_tables(units, context(tag=self.tag, run_id=self.run_id, **changes))
        return write_tables(rows, self.paths, self.tag, self.run_id, f"t{self.tasks}")

    def add(self, *units: UnitOutcome, **changes: object) -> None:
        self.committer.commit(self.write(*units, **changes))


def new_index(uri: str, tag: str = TAG) -> IndexPaths:
    paths = IndexPaths(uri)
    catalog.create_index(paths)
    catalog.register_model(paths, tag, FINGERPRINT, VOCABULARY)
    return paths
