"""Vessels and bronchi, which branch until they are too thin to see."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import ImageDraw

from pacs_node.demo.phantom.curves import Points
from pacs_node.demo.phantom.plate import Plate, Strokes


@dataclass(frozen=True)
class Twig:
    start: Points
    end: Points
    width: float  # pixels


def branch(twigs: list[Twig], rng: np.random.Generator, start: Points, heading: float, width: float) -> None:
    """Grow a vessel from `start`: it narrows, bends and forks until it is too thin to see."""
    while width > 0.7:
        step = 0.012 + 0.004 * rng.random()
        end = start + step * np.array([np.cos(heading), 1.15 * np.sin(heading)])
        twigs.append(Twig(start, end, width))
        if rng.random() < 0.38:
            turn = rng.choice([-1, 1]) * rng.uniform(0.4, 0.8)
            branch(twigs, rng, end, heading + turn, width * 0.68)
        start, heading, width = end, heading + rng.normal(0, 0.22), width * 0.93


def tree(plate: Plate, twigs: Iterable[Twig]) -> Strokes:
    """Draw the twigs, thick ones last and brightest."""

    def strokes(pen: ImageDraw.ImageDraw) -> None:
        for twig in sorted(twigs, key=lambda t: t.width):
            grey = int(min(255, 50 + 36 * twig.width))
            pen.line(plate.pixels([twig.start, twig.end]), fill=grey, width=max(1, round(twig.width)))

    return strokes
