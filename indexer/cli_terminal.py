"""What the commands share: their common arguments, and how rows reach the terminal."""

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from indexer.render import Format, clock_text, rows_text

if TYPE_CHECKING:
    from indexer.table.comparison import Compared

_LINE_SECONDS: Final = 10.0

Index = Annotated[str, typer.Argument(help="Folder or URL of the index.", show_default=False)]
OutFormat = Annotated[Format, typer.Option("--format", help="How to print the rows.")]


def print_rows(rows: Sequence[dict[str, Any]], columns: Sequence[str], fmt: Format) -> None:
    """Prints rows on stdout, no wider than the terminal if it is one."""
    width = os.get_terminal_size().columns if sys.stdout.isatty() else 0
    typer.echo(rows_text(rows, columns, fmt, width=width), nl=False)


class ComparisonReporter:
    """Tells on stderr how far a comparison of all clips is, every ten seconds, and what it left."""

    def __init__(self) -> None:
        self._begun = self._told = time.monotonic()

    def __call__(self, compared: "Compared") -> None:
        """Takes what the comparison tells."""
        now = time.monotonic()
        if compared.share < 1 and now - self._told >= _LINE_SECONDS:
            left_seconds = (now - self._begun) * (1 / compared.share - 1)
            done = f"{compared.share:.0%} of the clips' pairs are compared"
            typer.echo(f"{done}, about {clock_text(left_seconds)} left", err=True)
            self._told = now
        if compared.share == 1 and compared.hubs:
            typer.echo(
                f"{compared.hubs:,} clips look like too many others, as black pictures do, and were"
                " left out; --max-neighbours says how many are too many",
                err=True,
            )
