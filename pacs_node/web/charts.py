"""Small charts, as numbers for templates that draw them in SVG; nothing is drawn by scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 720, 120


@dataclass(frozen=True)
class Mark:
    """One bar or point: its place and size in units of the drawing, what stands below it, and its value.

    `low` and `high` are the ends of its interval.
    """

    x: float
    y: float
    width: float
    height: float
    label: str
    text: str
    low: float | None = None
    high: float | None = None


def bars(values: Sequence[tuple[str, int]]) -> list[Mark]:
    """Return bars for counts; the highest fills the height."""
    highest = max((value for _, value in values), default=0) or 1
    step = WIDTH / max(1, len(values))
    return [
        Mark(at * step + 1, HEIGHT - height, step - 2, height, label, f"{value:,}")
        for at, (label, value) in enumerate(values)
        for height in (HEIGHT * value / highest,)
    ]


def shares(
    values: Sequence[tuple[str, float, tuple[float, float] | None, str]], top: float = 1.0
) -> list[Mark]:
    """Return points with intervals.

    Parameters
    ----------
    values
        Label, value, interval, and what is said of it.
    top
        The value at the upper edge.
    """
    step = WIDTH / max(1, len(values))

    def height(value: float) -> float:
        return HEIGHT * (1 - min(1.0, value / top))

    return [
        Mark(
            (at + 0.5) * step,
            height(value),
            step,
            0,
            label,
            text,
            height(interval[0]) if interval else None,
            height(interval[1]) if interval else None,
        )
        for at, (label, value, interval, text) in enumerate(values)
    ]
