"""The grayscale pipeline of PS3.3 C.11: stored pixel values to what a radiologist sees, 0 black to 1 white.

It looks at one pixel at a time, so it is run once over the 256 or 65536 values that a pixel can have, and the
image looks up its grey values there.

Written out here rather than taken from pydicom, whose functions scale to the range of Bits Stored and back,
index 8-bit tables with 8-bit numbers, and know nothing of padding.

What is there and makes no sense, such as a slope of 0 or a window of no width, is refused and not passed
over: DCMTK and pydicom differ there, and the image would not look as it did to whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import ExplicitVRBigEndian

from classifier.decoding.attributes import MOST, decimal_of, integer_of, integers, items_of, name, stated
from classifier.decoding.pixels import Stored
from classifier.decoding.refusal import contradiction, translated, unreadable
from classifier.decoding.resample import Grey, resample
from classifier.decoding.tags import quote, text
from classifier.errors import NotScorable
from classifier.reasons import Reason

_ROWS = 64  # at once, which bounds the indices that a look-up needs
_FUNCTIONS = {"LINEAR", "LINEAR_EXACT", "SIGMOID"}
_FARTHEST = 1e6  # slopes between zero and what they are added to: float32 tells no more values apart
_STRAIGHT = 1e-6  # of the grey scale; float32 knows 6e-8


class Table(NamedTuple):
    """A lookup table: its entries, the value mapped to the first one, and the bits of an entry."""

    entries: Grey
    first: int
    bits: int


def to_grey(ds: Dataset, stored: Stored, size: int | None = None) -> Grey:
    """Render stored pixel values.

    Parameters
    ----------
    ds
        The data set, for the attributes of the pipeline.
    stored
        What was decoded.
    size
        Side in pixels of the square to resize to, after rendering; ``None`` leaves the image as it is.

    Returns
    -------
    numpy.ndarray
        (rows, columns) or (size, size) float32, 0 black to 1 white.

    Raises
    ------
    NotScorable
        ``CONSTANT_IMAGE`` when one grey value is left, ``UNREADABLE`` when the pipeline cannot be applied.
    """
    if stored.photometric in ("MONOCHROME1", "MONOCHROME2"):
        return _monochrome(ds, stored, size)
    if stored.photometric == "PALETTE COLOR":
        grey = _palette(ds, stored)
    elif stored.photometric == "RGB":
        grey = _by_rows(luminance, stored.values)
        grey /= 2**stored.image.stored - 1
    else:
        raise unreadable("This Photometric Interpretation is not supported")
    require_contrast(grey)
    return grey if size is None else resample(grey, size)


def follows_averaging(ds: Dataset) -> bool:
    """Tell whether an image averaged before rendering looks like one averaged after it.

    So it does under a window. It does not where values mean something by themselves (Pixel Padding Value,
    lookup tables), nor where the range of the pixels, which averaging narrows, is the window.
    """
    by_value = ("PixelPaddingValue", "ModalityLUTSequence", "VOILUTSequence")
    return not any(keyword in ds for keyword in by_value) and _window(ds) is not None


def _by_rows(look: Callable[[NDArray[Any]], Grey], values: NDArray[Any]) -> Grey:
    """Convert some rows at a time: a copy of a large image in float32 takes four times its memory."""
    grey = np.empty(values.shape[:2], np.float32)
    for start in range(0, len(grey), _ROWS):
        grey[start : start + _ROWS] = look(values[start : start + _ROWS])
    return grey


def require_contrast(grey: Grey) -> Grey:
    """Return the image when it has more than one grey value."""
    if grey.min() == grey.max():
        raise NotScorable(Reason.CONSTANT_IMAGE, "All pixels look the same")
    return grey


def luminance(colour: NDArray[Any]) -> Grey:
    """Return the luminance of ITU-R BT.601 of (rows, columns, 3) RGB as (rows, columns) float32."""
    return _float32(colour[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))


def _is_inverted(ds: Dataset, photometric: str) -> bool:
    """INVERSE repeats what MONOCHROME1 says (PS3.3 C.8.11.3.1.2), so the two together invert once."""
    return photometric == "MONOCHROME1" or text(ds, "PresentationLUTShape") == "INVERSE"


def _monochrome(ds: Dataset, stored: Stored, size: int | None) -> Grey:
    kind = stored.values.dtype
    levels = _codes(kind).view(kind)  # (256 or 65536,) every value there is
    padding = _padding(ds, levels)
    present = _present(ds, stored, padding)
    with np.errstate(over="ignore", invalid="ignore"):  # of values that the image does not have
        modality = _modality(ds, levels, stored)
        real = modality[present & ~padding]
        if not real.size:
            raise NotScorable(Reason.CONSTANT_IMAGE, "All pixels are padding, as Pixel Padding Value says")
        if real.min() == real.max():
            raise NotScorable(Reason.CONSTANT_IMAGE, "All pixels have the same value")
        curve = _voi(ds, modality, float(real.min()), float(real.max()), stored.image.signed)
    if _is_inverted(ds, stored.photometric):
        np.subtract(1, curve, out=curve)
    curve[padding] = 0
    require_contrast(curve[present])
    return _rendered(stored.values, curve) if size is None else _resized(stored, curve, size)


def _codes(kind: np.dtype[Any]) -> NDArray[Any]:
    """Return all that the bits of an integer can say, as unsigned numbers in order: places in a curve."""
    return np.arange(2 ** (8 * kind.itemsize), dtype=f"u{kind.itemsize}")


def _present(ds: Dataset, stored: Stored, padding: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which values the image has, (levels,); the ends of their range alone where no others matter."""
    codes = _as_codes(stored.values)
    present = np.zeros(len(padding), np.bool_)
    span = _span(stored)
    if padding[span].any() or "ModalityLUTSequence" in ds or "VOILUTSequence" in ds:
        for start in range(0, len(codes), _ROWS):
            present[codes[start : start + _ROWS]] = True
    else:  # what is left of the pipeline, rescaling and window, only rises or only falls
        present[span[[0, -1]]] = True
    return present


def _as_codes(values: NDArray[Any]) -> NDArray[Any]:
    return values.view(f"u{values.itemsize}")


def _span(stored: Stored) -> NDArray[Any]:
    """Return the codes of all from the lowest to the highest value."""
    low, high = stored.range
    codes: NDArray[Any] = np.arange(low, high + 1) % 2 ** (8 * stored.values.itemsize)
    return codes


def _rendered(values: NDArray[Any], curve: Grey) -> Grey:
    codes = _as_codes(values)
    grey = np.empty(values.shape, np.float32)
    for start in range(0, len(grey), _ROWS):
        rows = slice(start, start + _ROWS)
        np.take(curve, codes[rows], out=grey[rows], mode="clip")
    return grey


def _resized(stored: Stored, curve: Grey, size: int) -> Grey:
    """Render and resize; where the curve is straight, its two ends are enough, after resizing."""
    values = stored.values
    low, high = stored.range
    line = curve[_span(stored)]
    resize = partial(resample, values, size, (stored.image.rows, stored.image.columns), stored.sampling)
    if np.abs(line - np.linspace(line[0], line[-1], len(line))).max() > _STRAIGHT:
        return np.clip(resize(lambda rows: _rendered(rows, curve)), 0, 1)
    slope = float(line[-1] - line[0]) / (high - low)
    return _float32(np.clip((resize() - low) * slope + float(line[0]), 0, 1))


def _padding(ds: Dataset, levels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which values stand for padding (PS3.3 C.7.5.1.1.2)."""
    value, limit = (
        integer_of(ds, k, -(2**15), 2**16 - 1) for k in ("PixelPaddingValue", "PixelPaddingRangeLimit")
    )
    if value is None:
        return np.zeros(len(levels), np.bool_)
    # The value representation follows Pixel Representation, but -2000 often arrives as 63536.
    ends = np.array([value, value if limit is None else limit]).astype(levels.dtype)
    mask: NDArray[np.bool_] = (levels >= ends.min()) & (levels <= ends.max())
    return mask


def _modality(ds: Dataset, levels: NDArray[Any], stored: Stored) -> Grey:
    """Apply Modality LUT Sequence, or Rescale Slope and Intercept (PS3.3 C.11.1)."""
    sequence = items_of(ds, "ModalityLUTSequence")
    if sequence:
        table = _table(sequence[0], stored.image.signed, _is_big_endian(ds))
        return _look_up(levels, table, *stored.range)
    scaled = levels.astype(np.float32)
    slope, intercept = (decimal_of(ds, k) for k in ("RescaleSlope", "RescaleIntercept"))
    if slope is None or intercept is None:  # one without the other tells nothing
        return scaled
    if abs(slope) * MOST < 1 or abs(intercept) > _FARTHEST * abs(slope):
        raise unreadable(f"Rescale Slope is {quote(slope)}, Rescale Intercept {quote(intercept)}")
    scaled *= slope
    scaled += intercept
    return scaled


def _voi(ds: Dataset, modality: Grey, low: float, high: float, signed: bool) -> Grey:
    """Apply the first VOI LUT or else the first window; without either, stretch low..high to 0..1."""
    sequence = items_of(ds, "VOILUTSequence")
    if sequence:
        table = _table(sequence[0], signed or low < 0, _is_big_endian(ds))
        return _float32(_look_up(modality, table, low, high) / _largest(table))
    window = _window(ds)
    if window is None:
        return _float32(np.clip((modality - low) / (high - low), 0, 1))
    return _apply_window(modality, *window)


def _window(ds: Dataset) -> tuple[float, float, str] | None:
    """Return centre, width and function of the first window; None when there is none.

    Raises
    ------
    NotScorable
        ``UNREADABLE`` when the window makes no sense, such as one without width.
    """
    centre, width = decimal_of(ds, "WindowCenter"), decimal_of(ds, "WindowWidth")
    if centre is None or width is None:
        return None
    function = text(ds, "VOILUTFunction") or "LINEAR"
    if function not in _FUNCTIONS:
        raise unreadable(f"VOI LUT Function is {quote(function)}")
    if width <= 0 or (function == "LINEAR" and width < 1):
        raise unreadable(f"Window Width is {quote(width)}, VOI LUT Function {function}")
    return centre, width, function


def _apply_window(modality: Grey, centre: float, width: float, function: str) -> Grey:
    """Apply a window (PS3.3 C.11.2.1.2 and C.11.2.1.3), to 0..1."""
    if function == "SIGMOID":
        return _float32(1 / (1 + np.exp(np.clip(-4 * (modality - centre) / width, -80, 80))))
    if function != "LINEAR_EXACT":
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return _float32(modality > centre)
    return _float32(np.clip((modality - centre) / width + 0.5, 0, 1))


def _palette(ds: Dataset, stored: Stored) -> Grey:
    """Look colours up (PS3.3 C.7.6.3.1.5) and return their luminance."""
    low, high = stored.range
    kind = stored.values.dtype
    colours = ("Red", "Green", "Blue")
    told = {
        tuple(_descriptor(ds, f"{c}PaletteColorLookupTableDescriptor", signed=kind.kind == "i"))
        for c in colours
    }
    if len(told) != 1:
        raise contradiction("The three Palette Color Lookup Table Descriptors differ")
    count, first, bits = told.pop()
    if bits not in (8, 16) or (bits == 8 and count > 256):
        raise unreadable(f"A palette of {count} entries of {bits} bits is not supported")
    _require_overlap(first, count, low, high)
    with translated("Applying the colour palette"):
        every = _codes(kind).view(kind).reshape(1, -1)
        curve = luminance(apply_color_lut(every, ds))[0]
    curve /= 255 if bits == 8 and curve.max() <= 255 else 65535
    return _rendered(stored.values, curve)


def _descriptor(ds: Dataset, keyword: str, *, signed: bool) -> tuple[int, int, int]:
    """Return the number of entries, the value mapped to the first one, and the bits of an entry.

    The first two often come with the other sign, 63488 for -2048, whatever the value representation. The
    first value mapped follows Pixel Representation, or what rescaling makes of it (PS3.3 C.11.2.1.1).
    """
    values = stated(ds, keyword)
    told = integers(ds, keyword, -(2**15), 2**16 - 1)
    if len(told) != 3 or not 1 <= told[2] <= 16:
        raise unreadable(f"{name(keyword)} is {quote(values)}")
    first = told[1] % 2**16
    return told[0] % 2**16 or 2**16, first - 2**16 if signed and first >= 2**15 else first, told[2]


def _table(item: Dataset, signed: bool, big_endian: bool) -> Table:
    """Read LUT Descriptor and LUT Data (PS3.3 C.11.1.1)."""
    count, first, bits = _descriptor(item, "LUTDescriptor", signed=signed)
    entries = _entries(item, count, big_endian)
    if len(entries) < count:
        raise unreadable("A LUT is shorter than its descriptor says")
    return Table(entries[:count], first, bits)


def _entries(item: Dataset, count: int, big_endian: bool) -> Grey:
    data = stated(item, "LUTData")
    if len(data) == 1 and isinstance(data[0], bytes):
        is_packed = len(data[0]) < 2 * count  # 8-bit entries, two in a word
        words = data[0] if is_packed else data[0][: 2 * count]
        return np.frombuffer(words, "u1" if is_packed else ">u2" if big_endian else "<u2").astype(np.float32)
    told = integers(item, "LUTData", -(2**15), 2**16 - 1)
    return (np.array(told, np.int64) & 0xFFFF).astype(np.float32)


def _look_up(image: NDArray[Any], table: Table, low: float, high: float) -> Grey:
    """Look up values; those of the image reach from `low` to `high`."""
    _require_overlap(table.first, len(table.entries), low, high)
    index = np.clip(np.rint(image), -(2**30), 2**30).astype(np.int32) - table.first
    return _float32(table.entries[np.clip(index, 0, len(table.entries) - 1)])


def _require_overlap(first: int, count: int, low: float, high: float) -> None:
    if high < first or low > first + count - 1:
        raise contradiction(
            f"A lookup table is for values from {first} to {first + count - 1},"
            f" those of the image are from {low:g} to {high:g}"
        )


def _largest(table: Table) -> int:
    """Return the largest value that the bits of an entry hold; some descriptors understate them."""
    needed = int(table.entries.max()).bit_length()
    return int(2 ** max(table.bits, needed)) - 1


def _is_big_endian(ds: Dataset) -> bool:
    meta = getattr(ds, "file_meta", None)
    return isinstance(meta, Dataset) and text(meta, "TransferSyntaxUID") == ExplicitVRBigEndian


def _float32(image: NDArray[Any]) -> Grey:
    return image.astype(np.float32, copy=False)
