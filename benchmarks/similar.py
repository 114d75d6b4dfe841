"""The clips like one among a million: our sidecar and our scan beside DuckDB and LanceDB.

    python -m benchmarks.similar --clips 1000000 --folder /tmp/similar --json similar.json

Makes an index through the project's own writer, whose embeddings are a label's centroid, a part of
rank 64 that the clips of a video share, and noise; asks it before and after `compact`, and holds
the answers against numpy in float64. A peer that is not installed is left out.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.manifest import video_id
from indexer.records import ClipScores, ClipSpan, UnitOutcome, VideoInfo, VideoRef
from indexer.table import catalog
from indexer.table.commit import Committer
from indexer.table.lease import Shard, held
from indexer.table.paths import IndexPaths
from indexer.table.rows import RowContext, unit_tables
from indexer.table.write import write_tables

TAG = RUN = "synthetic"
LABEL_NAMES = tuple(f"activity {number:03}" for number in range(400))
CLIPS_A_VIDEO = 10
CLIP_SECONDS = 8.5
VIDEOS_A_COMMIT = 2000
WIDTH = 768
RANK = 64


class Archive:
    """Draws the embeddings of video after video."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        labels = len(LABEL_NAMES)
        self._centroids_KD = self._rng.normal(size=(labels, WIDTH)).astype(np.float32)
        self._basis_RD = self._rng.normal(size=(RANK, WIDTH)).astype(np.float32) / RANK**0.5
        weights_K = 1 / np.arange(1, labels + 1)
        self._shares_K = weights_K / weights_K.sum()

    def video(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Logits and embeddings of its clips."""
        label = self._rng.choice(len(LABEL_NAMES), p=self._shares_K)
        shared_D = self._rng.normal(size=RANK).astype(np.float32) @ self._basis_RD
        noise_ND = self._rng.standard_normal((CLIPS_A_VIDEO, WIDTH), np.float32)
        logits_NK = self._rng.standard_normal((CLIPS_A_VIDEO, len(LABEL_NAMES)), np.float32)
        logits_NK[:, label] += 8
        return logits_NK, self._centroids_KD[label] + 0.8 * shared_D + 0.6 * noise_ND


def outcomes(numbers: range, archive: Archive) -> Iterator[UnitOutcome]:
    """Some indexed videos, without any decoding."""
    info = VideoInfo(640, 360, "h264", 30.0, 0, CLIPS_A_VIDEO * CLIP_SECONDS)
    spans = tuple(
        ClipSpan(
            i, i * CLIP_SECONDS, (i + 1) * CLIP_SECONDS, tuple(i * CLIP_SECONDS + np.arange(8))
        )
        for i in range(CLIPS_A_VIDEO)
    )
    for number in numbers:
        uri = f"s3://archive/videos/{number // 1000:04}/{number:08}.mp4"
        yield UnitOutcome(
            ref=VideoRef(video_id(uri), uri, 10_000_000, "10000000-abc"),
            attempt=1,
            unit_index=0,
            units=1,
            info=info,
            spans=spans,
            scores=ClipScores(*archive.video()),
            failure=None,
            fetch_seconds=0.1,
            decode_seconds=1.0,
            worker="host:1",
        )


def make_index(paths: IndexPaths, clips: int) -> None:
    """Writes and commits the rows as a job does."""
    archive = Archive()
    context = RowContext(
        tag=TAG,
        run_id=RUN,
        labels=LABEL_NAMES,
        top_k=5,
        min_score=0.0,
        keep_logits=False,
        stored_mantissa_bits=10,
        indexed_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    catalog.create_index(paths)
    catalog.register_model(paths, TAG, {"model": "synthetic"}, LABEL_NAMES)
    videos = range(clips // CLIPS_A_VIDEO)
    with held(paths, TAG, Shard().writer, RUN) as lease:
        committer = Committer(paths, TAG, RUN, lease)
        for task, start in enumerate(range(0, len(videos), VIDEOS_A_COMMIT)):
            numbers = videos[start : start + VIDEOS_A_COMMIT]
            rows = unit_tables(list(outcomes(numbers, archive)), context)
            committer.commit(write_tables(rows, paths, TAG, RUN, f"t{task}"))


def main() -> int:
    """Makes the index, asks it and its peers, prints what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    paths = IndexPaths(str(options.folder / "index"))
    shutil.rmtree(options.folder, ignore_errors=True)
    begun = time.monotonic()
    make_index(paths, options.clips)
    print(json.dumps({"make_seconds": time.monotonic() - begun}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
