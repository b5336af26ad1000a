"""How far people agree with the model, with intervals; nothing is said of too few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from db.model_use import Judged

FEWEST = 30
"""Images below which a share is not told: its interval would be wider than a third."""

_Z95 = 1.959964


@dataclass(frozen=True)
class Share:
    """A share of images, with its 95 % interval (Wilson 1927)."""

    name: str
    hits: int
    images: int
    note: str = ""

    @property
    def is_enough(self) -> bool:
        """Whether there are enough images to tell it."""
        return self.images >= FEWEST

    @property
    def value(self) -> float:
        """The share, in 0..1."""
        return self.hits / self.images if self.images else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end."""
        return wilson(self.hits, self.images)


def wilson(hits: int, images: int, z: float = _Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a share; nothing known is 0..1."""
    if not images:
        return 0.0, 1.0
    share, spread = hits / images, z * z / images
    middle = share + spread / 2
    half = z * sqrt(share * (1 - share) / images + spread / (4 * images))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return max(0.0, low), min(1.0, high)


def shares(judged: Sequence[Judged], *, blind: bool) -> list[Share]:
    """Return the share of positive and of negative answers that people confirmed.

    Parameters
    ----------
    blind
        Only verdicts given without seeing the score; else only those given beside it.
    """
    chosen = [one for one in judged if one.score_was_visible is not blind and one.label != "unreadable"]
    return [
        _share("Positive answers confirmed", chosen, "positive", ("agree", "pneumonia")),
        _share("Negative answers confirmed", chosen, "negative", ("agree", "no_pneumonia")),
    ]


def _share(name: str, judged: Sequence[Judged], decision: str, confirming: tuple[str, ...]) -> Share:
    of = [one for one in judged if one.decision == decision]
    hits = sum(one.images for one in of if one.label in confirming)
    return Share(name, hits, sum(one.images for one in of))


def labels(judged: Sequence[Judged]) -> dict[tuple[str, str], int]:
    """Return how many images have each decision and what people said: pneumonia or not, or unreadable."""
    found: dict[tuple[str, str], int] = {}
    for one in judged:
        said = one.label
        if said == "agree":
            said = "pneumonia" if one.decision == "positive" else "no_pneumonia"
        found[one.decision, said] = found.get((one.decision, said), 0) + one.images
    return found
