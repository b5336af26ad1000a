"""The font files that come with matplotlib, found without loading it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PLAIN, BOLD = "DejaVuSans.ttf", "DejaVuSans-Bold.ttf"


def font_file(name: str) -> Path:
    """Return where a font is."""
    found = importlib.util.find_spec("matplotlib")
    assert found is not None
    assert found.submodule_search_locations
    return Path(next(iter(found.submodule_search_locations))) / "mpl-data" / "fonts" / "ttf" / name
