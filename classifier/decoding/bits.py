"""The bits around Bits Stored: cleared where they hold something else, refused where they hold the value.

PS3.5 8.1.1 lets the bits of a cell that are not stored hold anything; older objects keep overlays there.
DCMTK and pydicom clear them. But some devices write values that need more bits than Bits Stored tells, or
values of the other sign, and these wrap around: the bright half of the image becomes dark. The pixels
themselves tell which of the two it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.decoding.refusal import contradiction

Values = NDArray[Any]

_ROWS = 64  # compared at once
_MARGIN = 16  # of lossy compression: a 16th of the range may be overshot at edges


def limits(stored: int, signed: bool) -> tuple[int, int]:
    """Return the lowest and the highest value of so many bits."""
    lowest = -(2 ** (stored - 1)) if signed else 0
    return lowest, lowest + 2**stored - 1


def stored_bits(values: Values, stored: int, high_bit: int) -> Values:
    """Return the bits that are stored, as numbers with the sign that the type of `values` has."""
    width = values.itemsize * 8
    shifted: Values = np.right_shift(np.left_shift(values, width - 1 - high_bit), width - stored)
    return shifted


def clipped(values: Values, stored: int, signed: bool) -> Values:
    """Return values of a lossy codestream within the range of Bits Stored.

    Raises
    ------
    NotScorable
        ``CONTRADICTION`` when they leave it by more than compression explains.
    """
    low, high = limits(stored, signed)
    overshot = max(low - int(values.min()), int(values.max()) - high)
    if overshot > (high - low) // _MARGIN:
        raise contradiction(f"Bits Stored is {stored}, but the values reach {_reach(values)}")
    within: Values = np.clip(values, low, high)
    return within


def require_no_wrap(raw: Values, read: Values, stored: int, signed: bool) -> None:
    """Refuse an image that is smoother when its bits are read otherwise than the attributes say.

    Parameters
    ----------
    raw, read
        (rows, columns) or (rows, columns, 3): the whole cells, and what the attributes make of them.
    stored, signed
        What Bits Stored and Pixel Representation say.

    Raises
    ------
    NotScorable
        ``CONTRADICTION`` when at nearly all places where it matters, neighbours are nearer to each other in
        whole cells or with the other sign: then the values wrap around as they are read.
    """
    others = _other_sign(read, stored, signed), raw.view(f"u{raw.itemsize}"), raw.view(f"i{raw.itemsize}")
    if any(_is_smoother(other, read) for other in others):
        raise contradiction(
            f"Bits Stored is {stored} and Pixel Representation {int(signed)}, but the values reach"
            f" {_reach(raw)} in their cells and wrap around"
        )


def _other_sign(read: Values, stored: int, signed: bool) -> Values:
    values = read.astype(np.int32)
    other: Values = values % 2**stored if signed else values - (values >= 2 ** (stored - 1)) * 2**stored
    return other


def _is_smoother(other: Values, read: Values) -> bool:
    """Tell whether in three of four places where the two differ, neighbours are nearer in `other`."""
    nearer = different = 0
    for start in range(0, len(read), _ROWS):
        ours, theirs = (v[start : start + _ROWS].astype(np.int32) for v in (read, other))
        for axis in (0, 1):
            by_ours, by_theirs = (np.abs(np.diff(v, axis=axis)) for v in (ours, theirs))
            different += int(np.count_nonzero(by_ours != by_theirs))
            nearer += int(np.count_nonzero(by_theirs < by_ours))
    return 4 * nearer > 3 * different


def _reach(values: Values) -> str:
    return f"from {int(values.min())} to {int(values.max())}"
