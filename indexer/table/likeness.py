"""Which clips look like one: from what a user calls a clip to the places of those like it."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from indexer.errors import QueryError
from indexer.table.answers import PLACES, SHOWN_SQL, SIMILAR, SIMILAR_SQL
from indexer.table.named_videos import NamedVideos
from indexer.table.neighbours import Neighbours
from indexer.table.read import ask, read
from indexer.table.similar import Choice


class Likeness:
    """The clips of one model in a snapshot, open for comparison.

    Args:
        clips: rows of `clips`.
        neighbours: their embeddings.
        videos: their videos.
    """

    def __init__(self, clips: ds.Dataset, neighbours: Neighbours, videos: NamedVideos) -> None:
        self.neighbours = neighbours
        self._clips, self._videos = clips, videos

    def clip(self, name: str) -> tuple[str, str]:
        """The ids of a clip, and of its video.

        Args:
            name: a clip id, or `URI@SECONDS`.

        Raises:
            QueryError: there is no such clip.
        """
        if "@" not in name and (video_id := self.neighbours.video_id(name)):
            return name, video_id
        clips = self._shown(name) if "@" in name else self._places(pc.field("clip_id") == name)
        if clips.num_rows != 1:
            message = (
                f"{self._videos.index_uri} has no clip {name!r}; give a clip id or URI@SECONDS"
            )
            raise QueryError(message)
        return clips["clip_id"][0].as_py(), clips["video_id"][0].as_py()

    def nearest(self, embedding: npt.ArrayLike, choice: Choice) -> pa.Table:
        """The clips nearest to an embedding, with their places; columns `SIMILAR`.

        Raises:
            QueryError: an approximate answer is asked for, and there are no inverted lists.
        """
        if choice.approximate and not self.neighbours.have_lists:
            index = self._videos.index_uri
            message = f"{index} has no inverted lists; `indexer compact --ivf {index}` makes them"
            raise QueryError(message)
        (found,) = self.neighbours.of(np.asarray(embedding)[None], choice)
        uris = self._videos.uris(found["video_id"].combine_chunks())
        is_clip = pc.field("clip_id").isin(found["clip_id"].combine_chunks())
        places = self._places(pc.field("uri").isin(uris) & is_clip)
        return ask(SIMILAR_SQL, SIMILAR, found=found, places=places)

    def _shown(self, moment: str) -> pa.Table:
        """The clip that shows a moment of a video; of several, the one around it."""
        uri, _, text = moment.rpartition("@")
        try:
            seconds = float(text)
        except ValueError as error:
            message = f"{moment!r}: behind the last @ there should be seconds, not {text!r}"
            raise QueryError(message) from error
        places = self._places(pc.field("uri") == self._videos.uri(uri))
        shown = ask(SHOWN_SQL, PLACES, seconds, places=places)
        if places.num_rows and not shown.num_rows:
            last_seconds = max(places["end_seconds"].to_pylist())
            message = f"no clip of {uri} shows {seconds:g} s; its clips end at {last_seconds:.2f} s"
            raise QueryError(message)
        return shown

    def _places(self, wanted: pc.Expression) -> pa.Table:
        return read(self._clips, PLACES.names, wanted)
