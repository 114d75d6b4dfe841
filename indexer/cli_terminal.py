"""What the commands share: their common arguments, and how rows reach the terminal."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from indexer.render import Format, rows_text

Index = Annotated[str, typer.Argument(help="Folder or URL of the index.", show_default=False)]
OutFormat = Annotated[Format, typer.Option("--format", help="How to print the rows.")]


def print_rows(rows: Sequence[dict[str, Any]], columns: Sequence[str], fmt: Format) -> None:
    """Prints rows on stdout, no wider than the terminal if it is one."""
    width = os.get_terminal_size().columns if sys.stdout.isatty() else 0
    typer.echo(rows_text(rows, columns, fmt, width=width), nl=False)
