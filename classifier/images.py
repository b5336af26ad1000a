"""All images of a training run, decoded once and kept in memory as bytes: 50 KB each at 224 x 224 pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from classifier.data import Example
from classifier.decode import decode
from classifier.errors import DataError, NotScorable
from classifier.transforms import Resize

_CHUNK = 16


def decode_all(
    examples: Sequence[Example],
    size: int,
    *,
    workers: int = 0,
    skip_bad: bool = False,
    progress: Callable[[int], None] = lambda _number: None,
) -> tuple[list[Example], torch.Tensor]:
    """Decode images and resize them to squares.

    Parameters
    ----------
    examples
        What to decode.
    size
        Side in pixels.
    workers
        Processes; 0 takes one for each processor.
    skip_bad
        Leave out what cannot be decoded; otherwise the first such image ends it.
    progress
        Called with the number of images just done.

    Returns
    -------
    examples
        Those that could be decoded, in their order.
    images
        (N, 1, size, size) uint8.

    Raises
    ------
    DataError
        Names the images that cannot be decoded.
    """
    images = np.empty((len(examples), 1, size, size), np.uint8)
    bad: list[str] = []
    good: list[int] = []
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        decoded = pool.map(partial(_decode, size=size), [e.path for e in examples], chunksize=_CHUNK)
        for index, outcome in enumerate(decoded):
            progress(1)
            if isinstance(outcome, str):
                bad.append(f"{examples[index].path} ({outcome})")
            else:
                images[index] = outcome
                good.append(index)
    if bad and not skip_bad:
        raise DataError(f"{_listed(bad)} cannot be decoded; mend them, or leave them out with --skip-bad.")
    return [examples[index] for index in good], torch.from_numpy(images[good])


def _decode(path: Path, size: int) -> NDArray[np.uint8] | str:
    torch.set_num_threads(1)  # one process for each processor already
    try:
        plane = Resize(size)(decode(path))  # (1, size, size) float32 in 0..1
    except (NotScorable, OSError) as error:
        return str(error)
    return np.asarray((plane * 255).round().to(torch.uint8).numpy())


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
