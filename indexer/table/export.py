"""An index as plain files, for programs that know nothing of it.

Whatever a video or a label is called, it stays text: in spreadsheets, in shells and in subtitles.
"""

import csv
import json
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from indexer.errors import QueryError, StorageError
from indexer.table.query import LabelIndex
from indexer.table.read import read, rows_in_batches
from indexer.table.schema import CLIPS, EMBEDDINGS, INDEXED, LABELS, PARTITION, TABLES, VIDEOS

_BATCH_ROWS: Final = 32 * 1024
_FILE_ROWS: Final = 1024 * 1024
_TEXT_TABLES: Final = (CLIPS.name, LABELS.name, VIDEOS.name)
_FORMULA: Final = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""What makes a cell a formula, in full width too: OWASP, CSV Injection."""

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")
_NAME_CHARS: Final = 80
_FRAME_SLACK: Final = 0.1
"""Of a frame: segments are told in milliseconds, which are no whole frames."""

Row = Mapping[str, Any]


def export(index: LabelIndex, folder: Path, kind: str, *, min_score: float = 0.5) -> list[Path]:
    """Writes an index, as it was when it was opened, as plain files.

    Args:
        index: which one.
        folder: new or empty; it is made.
        kind: one of `KINDS`.
        min_score: of the segments, where the kind has segments.

    Returns:
        The files that were written.

    Raises:
        QueryError: there is no such kind, or the folder holds something.
        StorageError: the index cannot be read, or the folder not be written.
    """
    if kind not in KINDS:
        message = f"format {kind!r}: should be one of {', '.join(KINDS)}"
        raise QueryError(message)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            message = f"{folder} is not empty; give a new folder"
            raise QueryError(message)
        return KINDS[kind](index, folder, min_score)
    except OSError as error:
        message = f"{folder} cannot be written: {error.strerror or error}"
        raise StorageError(message) from error


def _parquet(index: LabelIndex, folder: Path, _: float) -> list[Path]:
    """Each table as hive-partitioned files, every row once."""
    return [
        path
        for name in TABLES
        for path in _write_parquet(index.rows(name), folder / name / f"{PARTITION}={index.tag}")
    ]


def _nemo(index: LabelIndex, folder: Path, _: float) -> list[Path]:
    """`id` and `embedding` alone, as NeMo Curator's semantic deduplication reads them."""
    columns = {"id": ds.field("clip_id"), "embedding": ds.field("embedding")}
    rows = index.rows(EMBEDDINGS.name)
    schema = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float32()))])
    batches = rows.scanner(columns=columns, batch_size=_BATCH_ROWS).to_batches()
    return _write_batches((batch.cast(schema) for batch in batches), schema, folder)


def _write_parquet(rows: ds.Dataset, folder: Path) -> list[Path]:
    names = [name for name in rows.schema.names if name != PARTITION]
    schema = pa.schema([rows.schema.field(name) for name in names])
    return _write_batches(rows_in_batches(rows, names, _BATCH_ROWS), schema, folder)


def _write_batches(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, folder: Path
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    writer: pq.ParquetWriter | None = None
    written = 0
    for batch in batches:
        if writer is None or written >= _FILE_ROWS:
            if writer is not None:
                writer.close()
            paths.append(folder / f"part-{len(paths):05}.parquet")
            writer, written = pq.ParquetWriter(paths[-1], schema, compression="zstd"), 0
        writer.write_batch(batch)
        written += batch.num_rows
    if writer is not None:
        writer.close()
    return paths


def _csv(index: LabelIndex, folder: Path, min_score: float) -> list[Path]:
    """Clips, postings, videos and segments; lists are JSON, and no cell is a formula."""

    def write(path: Path, names: list[str], rows: Iterator[Row]) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            writer.writerows([_cell(row[name]) for name in names] for row in rows)

    return _write_text(index, folder, min_score, ".csv", write)


def _jsonl(index: LabelIndex, folder: Path, min_score: float) -> list[Path]:
    """The same, a JSON object a line."""

    def write(path: Path, _: list[str], rows: Iterator[Row]) -> None:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, default=str, ensure_ascii=False) + "\n" for row in rows)

    return _write_text(index, folder, min_score, ".jsonl", write)


def _write_text(
    index: LabelIndex,
    folder: Path,
    min_score: float,
    suffix: str,
    write: Callable[[Path, list[str], Iterator[Row]], None],
) -> list[Path]:
    paths = []
    for name in _TEXT_TABLES:
        rows = index.rows(name)
        names = [column for column in rows.schema.names if column != PARTITION]
        batches = rows_in_batches(rows, names, _BATCH_ROWS)
        paths.append(folder / f"{name}{suffix}")
        write(paths[-1], names, (row for batch in batches for row in batch.to_pylist()))
    segments = index.segments(min_score=min_score)
    paths.append(folder / f"segments{suffix}")
    write(paths[-1], segments.column_names, iter(segments.to_pylist()))
    return paths


def _cuts(index: LabelIndex, folder: Path, min_score: float) -> list[Path]:
    """A shell script that cuts every segment out of its video with ffmpeg, without encoding."""
    lines = ["#!/bin/sh", "# usage: sh cuts.sh [FOLDER]", "set -eu", 'out="${1:-cuts}"']
    lines.append('mkdir -p "$out"')
    for number, segment in enumerate(index.segments(min_score=min_score).to_pylist()):
        source = segment["uri"]
        suffix = Path(source).suffix if not _UNSAFE.search(Path(source).suffix) else ".mkv"
        name = f"{number:05}_{_file_name(segment['label'])}_{_stem(source)}{suffix or '.mkv'}"
        start, end = segment["start_ms"] / 1000, segment["end_ms"] / 1000
        # a path that begins with a dash would be an option, and one with a colon a protocol
        given = source if "://" in source else f"file:{source}"
        lines.append(
            f"ffmpeg -nostdin -v error -ss {start:.3f} -to {end:.3f} -i {shlex.quote(given)}"
            f' -c copy "$out"/{shlex.quote(name)}'
        )
    path = folder / "cuts.sh"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
    return [path]


def _webvtt(index: LabelIndex, folder: Path, min_score: float) -> list[Path]:
    """A file of chapters for each video, which players show beside it."""
    segments = index.segments(min_score=min_score).to_pylist()
    paths = []
    for number, (uri, group) in enumerate(groupby(segments, key=lambda s: s["uri"])):
        lines = ["WEBVTT", ""]
        for segment in group:
            times = f"{_clock(segment['start_ms'])} --> {_clock(segment['end_ms'])}"
            lines += [times, _cue(segment["label"]), ""]
        paths.append(folder / f"{number:05}_{_stem(uri)}.vtt")
        paths[-1].write_text("\n".join(lines), encoding="utf-8")
    return paths


def _fiftyone(index: LabelIndex, folder: Path, min_score: float) -> list[Path]:
    """A `FiftyOneTemporalDetectionDataset`: one sample for each indexed video, its segments in it.

    A stretch is told in frames (from 1, the last included), as FiftyOne keeps it, by the video's
    average frame rate; in seconds where that is not known, which FiftyOne turns into frames by
    itself when it can open the video. The exact times are attributes.
    """
    columns = ["video_id", "uri", "fps"]
    videos = read(index.rows(VIDEOS.name), columns, ds.field("status") == INDEXED).to_pylist()
    detections: dict[str, list[dict[str, Any]]] = {video["uri"]: [] for video in videos}
    rates = {video["uri"]: video["fps"] for video in videos}
    for segment in index.segments(min_score=min_score).to_pylist():
        uri = segment["uri"]
        if uri in detections:  # a unit may have been committed since the outcomes were read
            detections[uri].append(_detection(segment, rates[uri]))
    ids = {video["uri"]: video["video_id"] for video in videos}
    content = {
        "data.json": {ids[uri]: uri for uri in detections},
        "labels.json": {
            "classes": list(index.vocabulary),
            "labels": {ids[uri]: found for uri, found in detections.items()},
        },
    }
    for name, value in content.items():
        (folder / name).write_text(json.dumps(value, indent=1), encoding="utf-8")
    return [folder / name for name in content]


def _detection(segment: Row, fps: float | None) -> dict[str, Any]:
    start, end = segment["start_ms"] / 1000, segment["end_ms"] / 1000
    detection = {
        "label": segment["label"],
        "confidence": segment["peak_score"],
        "attributes": {name: segment[name] for name in ("start_ms", "end_ms", "mean_score")},
    }
    if not fps:
        return detection | {"timestamps": [start, end]}
    first = 1 + math.ceil(start * fps - _FRAME_SLACK)
    return detection | {"support": [first, max(first, math.ceil(end * fps - _FRAME_SLACK))]}


KINDS: Final[Mapping[str, Callable[[LabelIndex, Path, float], list[Path]]]] = {
    "parquet": _parquet,
    "csv": _csv,
    "jsonl": _jsonl,
    "cuts": _cuts,
    "webvtt": _webvtt,
    "nemo": _nemo,
    "fiftyone": _fiftyone,
}
"""What an index can be written as."""


def _cell(value: object) -> object:
    if isinstance(value, list):
        return json.dumps(value, default=str, ensure_ascii=False)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _stem(uri: str) -> str:
    return _file_name(Path(unquote(uri)).stem)


def _file_name(text: str) -> str:
    return _UNSAFE.sub("-", text)[:_NAME_CHARS].strip("-.") or "video"


def _clock(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest:03}"


def _cue(label: str) -> str:
    """One line of text; an arrow or a tag in it would be markup."""
    text = " ".join(label.split()) or repr(label)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
