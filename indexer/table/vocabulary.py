"""From what a user types to labels of a model."""

import difflib
from collections.abc import Sequence
from typing import Final

from indexer.errors import QueryError

_SUGGESTIONS: Final = 5
_LEAST_WORD: Final = 3
"""Shorter words ("a", "of") suggest nothing."""


def matching_labels(words: str, vocabulary: Sequence[str], *, owner: str) -> tuple[str, ...]:
    """The labels that a user means.

    Args:
        words: a label in full, whatever its case; else words, each of which the label's name holds:
            "guitar" means "playing guitar" and "tapping guitar".
        vocabulary: the model's labels.
        owner: whose labels they are, for the message.

    Returns:
        The label of that name alone; else all that hold the words, in the vocabulary's order.

    Raises:
        QueryError: no label has the name or the words; the nearest are named.
    """
    if words in vocabulary:
        return (words,)
    folded = words.strip().casefold()
    same = [name for name in vocabulary if name.casefold() == folded]
    if len(same) == 1:
        return (same[0],)
    wanted = folded.split()
    holding = tuple(name for name in vocabulary if _holds(name, wanted))
    if holding and not same:
        return holding
    near = sorted(same) or _near(folded, vocabulary)
    hint = (
        f"did you mean {', '.join(map(repr, near))}?"
        if near
        else "list what there is with: indexer labels INDEX"
    )
    message = f"{owner} has no label {words!r}; {hint}"
    raise QueryError(message)


def _holds(name: str, wanted: Sequence[str]) -> bool:
    """Whether each word begins a word of the name."""
    words = name.casefold().replace("-", " ").replace("_", " ").split()
    return bool(wanted) and all(any(word.startswith(w) for word in words) for w in wanted)


def _near(folded: str, vocabulary: Sequence[str]) -> list[str]:
    """Labels that are spelled alike, then those that share a word."""
    names = {name.casefold(): name for name in sorted(vocabulary, reverse=True)}
    alike = difflib.get_close_matches(folded, names, n=_SUGGESTIONS)
    words = [word for word in folded.split() if len(word) >= _LEAST_WORD]
    sharing = [name for name in sorted(names) if any(word in name for word in words)]
    return [names[name] for name in dict.fromkeys(alike + sharing)][:_SUGGESTIONS]
