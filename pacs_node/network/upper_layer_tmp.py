"""tmp"""

from __future__ import annotations


class OutOfOrder(Exception):
    """What came is not allowed while a data set is coming."""
