"""Questions to an index, answered as Arrow tables; no Ray, no model.

Reads follow the Delta log: an open index is a snapshot, and a run that goes on changes nothing of
what it answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import pyarrow as pa

from indexer.errors import QueryError
from indexer.table.answers import (
    BEST_SEGMENTS_SQL,
    COUNTS,
    COUNTS_SQL,
    ERRORS,
    ERRORS_SQL,
    LABEL_COUNTS,
    LABELS_SQL,
    PLACES,
    VIDEO_CLIPS,
    VIDEO_STATES,
    VIDEOS_SQL,
)
from indexer.table.comparison import (
    MAX_NEIGHBOURS,
    MIN_HITS,
    MIN_SIMILARITY,
    Compared,
    ignored,
)
from indexer.table.opened import OpenedIndex
from indexer.table.postings import Postings, Wanted
from indexer.table.read import ask, model_rows, read
from indexer.table.schema import CLIPS, EMBEDDINGS, LABELS, TABLES, VIDEOS
from indexer.table.segments import SEGMENTS, SEGMENTS_VIEW, merge_windows
from indexer.table.vocabulary import matching_labels

if TYPE_CHECKING:
    import pyarrow.dataset as ds

    from indexer.table.likeness import Likeness
    from indexer.table.named_videos import NamedVideos


class LabelIndex(OpenedIndex):
    """The questions that one model's part of an index answers, as it was when it was opened."""

    def search(
        self,
        label: str | Sequence[str],
        *,
        without: Sequence[str] = (),
        min_score: float = 0.0,
        top: int | None = 20,
        video: str | None = None,
        source: str | None = None,
        before: float | None = None,
        after: float | None = None,
    ) -> pa.Table:
        """Clips with a label, the best first.

        Args:
            label: its name, or words that the names of some labels hold; of several, any will do.
            without: labels, named likewise, that a clip must not have at `min_score` or above.
            min_score: lowest probability, 0 to 1.
            top: at most this many clips; None for all.
            video: a uri, or a glob over uris: `*`, `?` and `[...]`, where `*` also matches `/`.
            source: what the uri begins with, such as a folder or bucket.
            before: only clips that end at or before this many seconds.
            after: only clips that start at or after this many seconds.

        Returns:
            Columns `HITS`; equal scores by uri, clip and rank. No rows where no clip has the label.

        Raises:
            QueryError: the model has no such label, or an argument is impossible.
            StorageError: the index cannot be read.
        """
        _check_search(min_score, top)
        labels, unwanted = self._named(label), self._named(without)
        wanted = Wanted(labels, min_score, before, after, video, source)
        if unwanted:
            others = self._postings.best(Wanted(unwanted, min_score), top=None)
            wanted = replace(wanted, without=others["clip_id"])
        return self._postings.best(wanted, top=top)

    def segments(
        self,
        label: str | Sequence[str] = (),
        *,
        min_score: float = 0.5,
        leave_score: float | None = None,
        gap_seconds: float = 0.0,
        top: int | None = None,
        video: str | None = None,
        source: str | None = None,
    ) -> pa.Table:
        """Stretches of videos in which a label holds: windows that follow each other, merged.

        Args:
            label: as in `search`; by default every label.
            min_score: that one window of a segment reaches.
            leave_score: that all its windows reach; by default `min_score`.
            gap_seconds: longest time within a segment in which no window reaches it.
            top: only so many, by peak score; by default all.
            video: as in `search`.
            source: as in `search`.

        Returns:
            Columns `indexer.table.segments.SEGMENTS`, by uri, start and label.

        Raises:
            QueryError: the model has no such label, or an argument is impossible.
            StorageError: the index cannot be read.
        """
        _check_search(min_score, top)
        leave = min_score if leave_score is None else leave_score
        names = self._named(label) or self.vocabulary
        hits = self._postings.best(Wanted(names, leave, video=video, source=source), top=None)
        found = merge_windows(hits, enter=min_score, leave=leave, gap_seconds=gap_seconds)
        return found if top is None else ask(BEST_SEGMENTS_SQL, SEGMENTS, top, segments=found)

    def counts(
        self, *, min_score: float = 0.0, video: str | None = None, source: str | None = None
    ) -> pa.Table:
        """Clips, videos and seconds of each label, the most frequent first; columns `COUNTS`.

        Seconds are those of the segments, so that overlapping windows count once.

        Args:
            min_score: lowest probability, 0 to 1.
            video: as in `search`.
            source: as in `search`.
        """
        segments = self.segments(min_score=min_score, video=video, source=source)
        return ask(COUNTS_SQL, COUNTS, segments=segments)

    def video(self, uri: str) -> pa.Table:
        """All clips of a video in their order, with their labels; columns `VIDEO_CLIPS`.

        Args:
            uri: of the video, or what one video's uri alone ends with.

        Raises:
            QueryError: no video, or several, have this uri.
            StorageError: the index cannot be read.
        """
        import pyarrow.compute as pc

        name = self._videos.uri(uri)
        clips = model_rows(self._tables[CLIPS.name], self.tag, ("uri", "=", name))
        rows = read(clips, VIDEO_CLIPS.names, pc.field("uri") == name)
        return ask("SELECT * FROM clips ORDER BY clip_index", VIDEO_CLIPS, clips=rows)

    def similar(
        self,
        clip: str,
        *,
        top: int = 10,
        distinct_videos: bool = False,
        video: str | None = None,
        approximate: bool = False,
    ) -> pa.Table:
        """The clips that look most like one clip, by the cosine of their embeddings.

        The answer is that of comparing all embeddings; memory does not grow with their number.

        Args:
            clip: a clip id, or `URI@SECONDS`: the clip of that video that shows this moment, where
                a part of the uri will do if no other video's ends with it.
            top: at most this many.
            distinct_videos: only the best clip of each video, and none of the clip's own.
            video: answers from videos of this uri or glob only, as in `search`.
            approximate: look only into the nearest inverted lists, which `compact` makes on demand:
                quicker by far where clips are many, with the share of right answers `recall`.

        Returns:
            Columns `SIMILAR`: the best first, of equal ones by clip id; not the clip itself.

        Raises:
            QueryError: there is no such clip, or an argument is impossible.
            StorageError: the index cannot be read.
        """
        from indexer.table.similar import Choice

        _check_search(0.0, top)
        clip_id, video_id = self._likeness.clip(clip)
        choice = Choice(
            top,
            without=(clip_id,),
            videos=self._ids(video),
            without_video=video_id if distinct_videos else None,
            distinct_videos=distinct_videos,
            approximate=approximate,
        )
        vector_D = self._likeness.neighbours.vector(clip_id, video_id)
        return self._likeness.nearest(vector_D, choice)

    def similar_to(
        self,
        embedding: npt.ArrayLike,
        *,
        top: int = 10,
        distinct_videos: bool = False,
        video: str | None = None,
        approximate: bool = False,
    ) -> pa.Table:
        """The clips that look most like what has an embedding of this model.

        Args:
            embedding: as many numbers as the embeddings of the model have.
            top: at most this many.
            distinct_videos: only the best clip of each video.
            video: as in `similar`.
            approximate: as in `similar`.

        Returns:
            Columns `SIMILAR`: the best first, of equal ones by clip id.

        Raises:
            QueryError: the embedding is none of this model's, or an argument is impossible.
            StorageError: the index cannot be read.
        """
        from indexer.table.similar import Choice

        _check_search(0.0, top)
        choice = Choice(
            top,
            videos=self._ids(video),
            distinct_videos=distinct_videos,
            approximate=approximate,
        )
        return self._likeness.nearest(embedding, choice)

    def recall(self) -> float | None:
        """Recall@10 of approximate answers of `similar`, as `compact` measured it on these clips.

        Returns:
            The share of the ten nearest clips that are found; None where there are no inverted
            lists.

        Raises:
            StorageError: the sidecar cannot be read.
        """
        return self._likeness.neighbours.recall()

    def duplicates(
        self,
        *,
        min_similarity: float = MIN_SIMILARITY,
        min_hits: int = MIN_HITS,
        max_neighbours: int = MAX_NEIGHBOURS,
        top: int | None = None,
        video: str | None = None,
        source: str | None = None,
        observe: Callable[[Compared], None] = ignored,
    ) -> pa.Table:
        """Stretches that two videos, or two places of one video, share; see `find_duplicates`.

        Args:
            min_similarity: of two clips that count as a hit, above 0 and at most 1.
            min_hits: clips that a stretch has at least.
            max_neighbours: a clip that is like more others than this is left out.
            top: at most this many; by default all.
            video: only pairs with such a video on one side, as in `search`.
            source: only pairs with such a video on one side, as in `search`.
            observe: is told how far the work is, which takes long where clips are many.

        Returns:
            Columns `indexer.table.duplicates.DUPLICATES`, the highest score first.

        Raises:
            QueryError: an argument is impossible.
            StorageError: the index cannot be read.
        """
        _check_search(0.0, top)
        import pyarrow.compute as pc

        from indexer.table.duplicates import find_duplicates

        return find_duplicates(
            read(self.rows(CLIPS.name), PLACES.names, pc.field("clip_id").is_valid()),
            self.rows(EMBEDDINGS.name),
            self._videos.ids(video, source),
            min_similarity=min_similarity,
            min_hits=min_hits,
            max_neighbours=max_neighbours,
            top=top,
            observe=observe,
        )

    def sql(
        self, query: str, *, timeout_seconds: float = 60.0, memory_bytes: int = 2 * 2**30
    ) -> pa.Table:
        """Runs one SELECT over the views `clips, embeddings, labels, segments, videos, errors`.

        The query can read nothing else: no files, no network, no settings. `segments` are those of
        `min_score` 0.5.

        Args:
            query: in DuckDB's SQL.
            timeout_seconds: after which it is stopped.
            memory_bytes: that it may take.

        Raises:
            QueryError: it is wrong, is no query, reaches out, or takes too long or too much.
            StorageError: the index cannot be read.
        """
        from indexer.table.sql import run_query

        rows: dict[str, pa.Table | ds.Dataset | str] = {
            "clips": self.rows(CLIPS.name),
            "embeddings": self.rows(EMBEDDINGS.name),
            "labels": self.rows(LABELS.name),
            "videos": self.rows(VIDEOS.name),
            "postings": "SELECT * FROM labels",
            "segments": SEGMENTS_VIEW,
            "errors": "SELECT * FROM videos WHERE status = 'failed'",
        }
        return run_query(query, rows, timeout_seconds=timeout_seconds, memory_bytes=memory_bytes)

    def labels(self) -> pa.Table:
        """Labels that some clip has, the most frequent first; columns `LABEL_COUNTS`."""
        return ask(LABELS_SQL, LABEL_COUNTS, labels=self.rows(LABELS.name))

    def videos(self) -> pa.Table:
        """One row for each video, by uri; columns `VIDEO_STATES`.

        `status` is `indexed` where all units are, `failed` where a unit's latest attempt failed,
        `incomplete` where units have had no outcome yet.
        """
        return ask(VIDEOS_SQL, VIDEO_STATES, videos=self.rows(VIDEOS.name))

    def errors(self, code: str | None = None) -> pa.Table:
        """Units whose latest attempt failed, by code and uri; columns `ERRORS`.

        Args:
            code: only this error code.
        """
        return ask(ERRORS_SQL, ERRORS, code, videos=self.rows(VIDEOS.name))

    def status(self) -> dict[str, Any]:
        """What the index holds, as a JSON object."""
        from indexer.table.status import describe

        facts = {"index": self.uri, "model": self.tag}
        return facts | describe(
            self._paths,
            self.tag,
            {name: self._tables[name] for name in TABLES},
            videos=self.videos(),
            errors=self.errors(),
        )

    def has_video(self, name: str) -> bool:
        """Whether a video has this uri, or one that ends with it."""
        return self._videos.has(name)

    @cached_property
    def _videos(self) -> "NamedVideos":
        from indexer.table.named_videos import NamedVideos

        return NamedVideos(self.rows(VIDEOS.name), self.uri)

    @cached_property
    def _likeness(self) -> "Likeness":
        from indexer.table.likeness import Likeness
        from indexer.table.neighbours import Neighbours

        neighbours = Neighbours(self._paths, self.tag, self.rows(EMBEDDINGS.name))
        return Likeness(self.rows(CLIPS.name), neighbours, self._videos)

    def _ids(self, glob: str | None) -> tuple[str, ...] | None:
        found = self._videos.ids(glob)
        return None if found is None else tuple(found.to_pylist())

    def _named(self, label: str | Sequence[str]) -> tuple[str, ...]:
        """The labels that are meant, each once."""
        asked = (label,) if isinstance(label, str) else label
        owner = f"the model {self.tag}"
        found = (matching_labels(one, self.vocabulary, owner=owner) for one in asked)
        return tuple(dict.fromkeys(chain.from_iterable(found)))

    @cached_property
    def _postings(self) -> Postings:
        return Postings(self._paths, self._tables[LABELS.name], self.tag)


def _check_search(min_score: float, top: int | None) -> None:
    if not 0.0 <= min_score <= 1.0:
        message = f"min_score = {min_score} is no probability; give 0 to 1"
        raise QueryError(message)
    if top is not None and top < 1:
        message = f"top = {top} asks for no clip; give 1 or more"
        raise QueryError(message)
