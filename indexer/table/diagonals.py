"""How much two videos have in common at one time offset: all clips count there, not the hits alone.

Two videos that have nothing in common still have some clips that look alike, and some of these
follow each other. Around such a run the clips differ; in a copy they hardly do. So each clip along
the diagonal, which is one time offset, speaks for a copy or against it, and the stretch that
speaks most for it is what counts.

Axes in array names: N clips, D their dimensions, R runs, I clips of one video.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from indexer.table.whitening import Vectors

_APART: Final = -1.0
"""Similarity of a clip that has no counterpart."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Clips:
    """All clips, video by video, in the order of time.

    Attributes:
        units_ND: float32, their whitened embeddings.
        videos_N: the video of each, as a number that never falls.
        starts_N: seconds at which they start.
        hop_seconds: between two clips of a video.
    """

    units_ND: Vectors
    videos_N: npt.NDArray[np.int32]
    starts_N: Floats
    hop_seconds: float


def standing_out(runs: pa.Table, clips: Clips, ordinary: float) -> tuple[Floats, Floats]:
    """What speaks for each run, and how little changes in it.

    Args:
        runs: `first_clip` and `first_other_clip`, rows of `clips`, and `bin`: the offset in hops;
            the counterpart of a clip lies `bin` hops later, or `bin - 1`.
        clips: all of them.
        ordinary: a clip that is more like its counterpart than this speaks for a copy, by the
            difference; one that is less like it speaks against.

    Returns:
        evidence_R: the sum of these differences over the stretch of the diagonal where it is
            highest.
        likeness_R: of the first and the last clip of that stretch, in the video where it is higher.
    """
    columns = (runs[name].to_pylist() for name in ("first_clip", "first_other_clip", "bin"))
    found = [_best_stretch(clips, ordinary, *run) for run in zip(*columns, strict=True)]
    evidence_R, likeness_R = np.array(found, np.float64).reshape(-1, 2).T
    return evidence_R, likeness_R


def _best_stretch(
    clips: Clips, ordinary: float, row: int, other: int, lag: int
) -> tuple[float, float]:
    rows_I, others_I, similarity_I = _diagonal(clips, row, other, lag)
    gains_I = np.cumsum(similarity_I - ordinary)
    before_I = np.concatenate([[0.0], gains_I[:-1]])
    evidence_I = gains_I - np.minimum.accumulate(before_I)
    last = int(np.argmax(evidence_I))
    first = int(np.argmin(before_I[: last + 1]))
    ends = (
        clips.units_ND[side_I[first]] @ clips.units_ND[side_I[last]]
        for side_I in (rows_I, others_I)
    )
    return float(evidence_I[last]), float(max(ends))


def _diagonal(
    clips: Clips, row: int, other: int, lag: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """The clips of one video, the counterpart of each in the other, and their similarity."""
    rows_I = _of_video(clips, row)
    candidates = _of_video(clips, other)
    others_I = np.full(len(rows_I), candidates[0])
    similarity_I = np.full(len(rows_I), _APART)
    half = clips.hop_seconds / 2
    for hops in (lag - 1, lag):
        wanted_I = clips.starts_N[rows_I] + hops * clips.hop_seconds
        at_I = np.searchsorted(clips.starts_N[candidates], wanted_I - half)
        near_I = candidates[np.minimum(at_I, len(candidates) - 1)]
        there_I = np.abs(clips.starts_N[near_I] - wanted_I) <= half
        likeness_I = np.einsum("ID,ID->I", clips.units_ND[rows_I], clips.units_ND[near_I])
        better_I = there_I & (likeness_I > similarity_I)
        similarity_I = np.where(better_I, likeness_I, similarity_I)
        others_I = np.where(better_I, near_I, others_I)
    return rows_I, others_I, similarity_I


def _of_video(clips: Clips, row: int) -> npt.NDArray[np.int64]:
    video = clips.videos_N[row]
    return np.arange(*np.searchsorted(clips.videos_N, [video, video + 1]))
