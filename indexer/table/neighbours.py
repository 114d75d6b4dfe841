"""The embeddings of one model's clips, open for comparison, with the sidecar where there is one."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from indexer.table.paths import IndexPaths, digest_in_name
from indexer.table.read import read
from indexer.table.sidecar import Batch, Part, matrix, measured_recall, open_parts
from indexer.table.similar import Choice, nearest


class Neighbours:
    """One snapshot's embeddings; the sidecar is opened when it is first needed, and stays open.

    Args:
        paths: of the index.
        tag: of the model.
        rows: of `embeddings`, of a snapshot.
    """

    def __init__(self, paths: IndexPaths, tag: str, rows: ds.Dataset) -> None:
        self._paths, self._tag, self._rows = paths, tag, rows

    @property
    def have_lists(self) -> bool:
        """Whether there are inverted lists, for approximate answers."""
        return any(part.lists is not None for part in self._parts)

    def recall(self) -> float | None:
        """Recall@10 of approximate answers, as measured; None where no part has inverted lists."""
        return measured_recall(self._paths, self._tag, self._digests)

    def of(self, queries_QD: npt.ArrayLike, choice: Choice) -> list[pa.Table]:
        """The nearest clips to each of some vectors; see `similar.nearest`."""
        return nearest(self._rest, self._parts, queries_QD, choice)

    def video_id(self, clip_id: str) -> str | None:
        """The id of a clip's video, where the sidecar knows the clip."""
        found = self._place(clip_id)
        return found[0].video_ids[found[1]].as_py() if found else None

    def vector(self, clip_id: str, video_id: str) -> npt.NDArray[np.float32]:
        """The stored embedding of a clip."""
        found = self._place(clip_id)
        if found:
            vectors_ND = found[0].vectors(np.array([found[1]]))
        else:
            is_clip = (pc.field("video_id") == video_id) & (pc.field("clip_id") == clip_id)
            vectors_ND = matrix(read(self._rest, ["embedding"], is_clip)["embedding"])
        vector_D: npt.NDArray[np.float32] = vectors_ND[0]
        return vector_D

    @property
    def _digests(self) -> set[str]:
        # a snapshot without files is a dataset of another kind
        files = self._rows.files if isinstance(self._rows, ds.FileSystemDataset) else ()
        digests = (digest_in_name(path) for path in files)
        return {digest for digest in digests if digest}

    @cached_property
    def _parts(self) -> Sequence[Part]:
        return open_parts(self._paths, self._tag, self._digests)

    @cached_property
    def _rest(self) -> ds.Dataset:
        """The rows of the data files that have no part."""
        covered = {part.covers for part in self._parts}
        if not covered:
            return self._rows
        return ds.FileSystemDataset(
            [f for f in self._rows.get_fragments() if digest_in_name(f.path) not in covered],
            self._rows.schema,
            self._rows.format,
            self._rows.filesystem,
        )

    def _place(self, clip_id: str) -> tuple[Batch, int] | None:
        for part in self._parts:
            for batch in part.batches:
                row = pc.index(batch.clip_ids, clip_id).as_py()
                if row >= 0:
                    return batch, row
        return None
