"""What the decode actor and its child process say to each other, and how.

Every message is its length and then a JSON object. Nothing that comes from the child is unpickled,
and all of it is checked: a hostile video may have taken the child over. Pictures do not travel
here; they lie in a shared memory file of which a message gives the shape.

    actor -> worker          worker -> actor
    Request (+ the file) --> Need, DecodedUnit, Failed or Surveyed ...
    Fetched              <-- Need
    GoOn                 <-- DecodedUnit or Failed
                             ... End
"""

import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from indexer.errors import ERROR_CODES
from indexer.records import ClipSpan, VideoFailure, VideoInfo
from indexer.video.plan import MAX_CLIPS
from indexer.video.survey import Survey

MAX_MESSAGE_BYTES: Final = 64 * 2**20
MAX_TEXT: Final = 1000
"""Characters of a codec's name, a warning or a failure's message."""

_MAX_WARNINGS: Final = 100
_MAX_SIDE_PIXELS: Final = 2**20
_LENGTH: Final = struct.Struct("!I")
_PIECE_BYTES: Final = 2**20


class ClosedError(Exception):
    """The other side is gone."""


class LateError(Exception):
    """The deadline has passed."""


class NonsenseError(Exception):
    """The other side says what no honest one would."""


class Channel:
    """Messages over one end of a socket pair.

    Where a method takes a deadline, it is in seconds of `time.monotonic`; without one it waits for
    ever. Every method may raise `ClosedError`, and with a deadline `LateError`.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes this end; the other side reads the end of the file."""
        self._end.close()

    def fileno(self) -> int:
        """Descriptor of this end."""
        return self._end.fileno()

    def send(
        self, message: bytes, descriptors: Sequence[int] = (), *, deadline: float | None = None
    ) -> None:
        """Sends a message, and duplicates of open files with it."""
        data = _LENGTH.pack(len(message)) + message
        with self._waiting(deadline):
            sent = socket.send_fds(self._end, [data], list(descriptors))
        with self._waiting(deadline):
            self._end.sendall(memoryview(data)[sent:])

    def receive(self, *, deadline: float | None = None) -> bytes:
        """Receives a message; files that come with it are not taken.

        Raises:
            NonsenseError: it is longer than `MAX_MESSAGE_BYTES`.
        """
        return self._body(self._exactly(_LENGTH.size, deadline), deadline)

    def receive_with_files(self, most: int) -> tuple[bytes, list[int]]:
        """Receives a message and up to `most` descriptors, which the caller closes."""
        with self._waiting(None):
            head, descriptors, _, _ = socket.recv_fds(self._end, _LENGTH.size, most)
        if not head:
            raise ClosedError
        head += self._exactly(_LENGTH.size - len(head), None)
        return self._body(head, None), descriptors

    def _body(self, head: bytes, deadline: float | None) -> bytes:
        (length,) = _LENGTH.unpack(head)
        if length > MAX_MESSAGE_BYTES:
            message = f"a message of {length} bytes"
            raise NonsenseError(message)
        return self._exactly(length, deadline)

    def _exactly(self, size: int, deadline: float | None) -> bytes:
        received = bytearray()
        while len(received) < size:
            with self._waiting(deadline):
                piece = self._end.recv(min(size - len(received), _PIECE_BYTES))
            if not piece:
                raise ClosedError
            received += piece
        return bytes(received)

    @contextmanager
    def _waiting(self, deadline: float | None) -> Iterator[None]:
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            raise LateError
        try:
            self._end.settimeout(remaining)
            yield
        except TimeoutError as error:
            raise LateError from error
        except OSError as error:  # the other end is closed, or this one
            raise ClosedError from error


def _sane_info(info: VideoInfo) -> VideoInfo:
    """Keeps what a table could not hold, or a person not read, out of the rows."""
    sides = all(0 <= side <= _MAX_SIDE_PIXELS for side in (info.width, info.height))
    texts = len(info.warnings) <= _MAX_WARNINGS and all(
        len(text) <= MAX_TEXT for text in (info.codec, *info.warnings)
    )
    if not (sides and texts and info.rotation in {0, 90, 180, 270}):
        message = "facts that no video has"
        raise ValueError(message)
    return info


def _sane_failure(failure: VideoFailure) -> VideoFailure:
    known = failure.code in ERROR_CODES and len(failure.message) <= MAX_TEXT
    place = 0 <= failure.unit_index < failure.units <= MAX_CLIPS
    if not (known and place):
        message = "a failure of no unit, or without a known code"
        raise ValueError(message)
    if failure.info is not None:
        _sane_info(failure.info)
    return failure


def _sane_survey(survey: Survey) -> Survey:
    if not (0 <= survey.units <= survey.clips <= MAX_CLIPS and survey.duration_seconds >= 0):
        message = "a survey of no video"
        raise ValueError(message)
    return survey


Seconds = Annotated[float, Field(ge=0, le=1e9)]
Offsets: TypeAlias = tuple[NonNegativeInt, NonNegativeInt]
Shape: TypeAlias = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt]


class Message(BaseModel):
    """Base of the messages: immutable, no unknown key, no number that is none."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def encode(self) -> bytes:
        """The message as JSON."""
        return self.model_dump_json().encode()


class Request(Message):
    """One video to work on, whose file comes with it.

    Attributes:
        task: what to do.
        video_id: of the video.
        size_bytes: of the whole object.
        present: ranges of bytes that the file holds.
        skip_units: units for which nothing is wanted.
        moments_seconds: of `DecodePlan`.
    """

    task: Literal["decode", "survey"]
    video_id: str
    size_bytes: NonNegativeInt
    present: tuple[Offsets, ...]
    skip_units: tuple[NonNegativeInt, ...] = ()
    moments_seconds: tuple[float, ...] = ()


class Fetched(Message):
    """Answers `Need`: the ranges are in the file, or `code` and `message` say why not."""

    code: str = ""
    message: str = ""


class GoOn(Message):
    """The frames have been taken; their memory may be used again."""


class Need(Message):
    """Bytes without which the worker cannot go on."""

    kind: Literal["need"] = "need"
    ranges: tuple[Offsets, ...]


class DecodedUnit(Message):
    """A `DecodedClips` whose frames, of this NTHWC shape, begin the shared memory."""

    kind: Literal["unit"] = "unit"
    unit_index: NonNegativeInt
    units: Annotated[int, Field(ge=1, le=MAX_CLIPS)]
    info: Annotated[VideoInfo, AfterValidator(_sane_info)]
    spans: tuple[ClipSpan, ...]
    shape: Shape
    cpu_seconds: Seconds
    codec_seconds: Seconds


class Failed(Message):
    """A unit, or the whole video, cannot be had."""

    kind: Literal["failed"] = "failed"
    failure: Annotated[VideoFailure, AfterValidator(_sane_failure)]
    cpu_seconds: Seconds


class Surveyed(Message):
    """The outcome of a survey."""

    kind: Literal["surveyed"] = "surveyed"
    survey: Annotated[Survey, AfterValidator(_sane_survey)]
    cpu_seconds: Seconds


class End(Message):
    """Nothing more comes for this video."""

    kind: Literal["end"] = "end"


Outcome: TypeAlias = DecodedUnit | Failed | Surveyed
Answer: TypeAlias = Outcome | Need | End

_ANSWERS: Final = TypeAdapter[Answer](Annotated[Answer, Field(discriminator="kind")])


def decode_answer(message: bytes) -> Answer:
    """Reads what a worker says.

    Raises:
        NonsenseError: it is malformed, or has values that no honest worker sends.
    """
    try:
        return _ANSWERS.validate_json(message)
    except ValidationError as error:
        reason = error.errors(include_input=False, include_url=False)[0]["type"]
        raise NonsenseError(reason) from error
