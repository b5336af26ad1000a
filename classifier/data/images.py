"""All images of a training run, decoded once and kept in memory as bytes: 35 KB each for 160 x 160 pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from classifier.data.examples import Example
from classifier.decoding.decode import decode
from classifier.errors import DataError, NotScorable

_CHUNK = 16
_Outcome: TypeAlias = NDArray[np.uint8] | str  # (1, size, size), or the reason why it cannot be decoded
_Result = TypeVar("_Result")


class Decoded(NamedTuple):
    """Images of a run.

    Attributes
    ----------
    examples
        The examples that could be decoded, in their order.
    images
        (N, 1, size, size) uint8.
    bad
        The other examples, and why each cannot be decoded.
    """

    examples: list[Example]
    images: torch.Tensor
    bad: dict[Path, str]


def decode_all(
    examples: Sequence[Example],
    size: int,
    *,
    workers: int = 0,
    skip_bad: bool = False,
    progress: Callable[[int], None] = lambda _number: None,
) -> Decoded:
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
        Leave out images that cannot be decoded; otherwise the first such image is an error.
    progress
        Called with the number of images just done.

    Raises
    ------
    DataError
        Names the images that cannot be decoded, or says that a process was killed.
    """
    images = np.empty((len(examples), 1, size, size), np.uint8)
    bad: dict[Path, str] = {}
    good: list[int] = []
    paths = [example.path for example in examples]
    with in_processes(partial(_decode, size=size), paths, workers) as decoded:
        for index, outcome in enumerate(decoded):
            progress(1)
            if isinstance(outcome, str):
                bad[examples[index].path] = outcome
            else:
                images[index] = outcome
                good.append(index)
    if not skip_bad:
        require_none(bad)
    whole = images if len(good) == len(images) else images[good]
    return Decoded([examples[index] for index in good], torch.from_numpy(whole), bad)


def require_none(bad: Mapping[Path, str]) -> None:
    """Raise `DataError` that names the images that cannot be decoded, if there are any."""
    if bad:
        named = _listed([f"{path} ({why})" for path, why in bad.items()])
        raise DataError(f"{named} cannot be decoded; repair them, or leave them out with --skip-bad.")


@contextmanager
def in_processes(
    function: Callable[[Path], _Result], paths: Sequence[Path], workers: int = 0
) -> Iterator[Iterator[_Result]]:
    """Examine files in this process, or in several processes forked from a clean one, as this one has
    threads.

    Parameters
    ----------
    workers
        Number of processes; 0 takes one for each processor.

    Raises
    ------
    DataError
        If a process was killed.
    """
    if workers == 1:
        yield map(function, paths)
        return
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    try:
        with ProcessPoolExecutor(workers or _processors(), context, torch.set_num_threads, (1,)) as pool:
            yield pool.map(function, paths, chunksize=_CHUNK)
    except (BrokenProcessPool, EOFError, ConnectionError) as error:  # the latter: from the fork server
        raise DataError(
            "A process that decodes images was killed, perhaps for lack of memory; free some, and try again."
        ) from error


def _processors() -> int:
    """Return the number of processors for this process, one of those that torchrun started."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _decode(path: Path, size: int) -> _Outcome:
    try:
        plane = decode(path, size=size)  # (1, size, size) float32 in 0..1
    except (NotScorable, OSError) as error:
        return str(error)
    return (plane * 255).round().astype(np.uint8)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
