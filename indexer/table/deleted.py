"""Which videos were deleted: all that is kept of them, so that no later run indexes them again.

    deleted/<video_id>          deleted from every model, those to come among them
    deleted/<tag>/<video_id>    deleted from one model

Each is an object without content. A video id is a hash of the video's URI: it does not tell the
URI, but who knows the URI can tell that it was deleted.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from indexer import storage
from indexer.table.paths import IndexPaths

_THREADS: Final = 16


def deleted_video_ids(paths: IndexPaths, tag: str) -> frozenset[str]:
    """Ids of the videos that a run of this model leaves out unless it is asked to index them.

    Raises:
        StorageError: they cannot be listed.
    """
    return frozenset(storage.list_names(_folder(paths, None))) | frozenset(
        storage.list_names(_folder(paths, tag))
    )


def without_deleted(manifest: pa.Table, paths: IndexPaths, tag: str) -> pa.Table:
    """The rows of a manifest whose videos were not deleted.

    Args:
        manifest: with a column `video_id`.
        paths: of the index.
        tag: of the model.

    Raises:
        StorageError: the deletions cannot be listed.
    """
    deleted = deleted_video_ids(paths, tag)
    if not deleted:
        return manifest
    gone = pc.is_in(manifest["video_id"], value_set=pa.array(sorted(deleted), pa.string()))
    return manifest.filter(pc.invert(gone))


def mark_deleted(paths: IndexPaths, tag: str | None, video_ids: Iterable[str]) -> None:
    """Remembers that videos were deleted.

    Args:
        paths: of the index.
        tag: of the model; None is for all models.
        video_ids: of the videos.

    Raises:
        StorageError: it cannot be written.
    """
    uris = [storage.join(_folder(paths, tag), video_id) for video_id in video_ids]
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda uri: storage.write_bytes(uri, b""), uris))


def lift_deletions(paths: IndexPaths, tag: str, video_ids: Iterable[str]) -> None:
    """Forgets deletions, for videos that somebody wants indexed by this model after all.

    Raises:
        StorageError: it cannot be written.
    """
    deleted = deleted_video_ids(paths, tag).intersection(video_ids)
    uris = [
        storage.join(_folder(paths, where), video_id)
        for video_id in sorted(deleted)
        for where in (None, tag)
    ]
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(storage.delete, uris))


def _folder(paths: IndexPaths, tag: str | None) -> str:
    folder = storage.join(paths.root_uri, "deleted")
    return folder if tag is None else storage.join(folder, tag)
