"""The commands that show an index's answers as pictures."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from indexer.cli_query import Source, Tag, Video
from indexer.cli_terminal import Index

if TYPE_CHECKING:
    from indexer.gallery.thumbnails import Thumbnail
    from indexer.gallery.tiles import Answer, Question, Tile

shows = typer.Typer()


@shows.command()
def gallery(
    index: Index,
    label: Annotated[
        list[str] | None,
        typer.Argument(
            help="A label, or words of its name; by default the best clips of every label.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="The page, such as gallery.html.")
    ] = None,
    contact_sheet: Annotated[
        str | None, typer.Option(help="An image of the same clips: .jpg or .png.")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(metavar="CLIP", help="Clips like this one: its id, or VIDEO@SECONDS."),
    ] = None,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Least probability.")] = 0.0,
    top: Annotated[int, typer.Option(min=1, max=1000, help="At most this many clips.")] = 60,
    video: Video = None,
    source: Source = None,
    link_prefix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OLD=NEW",
            help="Link videos whose URI begins with OLD below NEW, such as "
            "s3://films/=https://cdn.example/; may be repeated.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of the job; its `schemes` and [decode] are kept to."),
    ] = None,
    model: Tag = None,
) -> int:
    """Write the answer of `search` or `similar` as a page of pictures, with times and links.

    One file without a byte from elsewhere. Pictures are the frames that the model saw; a video that
    cannot be read gets a placeholder, and is counted on stderr.
    """
    from indexer.gallery.tiles import Question

    question = Question(tuple(label or ()), like, min_score, top, video, source)
    if out is None and contact_sheet is None:
        message = "name the page with --out, or an image with --contact-sheet"
        raise typer.BadParameter(message)
    _gallery(index, model, question, config, out, contact_sheet, link_prefix or [])
    return 0


def _gallery(
    index: str,
    model: str | None,
    question: "Question",
    config: Path | None,
    out: str | None,
    contact_sheet: str | None,
    link_prefix: list[str],
) -> None:
    from indexer.config import IndexConfig
    from indexer.gallery.links import LinkPrefix
    from indexer.gallery.page import render_page
    from indexer.gallery.sheet import check_sheet, render_sheet
    from indexer.gallery.thumbnails import thumbnails_of
    from indexer.gallery.tiles import find_tiles
    from indexer.storage import write_bytes
    from indexer.table.query import LabelIndex

    prefixes = [LinkPrefix.parse(text) for text in link_prefix]
    if contact_sheet is not None:
        check_sheet(contact_sheet)
    place = {"inputs": (index,), "index": index}
    job = IndexConfig.load(config, env=os.environ, overrides=place)
    answer = find_tiles(LabelIndex.open(index, model=model), question)
    with _progress(len(answer.tiles)) as progress:
        thumbnails = thumbnails_of(answer, job.decode, job.schemes, progress)
    _warn(answer, thumbnails)
    if out is not None:
        write_bytes(out, render_page(answer, thumbnails, prefixes).encode())
        typer.echo(out)
    if contact_sheet is not None:
        write_bytes(contact_sheet, render_sheet(answer, thumbnails, contact_sheet))
        typer.echo(contact_sheet)


@contextmanager
def _progress(clips: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while a person waits."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("pictures", total=clips)
        yield lambda settled: bar.advance(task, settled)


def _warn(answer: "Answer", thumbnails: "Mapping[Tile, Thumbnail | str]") -> None:
    if not answer.tiles:
        typer.echo("no clip of the index answers this; the page says so", err=True)
    missing = Counter(why for why in thumbnails.values() if isinstance(why, str))
    if missing:
        reasons = ", ".join(f"{count} {why}" for why, count in missing.most_common())
        typer.echo(
            f"{missing.total()} of {len(answer.tiles)} clips have no picture: {reasons}", err=True
        )
