"""One comparison: the same work done by this program and by another, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Rates of this program and of another one; more is better.

    Attributes
    ----------
    what, other, unit
        What was done, by whom else, and what is counted per second.
    ours, theirs
        One rate for each round.
    wanted
        The ratio to reach, or none.
    """

    what: str
    other: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float]
    wanted: float | None = None

    @property
    def ratio(self) -> float:
        """Ours by theirs, by the medians."""
        return median(self.ours) / median(self.theirs)

    @property
    def is_met(self) -> bool:
        """Whether the wanted ratio is reached."""
        return self.wanted is None or self.ratio >= self.wanted

    @property
    def ours_text(self) -> str:
        """Our median and the spread."""
        return _text(self.ours)

    @property
    def theirs_text(self) -> str:
        """The other's median and the spread."""
        return _text(self.theirs)


def rate(work: Callable[[], object], number: int) -> float:
    """Return how many of `number` things were done in a second."""
    started = time.perf_counter()
    work()
    return number / (time.perf_counter() - started)


def _text(rates: Sequence[float]) -> str:
    return f"{median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"
