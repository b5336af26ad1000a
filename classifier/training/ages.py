"""The ages of the training population, as tags or manifest tell them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from classifier.data.example import Example

_MOST_UNKNOWN = 0.5  # share of the images; with more, the others may be of any age
_OUTSIDE = 0.005  # share at each end: a few ages may be mistakes in the tags


class ToldAges(NamedTuple):
    """Youngest and oldest in completed years, and by what they are known."""

    ages: tuple[int, int]
    source: str


def told_ages(examples: Sequence[Example]) -> ToldAges | None:
    """Return the ages that 99 % of the images with a known age lie between; ``None`` if few are known."""
    known = [age.years for example in examples if (age := example.age).years is not None and not age.doubt]
    if len(known) < max(1.0, _MOST_UNKNOWN * len(examples)):
        return None
    years = np.sort(np.array(known, np.float64))
    low = float(np.quantile(years, _OUTSIDE, method="lower"))
    high = float(np.quantile(years, 1 - _OUTSIDE, method="higher"))
    source = f"These ages were told by tags or manifest, for {len(known)} of {len(examples)} images."
    return ToldAges((int(low), int(high)), source)
