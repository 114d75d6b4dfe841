"""The commands that look after an index: `compact`, `verify`, `delete` and `relabel`."""

import re
import signal
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from indexer.cli_terminal import Index, OutFormat, print_rows
from indexer.errors import ConfigError
from indexer.render import Format, json_text, size_text, waiting_text

if TYPE_CHECKING:
    from indexer.metrics import LeaseAwaited
    from indexer.table.repair import Repair
    from indexer.table.verify import Verification

EXIT_BROKEN = 1
EXIT_INCOMPLETE = 1

maintenance = typer.Typer()

OneModel = Annotated[
    str | None, typer.Option("--model", help="Tag of one model; by default all of the index.")
]

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(B|kB|MB|GB)?\s*$")
_UNITS = {"B": 1, "kB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}
_FINDING_COLUMNS = ["broken", "table", "promise", "file", "row", "detail"]


@maintenance.command()
def compact(
    index: Index,
    model: OneModel = None,
    target_file_size: Annotated[
        str, typer.Option(help="Size at which a file ends, such as 256MB.")
    ] = "256MB",
    keep_history: Annotated[
        bool, typer.Option("--keep-history", help="Keep the old files, for time travel.")
    ] = False,
    ivf: Annotated[
        bool,
        typer.Option("--ivf", help="Make inverted lists too, for `similar --approximate`."),
    ] = False,
    fmt: OutFormat = Format.table,
) -> int:
    """Rewrite small files as few large sorted ones; answers stay the same throughout.

    Safe beside readers and a running job. If it is interrupted, give it again. Inverted lists (IVF)
    take half a minute for each 200,000 clips, and pay from some 10 million clips on; how many of
    the nearest clips they find is measured and printed.
    """
    from indexer.table.compact import CompactedTable, compact
    from indexer.table.paths import IndexPaths

    target_bytes = _size(target_file_size)
    paths = IndexPaths(index)
    done: list[CompactedTable] = []
    for tag in _tags(paths, model):
        done += compact(
            paths,
            tag,
            target_bytes=target_bytes,
            keep_history=keep_history,
            lists=ivf,
            progress=_tell,
            waiting=_tell_waiting,
        )
        if ivf:
            _tell_recall(index, tag)
    rows = [asdict(table) for table in done]
    print_rows(rows, list(CompactedTable.__dataclass_fields__), fmt)
    return 0


def _tell_recall(index: str, tag: str) -> None:
    from indexer.table.query import LabelIndex

    recall = LabelIndex.open(index, tag).recall()
    if recall is not None:
        typer.echo(f"{tag}: inverted lists, recall@10 {recall:.3f}", err=True)


@maintenance.command()
def verify(
    index: Index,
    model: OneModel = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Make right what can be; name what must be indexed anew."),
    ] = False,
    fmt: OutFormat = Format.table,
) -> int:
    """Prove the index from its bytes: name every broken promise with table, file and row.

    Exit code 1 if any is broken. What is merely left over, such as files that no commit names, is
    listed but breaks nothing.
    """
    from indexer.table.paths import IndexPaths
    from indexer.table.repair import repair as repair_index
    from indexer.table.verify import verify as verify_index

    paths = IndexPaths(index)
    repaired = repair_index(paths, model, waiting=_tell_waiting) if repair else None
    found = repaired.left if repaired else verify_index(paths, model)
    findings = [asdict(finding) for finding in found.findings]
    if fmt is Format.json:
        typer.echo(json_text(_document(found, findings, repaired)), nl=False)
    elif findings or fmt is Format.csv:
        print_rows(findings, _FINDING_COLUMNS, fmt)
    _tell_verification(index, found, repaired)
    return EXIT_BROKEN if found.broken else 0


@maintenance.command()
def delete(
    index: Index,
    videos: Annotated[list[str], typer.Argument(help="URIs or ids of videos.", show_default=False)],
    model: OneModel = None,
    fmt: OutFormat = Format.table,
) -> int:
    """Delete videos for good: no byte of their rows is left, old versions of the tables included.

    Only the videos' ids are kept, so that later runs leave them out unless they are run with
    --if-exists overwrite. No job may be at work on the index.
    """
    from indexer.table.delete import delete_videos
    from indexer.table.paths import IndexPaths

    row = asdict(delete_videos(IndexPaths(index), videos, model, waiting=_tell_waiting))
    print_rows([row], list(row), fmt)
    return 0


@maintenance.command()
def relabel(
    index: Index,
    head: Annotated[
        Path,
        typer.Option(
            help="A safetensors file with weight and bias, or a checkpoint with classifier.weight "
            "and classifier.bias.",
            show_default=False,
        ),
    ],
    labels: Annotated[
        Path,
        typer.Option(
            help='JSON: a list of names, or {"0": name, ...}, by label id.', show_default=False
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Tag of the model whose embeddings to use; or the newest."),
    ] = None,
    tag: Annotated[
        str | None, typer.Option("--tag", help="Tag of the new model; by default worked out.")
    ] = None,
    fmt: OutFormat = Format.table,
) -> int:
    """Give all clips the labels of a new linear head, from their stored embeddings.

    Decodes nothing. The labels get a model tag of their own beside the old one. The same command
    resumes after any interruption, and later follows what its source has gained or lost. Exit code
    1: units were left out because their rows in the source are not complete.
    """
    from indexer.table.head import read_head
    from indexer.table.paths import IndexPaths
    from indexer.table.relabel import relabel

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the same resumable end as Ctrl-C
    done = relabel(
        IndexPaths(index), read_head(head, labels), source=model, tag=tag, name=head.stem,
        progress=_tell_clips,
    )  # fmt: skip
    row = asdict(done)
    print_rows([row], list(row), fmt)
    if done.left_units:
        typer.echo(
            f"{done.left_units} units of {done.source} were left out, for their rows are not"
            f" complete: give the command again when no job is at work, or run"
            f" indexer verify --repair {index}",
            err=True,
        )
    return EXIT_INCOMPLETE if done.left_units else 0


def _tags(paths: Any, model: str | None) -> Sequence[str]:  # noqa: ANN401 - IndexPaths, imported late
    from indexer.table import catalog

    catalog.check_index(paths)
    if model is not None:
        return [catalog.read_model(paths, model).tag]
    return catalog.model_tags(paths)


def _size(text: str) -> int:
    found = _SIZE.match(text)
    if not found:
        message = f"--target-file-size {text}: should be a size such as 256MB"
        raise ConfigError(message)
    return int(float(found[1]) * _UNITS[found[2] or "B"])


def _tell(table: Any) -> None:  # noqa: ANN401 - CompactedTable, imported late
    size = size_text(table.bytes_after)
    files = f"{table.files_before:,} files are {table.files_after:,} now, {size}"
    typer.echo(f"{table.model} {table.table}: {files}", err=True)


def _tell_waiting(event: "LeaseAwaited") -> None:
    typer.echo(waiting_text(event), err=True)


def _tell_clips(done: int, of: int) -> None:
    typer.echo(f"{done:,} of {of:,} clips are labelled", err=True)


def _document(
    found: "Verification", findings: list[dict[str, object]], repaired: "Repair | None"
) -> dict[str, object]:
    document: dict[str, object] = {
        "broken": found.broken,
        "findings": findings,
        "index_anew": found.damaged_uris,
        "files": found.files,
        "rows": found.rows,
        "bytes": found.bytes,
    }
    if repaired:
        document["repaired"] = {
            "commits": repaired.commits,
            "orphans": repaired.orphans,
            "dropped_files": repaired.dropped_files,
            "rewritten_files": repaired.rewritten_files,
            "postings": repaired.postings,
        }
    return document


def _tell_verification(index: str, found: "Verification", repaired: "Repair | None") -> None:
    def say(text: str) -> None:
        typer.echo(text, err=True)

    if repaired:
        say(
            f"finished {repaired.commits} half-done commits, removed {repaired.orphans} files of"
            f" nobody, took {len(repaired.dropped_files)} damaged files out of their tables, wrote"
            f" {len(repaired.rewritten_files)} anew, made the postings of"
            f" {len(repaired.postings)} models again"
        )
    broken = sum(finding.broken for finding in found.findings)
    say(
        f"read {found.rows:,} rows in {found.files:,} files, {size_text(found.bytes)}: "
        + (f"{broken} promises are broken" if broken else "every promise holds")
    )
    for tag, uris in found.damaged_uris.items():
        if uris:
            say(f"{len(uris)} videos of {tag} must be indexed anew:")
            for uri in uris:
                say(f"  {uri}")
            say(f"  with: indexer run VIDEO... --index {index} --if-exists overwrite")
    if broken and not repaired:
        say("what needs no video is repaired by: indexer verify --repair " + index)
