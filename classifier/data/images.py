"""All images of a training run, decoded once and kept in memory as bytes: 35 KB each for 160 x 160 pixels."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from classifier.data.examples import Example
from classifier.decoding.decode import Radiograph
from classifier.decoding.decoders import Decoders, Outcome, Request
from classifier.errors import DataError

_CHUNK = 16
_AHEAD = 4  # images for each process that are decoded before they are asked for
_Image: TypeAlias = NDArray[np.uint8] | str  # (1, size, size), or the reason why it cannot be decoded
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
    """Decode images and resize them to squares, in processes that are watched as those of the node.

    A file that crashes them, hangs, or wants all memory is one that cannot be decoded; the others go on.

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
        Names the images that cannot be decoded.
    """
    images = np.empty((len(examples), 1, size, size), np.uint8)
    bad: dict[Path, str] = {}
    good: list[int] = []
    paths = [example.path for example in examples]
    for index, image in enumerate(_decoded(paths, size, workers or _processors())):
        progress(1)
        if isinstance(image, str):
            bad[examples[index].path] = image
        else:
            images[index] = image
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


def _decoded(paths: Iterable[Path], size: int, processes: int) -> Iterator[_Image]:
    """Yield the images of files in their order."""
    decoders = Decoders.shared(processes)
    waiting: deque[Future[Outcome]] = deque()
    for path in paths:
        waiting.append(decoders.submit(Request(path, size=size)))
        if len(waiting) > _AHEAD * processes:
            yield _image(waiting.popleft().result())
    while waiting:
        yield _image(waiting.popleft().result())


def _image(outcome: Outcome) -> _Image:
    if not isinstance(outcome, Radiograph):
        return str(outcome)
    return (outcome.pixels * 255).round().astype(np.uint8)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
