"""What a rule says of a file: nothing, or in which place the file breaks it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

PLACEHOLDER: Final = "PUT-"
"""Begins every place of a template that only its user can fill in."""

Document = Mapping[str, Any]
Check = Callable[[Document], Iterator[str]]
"""Yields one line for each place that breaks the rule."""


def broken_rules(document: Document, rules: Mapping[str, Check]) -> dict[str, list[str]]:
    """The rules that a document breaks, by name, with the places.

    A place that a rule needs and the document lacks breaks the rule, too.
    """
    broken = {name: _places(check, document) for name, check in rules.items()}
    return {name: places for name, places in broken.items() if places}


def _places(check: Check, document: Document) -> list[str]:
    try:
        return list(check(document))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        return [f"a part is missing or malformed: {error!r}"]


def texts(node: object, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a document with its place, keys included."""
    if isinstance(node, str):
        yield place, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from texts(value, f"{place}.{key}".lstrip("."))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from texts(value, f"{place}[{index}]")


def filled_in(document: Document) -> Iterator[str]:
    """No place of the template is left as it was."""
    yield from (f"{place}: {text}" for place, text in texts(document) if PLACEHOLDER in text)
