import csv
import io
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from indexer.render import (
    Format,
    _column,
    _folded,
    cell_text,
    clock_text,
    json_text,
    rows_text,
)

ROWS = [
    {"uri": "a,b\n.mp4", "score": 0.123456, "start_seconds": 3723.5, "n": 12345, "why": None},
    {"uri": 'é"\x1b[31m', "score": 1.0, "start_seconds": 0.0, "n": 1, "why": ["x", "y"]},
]
COLUMNS = ["uri", "score", "start_seconds", "n", "why"]


def test_json_is_one_document_with_every_value_untouched():
    assert json.loads(rows_text(ROWS, COLUMNS, Format.json)) == ROWS


def test_csv_survives_commas_quotes_and_newlines():
    read = list(csv.DictReader(io.StringIO(rows_text(ROWS, COLUMNS, Format.csv), newline="")))
    assert [row["uri"] for row in read] == [row["uri"] for row in ROWS]
    assert json.loads(read[1]["why"]) == ["x", "y"]


def test_a_table_never_sends_control_characters_to_the_terminal():
    text = rows_text(ROWS, COLUMNS, Format.table)
    assert "\x1b" not in text
    assert "\\x1b[31m" in text
    assert "a,b\\n.mp4" in text


def test_a_table_formats_numbers_for_people():
    line = rows_text(ROWS, COLUMNS, Format.table).splitlines()[1]
    assert line.split()[-3:] == ["0.1235", "1:02:03.50", "12,345"]


def test_a_wide_cell_is_folded_not_cut():
    text = rows_text([{"uri": "x" * 300}], ["uri"], Format.table, width=80)
    assert text.count("x") == 300
    assert max(len(line) for line in text.splitlines()) <= 80


def test_columns_line_up_whatever_is_in_them():
    rows = [{"name": "東京", "n": 7, "to": "a"}, {"name": "e\u0301t\u00e9", "n": 1234, "to": "b"}]
    text = rows_text(rows, ["name", "n", "to"], Format.table)
    assert text == "name      n  to\n東京      7  a\ne\u0301t\u00e9   1,234  b\n"


@given(st.lists(st.tuples(st.text(max_size=9), st.integers(0, 99999) | st.none()), min_size=1))
def test_a_table_that_fits_is_the_one_that_is_folded_to_its_width(found):
    rows = [{"text": text, "number": number, "end": "|"} for text, number in found]
    columns = ["text", "number", "end"]
    plain = rows_text(rows, columns, Format.table)
    made = [_column(name, [row[name] for row in rows]) for name in columns]
    assert plain.splitlines() == _folded(made, 200)
    widest = max(map(cell_len, plain.splitlines()))
    assert rows_text(rows, columns, Format.table, width=widest) == plain
    assert rows_text(rows, columns, Format.table, width=widest - 1) != plain


def test_only_the_named_columns_are_shown():
    assert rows_text(ROWS, ["n"], Format.csv) == "n\n12345\n1\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0:00.00"),
        (59.999, "1:00.00"),
        (61.25, "1:01.25"),
        (3599.999, "1:00:00.00"),
        (86400.0, "24:00:00.00"),
        (float("nan"), "nan"),
    ],
)
def test_clock(seconds, text):
    assert clock_text(seconds) == text


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [("x", True, "yes"), ("x", False, "no"), ("x", 0.5, "0.5"), ("x_seconds", 0.5, "0:00.50")],
)
def test_cells(column, value, text):
    assert cell_text(column, value) == text


def test_times_are_iso_in_json_and_csv():
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert json.loads(json_text({"t": when})) == {"t": "2026-01-02T03:04:05+00:00"}
    assert rows_text([{"t": when}], ["t"], Format.csv) == "t\n2026-01-02T03:04:05+00:00\n"
    assert rows_text([{"t": when}], ["t"], Format.table).split("\n")[1] == "2026-01-02 03:04:05"


def test_json_refuses_what_it_cannot_write():
    with pytest.raises(TypeError, match="set has no JSON form"):
        json_text({"x": {1}})
