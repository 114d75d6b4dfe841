"""Globs as regular expressions of RE2, whose `.` is a character; DuckDB's GLOB goes by bytes."""

import re

_NOTHING = r"[^\s\S]"


def glob_pattern(glob: str) -> str:
    """The pattern that matches what `fnmatch.fnmatchcase` matches, in full.

    Args:
        glob: `*` is any text, `?` any character, `[...]` one of some, and `[!...]` none of them.
    """
    parts, rest = ["(?s)"], glob
    while rest:
        first, rest = rest[0], rest[1:]
        end = rest.find("]", 2 if rest.startswith("!") else 1)
        if first == "[" and end > 0:
            parts.append(_characters(rest[:end]))
            rest = rest[end + 1 :]
        else:
            parts.append({"*": ".*", "?": "."}.get(first, re.escape(first)))
    return "".join(parts)


def _characters(inside: str) -> str:
    """A class of characters; one whose range goes backwards has none."""
    negated = inside.startswith("!")
    listed = re.sub(r"([\\^\[\]&~|])", r"\\\1", inside[negated:])
    try:
        re.compile(f"[{listed}]")
    except re.error:
        return "." if negated else _NOTHING
    return f"[{'^' * negated}{listed}]"
