"""Keeps account of what a decode worker still owes for one video, and refuses what cannot be right.

A worker that a hostile video has taken over may say anything. What passes here is one item for each
unit, in order, with pictures of the model's size and clips that no other unit has: not the truth,
for which nobody can vouch then, but nothing that would harm another video's rows.
"""

from dataclasses import replace

from indexer.errors import VideoError
from indexer.records import ClipSpan, DecodedClips, VideoFailure, VideoInfo
from indexer.video.plan import DecodePlan
from indexer.video.sandbox.shared import SharedFrames, fixed_size, largest_shape
from indexer.video.sandbox.wire import DecodedUnit, Failed, NonsenseError, Outcome, Surveyed
from indexer.video.survey import Survey


class UnitLedger:
    """The account of a video that is decoded.

    Args:
        plan: what the worker was told to do.
        skip_units: units that are not wanted.
        frames: where it puts its pictures.
    """

    def __init__(self, plan: DecodePlan, skip_units: frozenset[int], frames: SharedFrames) -> None:
        self._plan = plan
        self._skip_units = skip_units
        self._frames = frames
        self._units = 0
        self._last_unit = -1
        self._last_clip = -1
        self._settled: set[int] = set()
        self._info: VideoInfo | None = None

    def accept(self, outcome: Outcome) -> DecodedClips | VideoFailure:
        """Makes the item of an answer, with a copy of the frames that go with it.

        Raises:
            NonsenseError: no honest worker gives this answer at this point.
        """
        item = self._item(outcome)
        self._settle(item)
        return item

    def close(self) -> None:
        """Ends the account.

        Raises:
            NonsenseError: there are units of which the worker said nothing.
        """
        if self._owed() or not (self._settled or self._skip_units):
            message = "no word of some units"
            raise NonsenseError(message)

    def failures(self, error: VideoError) -> list[VideoFailure]:
        """One failure for each unit still owed; for the whole video where none is known."""
        owed = self._owed() if self._units else [0]
        units = max(self._units, 1)
        return [VideoFailure(error.code, str(error), unit, units, self._info) for unit in owed]

    def _owed(self) -> list[int]:
        return sorted(set(range(self._units)) - self._settled - self._skip_units)

    def _item(self, outcome: Outcome) -> DecodedClips | VideoFailure:
        match outcome:
            case DecodedUnit():
                return self._decoded(outcome)
            case Failed(failure=failure):
                return replace(failure, message=" ".join(failure.message.split()))
            case Surveyed():
                message = "a survey, where units were asked for"
                raise NonsenseError(message)

    def _settle(self, item: DecodedClips | VideoFailure) -> None:
        whole_video = isinstance(item, VideoFailure) and item.units == 1
        wanted = whole_video or item.unit_index not in self._skip_units
        in_order = self._last_unit < item.unit_index < item.units
        if not (wanted and in_order and self._units in {0, item.units}):
            message = f"unit {item.unit_index} of {item.units} is not what comes next"
            raise NonsenseError(message)
        self._units = item.units
        self._last_unit = item.unit_index
        self._settled.add(item.unit_index)
        self._info = item.info

    def _decoded(self, outcome: DecodedUnit) -> DecodedClips:
        self._check_spans(outcome.spans)
        self._check_shape(outcome.shape, clips=len(outcome.spans))
        frames_NTHWC = self._frames.read(outcome.shape)
        return DecodedClips(
            outcome.unit_index, outcome.units, outcome.info, outcome.spans, frames_NTHWC,
            outcome.codec_seconds,
        )  # fmt: skip

    def _check_spans(self, spans: tuple[ClipSpan, ...]) -> None:
        for span in spans:
            new = span.clip_index > self._last_clip
            frames = self._plan.num_frames * self._plan.sampling.views
            if not new or len(span.frame_pts_seconds) != frames:
                message = f"clip {span.clip_index} is not what comes next"
                raise NonsenseError(message)
            self._last_clip = span.clip_index

    def _check_shape(self, shape: tuple[int, ...], *, clips: int) -> None:
        most_views, num_frames, *_, colours = largest_shape(self._plan)
        size = fixed_size(self._plan.preprocessing) or shape[2:4]
        views = clips * self._plan.views
        fits = shape == (views, num_frames, *size, colours) and views <= most_views
        if not fits or not self._frames.has_room(shape):
            message = f"frames of shape {shape}"
            raise NonsenseError(message)


class SurveyLedger:
    """The account of a video that is surveyed: one answer is owed."""

    def __init__(self) -> None:
        self._settled = False

    def accept(self, outcome: Outcome) -> Survey | VideoFailure:
        """Gives the answer.

        Raises:
            NonsenseError: it is a unit, or one answer too many.
        """
        if self._settled or isinstance(outcome, DecodedUnit):
            message = "more than a survey"
            raise NonsenseError(message)
        self._settled = True
        return outcome.survey if isinstance(outcome, Surveyed) else outcome.failure

    def close(self) -> None:
        """Ends the account.

        Raises:
            NonsenseError: there was no answer.
        """
        if not self._settled:
            message = "no survey"
            raise NonsenseError(message)
