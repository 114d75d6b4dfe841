"""Every error the package raises on purpose, and what each means for the process.

    IndexerError
    ├── ConfigError            the user asked for something impossible          exit code 2
    ├── ManifestError          an input path is missing, empty or unreadable    exit code 2
    ├── QueryError             a question the index cannot answer               exit code 2
    ├── StorageError           object storage refused or failed for good        exit code 3
    │   ├── CommitConflict     another writer won; refresh and try again
    │   ├── CommitUnknown      the reply was lost; read back before deciding
    │   ├── CommitFenced       another job has taken this one's place; stop
    │   └── LeaseHeld          another job is at work on the same videos; wait for it
    ├── ModelError             the checkpoint cannot be had or does not fit     exit code 3
    ├── ClusterError           Ray is missing, too small or gone                exit code 3
    └── VideoError             one video failed; the job goes on                a row, code 1
        └── one class for each error code of the `videos` table

All of them take positional arguments only, so that they survive pickling between processes. Their
messages reach terminals, logs, reports and tables: none holds a credential, whoever wrote its text.
"""

from typing import ClassVar

from indexer.redaction import redact_text


class IndexerError(Exception):
    """Root of the package's errors; `str(error)` is a message for the user."""

    exit_code: ClassVar[int] = 3

    def __init__(self, *args: object) -> None:
        super().__init__(*(redact_text(arg) if isinstance(arg, str) else arg for arg in args))


class ConfigError(IndexerError):
    """A configuration value is unknown, malformed or contradicts another."""

    exit_code = 2


class ManifestError(IndexerError):
    """The inputs of a job cannot be listed."""

    exit_code = 2


class QueryError(IndexerError):
    """A query names something that the index does not hold, or asks for something malformed."""

    exit_code = 2


class StorageError(IndexerError):
    """A storage operation failed and trying again would not help."""


class CommitConflict(StorageError):
    """Another writer committed first; refresh the snapshot and decide again."""


class CommitUnknown(StorageError):
    """A commit may or may not have been applied; read the log back before anything else."""


class CommitFenced(StorageError):
    """Another job has taken over what this one was writing; nothing more of it may be committed."""


class LeaseHeld(StorageError):
    """Another job is writing the same shard of the same model."""


class ModelError(IndexerError):
    """A checkpoint is missing, incomplete, or not a TimeSformer video classifier."""


class ClusterError(IndexerError):
    """The Ray cluster cannot be reached or cannot hold the job."""


class VideoError(IndexerError):
    """One video cannot be indexed; `code` goes into the `videos` table."""

    code: ClassVar[str] = "internal"
    exit_code = 1


class VideoMissing(VideoError):
    """The object was listed but is gone."""

    code = "missing"


class VideoChanged(VideoError):
    """The object is no longer the one that was listed."""

    code = "changed"


class VideoAccessDenied(VideoError):
    """The object may be listed but not read."""

    code = "access_denied"


class VideoEmpty(VideoError):
    """The object has no bytes."""

    code = "empty"


class VideoNotAVideo(VideoError):
    """The bytes are no container of an allowed format, or hold no video stream."""

    code = "not_a_video"


class VideoUnsupportedCodec(VideoError):
    """The stream's codec is unknown or not on the allowlist."""

    code = "unsupported_codec"


class VideoCorrupt(VideoError):
    """The container opens, but its packets do not decode."""

    code = "corrupt"


class VideoTruncated(VideoError):
    """The bytes end before the container says they do."""

    code = "truncated"


class VideoOverBudget(VideoError):
    """The video needs more bytes, pixels or frames than its budget allows."""

    code = "over_budget"


class VideoTimeout(VideoError):
    """The video took longer than its deadline."""

    code = "timeout"


class VideoDecoderCrash(VideoError):
    """The decoder process died."""

    code = "decoder_crash"


class VideoTransientIO(VideoError):
    """Reading failed for a reason that may pass; the retries are used up."""

    code = "transient_io"


class VideoNoFrames(VideoError):
    """The stream decodes to no frame at all."""

    code = "no_frames"


class VideoBadOutput(VideoError):
    """The model's scores for the video are not finite."""

    code = "bad_output"


class VideoInternal(VideoError):
    """A fault of this package; the message names the exception."""

    code = "internal"


ERROR_CODES: tuple[str, ...] = tuple(sorted(cls.code for cls in VideoError.__subclasses__()))
