"""Attributes by their keywords (PS3.6), with the tag and VR that the encoding needs."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from pydicom.datadict import dictionary_VR, tag_for_keyword


class Attribute(NamedTuple):
    """Tag and VR of one attribute."""

    tag: int
    vr: str


@cache
def attribute(keyword: str) -> Attribute:
    """Return what PS3.6 says of a keyword.

    Raises
    ------
    KeyError
        When no attribute has that keyword.
    """
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return Attribute(tag, dictionary_VR(tag))
