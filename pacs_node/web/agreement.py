"""How far people agree with the model, with intervals; nothing is said of too few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from db.model_use import Judged

FEWEST = 30
"""Images below which a share is not told: its interval would be wider than a third."""

_Z95, _Z975 = 1.959964, 2.241403


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


@dataclass(frozen=True)
class Sensitivity:
    """How many of all pneumonias the model found; `low` and `high` hold at least 95 %."""

    value: float
    low: float
    high: float


def sensitivity(blind: Sequence[Share], positives: int, negatives: int) -> Sensitivity | None:
    """Estimate the sensitivity from a blind sample; ``None`` where that is of too few.

    The shares of the sample, times the numbers of all answers, give the pneumonias found and missed. Each
    share is in its interval with 97.5 %, so that both are with 95 %, and the estimate with them (Bonferroni).

    Parameters
    ----------
    blind
        What `shares` returned.
    positives, negatives
        Numbers of all positive and of all negative answers.
    """
    right, clear = blind
    if not right.is_enough or not clear.is_enough or not positives:
        return None
    found = (right.value, *wilson(right.hits, right.images, _Z975))
    missed = (1 - clear.value, *wilson(clear.images - clear.hits, clear.images, _Z975))

    def of(share_found: float, share_missed: float) -> float:
        total = share_found * positives + share_missed * negatives
        return share_found * positives / total if total else 0.0

    return Sensitivity(of(found[0], missed[0]), of(found[1], missed[2]), of(found[2], missed[1]))


def labels(judged: Sequence[Judged]) -> dict[tuple[str, str], int]:
    """Return how many images have each decision and what people said: pneumonia or not, or unreadable."""
    found: dict[tuple[str, str], int] = {}
    for one in judged:
        said = one.label
        if said == "agree":
            said = "pneumonia" if one.decision == "positive" else "no_pneumonia"
        found[one.decision, said] = found.get((one.decision, said), 0) + one.images
    return found
