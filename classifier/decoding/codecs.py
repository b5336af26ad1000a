"""Decoders of one grey frame: the fastest of each kind under a permissive licence.

imagecodecs brings CharLS, libjpeg-turbo, which knows JPEG Lossless and of 12 bits too, and OpenJPEG, and lets
other threads run meanwhile. All raise where a frame is damaged and they notice.
"""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import numpy as np
from imagecodecs import dicomrle_decode, jpeg2k_decode, jpeg8_decode, jpegls_decode
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, RLELossless

from classifier.decoding.jpeg2000 import reduced
from classifier.decoding.resample import WHOLE, Sampling

Values = NDArray[Any]

_MARGIN = 2.5  # rows and columns that are left at least for one of the wanted size


def native(data: bytes | bytearray, shape: tuple[int, int], kind: np.dtype[Any]) -> Values:
    """Return native little-endian Pixel Data as (rows, columns) of `kind`, without copying it."""
    rows, columns = shape
    return np.frombuffer(data, kind.newbyteorder("<"), rows * columns).reshape(shape)


def decoded(
    frame: bytes,
    syntax: UID,
    *,
    shape: tuple[int, int],
    kind: np.dtype[Any],
    precision: int,
    size: int | None = None,
) -> tuple[Values, Sampling]:
    """Decode a compressed frame of one sample per pixel.

    Parameters
    ----------
    frame
        The frame, judged.
    syntax
        How it is compressed.
    shape
        (rows, columns) that it says it has.
    kind
        Integer type that Bits Allocated and Pixel Representation ask for.
    precision
        Bits that the codestream says it has; of RLE none.
    size
        Side of the square that it will be resized to; JPEG 2000 and JPEG of 8 bits can leave out the detail
        that this does not need. ``None`` means all.

    Returns
    -------
    values
        (rows, columns), or fewer of both. Of `kind`, or as the codestream says: of 8 bits where it has no
        more, signed where JPEG 2000 is, else not.
    sampling
        Where those lie in the whole image.

    Raises
    ------
    Exception
        Of many kinds, when the frame is damaged.
    """
    sampling = WHOLE
    if syntax == RLELossless:
        values = native(dicomrle_decode(frame, kind, out=shape[0] * shape[1] * kind.itemsize), shape, kind)
    elif syntax in JPEG2000TransferSyntaxes:
        small, sampling = (frame, sampling) if size is None else reduced(frame, _least(size))
        values = jpeg2k_decode(small)
    elif syntax in JPEGLSTransferSyntaxes:
        values = jpegls_decode(frame)
    elif precision == 8 and kind.itemsize == 1:
        values, sampling = _baseline(frame, size)
    else:
        values = jpeg8_decode(frame).astype(f"u{kind.itemsize}", copy=False)
    if values.shape != tuple(-(-side // sampling.step) for side in shape):
        raise ValueError(f"The decoder gave {values.shape}")
    return values, sampling


def _baseline(frame: bytes, size: int | None) -> tuple[Values, Sampling]:
    """Decode JPEG of 8 bits, from as few coefficients of its cosine transform as `size` needs."""
    with Image.open(BytesIO(frame), formats=("JPEG",)) as image:
        sampling = WHOLE if size is None else draft(image, size)
        return np.asarray(image), sampling


def draft(image: Image.Image, size: int) -> Sampling:
    """Let a JPEG file be decoded as grey, with no more detail than a square of `size` needs."""
    width = image.width
    image.draft("L", (_least(size), _least(size)))
    step = round(width / image.width)  # 1, 2, 4 or 8, whose means libjpeg gives
    return Sampling(step, step / 2, (1 / step**2 - 1) / 24)


def _least(size: int) -> int:
    return math.ceil(_MARGIN * size)
