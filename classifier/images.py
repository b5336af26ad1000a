"""All images of a training run, decoded once and kept in memory as bytes: 35 KB each for 160 x 160 pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from classifier.data import Example
from classifier.decode import decode
from classifier.errors import DataError, NotScorable

_CHUNK = 16
_Decoded: TypeAlias = NDArray[np.uint8] | str  # (1, size, size), or why it cannot be decoded


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
    paths = [example.path for example in examples]
    with _decoding(paths, size, workers or _processors()) as decoded:
        for index, outcome in enumerate(decoded):
            progress(1)
            if isinstance(outcome, str):
                bad.append(f"{examples[index].path} ({outcome})")
            else:
                images[index] = outcome
                good.append(index)
    if bad and not skip_bad:
        raise DataError(f"{_listed(bad)} cannot be decoded; mend them, or leave them out with --skip-bad.")
    whole = images if len(good) == len(images) else images[good]
    return [examples[index] for index in good], torch.from_numpy(whole)


@contextmanager
def _decoding(paths: Sequence[Path], size: int, workers: int) -> Iterator[Iterator[_Decoded]]:
    """Decode in this process alone, or in several that are forked from a clean one: this one has threads."""
    decode_one = partial(_decode, size=size)
    if workers == 1:
        yield map(decode_one, paths)
        return
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        yield pool.map(decode_one, paths, chunksize=_CHUNK)


def _processors() -> int:
    """Return this process's share of the processors, of those that torchrun started."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _decode(path: Path, size: int) -> _Decoded:
    try:
        plane = decode(path, size=size)  # (1, size, size) float32 in 0..1
    except (NotScorable, OSError) as error:
        return str(error)
    return (plane * 255).round().astype(np.uint8)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
