"""A radiograph under its heat map, as a picture for people; drawn without matplotlib, which is large.

The map is as coarse as it is: linear between the centres of its cells, no outline, and a scale in units of
the logit. What is written stands below the image, never on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from classifier.heat_map import HeatMap
from pacs_node.reporting.fonts import BOLD, PLAIN, font_file

Grey = NDArray[np.float32]
Colours = NDArray[np.uint8]

_MOST_OPAQUE = 0.65
_FOR, _AGAINST = (np.array(colour, np.float32) for colour in ((214, 40, 30), (40, 110, 220)))
_NARROWEST = 320  # pixels, so that what is written can be read
_TEXT, _STRONG = (225, 225, 225), (255, 214, 0)
_MARGIN, _LINE, _BAR = 8, 17, 10  # pixels
_SIZES = (13, 12, 11, 10, 9, 8)  # points


def overlaid(image: Grey, heat_map: HeatMap, longest: int) -> Image.Image:
    """Return an image under its map, in colour.

    Parameters
    ----------
    image
        (rows, columns) in 0..1, as decoded.
    heat_map
        Of this image.
    longest
        Its longer side, in pixels; a smaller image stays as it is.
    """
    grey = _reduced(image, longest)
    rows, columns = grey.shape
    cells = Image.fromarray(heat_map.cells / np.float32(heat_map.reach))
    shares = np.asarray(cells.resize((columns, rows), Image.Resampling.BILINEAR))
    return Image.fromarray(_covered(grey, shares))


def captioned(picture: Image.Image, reach: float, strong: str, lines: Sequence[str]) -> Image.Image:
    """Return a picture of `overlaid` with the scale of its map and text below.

    Parameters
    ----------
    reach
        The ends of the scale, in units of the logit.
    strong, lines
        What is written, the first in another colour.
    """
    width = max(picture.width, _NARROWEST)
    below = 2 * _MARGIN + _BAR + _LINE * (len(lines) + 2)
    sheet = Image.new("RGB", (width, picture.height + below))
    sheet.paste(picture, ((width - picture.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    top = picture.height + _MARGIN
    scale = np.linspace(-1, 1, width - 2 * _MARGIN, dtype=np.float32)
    bar = _covered(np.full((_BAR, scale.size), 0.5, np.float32), np.tile(scale, (_BAR, 1)))
    sheet.paste(Image.fromarray(bar), (_MARGIN, top))
    top += _BAR + 2
    ends = f"{-reach:+.1f} against pneumonia  |  for pneumonia {reach:+.1f}  (units of the logit)"
    size = _size((strong, ends, *lines), width)
    for text, colour, name in (
        (ends, _TEXT, PLAIN),
        (strong, _STRONG, BOLD),
        *((t, _TEXT, PLAIN) for t in lines),
    ):
        _write(pen, text, colour, _font(name, size), (width, top))
        top += _LINE
    return sheet


def _reduced(image: Grey, longest: int) -> Grey:
    rows, columns = image.shape
    share = min(1.0, longest / max(rows, columns))
    size = max(1, round(columns * share)), max(1, round(rows * share))
    reduced = Image.fromarray(image.astype(np.float32)).resize(size, Image.Resampling.BOX)
    return np.asarray(reduced).clip(0, 1)


def _covered(grey: Grey, shares: NDArray[np.float32]) -> Colours:
    """Lay colours over grey, both (rows, columns); a share of 0 covers nothing, 1 or -1 the most."""
    opaque = (_MOST_OPAQUE * np.abs(shares).clip(0, 1))[..., None]
    colour = np.where(shares[..., None] > 0, _FOR, _AGAINST)
    mixed = (1 - opaque) * (255 * grey[..., None]) + opaque * colour
    return np.rint(mixed).astype(np.uint8)


def _size(texts: Sequence[str], width: int) -> int:
    """Return the largest size in which all texts fit, if they do in any."""
    fitting = (
        size for size in _SIZES if all(_font(BOLD, size).getlength(t) <= width - 2 * _MARGIN for t in texts)
    )
    return next(fitting, _SIZES[-1])


def _write(
    pen: ImageDraw.ImageDraw,
    text: str,
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont,
    place: tuple[int, int],
) -> None:
    """Write one line in the middle of (width, top), cut where it does not fit."""
    width, top = place
    while font.getlength(text) > width - 2 * _MARGIN:
        text = f"{text[:-2]}\N{HORIZONTAL ELLIPSIS}"
    pen.text(((width - font.getlength(text)) / 2, top), text, fill=colour, font=font)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_file(name)), size)
