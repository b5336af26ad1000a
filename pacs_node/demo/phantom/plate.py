"""The detector: what is drawn on it, and how attenuation turns into grey."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter

from pacs_node.demo.phantom.curves import box

FloatImage: TypeAlias = NDArray[np.float32]
Strokes: TypeAlias = Callable[[ImageDraw.ImageDraw], None]

ROWS, COLUMNS = 960, 1120  # of a chest radiograph


@dataclass
class Plate:
    """The detector: a size, a source of randomness, and the few ways of drawing on it."""

    rows: int
    columns: int
    rng: np.random.Generator

    def grid(self) -> tuple[FloatImage, FloatImage]:
        """Return x (1, columns) and y (rows, 1) of the pixel centres."""
        x = (np.arange(self.columns, dtype=np.float32) + np.float32(0.5)) / np.float32(self.columns)
        y = (np.arange(self.rows, dtype=np.float32) + np.float32(0.5)) / np.float32(self.rows)
        return x[None, :], y[:, None]

    def draw(self, strokes: Strokes, soft: float) -> FloatImage:
        """Return what `strokes` draws, 0..1, blurred by `soft` pixels."""
        film = Image.new("L", (self.columns, self.rows))
        strokes(ImageDraw.Draw(film))
        return np.asarray(film.filter(ImageFilter.GaussianBlur(soft)), np.float32) / np.float32(255)

    def fill(self, *outlines: ArrayLike, soft: float) -> FloatImage:
        """Return 1 inside any of the polygons and 0 outside, with borders `soft` pixels wide."""

        def strokes(pen: ImageDraw.ImageDraw) -> None:
            for outline in outlines:
                pen.polygon(self.pixels(outline), fill=255)

        return self.draw(strokes, soft)

    def pixels(self, points: ArrayLike) -> list[tuple[float, float]]:
        """Return points in pixels, as Pillow draws them."""
        scaled = np.asarray(points, np.float64) * (self.columns, self.rows)
        return [(float(x), float(y)) for x, y in scaled]

    def clouds(self, cells: int, octaves: int = 4) -> FloatImage:
        """Return fractal noise, mean 0 and standard deviation 1, whose largest blobs are 1 / `cells` wide."""
        total = np.zeros((self.rows, self.columns), np.float32)
        for octave in range(octaves):
            n = cells * 2**octave
            seedling = Image.fromarray(self.rng.standard_normal((n, n), dtype=np.float32))
            grown = seedling.resize((self.columns, self.rows), Image.Resampling.BICUBIC)
            total += np.asarray(grown) * 0.6**octave
        return np.asarray((total - total.mean()) / total.std(), np.float32)

    def jitter(self, spread: float) -> float:
        """Return a number within plus or minus `spread`."""
        return float(self.rng.uniform(-spread, spread))


def expose(plate: Plate, attenuation: FloatImage, side: str, marker: tuple[float, float]) -> FloatImage:
    """Turn attenuation into grey: scatter, film curve, quantum noise, collimator and side marker."""
    grey = 1 - np.exp(-1.35 * np.clip(attenuation, 0, None))
    photons = plate.rng.standard_normal(grey.shape, dtype=np.float32)
    grey = grey * 0.98 + photons * (0.004 + 0.012 * (1 - grey) * grey)
    x, y = plate.grid()
    field = plate.fill(box((0.5, 0.5), (0.494, 0.493)), soft=1.5)
    grey *= field * (1 + 0.05 * (0.5 - x) + 0.06 * (y - 0.5))
    return np.asarray(np.clip(np.maximum(grey, _letter(plate, side, marker)), 0, 1), np.float32)


def _letter(plate: Plate, text: str, at: tuple[float, float]) -> FloatImage:
    def strokes(pen: ImageDraw.ImageDraw) -> None:
        pen.text(plate.pixels([at])[0], text, fill=250, font_size=52)

    return plate.draw(strokes, 0.8)


def corticated(plate: Plate, outlines: Iterable[ArrayLike], inside: int, rim: int = 255) -> Strokes:
    """Draw bones: spongy inside, dense at the rim."""

    def strokes(pen: ImageDraw.ImageDraw) -> None:
        for outline in outlines:
            pen.polygon(plate.pixels(outline), fill=inside, outline=rim, width=4)

    return strokes
