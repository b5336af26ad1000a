"""From a DICOM object or a picture file to one grey image, or to the named reason why not.

It can resize as well: decoders and the grayscale pipeline then need not make what nobody looks at.

Needs numpy, pydicom, imagecodecs and Pillow only, so that receivers and tools can use it without torch.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset

from classifier.config import PROJECTION_RADIOGRAPHS, Eligibility
from classifier.decoding.ages import UNKNOWN, Age, told
from classifier.decoding.codecs import draft
from classifier.decoding.eligibility import check
from classifier.decoding.grayscale import follows_averaging, require_contrast, to_grey
from classifier.decoding.orientation import UPRIGHT, Turn, turn
from classifier.decoding.parsing import HEADER_BYTES, Part10, is_dicom
from classifier.decoding.pixels import ImagePixel, image_pixel, stored_values
from classifier.decoding.refusal import too_large, translated, unreadable
from classifier.decoding.resample import WHOLE, Grey, resample
from classifier.decoding.tags import quiet
from classifier.errors import NotScorable
from classifier.reasons import Reason

__all__ = ["PROJECTION_RADIOGRAPHS", "Eligibility", "Radiograph", "check", "decode", "read"]

Source = Path | BinaryIO | Dataset

_BYTES_PER_PIXEL = 6  # RGB of 16 bits
_EXIF_ORIENTATION = 0x0112
_EXIF_TURNS = {
    2: Turn(mirrored=True),
    3: Turn(mirrored=True, upside_down=True),
    4: Turn(upside_down=True),
    5: Turn(transposed=True),
    6: Turn(transposed=True, mirrored=True),
    7: Turn(transposed=True, mirrored=True, upside_down=True),
    8: Turn(transposed=True, upside_down=True),
}
_APPENDED = 1024  # bytes behind the end of a picture that some programs write
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
    turn
        How the stored image was turned upright to become `pixels`. What is made of these, such as a heat map,
        lies over the stored image after `turn.undone`.
    """

    pixels: Grey
    view: str | None
    age: Age = UNKNOWN
    turn: Turn = UPRIGHT


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


def read_data_set(file: BinaryIO, max_pixels: int) -> Dataset:
    """Parse the header and the pixels of a DICOM file, and decode nothing.

    Raises
    ------
    NotScorable
        When it is larger than any image of `max_pixels`, or does not parse.
    OSError
        When it cannot be opened or read.
    """
    part10 = Part10(_load(file, max_pixels))
    header = part10.header()
    _add_pixels(header, part10.pixels(max_pixels * _BYTES_PER_PIXEL))
    return header


def _load(source: Path | BinaryIO, limit: int) -> bytes:
    """Read a whole file, unless it is larger than any image within the limit can be."""
    largest = limit * _BYTES_PER_PIXEL + HEADER_BYTES
    if isinstance(source, Path):
        with source.open("rb") as file:
            return _load(file, limit)
    length = source.seek(0, os.SEEK_END)
    if length > largest:
        raise too_large(f"The file has more than {largest} bytes")
    source.seek(0)
    return source.read(length)


def _read_bytes(data: bytes, rules: Eligibility | None, limit: int, size: int | None) -> Radiograph:
    if is_dicom(data):
        file = Part10(data)
        return _read_dataset(file.header(), file, rules, limit, size)
    if data.startswith((_JPEG, _PNG)):
        return _read_picture(data, limit, size)
    raise unreadable("The file is neither DICOM (PS3.10) nor JPEG nor PNG")


def _read_dataset(
    header: Dataset, content: Dataset | Part10, rules: Eligibility | None, limit: int, size: int | None
) -> Radiograph:
    with translated("Reading the tags"):
        view = None if rules is None else check(header, rules)
        turn_upright = turn(header)
        image = image_pixel(header, limit)
        age = told(header)
    if isinstance(content, Part10):
        _add_pixels(header, content.pixels(image.native_bytes))
    with translated("Rendering the image"):
        grey = turn_upright.applied(_render(header, image, size))
    return Radiograph(np.ascontiguousarray(grey)[np.newaxis], view, age, turn_upright)


def _add_pixels(header: Dataset, rest: Dataset) -> None:
    """Add nothing but the pixels: what stands behind them was not judged, and must not count."""
    for tag in rest.group_dataset(0x7FE0).keys():  # noqa: SIM118 - iterating a data set decodes its elements
        header[tag] = rest.get_item(tag)


def _render(ds: Dataset, image: ImagePixel, size: int | None) -> Grey:
    if size is not None and follows_averaging(ds):
        with suppress(NotScorable):  # what is refused with less detail is judged with all of it
            return to_grey(ds, stored_values(ds, image, size), size)
    return to_grey(ds, stored_values(ds, image), size)


def _read_picture(data: bytes, limit: int, size: int | None) -> Radiograph:
    try:
        with translated("Reading the picture"), Image.open(BytesIO(data), formats=("JPEG", "PNG")) as image:
            whole = image.height, image.width
            if image.width * image.height * len(image.getbands()) > limit:
                raise too_large(f"{image.height} x {image.width} x {len(image.getbands())} samples")
            sampling = WHOLE if size is None else draft(image, size)
            found = _EXIF_TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1), UPRIGHT)
            grey = require_contrast(found.applied(_picture_grey(image)))
    except NotScorable as refusal:
        if isinstance(refusal.__cause__, Image.DecompressionBombError):
            raise too_large("The picture is larger than Pillow allows") from refusal
        if refusal.reason is Reason.UNREADABLE and _is_cut(data):
            raise unreadable("The picture is truncated: its file ends before the image does") from refusal
        raise
    if size is not None:
        grey = np.clip(resample(grey, size, whole[::-1] if found.transposed else whole, sampling), 0, 1)
    return Radiograph(np.ascontiguousarray(grey)[np.newaxis], view=None, turn=found)


def _is_cut(data: bytes) -> bool:
    """Whether a JPEG or PNG file lacks its end: EOI, or the chunk IEND, but for what programs append."""
    return (b"\xff\xd9" if data.startswith(_JPEG) else b"IEND") not in data[-_APPENDED:]


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
