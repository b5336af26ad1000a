"""From a DICOM object or a picture file to one grey image, or to the named reason why not.

It can resize as well: decoders and the grayscale pipeline then need not make what nobody looks at.

Needs numpy, pydicom, imagecodecs and Pillow only, so that receivers and tools can use it without torch.
"""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from classifier.config import PROJECTION_RADIOGRAPHS, Eligibility
from classifier.decoding.ages import UNKNOWN, Age, told
from classifier.decoding.codecs import draft
from classifier.decoding.eligibility import check
from classifier.decoding.grayscale import follows_averaging, require_contrast, to_grey
from classifier.decoding.pixels import ImagePixel, image_pixel, stored_values, translated, unreadable
from classifier.decoding.resample import WHOLE, Grey, resample
from classifier.decoding.tags import quiet
from classifier.errors import NotScorable, Reason

__all__ = ["PROJECTION_RADIOGRAPHS", "Eligibility", "Radiograph", "check", "decode", "read"]

Source = Path | BinaryIO | Dataset

_BYTES_PER_PIXEL = 6  # RGB of 16 bits
_HEADER_ALLOWANCE = 64 * 2**20
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Radiograph:
    """One decoded image.

    Attributes
    ----------
    pixels
        (1, rows, columns), or (1, size, size) where a size was asked for; float32, 0 black to 1 white.
    view
        What `check` returned; ``None`` when the tags were not checked.
    age
        Age of the patient, as far as the tags tell it.
    """

    pixels: Grey
    view: str | None
    age: Age = UNKNOWN


def decode(source: Source, rules: Eligibility | None = None, size: int | None = None) -> Grey:
    """Decode one image.

    Parameters
    ----------
    source
        A DICOM file (PS3.10), a JPEG or PNG file, an open binary file with one of these, or a data set.
    rules
        Which DICOM objects are wanted; ``None`` decodes any, of several frames the first. Picture files have
        no tags to check.
    size
        Side in pixels of the square to resize to; ``None`` leaves the image as it is. Much faster than
        resizing afterwards: JPEG 2000 and JPEG of 8 bits are decoded with no more detail than that needs.

    Returns
    -------
    numpy.ndarray
        (1, rows, columns) or (1, size, size) float32, 0 black to 1 white.

    Raises
    ------
    NotScorable
        When the image is refused, with the reason.
    OSError
        When the file cannot be opened or read.

    Notes
    -----
    A compressed frame without end marker is refused as truncated. JPEG whose data was cut in the middle but
    whose end marker is there cannot be told from a whole image: its decoders fill the rest in silence.
    """
    return read(source, rules, size).pixels


def read(source: Source, rules: Eligibility | None = None, size: int | None = None) -> Radiograph:
    """Decode one image as `decode` does and keep the view and the age that its tags tell."""
    limit = (rules or Eligibility()).max_pixels
    with quiet():
        if isinstance(source, Dataset):
            return _read_dataset(source, source, rules, limit, size)
        return _read_bytes(_load(source, limit), rules, limit, size)


def read_data_set(path: Path, max_pixels: int) -> Dataset:
    """Parse a whole DICOM file, and decode nothing.

    Raises
    ------
    NotScorable
        When it is larger than any image of `max_pixels`, or does not parse.
    OSError
        When it cannot be opened or read.
    """
    data = _load(path, max_pixels)
    _judge_deflated(data, max_pixels * _BYTES_PER_PIXEL + _HEADER_ALLOWANCE)
    with translated("Reading the data set"):
        return dcmread(BytesIO(data))


def _load(source: Path | BinaryIO, limit: int) -> bytes:
    """Read a whole file, unless it is larger than any image within the limit can be."""
    largest = limit * _BYTES_PER_PIXEL + _HEADER_ALLOWANCE
    if isinstance(source, Path):
        with source.open("rb") as file:
            return _load(file, limit)
    length = source.seek(0, os.SEEK_END)
    if length > largest:
        raise NotScorable(Reason.TOO_LARGE, f"The file has more than {largest} bytes")
    source.seek(0)
    return source.read(length)


def _read_bytes(data: bytes, rules: Eligibility | None, limit: int, size: int | None) -> Radiograph:
    if data[128:132] == b"DICM":
        _judge_deflated(data, limit * _BYTES_PER_PIXEL + _HEADER_ALLOWANCE)
        with translated("Reading the data set"):
            header = dcmread(BytesIO(data), stop_before_pixels=True)
        return _read_dataset(header, data, rules, limit, size)
    if data.startswith((_JPEG, _PNG)):
        return Radiograph(_read_picture(data, limit, size), view=None)
    raise unreadable("The file is neither DICOM (PS3.10) nor JPEG nor PNG")


def _judge_deflated(data: bytes, largest: int) -> None:
    """Inflate piece by piece and throw away: a few bytes can inflate to more than the memory."""
    start = 144 + int.from_bytes(data[140:144], "little")  # File Meta Information Group Length, PS3.10 7.1
    if DeflatedExplicitVRLittleEndian.encode() not in data[: max(start, 2**16)]:
        return
    inflater, size, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, data[start:]
    while rest and size <= largest:
        with translated("Inflating the data set"):
            size += len(inflater.decompress(rest, 2**20))
        rest = inflater.unconsumed_tail
    if size > largest:
        raise NotScorable(Reason.TOO_LARGE, f"The deflated data set has more than {largest} bytes")


def _read_dataset(
    header: Dataset, content: Dataset | bytes, rules: Eligibility | None, limit: int, size: int | None
) -> Radiograph:
    view = None if rules is None else check(header, rules)
    image = image_pixel(header, limit)
    with translated("Reading the data set"):
        if isinstance(content, bytes):
            _add_pixels(header, dcmread(BytesIO(content)))
    return Radiograph(_render(header, image, size)[np.newaxis], view, told(header))


def _add_pixels(header: Dataset, whole: Dataset) -> None:
    """Add nothing but the pixels: what stands behind them was not judged, and must not count."""
    for tag in whole.group_dataset(0x7FE0).keys():  # noqa: SIM118 - iterating a data set decodes its elements
        header[tag] = whole.get_item(tag)


def _render(ds: Dataset, image: ImagePixel, size: int | None) -> Grey:
    if size is not None and follows_averaging(ds):
        with suppress(NotScorable):  # what is refused with less detail is judged with all of it
            return to_grey(ds, stored_values(ds, image, size), size)
    return to_grey(ds, stored_values(ds, image), size)


def _read_picture(data: bytes, limit: int, size: int | None) -> Grey:
    try:
        with translated("Reading the picture"), Image.open(BytesIO(data), formats=("JPEG", "PNG")) as image:
            whole = image.height, image.width
            if image.width * image.height > limit:
                raise NotScorable(Reason.TOO_LARGE, f"{image.height} x {image.width} pixels")
            sampling = WHOLE if size is None else draft(image, size)
            grey = require_contrast(_picture_grey(ImageOps.exif_transpose(image)))
    except NotScorable as refusal:
        if isinstance(refusal.__cause__, Image.DecompressionBombError):
            raise NotScorable(Reason.TOO_LARGE, "The picture is larger than Pillow allows") from refusal
        raise
    if size is not None:
        is_turned = -(-whole[0] // sampling.step) != len(grey)
        grey = np.clip(resample(grey, size, whole[::-1] if is_turned else whole, sampling), 0, 1)
    return grey[np.newaxis]


def _picture_grey(image: Image.Image) -> Grey:
    """Return (rows, columns) float32 in 0..1; transparent pixels are black."""
    if image.mode.startswith("I"):  # 16-bit PNG
        return np.asarray(image).astype(np.float32) / np.float32(65535)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    if image.mode in ("P", "CMYK"):
        image = image.convert("RGB")
    return np.asarray(image.convert("L")).astype(np.float32) / np.float32(255)
