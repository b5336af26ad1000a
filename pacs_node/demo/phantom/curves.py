"""Outlines as polygons: ovals, boxes, bands along a line, smooth curves."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Points: TypeAlias = NDArray[np.float64]


def oval(centre: tuple[float, float], radii: tuple[float, float]) -> Points:
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.asarray(np.stack([np.cos(turn), np.sin(turn)], 1) * radii + centre)


def box(centre: tuple[float, float], halves: tuple[float, float]) -> Points:
    return np.asarray(np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * halves + centre)


def borders(line: Points, halves: ArrayLike) -> tuple[Points, Points]:
    """Return the two borders of a band along `line`; give one half width for each point, or one for all."""
    along = np.gradient(line, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    across = np.stack([along[:, 1], -along[:, 0]], 1) * np.broadcast_to(halves, len(line))[:, None]
    return line + across, line - across


def band(line: Points, first: float, last: float) -> Points:
    """Return the outline of a band along `line` whose half width runs from `first` to `last`."""
    upper, lower = borders(line, np.linspace(first, last, len(line)))
    return np.concatenate([upper, lower[::-1]])


def smooth(points: Points, closed: bool = True) -> Points:
    """Return a Catmull-Rom curve through `points`, 12 points for each."""
    before, after = (points[-1:], points[:2]) if closed else (points[:1], points[-1:])
    p = np.concatenate([before, points, after])
    t = np.linspace(0, 1, 12, endpoint=False)[:, None]
    curves = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.concatenate(curves if closed else [*curves, points[-1:]])
