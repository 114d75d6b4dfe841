"""One model's part of an index at one moment: its names, its tables, their rows."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from deltalake import DeltaTable

from indexer.errors import QueryError
from indexer.table import catalog
from indexer.table.paths import IndexPaths
from indexer.table.read import model_rows
from indexer.table.snapshot import Snapshot

if TYPE_CHECKING:
    import pyarrow.dataset as ds


class OpenedIndex:
    """One model's part of an index, as it was when it was opened.

    Attributes:
        uri: of the index.
        tag: of the model.
        vocabulary: the labels that the model knows, by label id.
    """

    def __init__(
        self, paths: IndexPaths, model: catalog.RegisteredModel, tables: Mapping[str, DeltaTable]
    ) -> None:
        self.uri = paths.root_uri
        self.tag = model.tag
        self.vocabulary = model.labels
        self._paths = paths
        self._tables = tables
        self._rows: dict[str, ds.Dataset] = {}

    @classmethod
    def open(cls, uri: str, model: str | None = None) -> Self:
        """Opens an index for questions, as it is now.

        What the `videos` table calls indexed is in the other tables. The tables' logs are read by
        the questions that need them, at the versions of now: a question fails where compaction
        has meanwhile removed the files of that version.

        Args:
            uri: folder or URL of the index.
            model: a tag; by default the only one, else the newest.

        Raises:
            QueryError: there is no index, no such model, or nothing in it yet.
            StorageError: it cannot be read.
        """
        paths = IndexPaths(uri)
        with ThreadPoolExecutor() as pool:
            checked = pool.submit(catalog.check_index, paths)
            registered = pool.submit(catalog.chosen_model, paths, model)
            snapshot = pool.submit(Snapshot.take, paths)
            checked.result()
            found, tables = registered.result(), snapshot.result()
        if tables is None:
            message = f"the first run into the index {uri} has not begun to write; try again later"
            raise QueryError(message)
        return cls(paths, found, tables)

    def rows(self, table: str) -> "ds.Dataset":
        """All rows of `clips`, `embeddings`, `labels` or `videos`, to be read in pieces."""
        if table not in self._rows:
            self._rows[table] = model_rows(self._tables[table], self.tag)
        return self._rows[table]
