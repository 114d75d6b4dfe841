"""What a search for duplicates takes for alike unless it is told otherwise, and how far it is."""

from dataclasses import dataclass
from typing import Final

MIN_SIMILARITY: Final = 0.8
"""Of two clips that count as alike."""

MIN_HITS: Final = 4
"""Pairs of clips, all the same time apart, that count as a stretch that comes back."""

MAX_NEIGHBOURS: Final = 100
"""A clip that looks like more others tells nothing, and is left out."""


@dataclass(frozen=True, slots=True)
class Compared:
    """How far a search for pairs is.

    Attributes:
        share: of the comparisons that are done, 0 to 1.
        hubs: clips so far that look like too many others, and will be in no pair.
    """

    share: float
    hubs: int


def ignored(_: Compared) -> None:
    """Observes a search and does nothing."""
