"""From an image of any size to the square that a network takes, a band of rows at a time.

Bilinear with antialiasing, as in Pillow and torch: each new pixel is a mean under a triangle that reaches as
far as its neighbours. Stored values can be handed over, which become grey values in the band at hand alone:
no copy of a large radiograph in floating-point numbers is ever made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.float32]
Look = Callable[[NDArray[Any]], Grey]

_BAND = 4  # new rows at once: the old rows under them fit the cache of a processor
_UNDIVIDED = 200_000  # products: more of them OpenBLAS shares out to threads, and then waits for the slowest


class Sampling(NamedTuple):
    """What the pixels of an image decoded with less detail are of the whole one, along both sides.

    Attributes
    ----------
    step
        Pixels of the whole image from one to the next.
    first
        Where the middle of the first one lies, in pixels of the whole image from its edge.
    gain
        By how much the decoder raised fine detail: that of w radians a pixel by the factor 1 + gain w^2.
    """

    step: int = 1
    first: float = 0.5
    gain: float = 0.0


WHOLE = Sampling()


def resample(
    image: NDArray[Any],
    size: int,
    whole: tuple[int, int] | None = None,
    sampling: Sampling = WHOLE,
    look: Look | None = None,
) -> Grey:
    """Resize to a square; the aspect ratio is not kept.

    Parameters
    ----------
    image
        (rows, columns) of any type.
    size
        Side of the square in pixels.
    whole, sampling
        Rows and columns of the image that `image` stands for, and where its pixels lie in it.
    look
        What turns some rows of `image` into float32; without it they are only converted.

    Returns
    -------
    numpy.ndarray
        (size, size) float32; with a gain to undo, edges may overshoot.
    """
    (old_rows, old_columns), (rows, columns) = image.shape, whole or image.shape
    by_rows, by_columns = (
        _triangles(old_rows, rows, size, sampling),
        _triangles(old_columns, columns, size, sampling),
    )
    shorter = _resample_rows(image, by_rows, look or _float32)  # (size, columns)
    return np.ascontiguousarray(_resample_rows(shorter.T, by_columns, _float32).T)


def _resample_rows(image: NDArray[Any], weights: Grey, look: Look) -> Grey:
    resampled = np.empty((len(weights), image.shape[1]), np.float32)
    for start in range(0, len(weights), _BAND):
        band = weights[start : start + _BAND]  # (4, all rows)
        used = np.flatnonzero(band.any(axis=0))
        rows = slice(used[0], used[-1] + 1)
        _multiply(band[:, rows], look(image[rows]), resampled[start : start + _BAND])
    return resampled


def _multiply(weights: Grey, values: Grey, out: Grey) -> None:
    """Multiply matrices, some columns at a time: where other work is at hand, threads are far slower."""
    step = max(1, _UNDIVIDED // weights.size)
    for start in range(0, out.shape[1], step):
        columns = slice(start, start + step)
        np.matmul(weights, values[:, columns], out=out[:, columns])


def _triangles(old: int, length: int, new: int, sampling: Sampling) -> Grey:
    """Return the weight of each old pixel in each new one, (new, old), rows adding up to 1."""
    step, first, gain = sampling
    scale = length / new
    reach = max(scale, step)
    centres = (np.arange(new)[:, None] + 0.5) * scale
    near = np.floor((centres - reach - first) / step).astype(np.intp) + np.arange(int(2 * reach / step) + 2)
    values = np.maximum(0, 1 - np.abs(first + step * near - centres) / reach)  # (new, taps)
    values[(near < 0) | (near >= old)] = 0
    values /= values.sum(axis=1, keepdims=True)
    weights = np.zeros((new, old), np.float32)
    # Those outside are moved to the edge, where they add their nothing
    np.add.at(weights, (np.arange(new)[:, None], near.clip(0, old - 1)), values.astype(np.float32))
    return weights if gain == 0 else weights + np.float32(gain) * _bend(weights)


def _bend(weights: Grey) -> Grey:
    """Return the second differences along each row: -w^2 times detail of w radians a pixel."""
    wide = np.pad(weights, ((0, 0), (1, 1)), "edge")
    bend: Grey = wide[:, :-2] - 2 * weights + wide[:, 2:]
    return bend


def _float32(rows: NDArray[Any]) -> Grey:
    return rows.astype(np.float32, copy=False)
