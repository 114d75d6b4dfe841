"""Stored embeddings of clips whose label is known: a list of stretches of video, and an index.

Axes: N clips, D the model's hidden size.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from indexer import storage
from indexer.errors import ConfigError, ManifestError
from indexer.table.delta import open_table
from indexer.table.paths import IndexPaths
from indexer.table.read import model_rows, read
from indexer.table.schema import CLIPS, EMBEDDINGS

SHARE: Final = 0.5
"""A stretch labels a clip of which at least this share lies within it."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A line of the list.

    Attributes:
        uri: of the video, in its canonical spelling.
        start_seconds: of the stretch.
        end_seconds: of the stretch, exclusive; infinite where the whole video is meant.
        label: what it shows.
    """

    uri: str
    start_seconds: float
    end_seconds: float
    label: str

    def covers(self, start_seconds: float, end_seconds: float) -> bool:
        """Whether enough of a clip lies within the stretch."""
        within = min(end_seconds, self.end_seconds) - max(start_seconds, self.start_seconds)
        return within >= SHARE * (end_seconds - start_seconds)


@dataclass(frozen=True, slots=True)
class LabelledClips:
    """Clips with their labels, by video and clip.

    Attributes:
        video_ids: of each clip's video.
        labels: of each clip.
        embeddings_ND: float32.
        unused: lines of the list that no indexed clip lies in.
    """

    video_ids: tuple[str, ...]
    labels: tuple[str, ...]
    embeddings_ND: npt.NDArray[np.float32]
    unused: tuple[Stretch, ...]


def read_stretches(uri: str, label_column: str = "label") -> list[Stretch]:
    """Reads a CSV list: `uri`, a label, and optionally `start_seconds` and `end_seconds`.

    Raises:
        ManifestError: it is missing, or a line of it is malformed.
    """
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        message = f"{storage.redact(uri)} is no readable CSV file: {error}"
        raise ManifestError(message) from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [name for name in ("uri", label_column) if name not in (reader.fieldnames or ())]
    if missing:
        message = f"{storage.redact(uri)} has no column {missing[0]!r}; it has {reader.fieldnames}"
        raise ManifestError(message)
    return [_stretch(f"{uri}, row {number}", line, label_column) for number, line in _rows(reader)]


def _rows(reader: "csv.DictReader[str]") -> Iterator[tuple[int, dict[str, str]]]:
    yield from enumerate(reader, 1)


def _stretch(place: str, line: Mapping[str, str], label_column: str) -> Stretch:
    try:
        start = float(line.get("start_seconds") or 0.0)
        end = float(line.get("end_seconds") or inf)
        uri = storage.absolute_uri((line["uri"] or "").strip())
    except (ValueError, ConfigError) as error:
        message = f"{place}: {error}"
        raise ManifestError(message) from error
    label = (line[label_column] or "").strip()
    if not label or not isfinite(start) or not 0 <= start < end:
        message = f"{place}: should have a label, and a stretch that ends after it starts: {line}"
        raise ManifestError(message)
    return Stretch(uri, start, end, label)


def labelled_clips(paths: IndexPaths, tag: str, stretches: Sequence[Stretch]) -> LabelledClips:
    """The clips of an index that lie in labelled stretches.

    Holds the embeddings of all clips of the listed videos.

    Raises:
        ManifestError: two stretches give one clip different labels, or no clip has a label.
        StorageError: the index cannot be read.
    """
    clips, vectors = _read(paths, tag, sorted({stretch.uri for stretch in stretches}))
    by_uri: dict[str, list[Stretch]] = {}
    for stretch in stretches:
        by_uri.setdefault(stretch.uri, []).append(stretch)
    used: set[Stretch] = set()
    rows: list[tuple[str, str, str]] = []
    for clip in clips.to_pylist():
        times = clip["start_seconds"], clip["end_seconds"]
        covering = [s for s in by_uri[clip["uri"]] if s.covers(*times)]
        used.update(covering)
        labels = sorted({stretch.label for stretch in covering})
        if len(labels) > 1:
            message = f"{clip['uri']} at {times[0]:.2f} s is both {labels[0]!r} and {labels[1]!r}"
            raise ManifestError(message)
        if labels:
            rows.append((clip["clip_id"], clip["video_id"], labels[0]))
    if not rows:
        message = f"no clip of {tag} lies in a listed stretch; are the uris those of `videos`?"
        raise ManifestError(message)
    ids, video_ids, names = zip(*rows, strict=True)
    found = vectors.take(pc.index_in(pa.array(ids), vectors["clip_id"].combine_chunks()))
    width = pc.list_value_length(found["embedding"])[0].as_py()
    embeddings_ND = pc.list_flatten(found["embedding"]).to_numpy().reshape(-1, width)
    unused = tuple(stretch for stretch in stretches if stretch not in used)
    return LabelledClips(video_ids, names, embeddings_ND, unused)


def _read(paths: IndexPaths, tag: str, uris: Sequence[str]) -> tuple[pa.Table, pa.Table]:
    """Clips of the videos by uri and clip, and all embeddings of theirs."""
    tables = open_table(paths, CLIPS), open_table(paths, EMBEDDINGS)
    if tables[0] is None or tables[1] is None:
        return CLIPS.schema.empty_table(), EMBEDDINGS.schema.empty_table()
    columns = ["clip_id", "video_id", "uri", "clip_index", "start_seconds", "end_seconds"]
    wanted = pc.field("uri").isin(pa.array(uris, pa.string()))
    clips = read(model_rows(tables[0], tag), columns, wanted)
    clips = clips.sort_by([("uri", "ascending"), ("clip_index", "ascending")])
    owners = pc.field("video_id").isin(pc.unique(clips["video_id"]))
    return clips, read(model_rows(tables[1], tag), ["clip_id", "embedding"], owners)
