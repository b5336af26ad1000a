"""From a data set to its stored pixel values: judged before decoding, decoded, unused bits removed.

Decoders are trusted with nothing that can be known before: declared sizes, the codestream's own sizes, and
whether the codestream has its end. Most JPEG decoders fill what a truncated stream lacks without saying so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from classifier.decoding.codecs import decoded, native
from classifier.decoding.codestream import has_end, j2k_header, jpeg_essence, jpeg_header
from classifier.decoding.resample import WHOLE, Sampling
from classifier.decoding.tags import integer, quote, text, values
from classifier.errors import NotScorable, Reason

_LOSSY_JPEG = {JPEGBaseline8Bit, JPEGExtended12Bit}
_SELF_DESCRIBED = {
    *JPEG2000TransferSyntaxes,
    *JPEGLSTransferSyntaxes,
}  # precision and sign are in the codestream
_CODESTREAMS = {*JPEGTransferSyntaxes, *_SELF_DESCRIBED}
# One decoder per transfer syntax, so that an image has the same pixels on every machine and in every year:
# these are for colour, those in `codecs` for grey images.
_PLUGINS: dict[str, str] = {
    **dict.fromkeys(JPEG2000TransferSyntaxes, "pylibjpeg"),
    **dict.fromkeys(JPEGLSTransferSyntaxes, "pyjpegls"),
    **dict.fromkeys(_LOSSY_JPEG, "pillow"),
    **dict.fromkeys((JPEGLossless, JPEGLosslessSV1), "gdcm"),
    RLELossless: "pydicom",
}
_GREY = {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"}


class ImagePixel(NamedTuple):
    """The Image Pixel Module (PS3.3 C.7.6.3), checked."""

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    photometric: str


@dataclass(frozen=True)
class Stored:
    """Stored pixel values of one frame.

    Attributes
    ----------
    values
        (rows, columns) or (rows, columns, 3) of uint8, int8, uint16 or int16; unused bits are cleared or hold
        the sign. Fewer rows and columns where it was decoded with less detail.
    photometric
        The Photometric Interpretation of `values`; YBR becomes RGB.
    image
        The Image Pixel Module of the whole frame.
    sampling
        Where `values` lie in it.
    """

    values: NDArray[Any]
    photometric: str
    image: ImagePixel
    sampling: Sampling = WHOLE

    @cached_property
    def range(self) -> tuple[int, int]:
        """The lowest and the highest value."""
        return int(self.values.min()), int(self.values.max())


class _Frame(NamedTuple):
    """One frame that was judged fit for a decoder, and what to tell the decoder of it."""

    data: bytes
    syntax: UID
    image: ImagePixel
    precision: int = 0  # of the codestream, where it has one


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Turn whatever a decoder library raises on bad input into `NotScorable`.

    Parsers and codecs raise nearly everything (struct.error, IndexError, RuntimeError, MemoryError for a
    corrupt length, SyntaxError for a broken PNG), and the list changes with their versions.
    """
    try:
        yield
    except NotScorable:
        raise
    except Exception as error:
        raise NotScorable(Reason.UNREADABLE, f"{action} failed with {type(error).__name__}") from error


def unreadable(detail: str) -> NotScorable:
    """Return the refusal of an image that cannot be read."""
    return NotScorable(Reason.UNREADABLE, detail)


def image_pixel(ds: Dataset, max_pixels: int) -> ImagePixel:
    """Read and check the Image Pixel Module.

    Raises
    ------
    NotScorable
        ``TOO_LARGE`` when the declared size is over `max_pixels`; ``UNREADABLE`` when an attribute is missing
        or makes no sense.
    """
    rows, columns = integer(ds, "Rows") or 0, integer(ds, "Columns") or 0
    if rows < 1 or columns < 1:
        raise unreadable("Rows or Columns is zero or missing")
    if rows * columns > max_pixels:
        raise NotScorable(Reason.TOO_LARGE, f"{rows} x {columns} pixels are over the limit of {max_pixels}")
    photometric = text(ds, "PhotometricInterpretation")
    samples = integer(ds, "SamplesPerPixel") or (1 if photometric.startswith(("MONO", "PALETTE")) else 3)
    if samples not in (1, 3):
        raise unreadable(f"Samples per Pixel is {samples}")
    allocated = integer(ds, "BitsAllocated") or 0
    stored = integer(ds, "BitsStored") or allocated
    high_bit = integer(ds, "HighBit")
    high_bit = stored - 1 if high_bit is None else high_bit
    if allocated not in (8, 16) or not 8 <= stored <= allocated or not stored - 1 <= high_bit < allocated:
        raise unreadable(f"{stored} Bits Stored up to High Bit {high_bit} of {allocated} are not supported")
    signed = integer(ds, "PixelRepresentation") == 1
    return ImagePixel(rows, columns, samples, allocated, stored, high_bit, signed, photometric)


def stored_values(ds: Dataset, image: ImagePixel, size: int | None = None) -> Stored:
    """Decode the first frame.

    Parameters
    ----------
    ds
        The data set with Pixel Data and file meta information.
    image
        Its checked Image Pixel Module.
    size
        Side of the square that it will be resized to: JPEG 2000 and JPEG of 8 bits are then decoded with less
        detail, in a fraction of the time. ``None`` means all.

    Raises
    ------
    NotScorable
        ``UNREADABLE`` when Pixel Data is missing, shorter than declared, truncated or damaged.
    """
    syntax = _transfer_syntax(ds)
    frame = (_judge_frame if syntax.is_encapsulated else _judge_length)(ds, syntax, image)
    with translated("Decoding the pixel data"):
        if image.samples == 1 and image.photometric in _GREY and syntax != ExplicitVRBigEndian:
            stored = _grey(frame, image, size)
        else:
            stored = _colour(ds, frame, image)
    if frame.syntax in _SELF_DESCRIBED:
        return stored
    return _clear_unused_bits(stored, frame.image)


def _transfer_syntax(ds: Dataset) -> UID:
    meta = getattr(ds, "file_meta", None)
    syntax = UID(text(meta, "TransferSyntaxUID") if isinstance(meta, Dataset) else "")
    if not syntax.is_valid or not syntax.is_transfer_syntax:
        raise unreadable(f"Transfer Syntax UID is {quote(syntax)}")
    if not any(isinstance(data, bytes) and data for data in values(ds, "PixelData")):
        raise unreadable("Pixel Data is missing")
    return syntax


def _grey(frame: _Frame, whole: ImagePixel, size: int | None) -> Stored:
    image = frame.image
    shape = image.rows, image.columns
    kind = np.dtype(f"{'i' if image.signed else 'u'}{image.allocated // 8}")
    if not frame.syntax.is_encapsulated:
        return Stored(native(frame.data, shape, kind), image.photometric, whole)
    values, sampling = decoded(
        frame.data, frame.syntax, shape=shape, kind=kind, precision=frame.precision, size=size
    )
    return Stored(values, image.photometric, whole, sampling)


def _colour(ds: Dataset, frame: _Frame, whole: ImagePixel) -> Stored:
    """Let pydicom decode whatever it is."""
    image = frame.image
    options: dict[str, Any] = {
        "rows": image.rows,
        "columns": image.columns,
        "samples_per_pixel": image.samples,
        "planar_configuration": integer(ds, "PlanarConfiguration") or 0,
        "bits_allocated": image.allocated,
        "bits_stored": image.stored,
        "pixel_representation": int(image.signed),
        "photometric_interpretation": image.photometric,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
        "pixel_vr": ds["PixelData"].VR,
    }
    if frame.syntax not in _SELF_DESCRIBED:
        options["correct_unused_bits"] = False  # pydicom's correction takes High Bit to be Bits Stored - 1
    plugin = _PLUGINS.get(frame.syntax, "")
    data = encapsulate([frame.data]) if frame.syntax.is_encapsulated else frame.data
    values, properties = get_decoder(frame.syntax).as_array(data, index=0, decoding_plugin=plugin, **options)
    native_order = values.astype(values.dtype.newbyteorder("="), copy=False)
    return Stored(native_order, str(properties["photometric_interpretation"]), whole)


def _clear_unused_bits(stored: Stored, image: ImagePixel) -> Stored:
    """Drop what older objects keep above High Bit, such as overlays, and restore the sign (PS3.5 8.1.1)."""
    width = stored.values.itemsize * 8
    above, unused = width - 1 - image.high_bit, width - image.stored
    if unused <= 0 or above < 0 or (above == unused and _fits(stored, image)):
        return stored
    return replace(stored, values=np.right_shift(np.left_shift(stored.values, above), unused))


def _fits(stored: Stored, image: ImagePixel) -> bool:
    lowest = -(2 ** (image.stored - 1)) if image.signed else 0
    return lowest <= stored.range[0] and stored.range[1] < lowest + 2**image.stored


def _judge_length(ds: Dataset, syntax: UID, image: ImagePixel) -> _Frame:
    """Compare the length of native Pixel Data with what the attributes declare."""
    samples = 2 if image.photometric == "YBR_FULL_422" else image.samples
    expected = image.rows * image.columns * samples * image.allocated // 8
    actual = len(ds.PixelData)
    if actual < expected:
        raise unreadable(f"Pixel Data has {actual} bytes where {expected} are declared")
    if actual >= 2 * expected:
        raise unreadable(f"Pixel Data has {actual} bytes, more than one frame of {expected}")
    return _Frame(ds.PixelData, syntax, image)


def _judge_frame(ds: Dataset, syntax: UID, image: ImagePixel) -> _Frame:
    """Judge the compressed frame before a decoder sees it; return how to decode it."""
    with translated("Reading the encapsulated frame"):
        frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    if syntax in _CODESTREAMS:
        return _judge_codestream(frame, syntax, image)
    bound = 1024 + 2 * image.rows * image.columns * image.samples * image.allocated // 8
    if syntax == RLELossless and len(frame) > bound:
        raise unreadable(f"The RLE frame has {len(frame)} bytes, more than its pixels can need")
    return _Frame(frame, syntax, image)


def _judge_codestream(frame: bytes, syntax: UID, image: ImagePixel) -> _Frame:
    header = j2k_header(frame) if syntax in JPEG2000TransferSyntaxes else jpeg_header(frame)
    if header is None:
        raise unreadable("The compressed frame does not start with a header of its transfer syntax")
    if header[:3] != (image.rows, image.columns, image.samples):
        raise unreadable(
            f"The compressed frame is {header.rows} x {header.columns} x {header.samples} where"
            f" {image.rows} x {image.columns} x {image.samples} are declared"
        )
    if not 2 <= header.precision <= image.allocated:
        raise unreadable(f"The compressed frame has {header.precision} bits in {image.allocated} allocated")
    if not has_end(frame):
        raise unreadable("The compressed frame is truncated: it has no end marker")
    if syntax in _SELF_DESCRIBED:
        return _Frame(frame, syntax, image, header.precision)
    return _judge_jpeg(frame, syntax, image, header.precision)


def _judge_jpeg(frame: bytes, syntax: UID, image: ImagePixel, precision: int) -> _Frame:
    if syntax in _LOSSY_JPEG and precision == 8:
        bits = image._replace(allocated=8, stored=8, high_bit=7)
        return _Frame(frame, syntax, bits, precision)
    essence = jpeg_essence(frame)
    if essence is None:
        raise unreadable("The JPEG frame has a malformed or unexpected marker segment")
    # pydicom keeps 12-bit JPEG from GDCM, which decodes it well; GDCM takes the process from the codestream.
    return _Frame(essence, JPEGLossless, image, precision)
