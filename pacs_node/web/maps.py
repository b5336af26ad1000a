"""Heat maps for the page: the cells as they are stored; the browser draws them."""

from __future__ import annotations

import json

from classifier.heat_map import HeatMap
from db.reading_list import ListedImage

_SHOWN_AT_ONCE = ("positive", "undetermined")


def cells(image: ListedImage) -> str:
    """Return rows of cells in units of the logit, as JSON; empty where there is no map."""
    if image.heat_map is None:
        return ""
    try:
        found = HeatMap.from_bytes(image.heat_map)
    except ValueError:
        return ""
    return json.dumps([[round(float(cell), 3) for cell in row] for row in found.cells])


def logit(image: ListedImage) -> float | None:
    """Return the logit before calibration, as the map has it."""
    if image.heat_map is None:
        return None
    try:
        return HeatMap.from_bytes(image.heat_map).logit
    except ValueError:
        return None


def is_shown_at_once(image: ListedImage) -> bool:
    """Tell whether the map is shown without being asked for: not where the answer is negative."""
    return bool(cells(image)) and image.decision in _SHOWN_AT_ONCE
