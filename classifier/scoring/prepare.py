"""From files to what the network takes, several at a time.

The decoders and numpy let other threads run, so threads keep all processors busy. A decoder that ends its
process thereby ends the one that asked, and the job queue sees a worker die, as it must.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch

from classifier.config import Eligibility
from classifier.decoding.decode import Radiograph, read
from classifier.errors import NotScorable
from classifier.model.transforms import Chain

_LARGE = 32 * 2**20  # bytes of a file: of such, one at a time bounds the memory
_MOST_THREADS = 16


class Ready(NamedTuple):
    """One image on its way to the network.

    Attributes
    ----------
    tensor
        What the network takes: (3, S, S) float32, normalised.
    view, age
        What the tags tell; see `classifier.decoding.decode.Radiograph`.
    """

    tensor: torch.Tensor
    view: str | None
    age: float | None


class Preparation:
    """Decodes and transforms files, as many at a time as torch has threads.

    Parameters
    ----------
    chain
        The whole conversion.
    rules
        Which DICOM objects are wanted; ``None`` decodes any.
    """

    def __init__(self, chain: Chain, rules: Eligibility | None) -> None:
        self._chain = chain
        self._rules = rules
        self._threads = min(torch.get_num_threads(), _MOST_THREADS)
        self._large = Lock()

    def __call__(self, sources: Sequence[Path]) -> list[Ready | NotScorable]:
        """Prepare files.

        Parameters
        ----------
        sources
            DICOM, JPEG or PNG files.

        Returns
        -------
        list of Ready or NotScorable
            In the order of `sources`; an image that is refused is its refusal.

        Raises
        ------
        OSError
            When a file cannot be opened or read.
        """
        outcomes = list(self._read_all(sources))  # all of them: torch's threads would be in the way
        return [self._transformed(outcome) for outcome in outcomes]

    def _read_all(self, sources: Sequence[Path]) -> Iterator[Radiograph | NotScorable]:
        if len(sources) < 2 or self._threads < 2:
            return map(self._read, sources)
        return self._pool.map(self._read, sources)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, thread_name_prefix="decode")

    def _read(self, source: Path) -> Radiograph | NotScorable:
        size = self._chain.transforms[0].size
        try:
            with self._large if source.stat().st_size > _LARGE else nullcontext():
                return read(source, self._rules, size)
        except NotScorable as refused:
            return refused

    def _transformed(self, outcome: Radiograph | NotScorable) -> Ready | NotScorable:
        if isinstance(outcome, NotScorable):
            return outcome
        return Ready(self._chain(outcome.pixels, start=1), outcome.view, outcome.age)
