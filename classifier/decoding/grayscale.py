"""The grayscale pipeline of PS3.3 C.11: stored pixel values to what a radiologist sees, 0 black to 1 white.

It looks at one pixel at a time, so it is run once over the 256 or 65536 values that a pixel can have, and the
image looks up its grey values there.

Written out here rather than taken from pydicom, whose functions scale to the range of Bits Stored and back,
index 8-bit tables with 8-bit numbers, and know nothing of padding.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import ExplicitVRBigEndian

from classifier.decoding.pixels import Stored, translated, unreadable
from classifier.decoding.resample import Grey, resample
from classifier.decoding.tags import integer, items, numbers, text, values
from classifier.errors import NotScorable, Reason

_ROWS = 64  # at once, which bounds the indices that a look-up needs
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
        grey = _palette(ds, stored.values)
    elif stored.photometric == "RGB":
        grey = _float32(luminance(stored.values) / (2**stored.image.stored - 1))
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
    return _window(ds) is not None and not any(keyword in ds for keyword in by_value)


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
        modality = _modality(ds, levels)
        real = modality[present & ~padding]
        if not real.size or real.min() == real.max():
            raise NotScorable(Reason.CONSTANT_IMAGE, "All pixels have the same value")
        curve = _voi(ds, modality, float(real.min()), float(real.max()))
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
    value = integer(ds, "PixelPaddingValue")
    if value is None:
        return np.zeros(len(levels), np.bool_)
    limit = integer(ds, "PixelPaddingRangeLimit")
    # The value representation follows Pixel Representation, but -2000 often arrives as 63536.
    ends = np.array([value, value if limit is None else limit]).astype(levels.dtype)
    mask: NDArray[np.bool_] = (levels >= ends.min()) & (levels <= ends.max())
    return mask


def _modality(ds: Dataset, levels: NDArray[Any]) -> Grey:
    """Apply Modality LUT Sequence, or Rescale Slope and Intercept (PS3.3 C.11.1)."""
    sequence = items(ds, "ModalityLUTSequence")
    if sequence:
        return _look_up(levels, _table(sequence[0], _is_big_endian(ds)))
    scaled = levels.astype(np.float32)
    slope, intercept = (next(iter(numbers(ds, k)), None) for k in ("RescaleSlope", "RescaleIntercept"))
    if slope and intercept is not None and np.isfinite([slope, intercept]).all():
        scaled *= slope
        scaled += intercept
    return scaled


def _voi(ds: Dataset, modality: Grey, low: float, high: float) -> Grey:
    """Apply the first VOI LUT or else the first window; without either, stretch low..high to 0..1."""
    sequence = items(ds, "VOILUTSequence")
    if sequence:
        table = _table(sequence[0], _is_big_endian(ds))
        return _float32(_look_up(modality, table) / _largest(table))
    window = _window(ds)
    if window is None:
        return _float32(np.clip((modality - low) / (high - low), 0, 1))
    return _apply_window(modality, *window)


def _window(ds: Dataset) -> tuple[float, float, str] | None:
    """Return centre, width and function of the first window; None when there is none that makes sense."""
    centres, widths = numbers(ds, "WindowCenter"), numbers(ds, "WindowWidth")
    function = text(ds, "VOILUTFunction") or "LINEAR"
    if not centres or not widths or not np.isfinite([centres[0], widths[0]]).all():
        return None
    if widths[0] <= 0 or (function == "LINEAR" and widths[0] < 1):
        return None
    return centres[0], widths[0], function


def _apply_window(modality: Grey, centre: float, width: float, function: str) -> Grey:
    """Apply a window (PS3.3 C.11.2.1.2 and C.11.2.1.3), to 0..1."""
    if function == "SIGMOID":
        return _float32(1 / (1 + np.exp(np.clip(-4 * (modality - centre) / width, -80, 80))))
    if function != "LINEAR_EXACT":
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return _float32(modality > centre)
    return _float32(np.clip((modality - centre) / width + 0.5, 0, 1))


def _palette(ds: Dataset, stored: NDArray[Any]) -> Grey:
    """Look colours up (PS3.3 C.7.6.3.1.5) and return their luminance."""
    descriptor = numbers(ds, "RedPaletteColorLookupTableDescriptor")
    with translated("Applying the colour palette"):
        entries, bits = int(descriptor[0]) or 65536, int(descriptor[2])
        if bits == 8 and entries > 256:
            raise unreadable("A palette of more than 256 8-bit entries is not supported")
        grey = luminance(apply_color_lut(stored, ds))
    return _float32(grey / (255 if bits == 8 and grey.max() <= 255 else 65535))


def _table(item: Dataset, big_endian: bool) -> Table:
    """Read LUT Descriptor and LUT Data (PS3.3 C.11.1.1)."""
    descriptor = numbers(item, "LUTDescriptor")
    if len(descriptor) != 3:
        raise unreadable("A LUT Descriptor is malformed")
    count = int(descriptor[0]) % 65536 or 65536
    entries = _entries(values(item, "LUTData"), count, big_endian)
    if len(entries) < count:
        raise unreadable("A LUT is shorter than its descriptor says")
    return Table(entries[:count], int(descriptor[1]), int(descriptor[2]))


def _entries(data: list[Any], count: int, big_endian: bool) -> Grey:
    if len(data) == 1 and isinstance(data[0], bytes):
        is_packed = len(data[0]) < 2 * count  # 8-bit entries, two in a word
        words = data[0] if is_packed else data[0][: 2 * count]
        return np.frombuffer(words, "u1" if is_packed else ">u2" if big_endian else "<u2").astype(np.float32)
    with translated("Reading a LUT"):
        return (np.array(data, np.int64) & 0xFFFF).astype(np.float32)


def _look_up(image: NDArray[Any], table: Table) -> Grey:
    index = np.clip(np.rint(image), -(2**30), 2**30).astype(np.int32) - table.first
    return _float32(table.entries[np.clip(index, 0, len(table.entries) - 1)])


def _largest(table: Table) -> int:
    """Return the largest value that the bits of an entry hold; some descriptors understate them."""
    needed = int(table.entries.max()).bit_length()
    return int(2 ** max(table.bits, needed, 1)) - 1


def _is_big_endian(ds: Dataset) -> bool:
    meta = getattr(ds, "file_meta", None)
    return isinstance(meta, Dataset) and text(meta, "TransferSyntaxUID") == ExplicitVRBigEndian


def _float32(image: NDArray[Any]) -> Grey:
    return image.astype(np.float32, copy=False)
