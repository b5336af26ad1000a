"""Radiographs with values that need not conform, and what the rules of eligibility say of them."""

from __future__ import annotations

import warnings
from typing import Any

from pydicom.dataset import Dataset

from classifier.config import Eligibility
from classifier.decoding.eligibility import check
from classifier.errors import NotScorable
from tests.conftest import radiograph

STRICT = Eligibility()
LENIENT = Eligibility(unknown_body_part="score", unknown_view="score")
COLOUR = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}


def outcome(ds: Dataset, rules: Eligibility = STRICT) -> str:
    """Return the view, or the reason."""
    try:
        return check(ds, rules)
    except NotScorable as refused:
        return refused.reason.value if refused.detail else "no detail"


def made(kind: str = "CR", **tags: Any) -> Dataset:
    """Make a radiograph with values that need not conform, without pydicom's remarks on them."""
    with warnings.catch_warnings(action="ignore"):
        return radiograph(kind, **tags)


def reference() -> Dataset:
    """Return an item of a sequence of references to images."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    return item
