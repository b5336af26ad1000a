"""Whether two objects under one SOP Instance UID are one image, encoded in another way or with other tags."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, BinaryIO

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
from classifier.decoding.pixels import image_pixel, stored_values
from classifier.decoding.tags import integer, quiet, text
from classifier.errors import NotScorable
from classifier.reasons import Reason

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


@dataclass(frozen=True)
class Fingerprint:
    """What tells the pixels of one object from those of another.

    Attributes
    ----------
    encoded
        Digest of the encoded pixels and of all that says how to read them; empty where there are none.
    decoded
        Digest of the stored values and their Photometric Interpretation; ``None`` for what cannot be decoded.
    may_be_lossy
        Whether they may be compressed with loss.
    """

    encoded: str
    decoded: str | None
    may_be_lossy: bool


def compare(one: Fingerprint, other: Fingerprint) -> Copy:
    """Compare the pixels of two objects, whatever their encodings.

    Objects without pixels are the same: nothing that is scored differs.
    """
    if one.encoded == other.encoded or (one.decoded is not None and one.decoded == other.decoded):
        return Copy.SAME
    return Copy.LOSSY if one.may_be_lossy or other.may_be_lossy else Copy.OTHER


def fingerprint(file: BinaryIO, max_pixels: int) -> Fingerprint:
    """Return the fingerprint of an open DICOM file.

    Parameters
    ----------
    max_pixels
        An image of more pixels is not decoded.

    Raises
    ------
    NotScorable
        When the file does not parse.
    OSError
        When it cannot be read.
    """
    with quiet():
        ds = read_data_set(file, max_pixels)
        decoded = None
        with suppress(NotScorable):
            decoded = _digest(_decoded(ds, max_pixels))
        return Fingerprint(_digest(_encoded(ds)), decoded, _may_be_lossy(ds))


def _digest(parts: Iterable[Any]) -> str:
    sha = None
    for part in parts:
        content = part if isinstance(part, bytes) else repr(part).encode()
        sha = hashlib.sha256() if sha is None else sha
        sha.update(f"{len(content)}:".encode())
        sha.update(content)
    return "" if sha is None else sha.hexdigest()


def _encoded(ds: Dataset) -> tuple[Any, ...]:
    pixels = [ds[keyword].value if keyword in ds else None for keyword in _PIXELS]
    if not any(pixels):
        return ()
    return (_byte_order(ds), *pixels, *(text(ds, keyword) for keyword in _IMAGE_PIXEL))


def _byte_order(ds: Dataset) -> str:
    """Return the transfer syntax of compressed pixels, and of others whatever tells how to read them."""
    syntax = UID(ds.file_meta.TransferSyntaxUID)
    return str(syntax) if syntax.is_encapsulated or syntax == ExplicitVRBigEndian else ""


def _decoded(ds: Dataset, max_pixels: int) -> tuple[Any, ...]:
    if (integer(ds, "NumberOfFrames") or 1) != 1:
        raise NotScorable(Reason.MULTI_FRAME, "Only the first frame would be compared")
    stored = stored_values(ds, image_pixel(ds, max_pixels))
    return stored.photometric, stored.values.shape, stored.values.astype(np.dtype("<i4")).tobytes()


def _may_be_lossy(ds: Dataset) -> bool:
    return text(ds, "LossyImageCompression") == "01" or ds.file_meta.TransferSyntaxUID in _MAY_BE_LOSSY
