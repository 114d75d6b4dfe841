"""Every path of an index, in one place."""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from indexer import storage
from indexer.errors import ConfigError
from indexer.table.schema import PARTITION

SIMILARITY: Final = "_similarity"
"""Folder of the similarity sidecars."""

_DIGEST_IN_NAME: Final = re.compile(r"-([0-9a-f]{16})\.parquet$")
_ESCAPE: Final = re.compile(r"%[0-9A-Fa-f]{2}")


@dataclass(frozen=True, slots=True)
class IndexPaths:
    """Where the parts of one index lie.

    Attributes:
        root_uri: folder or URL of the index, in its canonical spelling.

    Raises:
        ConfigError: Delta cannot name the folder.
    """

    root_uri: str

    def __post_init__(self) -> None:
        root_uri = storage.absolute_uri(self.root_uri)
        escape = _ESCAPE.search(root_uri)
        if escape is not None:
            message = (
                f"{self.root_uri!r}: an index cannot lie below a folder with {escape[0]!r} in its"
                " name, because Delta readers decode it; choose another folder"
            )
            raise ConfigError(message)
        object.__setattr__(self, "root_uri", root_uri)

    @property
    def index_json(self) -> str:
        """The format version; what makes a folder an index."""
        return storage.join(self.root_uri, "index.json")

    @property
    def models(self) -> str:
        """Folder of the registered models."""
        return storage.join(self.root_uri, "models")

    def model_json(self, tag: str) -> str:
        """Fingerprint and vocabulary of one model."""
        return storage.join(self.models, f"{tag}.json")

    def precision_json(self, tag: str) -> str:
        """The dtype in which all clips of one model are scored."""
        return storage.join(self.root_uri, "precision", f"{tag}.json")

    @property
    def runs(self) -> str:
        """Folder of the run reports."""
        return storage.join(self.root_uri, "runs")

    def run_json(self, run_id: str) -> str:
        """Report of one run."""
        return storage.join(self.runs, f"{run_id}.json")

    def leases(self, tag: str) -> str:
        """Folder of who writes rows of one model, with a folder for each writer."""
        return storage.join(self.root_uri, "leases", tag)

    def writer_leases(self, tag: str, writer: str) -> str:
        """Folder of one writer's leases, one object for each epoch."""
        return storage.join(self.leases(tag), writer)

    def lease_json(self, tag: str, writer: str, epoch: int) -> str:
        """The lease of one owner."""
        return storage.join(self.writer_leases(tag, writer), f"{epoch:08d}.json")

    def removals(self, tag: str) -> str:
        """Folder of the lists of videos whose rows of one model are being removed."""
        return storage.join(self.root_uri, "removals", tag)

    def removal_json(self, tag: str, name: str) -> str:
        """One such list."""
        return storage.join(self.removals(tag), f"{name}.json")

    def similarity(self, tag: str) -> str:
        """Folder of the similarity sidecar of one model."""
        return storage.join(self.root_uri, SIMILARITY, tag)

    def similarity_part(self, tag: str, name: str) -> str:
        """The part of the sidecar that belongs to one data file of `embeddings`."""
        return storage.join(self.similarity(tag), name)

    def partition(self, table: str, tag: str) -> str:
        """Folder of one model's data files in one table."""
        return storage.join(self.table(table), partition_folder(tag))

    def table(self, name: str) -> str:
        """Root of one Delta table."""
        return storage.join(self.root_uri, name)

    def data_file(self, table: str, path: str) -> str:
        """A data file, by its path within the table."""
        return storage.join(self.table(table), path)


def partition_folder(tag: str) -> str:
    """Folder of a model's rows within each table; Delta percent-encodes the value."""
    return f"{PARTITION}={quote(tag, safe='')}"


def data_file_path(tag: str, writer: str, sha256: str) -> str:
    """Path of a data file within its table: unique to the writer and the content.

    Args:
        tag: the model's partition.
        writer: the run and the task that write it.
        sha256: of the file's bytes, in hex.
    """
    return f"{partition_folder(tag)}/part-{writer}-{sha256[:16]}.parquet"


def digest_in_name(path: str) -> str | None:
    """The beginning of a data file's sha256 that its name carries; None for a foreign name."""
    found = _DIGEST_IN_NAME.search(path)
    return found[1] if found else None
