"""Promises between tables: every clip in every table, every unit with one outcome.

The keys of all rows are copied into a DuckDB file of a temporary folder, which joins them in
bounded memory and remembers of every row in which file it lies.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import duckdb
import pyarrow as pa

from indexer.table.findings import Finding
from indexer.table.schema import CLIPS, EMBEDDINGS, LABELS, VIDEOS, TableSpec

MEMORY_BYTES: Final = 512_000_000
"""What DuckDB may hold; what is more goes to the temporary folder."""

_TABLES: Final = """
    CREATE TABLE clips (
        file INTEGER, row BIGINT, clip_id VARCHAR, video_id VARCHAR, clip_index INTEGER,
        unit_index INTEGER);
    CREATE TABLE embeddings (
        file INTEGER, row BIGINT, clip_id VARCHAR, video_id VARCHAR, clip_index INTEGER);
    CREATE TABLE best (file INTEGER, row BIGINT, posting UBIGINT, content UBIGINT);
    CREATE TABLE labels (file INTEGER, row BIGINT, posting UBIGINT, content UBIGINT);
    CREATE TABLE videos (
        file INTEGER, row BIGINT, video_id VARCHAR, uri VARCHAR, content_key VARCHAR,
        unit_index INTEGER, units INTEGER, attempt INTEGER, indexed BOOLEAN, clips INTEGER);
    CREATE TABLE uris (video_id VARCHAR, uri VARCHAR);
    CREATE TABLE damaged (video_id VARCHAR);
    CREATE TABLE deleted (video_id VARCHAR);
"""

_INSERTS: Final = {
    CLIPS.name: """
        INSERT INTO clips
            SELECT $1, row, clip_id, video_id, clip_index, unit_index FROM rows;
        INSERT INTO best
            SELECT $1, row, hash(clip_id, rank),
                hash(label, score, uri, clip_index, start_seconds, end_seconds)
            FROM (
                SELECT *, unnest(top_labels) AS label, unnest(top_scores) AS score,
                    unnest(range(1, len(top_labels) + 1))::INTEGER AS rank
                FROM rows);
        INSERT INTO uris SELECT DISTINCT video_id, uri FROM rows;
    """,
    EMBEDDINGS.name: """
        INSERT INTO embeddings SELECT $1, row, clip_id, video_id, clip_index FROM rows;
    """,
    LABELS.name: """
        INSERT INTO labels
            SELECT $1, row, hash(clip_id, rank),
                hash(label, score, uri, clip_index, start_seconds, end_seconds)
            FROM rows;
    """,
    VIDEOS.name: """
        INSERT INTO videos
            SELECT $1, row, video_id, uri, content_key, unit_index, units, attempt,
                status = 'indexed', clips
            FROM rows;
        INSERT INTO uris SELECT DISTINCT video_id, uri FROM rows;
    """,
}


@dataclass(frozen=True, slots=True)
class _Check:
    """A query for the rows that break one promise: `file, row, video_id`."""

    table: TableSpec
    promise: str
    detail: str
    sql: str


def _twice(table: TableSpec, keys: str, detail: str, where: str = "true") -> _Check:
    """Rows whose key another row has too."""
    sql = f"""
        SELECT file, row, {"NULL" if table is LABELS else "video_id"} AS video_id
        FROM {table.name} SEMI JOIN (
            SELECT {keys} FROM {table.name} WHERE {where} GROUP BY ALL HAVING count(*) > 1
        ) USING ({keys}) WHERE {where}
    """  # noqa: S608 - the names are ours
    return _Check(table, "once", detail, sql)


def _deleted(table: TableSpec) -> _Check:
    """Rows of videos that were to be deleted."""
    sql = f"""
        SELECT file, row, NULL AS video_id FROM {table.name} SEMI JOIN deleted USING (video_id)
    """  # noqa: S608 - the names are ours
    detail = "the video is marked as deleted: finish that with `indexer delete`"
    return _Check(table, "deleted", detail, sql)


_CHECKS: Final = (
    *map(_deleted, (CLIPS, EMBEDDINGS, VIDEOS)),
    _twice(CLIPS, "clip_id", "the clip is there more than once"),
    _twice(EMBEDDINGS, "clip_id", "the clip's embedding is there more than once"),
    _twice(LABELS, "posting", "the posting is there more than once"),
    _twice(
        VIDEOS,
        "video_id, content_key, unit_index, attempt",
        "the attempt has more than one outcome",
    ),
    _twice(
        VIDEOS,
        "video_id, content_key, unit_index",
        "the unit was indexed more than once",
        "indexed",
    ),
    _Check(
        CLIPS,
        "embeddings",
        "the clip has no embedding",
        """SELECT file, row, video_id
        FROM clips ANTI JOIN embeddings USING (clip_id, video_id, clip_index)""",
    ),
    _Check(
        EMBEDDINGS,
        "embeddings",
        "the embedding belongs to no clip",
        """SELECT file, row, video_id
        FROM embeddings ANTI JOIN clips USING (clip_id, video_id, clip_index)""",
    ),
    _Check(
        CLIPS,
        "postings",
        "a top label of the clip has no posting",
        """SELECT DISTINCT file, row, NULL AS video_id
        FROM best ANTI JOIN labels USING (posting, content)""",
    ),
    _Check(
        LABELS,
        "postings",
        "the posting is no top label of its clip",
        """SELECT file, row, NULL AS video_id
        FROM labels ANTI JOIN best USING (posting, content)""",
    ),
    _Check(
        VIDEOS,
        "outcome",
        "the video has outcomes of more than one content",
        """SELECT file, row, video_id FROM videos SEMI JOIN (
            SELECT video_id FROM videos GROUP BY ALL
            HAVING min(content_key) <> max(content_key) OR min(uri) <> max(uri)
        ) USING (video_id)""",
    ),
    _Check(
        VIDEOS,
        "outcome",
        "the video's units do not agree how many they are",
        """SELECT file, row, video_id FROM videos SEMI JOIN (
            SELECT video_id FROM videos WHERE indexed GROUP BY ALL
            HAVING min(units) <> max(units)
        ) USING (video_id) WHERE indexed""",
    ),
    _Check(
        VIDEOS,
        "clip_count",
        "the unit has another number of clips",
        """SELECT file, row, video_id FROM videos LEFT JOIN (
            SELECT video_id, unit_index, count(*) AS found FROM clips GROUP BY ALL
        ) USING (video_id, unit_index)
        WHERE indexed AND clips <> coalesce(found, 0)""",
    ),
    _Check(
        CLIPS,
        "outcome",
        "the clip's unit has no outcome that says indexed",
        """SELECT file, row, video_id FROM clips ANTI JOIN (
            SELECT video_id, unit_index FROM videos WHERE indexed
        ) USING (video_id, unit_index)""",
    ),
)

_DAMAGED_URIS: Final = """
    SELECT DISTINCT coalesce(uri, 'video_id ' || video_id) AS uri
    FROM (SELECT DISTINCT video_id FROM damaged) LEFT JOIN uris USING (video_id) ORDER BY uri
"""


@dataclass
class CrossChecks(AbstractContextManager["CrossChecks"]):
    """Collects the keys of one model's rows, then compares them.

    Attributes:
        files: (table, path) of the files whose rows were added, by the number in the database.
    """

    files: list[tuple[str, str]] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Makes the temporary database."""
        self._folder = tempfile.TemporaryDirectory(prefix="indexer-verify-")
        database = Path(self._folder.name) / "keys.duckdb"
        self._connection = duckdb.connect(
            str(database),
            config={
                "memory_limit": f"{MEMORY_BYTES}B",
                "temp_directory": str(Path(self._folder.name) / "spill"),
                "preserve_insertion_order": "false",
                "threads": "2",
            },
        )
        self._connection.execute(_TABLES)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Removes it."""
        self._connection.close()
        self._folder.cleanup()

    def begin_file(self, spec: TableSpec, path: str) -> None:
        """The rows that are added from now on lie in this file."""
        self.files.append((spec.name, path))

    def add(self, spec: TableSpec, rows: pa.Table, first_row: int) -> None:
        """Takes the keys of some rows of the file that was begun last."""
        numbered = rows.append_column("row", pa.array(range(first_row, first_row + rows.num_rows)))
        self._connection.register("rows", numbered)
        for statement in _INSERTS[spec.name].split(";"):
            if statement.strip():
                self._connection.execute(statement, [len(self.files) - 1][: "$1" in statement])
        self._connection.unregister("rows")

    def mark_deleted(self, video_ids: Iterable[str]) -> None:
        """Of these videos there must be no rows."""
        marked = pa.table({"video_id": pa.array(sorted(video_ids), pa.string())})
        self._connection.register("marked", marked)
        self._connection.execute("INSERT INTO deleted SELECT video_id FROM marked")

    def findings(self) -> Iterator[Finding]:
        """Every row that breaks a promise between tables."""
        for check in _CHECKS:
            self._connection.execute(f"CREATE OR REPLACE TEMP TABLE broken AS {check.sql}")
            self._connection.execute(
                "INSERT INTO damaged SELECT DISTINCT video_id FROM broken"
                " WHERE video_id IS NOT NULL"
            )
            answer = self._connection.execute("SELECT file, row FROM broken ORDER BY file, row")
            while batch := answer.fetchmany(1024):
                for file, row in batch:
                    table, path = self.files[file]
                    yield Finding(table, path, row, check.promise, check.detail)

    def damaged_uris(self) -> tuple[str, ...]:
        """Videos that only indexing anew can make whole; after `findings` has come to its end."""
        rows = self._connection.execute(_DAMAGED_URIS).fetchall()
        return tuple(uri for (uri,) in rows)
