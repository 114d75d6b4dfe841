"""Printing rows for people and for programs: `--format table|json|csv`.

Rich, which takes longer to load than a question to an index, is loaded for cells that have to be
folded or hold more than ASCII.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from indexer.metrics import LeaseAwaited

_GAP: Final = "  "


class Format(StrEnum):
    """How rows are printed."""

    table = "table"
    json = "json"
    csv = "csv"


Row = Mapping[str, object]


def rows_text(rows: Sequence[Row], columns: Sequence[str], fmt: Format, *, width: int = 0) -> str:
    """Rows as text that ends with a newline.

    Args:
        rows: one mapping per row.
        columns: the columns to show, in order.
        fmt: of the text.
        width: of the terminal; 0 takes what the table needs, as for a pipe.
    """
    match fmt:
        case Format.json:
            return json_text([{name: row[name] for name in columns} for row in rows])
        case Format.csv:
            return _csv_text(rows, columns)
        case Format.table:
            return _table_text(rows, columns, width)


def json_text(value: object) -> str:
    """One JSON document; times as ISO 8601."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=_json_default) + "\n"


def _json_default(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    message = f"{type(value).__name__} has no JSON form"
    raise TypeError(message)


def waiting_text(event: "LeaseAwaited") -> str:
    """One line about whom a command waits for, and for how long."""
    since = f" since {event.since}" if event.since else ""
    return (
        f"run {event.run_id} on {event.host} holds {event.part}{since}, but gives no sign of"
        f" life: it will be taken over in {event.left_seconds:.0f} s"
    )


def _csv_text(rows: Iterable[Row], columns: Sequence[str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_plain(row[name]) for name in columns] for row in rows)
    return out.getvalue()


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of a table for people: its head, its cells, and whether they are numbers."""

    head: str
    cells: tuple[str, ...]
    numeric: bool

    @property
    def lines(self) -> Iterator[str]:
        """The head and the cells, all as wide as the widest."""
        texts = (self.head, *self.cells)
        widths = [_width(text) for text in texts]
        for text, width in zip(texts, widths, strict=True):
            blank = " " * (max(widths) - width)
            yield blank + text if self.numeric else text + blank


def _table_text(rows: Sequence[Row], columns: Sequence[str], width: int) -> str:
    made = [_column(name, [row[name] for row in rows]) for name in columns]
    lines = [_GAP.join(parts).rstrip() for parts in zip(*(one.lines for one in made), strict=True)]
    if width and any(_width(line) > width for line in lines):
        lines = _folded(made, width)
    return "".join(line + "\n" for line in lines)


def _column(name: str, values: Sequence[object]) -> _Column:
    known = [value for value in values if value is not None]
    numeric = bool(known) and all(isinstance(value, int | float) for value in known)
    cells = tuple(cell_text(name, value) for value in values)
    return _Column(name.removesuffix("_seconds"), cells, numeric)


def _width(text: str) -> int:
    """Columns of the terminal that a line takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _folded(columns: Sequence[_Column], width: int) -> list[str]:
    """The lines of a table of which some texts are folded, so that it is no wider than this."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.numeric else "left"
        table.add_column(
            Text(column.head), justify=justify, overflow="fold", no_wrap=column.numeric
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, cells))
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def cell_text(column: str, value: object) -> str:
    """One value for people: times as `1:02:03.50`, control characters made visible."""
    match value:
        case None:
            text = ""
        case bool():
            text = "yes" if value else "no"
        case float():
            text = clock_text(value) if column.endswith("_seconds") else f"{value:.4g}"
        case int():
            text = f"{value:,}"
        case datetime():
            text = f"{value:%Y-%m-%d %H:%M:%S}"
        case list():
            text = ", ".join(cell_text("", part) for part in value)
        case _:
            text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))
    return text


def clock_text(seconds: float) -> str:
    """`3723.5` as "1:02:03.50"."""
    if not math.isfinite(seconds):
        return str(seconds)
    minutes, rest = divmod(round(seconds, 2), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:05.2f}" if hours else f"{minutes}:{rest:05.2f}"


def size_text(size_bytes: float) -> str:
    """`1234567` as "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size_bytes < 1000 or unit == "TB":  # noqa: PLR2004 - SI units
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    raise AssertionError
