"""An answer as one HTML file: pictures, times and timelines, without a byte from anywhere else.

Names of videos and labels are put in as text by the template's autoescape. The page's policy allows
its own style and script by their hashes, pictures that it carries itself, and nothing else.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Final

import jinja2
from markupsafe import Markup

from indexer.gallery.links import LinkPrefix
from indexer.gallery.thumbnails import Thumbnail
from indexer.gallery.tiles import Answer, Tile
from indexer.gallery.view import BAR_UNITS, bars_of, cards_of, conditions_of, title_of
from indexer.render import cell_text
from indexer.uris import redact

_FILES: Final = resources.files("indexer.gallery")


def render_page(
    answer: Answer,
    thumbnails: Mapping[Tile, Thumbnail | str],
    prefixes: Sequence[LinkPrefix] = (),
) -> str:
    """The page.

    Args:
        answer: the clips to show.
        thumbnails: of each its picture, or why there is none.
        prefixes: where videos are linked to.
    """
    style, script = _read("page.css"), _read("page.js")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_read("page.html")).render(
        policy=_policy(style, script),
        style=Markup(style),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        title=title_of(answer.question),
        conditions=conditions_of(answer.question),
        looks=answer.question.like is not None,
        index=cell_text("", redact(answer.index)),
        model=cell_text("", answer.model),
        cards=cards_of(answer, thumbnails, prefixes),
        bars=bars_of(answer, prefixes),
        bar_units=BAR_UNITS,
    )


def _policy(style: str, script: str) -> str:
    return (
        "default-src 'none'; img-src data:; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    """How a Content-Security-Policy names a text that it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _read(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")
