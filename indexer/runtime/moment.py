"""The embedding of one moment of any video, as a run into an index would store it.

Nothing of Ray is started: the video is decoded in the sandbox, and only the unit that shows the
moment; the model runs in this process.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from indexer.config import Decode, Sampling
from indexer.errors import ModelError, QueryError, VideoError
from indexer.manifest import discover
from indexer.model.classify import Classifier
from indexer.model.fusion import fuse_views
from indexer.model.weights import Checkpoint, resolve
from indexer.records import ClipSpan, DecodedClips, VideoFailure, VideoRef
from indexer.storage import redact
from indexer.table import catalog
from indexer.table.paths import IndexPaths
from indexer.video.fetch import open_video
from indexer.video.plan import DecodePlan
from indexer.video.sandbox import Sandbox
from indexer.video.survey import Survey

_NAMES: Final = frozenset({"id", "revision", "frame_rate_divisor"})
"""Facts of a checkpoint that may differ although the scores do not: names, and what a run sets."""

_MARGIN_SECONDS: Final = 1.0
"""Around a unit, for what rounding does to its borders."""


def embed_moment(
    index: str, tag: str, video: str, seconds: float, *, schemes: Collection[str] = ("file", "s3")
) -> npt.NDArray[np.float32]:
    """Embeds the clip around a moment of a video, which need not be in the index.

    Args:
        index: folder or URL of the index.
        tag: of the model whose recipe and weights are used.
        video: path or URL of the video.
        seconds: the moment, on the container's clock.
        schemes: that the video and the model may use.

    Raises:
        QueryError: there is no such video or moment, or the video cannot be decoded.
        ModelError: the model is not found any more, or is another one by now.
        StorageError: the storage refuses.
    """
    paths = IndexPaths(index)
    fingerprint = catalog.read_model(paths, tag).fingerprint
    checkpoint = _checkpoint(paths, tag, fingerprint, schemes)
    plan = DecodePlan(
        sampling=Sampling.model_validate(fingerprint["sampling"]),
        num_frames=checkpoint.num_frames,
        frame_rate_divisor=fingerprint["model"]["frame_rate_divisor"],
        preprocessing=checkpoint.preprocessing,
        decode=Decode(resize=fingerprint["resize"], square_pixels=fingerprint["square_pixels"]),
    )
    frames_NTHWC = _frames(_listed(video, schemes), plan, seconds)
    classifier = Classifier(
        checkpoint, device="auto", dtype=fingerprint["precision"]["model"], batch_size=1
    )
    scores = fuse_views(classifier.classify(frames_NTHWC), plan.views, plan.sampling.fusion)
    embedding_D: npt.NDArray[np.float32] = scores.embeddings_ND[0]
    return embedding_D


def _checkpoint(
    paths: IndexPaths, tag: str, fingerprint: Mapping[str, Any], schemes: Collection[str]
) -> Checkpoint:
    """The index's own model, found where the last run had it."""
    facts = fingerprint.get("model")
    if not isinstance(facts, dict) or "weights_sha256" not in facts:
        message = f"{paths.root_uri} does not say which model made the embeddings of {tag}"
        raise QueryError(message)
    runs = [run for run in catalog.read_run_reports(paths) if run.get("model") == tag]
    source = runs[-1]["config"]["model"]["id"] if runs else facts["id"]
    found = resolve(source, facts["revision"], schemes=schemes).trained_on(facts["channel_order"])
    now = found.facts()
    differing = sorted(k for k in facts.keys() - _NAMES if facts[k] != now.get(k))
    if differing:
        message = (
            f"the model {source} is not the one that made the embeddings of {tag}: it differs in"
            f" {', '.join(differing)}; bring back the old one, or index the videos with the new one"
        )
        raise ModelError(message)
    return found


def _listed(video: str, schemes: Collection[str]) -> VideoRef:
    rows = discover([video], schemes=schemes, limit=2).to_pylist()
    if len(rows) != 1:
        message = f"{redact(video)} holds several videos; name one"
        raise QueryError(message)
    names = ("video_id", "uri", "size_bytes", "content_key")
    return VideoRef(**{name: rows[0][name] for name in names})


def _frames(ref: VideoRef, plan: DecodePlan, seconds: float) -> npt.NDArray[np.uint8]:
    """All views of the clip that shows the moment; of several, of the one around it."""
    best: tuple[float, npt.NDArray[np.uint8]] | None = None
    for unit in _units(ref, plan, seconds):
        for place, span in enumerate(unit.spans):
            distance = abs(span.start_seconds + span.end_seconds - 2 * seconds)
            if _shows(span, seconds) and (best is None or distance < best[0]):
                views = slice(place * plan.views, (place + 1) * plan.views)
                best = distance, unit.frames_NTHWC[views].copy()
    if best is None:
        message = f"no clip of {redact(ref.uri)} shows {seconds:g} s"
        raise QueryError(message)
    return best[1]


def _shows(span: ClipSpan, seconds: float) -> bool:
    return span.start_seconds <= seconds < span.end_seconds


def _units(ref: VideoRef, plan: DecodePlan, seconds: float) -> Iterator[DecodedClips]:
    with Sandbox(plan) as sandbox:
        try:
            with open_video(ref, plan.decode) as video:
                survey = sandbox.survey(video, video_id=ref.video_id)
                skipped = _units_elsewhere(plan, survey, seconds)
                units = sandbox.decode(video, video_id=ref.video_id, skip_units=skipped)
                for unit, _ in units:
                    if isinstance(unit, VideoFailure):
                        message = (
                            f"{redact(ref.uri)} cannot be decoded: {unit.code}: {unit.message}"
                        )
                        raise QueryError(message)
                    yield unit
        except VideoError as error:
            message = f"{redact(ref.uri)} cannot be read: {error.code}: {error}"
            raise QueryError(message) from error


def _units_elsewhere(
    plan: DecodePlan, survey: Survey | VideoFailure, seconds: float
) -> frozenset[int]:
    """Units that do not show the moment, as far as that is known before they are decoded."""
    sampling = plan.sampling
    if isinstance(survey, VideoFailure) or not survey.trusted or sampling.mode != "windows":
        return frozenset()
    window_seconds = plan.num_frames * plan.frame_rate_divisor / sampling.target_fps
    hop_seconds = sampling.hop_seconds or window_seconds
    unit_seconds = sampling.segment_clips * hop_seconds
    begins = [unit * unit_seconds for unit in range(survey.units)]
    return frozenset(
        unit
        for unit, begin in enumerate(begins)
        if seconds < begin - _MARGIN_SECONDS
        or seconds > begin + unit_seconds - hop_seconds + window_seconds + _MARGIN_SECONDS
    )
