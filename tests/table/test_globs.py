"""Globs mean in DuckDB what they mean in Python."""

from fnmatch import fnmatchcase

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.table.globs import glob_pattern

TEXT = "ab/é🎸.^-!]["


def matches(text, glob):
    return duckdb.execute(
        "SELECT regexp_full_match($1, $2)", [text, glob_pattern(glob)]
    ).fetchone()[0]


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("?", ["é", "🎸", "a", "\n"], ["", "ab"]),
        ("*.mp4", [".mp4", "a/b.mp4", "a\nb.mp4"], ["a.mp4x", "amp4"]),
        ("[ab]", ["a", "b"], ["c", "[ab]"]),
        ("[!a]", ["b", "é", "^"], ["a", ""]),
        ("[^a]", ["^", "a"], ["b"]),
        ("[]]", ["]"], ["[]]"]),
        ("[!]]", ["a"], ["]"]),
        ("[a", ["[a"], ["a"]),
        ("[]", ["[]"], ["", "]"]),
        ("[z-a]x", [], ["zx", "x"]),
        ("[!z-a]x", ["zx"], ["x"]),
        ("(a|b)+\\d", ["(a|b)+\\d"], ["aa1"]),
        ("[\\d]", ["\\", "d"], ["1"]),
        ("a\n\t #&~\0\x7f{}$é", ["a\n\t #&~\0\x7f{}$é"], ["a"]),
    ],
)
def test_globs(glob, yes, no):
    for text in yes:
        assert matches(text, glob), text
        assert fnmatchcase(text, glob), text
    for text in no:
        assert not matches(text, glob), text
        assert not fnmatchcase(text, glob), text


@settings(max_examples=150)
@given(
    text=st.text(st.sampled_from(TEXT), max_size=6),
    glob=st.text(st.sampled_from(TEXT + "*?[]"), max_size=6),
)
def test_they_agree_with_fnmatch(text, glob):
    assert matches(text, glob) == fnmatchcase(text, glob)
