"""The videos of an index by what users call them: a uri, the end of one, or a glob."""

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from indexer.errors import QueryError
from indexer.table.answers import CHOSEN_VIDEOS, VIDEOS_LIKE_SQL
from indexer.table.globs import glob_pattern
from indexer.table.read import ask, read

if TYPE_CHECKING:
    import pyarrow.dataset as ds

_NEAR_VIDEOS: Final = 3
_ALL_URIS: Final = "SELECT uri FROM videos"


class NamedVideos:
    """The videos of one model in a snapshot.

    Args:
        rows: of `videos`.
        index_uri: of the index, for messages.
    """

    def __init__(self, rows: "ds.Dataset", index_uri: str) -> None:
        self.rows = rows
        self.index_uri = index_uri

    def has(self, name: str) -> bool:
        """Whether a video has this uri, or one that ends with it."""
        return bool(_called(name, self._uris()))

    def uri(self, name: str) -> str:
        """The uri of the one video that has it or ends with it.

        Raises:
            QueryError: no video, or several, are called so.
        """
        uris = self._uris()
        found = _called(name, uris)
        if len(found) != 1:
            near = (found or _near(name, uris))[:_NEAR_VIDEOS]
            hint = (
                f"did you mean {', '.join(near)}?"
                if near
                else f"list them with: indexer sql {self.index_uri} '{_ALL_URIS}'"
            )
            message = f"{len(found) or 'no'} videos of {self.index_uri} are called {name!r}; {hint}"
            raise QueryError(message)
        return found[0]

    def ids(self, glob: str | None, source: str | None = None) -> pa.ChunkedArray | None:
        """The ids of the videos that are meant; None where that is all of them.

        Args:
            glob: a uri, or a glob over uris.
            source: what the uris begin with.
        """
        if glob is None and source is None:
            return None
        pattern = glob_pattern(glob or "")
        found = ask(VIDEOS_LIKE_SQL, CHOSEN_VIDEOS, glob, source, pattern, videos=self.rows)
        return found["video_id"]

    def uris(self, video_ids: pa.Array) -> pa.Array:
        """The uris of some videos, in no order."""
        is_meant = pc.field("video_id").isin(video_ids)
        return read(self.rows, ["uri"], is_meant)["uri"].combine_chunks()

    def _uris(self) -> list[str]:
        known = read(self.rows, ["uri"], pc.field("uri").is_valid())
        return sorted(pc.unique(known["uri"]).to_pylist())


def _near(name: str, uris: Sequence[str]) -> list[str]:
    """The uris that hold the name, else those that are spelled like it."""
    holding = [uri for uri in uris if name and name.casefold() in uri.casefold()]
    return holding or difflib.get_close_matches(name, uris, n=_NEAR_VIDEOS)


def _called(name: str, uris: Sequence[str]) -> list[str]:
    return [name] if name in uris else [uri for uri in uris if uri.endswith(name)]
