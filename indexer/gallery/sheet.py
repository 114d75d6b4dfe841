"""An answer's pictures with their captions, as one image."""

import io
import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont, ImageOps

from indexer.errors import ConfigError
from indexer.gallery.thumbnails import Thumbnail
from indexer.gallery.tiles import Answer, Tile
from indexer.gallery.view import Card, cards_of

_KINDS: Final = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
_MOST_COLUMNS: Final = 8
_SHOT: Final = (384, 216)
_MARGIN: Final = 20
_LINE: Final = 24
_CELL: Final = (_SHOT[0] + _MARGIN, _SHOT[1] + 2 * _LINE + _MARGIN + 8)
_PAGE, _FRAME, _TEXT, _SOFT = "#ffffff", "#17181a", "#1b1c1e", "#5b5f66"
_QUALITY: Final = 88


def check_sheet(name: str) -> None:
    """Refuses a name by which an image cannot be written.

    Raises:
        ConfigError: its ending is another than `.jpg`, `.jpeg` or `.png`.
    """
    if PurePosixPath(name).suffix.lower() not in _KINDS:
        message = f"{name}: a contact sheet's name ends in {', '.join(_KINDS)}"
        raise ConfigError(message)


def render_sheet(answer: Answer, thumbnails: Mapping[Tile, Thumbnail | str], name: str) -> bytes:
    """The image, in the format that its name asks for; as square as the number of clips allows.

    Args:
        answer: the clips to show.
        thumbnails: of each its picture, or why there is none.
        name: of the image; see `check_sheet`.
    """
    cards = cards_of(answer, thumbnails, ())
    columns = min(max(math.ceil(math.sqrt(len(cards))), 1), _MOST_COLUMNS)
    rows = max(math.ceil(len(cards) / columns), 1)
    size = (columns * _CELL[0] + _MARGIN, rows * _CELL[1] + _MARGIN)
    sheet = Image.new("RGB", size, _PAGE)
    pen = _Pen(sheet)
    for number, card in enumerate(cards):
        row, column = divmod(number, columns)
        pen.draw(card, _MARGIN + column * _CELL[0], _MARGIN + row * _CELL[1])
    file = io.BytesIO()
    sheet.save(file, _KINDS[PurePosixPath(name).suffix.lower()], quality=_QUALITY)
    return file.getvalue()


class _Pen:
    """Draws cards on a sheet."""

    def __init__(self, sheet: Image.Image) -> None:
        self._sheet = sheet
        self._draw = ImageDraw.Draw(sheet)
        # Matplotlib's own: Pillow has no font that knows more than English
        fonts = f"{mpl.get_data_path()}/fonts/ttf/DejaVuSans"
        self._bold = ImageFont.truetype(f"{fonts}-Bold.ttf", 17)
        self._plain = ImageFont.truetype(f"{fonts}.ttf", 15)

    def draw(self, card: Card, left: int, top: int) -> None:
        """Draws a picture and, below it, what it shows and where it is from."""
        if isinstance(card.thumbnail, Thumbnail):
            shot = ImageOps.pad(card.thumbnail.decompress(), _SHOT, color=_FRAME)
        else:
            shot = Image.new("RGB", _SHOT, _FRAME)
        self._sheet.paste(shot, (left, top))
        if isinstance(card.thumbnail, str):
            self._line(f"No picture: {card.thumbnail}", "", left + 12, top + 12, self._plain, _PAGE)
        below = top + _SHOT[1] + 6
        self._line(card.label, card.score, left, below, self._bold, _TEXT)
        self._line(card.name, card.at, left, below + _LINE, self._plain, _SOFT)

    def _line(
        self,
        text: str,
        end: str,
        left: int,
        top: int,
        font: ImageFont.FreeTypeFont,
        colour: str,
    ) -> None:
        """Writes a text as far as there is room, and another one behind it at the right."""
        end_width = font.getlength(end)
        room = _SHOT[0] - (end_width + 12 if end else 12)
        self._draw.text((left, top), _cut(text, room, font), colour, font)
        self._draw.text((left + _SHOT[0] - end_width, top), end, colour, font)


def _cut(text: str, room: float, font: ImageFont.FreeTypeFont) -> str:
    """As much of a text as there is room for."""
    text = text[:200]
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}…") > room:
        text = text[:-1]
    return f"{text}…"
