"""The grayscale pipeline of PS3.3 C.11: stored pixel values to what a radiologist sees, 0 black to 1 white.

Written out here rather than taken from pydicom, whose functions scale to the range of Bits Stored and back,
index 8-bit tables with 8-bit numbers, and know nothing of padding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import ExplicitVRBigEndian

from classifier.errors import NotScorable, Reason
from classifier.pixels import translated, unreadable
from classifier.tags import integer, items, numbers, text, values

Grey = NDArray[np.float32]


class Table(NamedTuple):
    """A lookup table: its entries, the value mapped to the first one, and the bits of an entry."""

    entries: Grey
    first: int
    bits: int


def to_grey(ds: Dataset, stored: NDArray[Any], photometric: str, bits: int) -> Grey:
    """Render stored pixel values.

    Parameters
    ----------
    ds
        The data set, for the attributes of the pipeline.
    stored
        (rows, columns) integers, or (rows, columns, 3) in colour.
    photometric
        Photometric Interpretation of `stored`.
    bits
        Bits Stored.

    Returns
    -------
    numpy.ndarray
        (rows, columns) float32, 0 black to 1 white.

    Raises
    ------
    NotScorable
        ``CONSTANT_IMAGE`` when one grey value is left, ``UNREADABLE`` when the pipeline cannot be applied.
    """
    if photometric in ("MONOCHROME1", "MONOCHROME2"):
        grey = _monochrome(ds, stored, inverted=_is_inverted(ds, photometric))
    elif photometric == "PALETTE COLOR":
        grey = _palette(ds, stored)
    elif photometric == "RGB":
        grey = _float32(luminance(stored) / (2**bits - 1))
    else:
        raise unreadable("This Photometric Interpretation is not supported")
    return require_contrast(grey)


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


def _monochrome(ds: Dataset, stored: NDArray[Any], *, inverted: bool) -> Grey:
    padding = _padding(ds, stored)
    modality = _modality(ds, stored)
    real = modality if padding is None else modality[~padding]
    if not real.size or real.min() == real.max():
        raise NotScorable(Reason.CONSTANT_IMAGE, "All pixels have the same value")
    grey = _voi(ds, modality, float(real.min()), float(real.max()))
    if inverted:
        np.subtract(1, grey, out=grey)
    if padding is not None:
        grey[padding] = 0
    return grey


def _padding(ds: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return where the image is padded (PS3.3 C.7.5.1.1.2), or None where it is not."""
    value = integer(ds, "PixelPaddingValue")
    if value is None:
        return None
    limit = integer(ds, "PixelPaddingRangeLimit")
    # The value representation follows Pixel Representation, but -2000 often arrives as 63536.
    ends = np.array([value, value if limit is None else limit]).astype(stored.dtype)
    mask = (stored >= ends.min()) & (stored <= ends.max())
    return mask if mask.any() else None


def _modality(ds: Dataset, stored: NDArray[Any]) -> Grey:
    """Apply Modality LUT Sequence, or Rescale Slope and Intercept (PS3.3 C.11.1)."""
    sequence = items(ds, "ModalityLUTSequence")
    if sequence:
        return _look_up(stored, _table(sequence[0], _is_big_endian(ds)))
    scaled = stored.astype(np.float32)
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
