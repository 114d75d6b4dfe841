"""Questions to an index, answered as Arrow tables; no Ray, no model.

Reads follow the Delta log: an open index is a snapshot, and a run that goes on changes nothing of
what it answers.
"""

import difflib
from collections import Counter
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable

from indexer.config import fingerprint_digest
from indexer.errors import QueryError
from indexer.table import catalog
from indexer.table.delta import live_files, open_table
from indexer.table.paths import IndexPaths
from indexer.table.read import ask, model_rows, read
from indexer.table.resume import UNIT_OUTCOMES
from indexer.table.schema import LABELS, TABLES, VIDEOS

_SUGGESTIONS: Final = 5

HITS: Final = pa.schema(
    [
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("rank", pa.int32()),
        pa.field("uri", pa.string()),
        pa.field("start_seconds", pa.float64()),
        pa.field("end_seconds", pa.float64()),
        pa.field("clip_index", pa.int32()),
        pa.field("clip_id", pa.string()),
    ]
)
LABEL_COUNTS: Final = pa.schema(
    [
        pa.field("label", pa.string()),
        pa.field("clips", pa.int64()),
        pa.field("videos", pa.int64()),
        pa.field("best_score", pa.float32()),
        pa.field("mean_score", pa.float64()),
    ]
)
VIDEO_STATES: Final = pa.schema(
    [
        pa.field("uri", pa.string()),
        pa.field("status", pa.string()),
        pa.field("units", pa.int32()),
        pa.field("units_indexed", pa.int32()),
        pa.field("clips", pa.int64()),
        pa.field("attempts", pa.int32()),
        pa.field("error_code", pa.string()),
        *(VIDEOS.schema.field(name).with_nullable(True) for name in (
            "duration_seconds", "width", "height", "codec", "fps", "rotation", "size_bytes",
            "warnings", "extra", "video_id", "finished_at",
        )),
    ]
)  # fmt: skip
ERRORS: Final = pa.schema(
    [
        VIDEOS.schema.field(name).with_nullable(True)
        for name in (
            "uri", "error_code", "error_message", "attempt", "unit_index", "units",
            "decode_seconds", "fetch_seconds", "worker", "run_id", "finished_at", "video_id",
        )
    ]
)  # fmt: skip

_HITS_SQL: Final = """
    SELECT label, score, rank, uri, start_seconds, end_seconds, clip_index, clip_id
    FROM hits
    WHERE $1 IS NULL OR uri = $1 OR uri GLOB $1
    ORDER BY score DESC, uri, clip_index, rank
    LIMIT $2
"""
_LABELS_SQL: Final = """
    SELECT
        label, count(*) AS clips, count(DISTINCT uri) AS videos,
        max(score) AS best_score, avg(score::DOUBLE) AS mean_score
    FROM labels GROUP BY label ORDER BY clips DESC, label
"""
_VIDEOS_SQL: Final = (
    UNIT_OUTCOMES
    + """
    SELECT
        any_value(uri) AS uri,
        CASE
            WHEN count(*) FILTER (status = 'indexed') = max(units) THEN 'indexed'
            WHEN bool_or(status = 'failed') THEN 'failed'
            ELSE 'incomplete'
        END AS status,
        max(units) AS units,
        count(*) FILTER (status = 'indexed') AS units_indexed,
        sum(clips) AS clips,
        max(attempt) AS attempts,
        max({'attempt': attempt, 'code': error_code}) FILTER (status = 'failed').code AS error_code,
        max(duration_seconds) AS duration_seconds,
        any_value(width) AS width, any_value(height) AS height, any_value(codec) AS codec,
        any_value(fps) AS fps, any_value(rotation) AS rotation,
        any_value(size_bytes) AS size_bytes,
        list_sort(list_distinct(flatten(list(warnings)))) AS warnings,
        any_value(extra) AS extra, video_id, max(finished_at) AS finished_at
    FROM outcomes GROUP BY video_id ORDER BY uri, video_id
"""
)
_ERRORS_SQL: Final = (
    UNIT_OUTCOMES
    + """
    SELECT
        uri, error_code, error_message, attempt, unit_index, units, decode_seconds, fetch_seconds,
        worker, run_id, finished_at, video_id
    FROM outcomes
    WHERE status = 'failed' AND ($1 IS NULL OR error_code = $1)
    ORDER BY error_code, uri, unit_index
"""
)


class LabelIndex:
    """One model's part of an index, as it was when it was opened.

    Attributes:
        uri: of the index.
        tag: of the model.
        vocabulary: the labels that the model knows, by label id.
    """

    def __init__(
        self, paths: IndexPaths, model: catalog.RegisteredModel, tables: dict[str, DeltaTable]
    ) -> None:
        self.uri = paths.root_uri
        self.tag = model.tag
        self.vocabulary = model.labels
        self._paths = paths
        self._tables = tables

    @classmethod
    def open(cls, uri: str, model: str | None = None) -> Self:
        """Opens an index for questions.

        Args:
            uri: folder or URL of the index.
            model: a tag; by default the only one, else the newest.

        Raises:
            QueryError: there is no index, no such model, or nothing in it yet.
            StorageError: it cannot be read.
        """
        paths = IndexPaths(uri)
        catalog.check_index(paths)
        tags = catalog.model_tags(paths)
        if not tags:
            message = f"the index {uri} is empty; fill it with: indexer run VIDEOS --index {uri}"
            raise QueryError(message)
        registered = catalog.read_model(paths, model or tags[-1])
        # outcomes first: whatever they call indexed is then in the snapshots of the other tables
        snapshots = {name: open_table(paths, TABLES[name]) for name in reversed(TABLES)}
        tables = {name: table for name, table in snapshots.items() if table is not None}
        if len(tables) < len(TABLES):
            message = f"the first run into the index {uri} has not begun to write; try again later"
            raise QueryError(message)
        return cls(paths, registered, tables)

    def search(
        self,
        label: str,
        *,
        min_score: float = 0.0,
        top: int | None = 20,
        video: str | None = None,
        before: float | None = None,
        after: float | None = None,
    ) -> pa.Table:
        """Clips with a label, the best first.

        Args:
            label: its name; upper and lower case matter only where they tell labels apart.
            min_score: lowest probability, 0 to 1.
            top: at most this many clips; None for all.
            video: a uri, or a glob over uris: `*`, `?` and `[...]`, where `*` also matches `/`.
            before: only clips that end at or before this many seconds.
            after: only clips that start at or after this many seconds.

        Returns:
            Columns `HITS`; equal scores by uri and clip. No rows where no clip has the label.

        Raises:
            QueryError: the model has no such label, or an argument is impossible.
            StorageError: the index cannot be read.
        """
        _check_search(min_score, top)
        name = self._resolve(label)
        rows = model_rows(self._tables[LABELS.name], self.tag, ("label", "=", name))
        wanted = (pc.field("label") == name) & (
            pc.field("score") >= pa.scalar(min_score, pa.float32())
        )
        if after is not None:
            wanted &= pc.field("start_seconds") >= float(after)
        if before is not None:
            wanted &= pc.field("end_seconds") <= float(before)
        hits = read(rows, HITS.names, wanted)
        return ask(_HITS_SQL, HITS, video, top, hits=hits)

    def labels(self) -> pa.Table:
        """Labels that some clip has, the most frequent first; columns `LABEL_COUNTS`."""
        return ask(_LABELS_SQL, LABEL_COUNTS, labels=self._rows(LABELS.name))

    def videos(self) -> pa.Table:
        """One row for each video, by uri; columns `VIDEO_STATES`.

        `status` is `indexed` where all units are, `failed` where a unit's latest attempt failed,
        `incomplete` where units have had no outcome yet.
        """
        return ask(_VIDEOS_SQL, VIDEO_STATES, videos=self._rows(VIDEOS.name))

    def errors(self, code: str | None = None) -> pa.Table:
        """Units whose latest attempt failed, by code and uri; columns `ERRORS`.

        Args:
            code: only this error code.
        """
        return ask(_ERRORS_SQL, ERRORS, code, videos=self._rows(VIDEOS.name))

    def status(self) -> dict[str, Any]:
        """What the index holds, as a JSON object."""
        videos = self.videos()
        indexed = videos.filter(pc.field("status") == "indexed")
        seconds = pc.sum(indexed["duration_seconds"]).as_py() or 0.0
        return {
            "index": self.uri,
            "model": self.tag,
            "videos": {
                status: pc.sum(pc.equal(videos["status"], status)).as_py() or 0
                for status in ("indexed", "failed", "incomplete")
            },
            "clips": pc.sum(videos["clips"]).as_py() or 0,
            "hours": seconds / 3600,
            "errors": dict(sorted(Counter(self.errors()["error_code"].to_pylist()).items())),
            "tables": {name: self._size(name) for name in TABLES},
            "models": [_summary(model) for model in catalog.models(self._paths)],
            "runs": list(catalog.read_run_reports(self._paths)),
        }

    def _rows(self, table: str) -> ds.Dataset:
        return model_rows(self._tables[table], self.tag)

    def _size(self, table: str) -> dict[str, int]:
        files = live_files(self._tables[table], self.tag)
        return {
            "files": len(files),
            "bytes": sum(file.size_bytes for file in files),
            "rows": sum(file.rows for file in files),
        }

    def _resolve(self, label: str) -> str:
        """The model's own spelling of a label."""
        if label in self.vocabulary:
            return label
        folded = label.strip().casefold()
        same = sorted({name for name in self.vocabulary if name.casefold() == folded})
        if len(same) == 1:
            return same[0]
        near = same or _near(folded, self.vocabulary)
        hint = (
            f"did you mean {', '.join(map(repr, near))}?"
            if near
            else f"list what there is with: indexer labels {self.uri}"
        )
        message = f"the model {self.tag} has no label {label!r}; {hint}"
        raise QueryError(message)


def _check_search(min_score: float, top: int | None) -> None:
    if not 0.0 <= min_score <= 1.0:
        message = f"min_score = {min_score} is no probability; give 0 to 1"
        raise QueryError(message)
    if top is not None and top < 1:
        message = f"top = {top} asks for no clip; give 1 or more"
        raise QueryError(message)


def _near(folded: str, vocabulary: tuple[str, ...]) -> list[str]:
    """Labels that are spelled alike, then those that share a word."""
    names = {name.casefold(): name for name in sorted(vocabulary, reverse=True)}
    alike = difflib.get_close_matches(folded, names, n=_SUGGESTIONS)
    words = [word for word in folded.split() if len(word) > 2]  # noqa: PLR2004 - not "a", "of"
    sharing = [name for name in sorted(names) if any(word in name for word in words)]
    return [names[name] for name in dict.fromkeys(alike + sharing)][:_SUGGESTIONS]


def _summary(model: catalog.RegisteredModel) -> dict[str, Any]:
    facts = model.fingerprint.get("model", {})
    return {
        "tag": model.tag,
        "created_at": model.created_at,
        "id": facts.get("id"),
        "revision": facts.get("revision"),
        "sampling": model.fingerprint.get("sampling", {}).get("mode"),
        "labels": len(model.labels),
        "fingerprint": fingerprint_digest(model.fingerprint)[:12],
    }
