"""Writes docs/configuration.md, docs/cli.md and the columns in docs/tables.md from the code.

python docs/generate.py           writes them
python docs/generate.py --check   exits with 1 if they are not what it would write
"""

import argparse
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import typer.main

from indexer.cli import app
from indexer.config import IndexConfig
from indexer.table.schema import TABLES, TableSpec

DOCS = Path(__file__).resolve().parent
BEGIN = "<!-- columns: written by docs/generate.py from indexer/table/schema.py -->"
END = "<!-- end of columns -->"


def configuration_page() -> str:
    """The reference of every key, from the sections' docstrings."""
    lines = [
        "# Configuration",
        "",
        "A job takes its configuration from the defaults below, then from a TOML file",
        "(`--config`, a path or a URL), then from the environment (`INDEXER_SECTION_KEY`, such as",
        "`INDEXER_SAMPLING_HOP_SECONDS=4`; lists are separated by commas), then from flags",
        "(`--set section.key=value`). Unknown keys and impossible values are refused.",
        "",
        "Keys marked * are part of the fingerprint: another value makes other rows, which get a",
        "tag and a partition of their own beside the old ones.",
        "",
        "## Top level",
        "",
        *_keys(IndexConfig, ""),
    ]
    for name, field in IndexConfig.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            title = (field.annotation.__doc__ or "").splitlines()[0]
            lines += ["", f"## `[{name}]`", "", title, "", *_keys(field.annotation, f"{name}.")]
    return "\n".join(lines) + "\n"


def _keys(cls: type, prefix: str) -> Iterator[str]:
    meanings = _attributes(cls)
    decides = prefix in ("sampling.", "precision.")
    yield "| key | default | meaning |"
    yield "|---|---|---|"
    for name, field in cls.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            continue
        star = "*" if decides or f"{prefix}{name}" in FINGERPRINTED else ""
        default = "required" if field.is_required() else f"`{_toml(field.default)}`"
        yield f"| `{prefix}{name}`{star} | {default} | {meanings[name]} |"


FINGERPRINTED = {
    "decode.resize",
    "decode.square_pixels",
    "model.id",
    "model.revision",
    "model.top_k",
    "model.min_score",
}


def _toml(value: object) -> str:
    match value:
        case None:
            return "unset"
        case bool():
            return str(value).lower()
        case tuple():
            return ",".join(str(part) for part in value)
        case _:
            return str(value)


def _attributes(cls: type) -> dict[str, str]:
    """Reads the `Attributes:` part of a Google docstring."""
    text = inspect.getdoc(cls) or ""
    found: dict[str, str] = {}
    for line in text.partition("Attributes:\n")[2].splitlines():
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name = start[1]
            found[name] = start[2]
        elif line.strip():
            found[name] += " " + line.strip()
    return {key: value[0].upper() + value[1:] for key, value in found.items()}


def cli_page() -> str:
    """The reference of every command, from its help."""
    root = typer.main.get_command(app)
    lines = ["# Commands", "", _help(root.help), ""]
    for name, command in sorted(root.commands.items()):
        lines += [f"## `indexer {name}`", "", _help(command.help), "", "| | | |", "|---|---|---|"]
        for parameter in command.params:
            names = ", ".join(f"`{n}`" for n in parameter.opts)
            default = parameter.default
            shown = (
                f"`{default}`" if default not in (None, False, ()) and not callable(default) else ""
            )
            lines.append(f"| {names} | {shown} | {_help(getattr(parameter, 'help', ''))} |")
        lines.append("")
    return "\n".join(lines)


def tables_page() -> str:
    """The page of the tables, with its columns as the schema has them.

    Raises:
        SystemExit: docs/columns.toml explains other columns than the tables have.
    """
    meanings = tomllib.loads((DOCS / "columns.toml").read_text(encoding="utf-8"))
    page = (DOCS / "tables.md").read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    lines = [line for spec in TABLES.values() for line in _columns(spec, meanings[spec.name])]
    return "\n".join([f"{before}{BEGIN}", *lines, "", f"{END}{rest.partition(END)[2]}"])


def _columns(spec: TableSpec, meanings: dict[str, str]) -> Iterator[str]:
    if set(meanings) != set(spec.schema.names):
        wrong = sorted(set(meanings) ^ set(spec.schema.names))
        sys.exit(f"docs/columns.toml and the schema of {spec.name} differ in {', '.join(wrong)}")
    order = ", ".join(f"`{name}` {way}" for name, way in spec.order)
    yield from ("", f"### `{spec.name}`", "")
    yield f"Rows of a file by {order}; at most {spec.row_group_rows:,} rows in a row group."
    yield from ("", "| column | type | null | meaning |", "|---|---|---|---|")
    for field in spec.schema:
        null = "yes" if field.nullable else ""
        yield f"| `{field.name}` | {_type(field.type)} | {null} | {meanings[field.name]} |"


def _type(kind: pa.DataType) -> str:
    """Arrow's name of a type, as SQL engines show it."""
    if pa.types.is_list(kind):
        return f"list of {_type(kind.value_type)}"
    if pa.types.is_timestamp(kind):
        return "timestamp (UTC, microseconds)"
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))


def _help(text: str | None) -> str:
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text or ""))
    return "\n\n".join(" ".join(p.split()) for p in paragraphs)


def main() -> int:
    """Writes or checks the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    stale = []
    pages = {
        "configuration.md": configuration_page(),
        "cli.md": cli_page(),
        "tables.md": tables_page(),
    }
    for name, page in pages.items():
        path = DOCS / name
        if not path.exists() or path.read_text(encoding="utf-8") != page:
            stale.append(name)
            if not check:
                path.write_text(page, encoding="utf-8")
    for name in stale:
        verdict = "is stale: run python docs/generate.py" if check else "written"
        sys.stdout.write(f"{name} {verdict}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
