"""What a commit leaves in the log, so that anybody can finish it."""

import json
from dataclasses import dataclass
from typing import Any, Final, Self

from indexer.table.write import DataFile

RECORD: Final = "indexer.commit"
"""Key of a commit's record in the metadata of its `clips` commit."""


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """Everything that a commit does, so that anybody can finish it.

    Attributes:
        tag: the model's partition.
        writer: the shard, or the run that writes without a lease.
        run_id: of the run that began it.
        sequence: number of the commit among those of its writer.
        files: to be added, of all tables.
        removal: name of the list of videos whose rows go; None where none go.
    """

    tag: str
    writer: str
    run_id: str
    sequence: int
    files: tuple[DataFile, ...] = ()
    removal: str | None = None

    @property
    def application(self) -> str:
        """Id of its Delta transactions, whose version is the sequence."""
        return sequence_application(self.tag, self.writer)

    def to_json(self) -> str:
        """As the metadata of the `clips` commit holds it."""
        content = {
            "tag": self.tag,
            "writer": self.writer,
            "run_id": self.run_id,
            "sequence": self.sequence,
            "files": [file.to_json() for file in self.files],
            "removal": self.removal,
        }
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The record that `to_json` wrote."""
        content: dict[str, Any] = json.loads(text)
        files = tuple(map(DataFile.from_json, content.pop("files")))
        return cls(**content, files=files)


def sequence_application(tag: str, writer: str) -> str:
    """Delta's application id of a writer's commits; the version is their number."""
    return f"{tag}/{writer}"


def epoch_application(tag: str, writer: str) -> str:
    """Delta's application id of a writer's lease; the version is its epoch."""
    return f"{tag}/{writer}/epoch"
