"""What a job counts and tells while it runs. Nothing here prints."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class FetchEffort:
    """What bringing videos' bytes to the decoders took; `+` adds two, `-` gives what came between.

    Attributes:
        seconds: wall time of fetching, in the background or not.
        requests: sent to the storage, failed ones too.
        fetched_bytes: that came from it; those that came twice count twice. Local files are read in
            place, and count as nothing.
        retries: requests that were sent again, by the error code of what went wrong.
    """

    seconds: float = 0.0
    requests: int = 0
    fetched_bytes: int = 0
    retries: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: "FetchEffort") -> "FetchEffort":
        return FetchEffort(
            self.seconds + other.seconds,
            self.requests + other.requests,
            self.fetched_bytes + other.fetched_bytes,
            dict(Counter(self.retries) + Counter(other.retries)),
        )

    def __sub__(self, other: "FetchEffort") -> "FetchEffort":
        return FetchEffort(
            self.seconds - other.seconds,
            self.requests - other.requests,
            self.fetched_bytes - other.fetched_bytes,
            dict(Counter(self.retries) - Counter(other.retries)),
        )


@dataclass(frozen=True, slots=True)
class ModelEffort:
    """What model actors did; `+` adds two, `-` gives what came between.

    Attributes:
        busy_seconds: wall time of scoring.
        wait_seconds: wall time without clips to score.
        compile_seconds: wall time of compiling the model.
        recomputed_batches: that overflowed float16, and were scored again in bfloat16.
        problems: what slowed them down, in words, such as a compiler that failed.
    """

    busy_seconds: float = 0.0
    wait_seconds: float = 0.0
    compile_seconds: float = 0.0
    recomputed_batches: int = 0
    problems: frozenset[str] = frozenset()

    def __add__(self, other: "ModelEffort") -> "ModelEffort":
        return ModelEffort(
            self.busy_seconds + other.busy_seconds,
            self.wait_seconds + other.wait_seconds,
            self.compile_seconds + other.compile_seconds,
            self.recomputed_batches + other.recomputed_batches,
            self.problems | other.problems,
        )

    def __sub__(self, other: "ModelEffort") -> "ModelEffort":
        return ModelEffort(
            self.busy_seconds - other.busy_seconds,
            self.wait_seconds - other.wait_seconds,
            self.compile_seconds - other.compile_seconds,
            self.recomputed_batches - other.recomputed_batches,
            self.problems - other.problems,
        )


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums over units; `+` adds two, and `Counts()` is zero.

    Attributes:
        units: units with an outcome, indexed or failed.
        clips: clips of the indexed units.
        failures: units that failed, by error code.
        fetch: what all decode actors did to get the bytes.
        decode_seconds: CPU time of decoding, over all workers.
        codec_seconds: of that, the CPU time of FFmpeg's decoder alone.
        decode_wall_seconds: wall time of decoding.
        decode_wait_seconds: wall time in which decode actors did not decode.
        write_seconds: wall time of writing data files, over all workers.
        write_wait_seconds: wall time in which write actors had nothing to write.
        written_bytes: size of these files.
        model: what all model actors did.
        video_seconds: running time of the videos whose first unit is among these.
        listed_bytes: size of those videos.
    """

    units: int = 0
    clips: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    fetch: FetchEffort = field(default_factory=FetchEffort)
    decode_seconds: float = 0.0
    codec_seconds: float = 0.0
    decode_wall_seconds: float = 0.0
    decode_wait_seconds: float = 0.0
    write_seconds: float = 0.0
    write_wait_seconds: float = 0.0
    written_bytes: int = 0
    model: ModelEffort = field(default_factory=ModelEffort)
    video_seconds: float = 0.0
    listed_bytes: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            units=self.units + other.units,
            clips=self.clips + other.clips,
            failures=dict(Counter(self.failures) + Counter(other.failures)),
            fetch=self.fetch + other.fetch,
            decode_seconds=self.decode_seconds + other.decode_seconds,
            codec_seconds=self.codec_seconds + other.codec_seconds,
            decode_wall_seconds=self.decode_wall_seconds + other.decode_wall_seconds,
            decode_wait_seconds=self.decode_wait_seconds + other.decode_wait_seconds,
            write_seconds=self.write_seconds + other.write_seconds,
            write_wait_seconds=self.write_wait_seconds + other.write_wait_seconds,
            written_bytes=self.written_bytes + other.written_bytes,
            model=self.model + other.model,
            video_seconds=self.video_seconds + other.video_seconds,
            listed_bytes=self.listed_bytes + other.listed_bytes,
        )


@dataclass(frozen=True, slots=True)
class LeaseAwaited:
    """What is to be written is held by a run that gives no sign of life; sent now and then.

    Attributes:
        part: what is held, such as "shard 1/1".
        run_id: of the run that holds it.
        host: on which that run works, or worked.
        since: when that run took it, by the clock of its machine; empty where it is not told.
        left_seconds: until it counts as dead and is taken over.
    """

    part: str
    run_id: str
    host: str
    since: str
    left_seconds: float


@dataclass(frozen=True, slots=True)
class JobPlanned:
    """The manifest is listed and compared with the index.

    Attributes:
        run_id: of this run.
        tag: the model's short name in the index.
        listed_videos: videos in the inputs.
        skipped_videos: of these, the ones whose outcome the index already has.
        todo_videos: videos of this run.
        todo_bytes: their size.
    """

    run_id: str
    tag: str
    listed_videos: int
    skipped_videos: int
    todo_videos: int
    todo_bytes: int


@dataclass(frozen=True, slots=True)
class ClusterReady:
    """Ray runs and the pools are sized.

    Attributes:
        cpus: of the cluster.
        gpus: of the cluster.
        decode_actors: decoding processes.
        model_actors: model processes.
        growing: both are the most that there may be, on a cluster that grows.
    """

    cpus: float
    gpus: float
    decode_actors: int
    model_actors: int
    growing: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of the running job; sent at least once a second.

    Attributes:
        videos_indexed: videos with all their units indexed.
        videos_failed: videos with all their units done and at least one failed.
        counts: sums so far.
        committed_units: units that are already in the index.
        elapsed_seconds: since the pipeline started.
        busy: share of their time in which the actors of each stage work, by stage.
        left_seconds: until the end, by what came out so far; None where nobody can say.
    """

    videos_indexed: int
    videos_failed: int
    counts: Counts
    committed_units: int
    elapsed_seconds: float
    busy: Mapping[str, float] = field(default_factory=dict)
    left_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class JobFinished:
    """The job ended, and how.

    Attributes:
        status: finished, interrupted or failed.
        report: the object written to `runs/<run_id>.json`.
    """

    status: str
    report: Mapping[str, object]


Event = LeaseAwaited | JobPlanned | ClusterReady | Progress | JobFinished


class Observer(Protocol):
    """Is told of a job's events, on the driver, in order."""

    def on_event(self, event: Event) -> None:
        """Takes note of an event; must return quickly and never raise."""


class Observers:
    """Several observers as one, each told in turn."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def on_event(self, event: Event) -> None:
        """Passes the event on."""
        for observer in self._observers:
            observer.on_event(event)
