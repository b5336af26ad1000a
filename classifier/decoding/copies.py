"""Whether two objects under one SOP Instance UID are one image, encoded in another way or with other tags."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    JPEG2000MC,
    UID,
    ExplicitVRBigEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
)

from classifier.decoding.decode import read_data_set
from classifier.decoding.pixels import Stored, image_pixel, stored_values
from classifier.decoding.tags import integer, quiet, text
from classifier.errors import NotScorable, Reason

_MAY_BE_LOSSY = {HTJ2K, JPEG2000, JPEG2000MC, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless}
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_IMAGE_PIXEL = (  # PS3.3 C.7.6.3, as far as the same bytes mean other pixels with it
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames"),
)


class Copy(StrEnum):
    """What the second of two objects is to the first."""

    SAME = "same"  # the same pixels
    LOSSY = "lossy"  # other pixels, and at least one of both may be compressed with loss
    OTHER = "other"  # other pixels


def compare(first: Path, second: Path, max_pixels: int) -> Copy:
    """Compare the pixels of two DICOM files, whatever their encodings.

    Pixels are the same if their encoded bytes and all that says how to read them are, or else if both can be
    decoded to the same stored values with the same Photometric Interpretation. Objects without pixels are the
    same: nothing that is scored differs.

    Parameters
    ----------
    max_pixels
        An image of more pixels is not decoded.

    Raises
    ------
    OSError
        When a file cannot be opened or read.
    """
    with quiet():
        try:
            one, other = read_data_set(first, max_pixels), read_data_set(second, max_pixels)
            is_same = _encoded(one) == _encoded(other) or _is_same_image(one, other, max_pixels)
        except NotScorable:
            return Copy.OTHER
        if is_same:
            return Copy.SAME
        return Copy.LOSSY if _may_be_lossy(one) or _may_be_lossy(other) else Copy.OTHER


def _encoded(ds: Dataset) -> tuple[Any, ...]:
    """Return the encoded pixels and what they depend on; equal for objects that have none."""
    pixels = [ds[keyword].value if keyword in ds else None for keyword in _PIXELS]
    if not any(pixels):
        return ()
    return (_byte_order(ds), *pixels, *(text(ds, keyword) for keyword in _IMAGE_PIXEL))


def _byte_order(ds: Dataset) -> str:
    """Return the transfer syntax of compressed pixels, and of others whatever tells how to read them."""
    syntax = UID(ds.file_meta.TransferSyntaxUID)
    return str(syntax) if syntax.is_encapsulated or syntax == ExplicitVRBigEndian else ""


def _decoded(ds: Dataset, max_pixels: int) -> Stored:
    if (integer(ds, "NumberOfFrames") or 1) != 1:
        raise NotScorable(Reason.MULTI_FRAME, "Only the first frame would be compared")
    return stored_values(ds, image_pixel(ds, max_pixels))


def _is_same_image(one: Dataset, other: Dataset, max_pixels: int) -> bool:
    mine, theirs = _decoded(one, max_pixels), _decoded(other, max_pixels)
    return mine.photometric == theirs.photometric and np.array_equal(mine.values, theirs.values)


def _may_be_lossy(ds: Dataset) -> bool:
    return text(ds, "LossyImageCompression") == "01" or ds.file_meta.TransferSyntaxUID in _MAY_BE_LOSSY
