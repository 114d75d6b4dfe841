"""What `verify` finds: the promises of an index, and where one of them is broken."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

MOST_OF_A_KIND: Final = 20
"""Findings of one promise and file that are listed one by one; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One place where the index is not as promised.

    Attributes:
        table: whose promise it is, or the name of an object beside the tables.
        file: path within the table; empty where no single file is meant.
        row: of the file, from 0; None where no single row is meant.
        promise: short name of what was promised.
        detail: what was found instead, for people.
        broken: False where rows and answers are right all the same.
    """

    table: str
    file: str
    row: int | None
    promise: str
    detail: str
    broken: bool = True


def shortened(findings: Iterable[Finding]) -> Iterator[Finding]:
    """The first findings of every promise and file, and one that counts the others."""
    counts: dict[tuple[str, str, str], int] = {}
    for finding in findings:
        key = (finding.table, finding.file, finding.promise)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= MOST_OF_A_KIND:
            yield finding
    for (table, file, promise), count in counts.items():
        if count > MOST_OF_A_KIND:
            detail = f"and {count - MOST_OF_A_KIND:,} more rows of this file"
            yield Finding(table, file, None, promise, detail)
