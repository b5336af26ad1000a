"""Name and version of a model that nobody named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from classifier.training.optim import ARCHITECTURE

_MOST_NAME = 40  # characters


def default_name(sources: Sequence[Path]) -> str:
    """Return a name for a model after the data that it is trained on, in printable ASCII."""
    names = "-".join(source.resolve().stem for source in sources)
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", names).strip("-.")
    return f"{ARCHITECTURE}-{plain}"[:_MOST_NAME] if plain else ARCHITECTURE


def default_version() -> str:
    """Return the date and the time, such as ``20261201.0930`` (UTC)."""
    return f"{datetime.now(UTC):%Y%m%d.%H%M}"
