"""One page for people: the study's answer, its images, and why some were not analysed (PDF, A4).

It says what the structured report says, for viewers that show no structured reports.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from PIL import Image
from reportlab.lib.colors import HexColor, white
from reportlab.lib.enums import TA_CENTER
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Paragraph

from pacs_node.reporting.fonts import BOLD, PLAIN, font_file

MOST_SHOWN = 6
"""Images that have a place on the page."""

mm = 72 / 25.4  # points
_HEIGHT = float(A4[1])
_PLAIN, _BOLD = "PacsNode", "PacsNode-Bold"
_MARGIN = 18 * mm
_WIDTH = float(A4[0]) - 2 * _MARGIN
_COLUMNS, _CELL_HEIGHT, _PICTURE_HEIGHT, _GAP = 3, 74 * mm, 52 * mm, 4 * mm
_BLACK, _GREY, _RED = HexColor("#000000"), HexColor("#555555"), HexColor("#a40000")
_SMALLEST = 4.0  # points
_COLOURS = {
    "positive": HexColor("#a40000"),
    "negative": HexColor("#1f6f43"),
    "undetermined": HexColor("#8a5a00"),
}


@dataclass(frozen=True)
class PageImage:
    """One image of the study.

    Attributes
    ----------
    title
        Its number and its answer.
    text
        Its score, or why it has none.
    pictures
        The radiograph, and what is to be seen beside it, such as a heat map; none where it cannot be shown.
    """

    title: str
    text: str
    pictures: Sequence[Image.Image] = ()


@dataclass(frozen=True)
class Page:
    """What the page says.

    Attributes
    ----------
    answer
        In one or two words.
    decision
        ``positive``, ``negative`` or ``undetermined``; it gives the colour.
    sentence
        How the answer came about.
    warning
        What it must not be used for.
    facts
        Names and values: patient, study, report.
    images
        All images; the first `MOST_SHOWN` are shown.
    """

    answer: str
    decision: str
    sentence: str
    warning: str
    facts: Sequence[tuple[str, str]]
    images: Sequence[PageImage]


def draw(page: Page) -> bytes:
    """Return the page as a PDF file; the same page, the same bytes."""
    _register_fonts()
    file = BytesIO()
    canvas = Canvas(file, pagesize=A4, invariant=1, lang="en")
    canvas.setTitle("AI chest X-ray result")
    top = _banner(canvas, page.warning, _HEIGHT - _MARGIN)
    top = _answer(canvas, page, top)
    top = _facts(canvas, page.facts, top)
    _images(canvas, page.images, top)
    _banner(canvas, page.warning, _MARGIN + 9 * mm)
    canvas.showPage()
    canvas.save()
    return file.getvalue()


def drawable(*candidates: str) -> str | None:
    """Return the first text whose letters the page can show in the right order; none where it has none.

    The font has Latin, Greek and Cyrillic letters, no Chinese ones, and nothing here joins Arabic ones.
    """
    _register_fonts()
    known = pdfmetrics.getFont(_PLAIN).face.charToGlyph
    return next((text for text in candidates if text and all(_is_shown(c, known) for c in text)), None)


def _is_shown(letter: str, known: dict[int, int]) -> bool:
    return ord(letter) in known and unicodedata.bidirectional(letter) not in ("R", "AL", "AN")


@cache
def _register_fonts() -> None:
    for name, file in ((_PLAIN, PLAIN), (_BOLD, BOLD)):
        pdfmetrics.registerFont(TTFont(name, font_file(file)))


def _style(size: float, *, font: str = _PLAIN, colour: Any = _BLACK, **more: Any) -> Any:
    return ParagraphStyle("page", fontName=font, fontSize=size, leading=size * 1.25, textColor=colour, **more)


class _Box(NamedTuple):
    """Where text may stand; all in points."""

    left: float
    top: float
    width: float
    height: float


def _text(canvas: Canvas, text: str, style: Any, box: _Box) -> float:
    """Write text, smaller where it would be higher than its box; return where it ends."""
    while True:
        paragraph = Paragraph(escape(text), style)
        _, height = paragraph.wrap(box.width, _HEIGHT)
        if height <= box.height or style.fontSize <= _SMALLEST:
            break
        style = style.clone("smaller", fontSize=style.fontSize - 0.5, leading=(style.fontSize - 0.5) * 1.25)
    paragraph.drawOn(canvas, box.left, box.top - height)
    return box.top - float(height)


def _banner(canvas: Canvas, text: str, top: float) -> float:
    canvas.setFillColor(_RED)
    canvas.rect(_MARGIN, top - 8 * mm, _WIDTH, 8 * mm, stroke=0, fill=1)
    style = _style(10, font=_BOLD, colour=white, alignment=TA_CENTER)
    _text(canvas, text, style, _Box(_MARGIN, top - 1.6 * mm, _WIDTH, 6 * mm))
    return top - 12 * mm


def _answer(canvas: Canvas, page: Page, top: float) -> float:
    style = _style(20, font=_BOLD, colour=_COLOURS[page.decision])
    top = _text(canvas, page.answer, style, _Box(_MARGIN, top, _WIDTH, 12 * mm)) - 2 * mm
    return _text(canvas, page.sentence, _style(11), _Box(_MARGIN, top, _WIDTH, 20 * mm)) - 5 * mm


def _facts(canvas: Canvas, facts: Sequence[tuple[str, str]], top: float) -> float:
    for name, value in facts:
        _text(canvas, name, _style(8, colour=_GREY), _Box(_MARGIN, top, 35 * mm, 5 * mm))
        box = _Box(_MARGIN + 36 * mm, top, _WIDTH - 36 * mm, 8 * mm)
        top = _text(canvas, value, _style(8), box) - 1 * mm
    return top - 4 * mm


def _images(canvas: Canvas, images: Sequence[PageImage], top: float) -> None:
    width = (_WIDTH - (_COLUMNS - 1) * _GAP) / _COLUMNS
    for at, image in enumerate(images[:MOST_SHOWN]):
        row, column = divmod(at, _COLUMNS)
        _image(canvas, image, _MARGIN + column * (width + _GAP), top - row * _CELL_HEIGHT, width)
    hidden = len(images) - MOST_SHOWN
    if hidden > 0:
        rest = f"{hidden} more {'image is' if hidden == 1 else 'images are'} in the structured report."
        below = top - MOST_SHOWN // _COLUMNS * _CELL_HEIGHT
        _text(canvas, rest, _style(8), _Box(_MARGIN, below, _WIDTH, 5 * mm))


def _image(canvas: Canvas, image: PageImage, left: float, top: float, width: float) -> None:
    bottom = top - _PICTURE_HEIGHT
    canvas.setFillColor(_BLACK)
    canvas.rect(left, bottom, width, _PICTURE_HEIGHT, stroke=0, fill=1)
    if not image.pictures:
        style = _style(8, colour=white, alignment=TA_CENTER)
        _text(canvas, "cannot be shown", style, _Box(left, top - _PICTURE_HEIGHT / 2, width, 5 * mm))
    share = width / max(1, len(image.pictures))
    for at, picture in enumerate(image.pictures):
        place = (left + at * share, bottom, share, _PICTURE_HEIGHT)
        canvas.drawImage(ImageReader(picture), *place, preserveAspectRatio=True)
    below = _text(canvas, image.title, _style(8, font=_BOLD), _Box(left, bottom - 1 * mm, width, 7 * mm))
    _text(canvas, image.text, _style(7.5), _Box(left, below, width, 11 * mm))
