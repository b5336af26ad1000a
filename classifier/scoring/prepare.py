"""From files to what the network takes: decoded in processes of their own, transformed here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from classifier.config import DecodeLimits, Eligibility
from classifier.decoding.ages import Age
from classifier.decoding.copies import Fingerprint
from classifier.decoding.decode import Radiograph
from classifier.decoding.decoders import Decoders, Outcome, Request
from classifier.errors import NotScorable
from classifier.model.transforms import Chain
from classifier.outcome import StillDecoding

_DEFAULT_LIMITS = DecodeLimits()
_MOST_PROCESSES = 16


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
    age: Age


class Preparation:
    """Decodes and transforms files, as many at a time as torch has threads.

    Parameters
    ----------
    chain
        The whole conversion.
    rules
        Which DICOM objects are wanted; ``None`` decodes any.
    limits
        What decoding one image may take.
    """

    def __init__(
        self, chain: Chain, rules: Eligibility | None, limits: DecodeLimits = _DEFAULT_LIMITS
    ) -> None:
        self._chain = chain
        self._rules = rules
        self._limits = limits
        self._decoders = Decoders.shared(min(torch.get_num_threads(), _MOST_PROCESSES))

    def start(self) -> None:
        """Start the processes that decode, which takes a second, before there is work for them."""
        self._decoders.start()

    def __call__(
        self, sources: Sequence[Path], patience: float | None = None
    ) -> list[Ready | NotScorable | OSError | StillDecoding]:
        """Prepare files.

        Parameters
        ----------
        sources
            DICOM, JPEG or PNG files.
        patience
            Seconds in which none gets decoded before those left are for later; ``None`` waits for all.

        Returns
        -------
        list of Ready, NotScorable, OSError or StillDecoding
            In the order of `sources`: an image that is refused is its refusal, a file that cannot be read is
            the error, and an image that takes long is to be asked for again.
        """
        size = self._chain.transforms[0].size
        requests = [Request(source, self._rules, size, self._limits) for source in sources]
        outcomes = self._decoders.decode(requests, patience)
        return [self._transformed(outcome) for outcome in outcomes]

    def fingerprints(
        self, sources: Sequence[Path], patience: float | None = None
    ) -> list[Fingerprint | NotScorable | OSError | StillDecoding]:
        """Return what tells the pixels of files from those of others; other outcomes as of `__call__`."""
        requests = [Request(source, self._rules, None, self._limits, is_copy=True) for source in sources]
        outcomes = self._decoders.decode(requests, patience)
        return [_fingerprint(outcome) for outcome in outcomes]

    def _transformed(self, outcome: Outcome | None) -> Ready | NotScorable | OSError | StillDecoding:
        if outcome is None:
            return StillDecoding()
        if isinstance(outcome, NotScorable | OSError):
            return outcome
        if isinstance(outcome, Fingerprint):
            raise TypeError("An image was asked for")
        return Ready(self._chain(outcome.pixels, start=1), outcome.view, outcome.age)


def _fingerprint(outcome: Outcome | None) -> Fingerprint | NotScorable | OSError | StillDecoding:
    if outcome is None:
        return StillDecoding()
    if isinstance(outcome, Radiograph):
        raise TypeError("A fingerprint was asked for")
    return outcome
