"""From a data set to its stored pixel values: judged before decoding, decoded, unused bits removed.

Decoders are trusted with nothing that can be known before: declared sizes, the codestream's own sizes, and
whether the codestream has its end. Most JPEG decoders fill what a truncated stream lacks without saying so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSNearLossless,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from classifier.decoding.attributes import integer_of, name
from classifier.decoding.bits import clipped, limits, require_no_wrap, stored_bits
from classifier.decoding.codecs import decoded, native
from classifier.decoding.codestream import Codestream, has_end, jpeg_essence, jpeg_header
from classifier.decoding.encapsulated import first_frame
from classifier.decoding.jpeg2000 import bare_codestream, j2k_header, require_whole_j2k
from classifier.decoding.refusal import contradiction, too_large, translated, unreadable
from classifier.decoding.resample import WHOLE, Sampling
from classifier.decoding.tags import quote, text, values

_LOSSY_JPEG = {JPEGBaseline8Bit, JPEGExtended12Bit}
_LOSSY = {*_LOSSY_JPEG, JPEGLSNearLossless, JPEG2000, HTJ2K}
_CODESTREAMS = {*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes}
# One decoder per transfer syntax, so that an image has the same pixels on every machine and in every year:
# these are for colour, those in `codecs` for grey images.
_PLUGINS: dict[str, str] = {
    **dict.fromkeys(JPEG2000TransferSyntaxes, "pylibjpeg"),
    **dict.fromkeys(JPEGLSTransferSyntaxes, "pyjpegls"),
    **dict.fromkeys(_LOSSY_JPEG, "pillow"),
    **dict.fromkeys((JPEGLossless, JPEGLosslessSV1), "gdcm"),
    RLELossless: "pydicom",
}
_SAMPLES = {
    **dict.fromkeys(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"), 1),
    **dict.fromkeys(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"), 3),
}


_MOST_PACKED = 64  # bytes of pixels for each of RLE (PS3.5 G.3.1): a run of 128 takes two


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

    @property
    def native_bytes(self) -> int:
        """Length of one frame that is not compressed."""
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return self.rows * self.columns * samples * self.allocated // 8


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
    header: Codestream | None = None  # of a codestream that has one
    is_lossy: bool = False

    @property
    def precision(self) -> int:
        return self.header.precision if self.header else 0


def image_pixel(ds: Dataset, max_pixels: int) -> ImagePixel:
    """Read and check the Image Pixel Module.

    Raises
    ------
    NotScorable
        ``TOO_LARGE`` when the declared size, of all samples, is over `max_pixels`; ``UNREADABLE`` when an
        attribute is missing or makes no sense; ``CONTRADICTION`` when two do not go together.
    """
    rows, columns = (_required(ds, keyword, 1, 65535) for keyword in ("Rows", "Columns"))
    photometric = text(ds, "PhotometricInterpretation")
    if photometric not in _SAMPLES:
        raise unreadable(f"Photometric Interpretation {quote(photometric)} is not supported")
    samples = integer_of(ds, "SamplesPerPixel", 1, 4) or _SAMPLES[photometric]
    if rows * columns * samples > max_pixels:
        raise too_large(f"{rows} x {columns} x {samples} samples are over the limit of {max_pixels}")
    if samples != _SAMPLES[photometric]:
        raise contradiction(
            f"Samples per Pixel is {samples}, Photometric Interpretation {quote(photometric)}"
        )
    signed = _required(ds, "PixelRepresentation", 0, 1) == 1
    if signed and samples > 1:
        raise contradiction(f"Pixel Representation is 1, Photometric Interpretation {quote(photometric)}")
    return ImagePixel(rows, columns, samples, *_bits(ds), signed, photometric)


def _required(ds: Dataset, keyword: str, low: int, high: int) -> int:
    value = integer_of(ds, keyword, low, high)
    if value is None:
        raise unreadable(f"{name(keyword)} is missing")
    return value


def _bits(ds: Dataset) -> tuple[int, int, int]:
    """Return Bits Allocated, Bits Stored and High Bit."""
    allocated, stored = (_required(ds, keyword, 1, 64) for keyword in ("BitsAllocated", "BitsStored"))
    told = integer_of(ds, "HighBit", 0, 63)
    high_bit = stored - 1 if told is None else told
    if allocated not in (8, 16):
        raise unreadable(f"{allocated} Bits Allocated are not supported")
    if not stored - 1 <= high_bit < allocated:
        raise contradiction(f"Bits Stored is {stored}, High Bit {high_bit}, Bits Allocated {allocated}")
    return allocated, stored, high_bit


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
    if frame.precision > image.stored:
        size = None  # what may be above Bits Stored is cleared in the whole image alone
    with translated("Decoding the pixel data"):
        if image.samples == 1 and syntax != ExplicitVRBigEndian:
            stored = _grey(frame, image, size)
        else:
            stored = _colour(ds, frame, image)
        return _within_bits(ds, stored, frame)


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
    if frame.header:
        _judge_sign(values, frame.header, frame)
    return Stored(values.view(f"{kind.kind}{values.itemsize}"), image.photometric, whole, sampling)


def _judge_sign(values: NDArray[Any], header: Codestream, frame: _Frame) -> None:
    """Refuse values whose sign is not certain: the codestream, as far as it has a sign, must agree."""
    image, precision = frame.image, header.precision
    if values.dtype.kind == "i":  # a signed codestream of JPEG 2000
        is_certain = image.signed or values.min() >= 0
    elif image.signed and (frame.syntax in JPEG2000TransferSyntaxes or precision < image.stored):
        is_certain = values.max() < 2 ** (min(precision, image.stored) - 1)
    else:
        is_certain = True
    if not is_certain:
        sign = "signed" if values.dtype.kind == "i" else "unsigned"
        raise contradiction(
            f"Pixel Representation is {int(image.signed)} and Bits Stored {image.stored},"
            f" but the codestream has {sign} values of {precision} bits"
        )


def _colour(ds: Dataset, frame: _Frame, whole: ImagePixel) -> Stored:
    """Let pydicom decode whatever it is."""
    image = frame.image
    options: dict[str, Any] = {
        "rows": image.rows,
        "columns": image.columns,
        "samples_per_pixel": image.samples,
        "planar_configuration": integer_of(ds, "PlanarConfiguration", 0, 1) or 0,
        "bits_allocated": image.allocated,
        "bits_stored": image.stored,
        "pixel_representation": int(image.signed),
        "photometric_interpretation": image.photometric,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
        "pixel_vr": ds["PixelData"].VR,
    }
    options["correct_unused_bits"] = False  # pydicom's correction takes High Bit to be Bits Stored - 1
    plugin = _PLUGINS.get(frame.syntax, "")
    data = encapsulate([frame.data]) if frame.syntax.is_encapsulated else frame.data
    values, properties = get_decoder(frame.syntax).as_array(data, index=0, decoding_plugin=plugin, **options)
    native_order = values.astype(values.dtype.newbyteorder("="), copy=False)
    return Stored(native_order, str(properties["photometric_interpretation"]), whole)


def _within_bits(ds: Dataset, stored: Stored, frame: _Frame) -> Stored:
    """Drop what older objects keep above High Bit, such as overlays, and restore the sign (PS3.5 8.1.1)."""
    image, values = frame.image, stored.values
    low, high = limits(image.stored, image.signed)
    is_aligned = image.high_bit == image.stored - 1
    if is_aligned and low <= stored.range[0] and stored.range[1] <= high:
        if image.signed and _spans_both_signs(stored.range, high):
            require_no_wrap(values, values, image.stored, signed=True)
        return stored
    if frame.is_lossy:
        return replace(stored, values=clipped(values, image.stored, image.signed))
    read = stored_bits(values, image.stored, image.high_bit)
    if is_aligned:
        require_no_wrap(values, read, image.stored, image.signed)
    _judge_padding(ds, read, image)
    return replace(stored, values=read)


def _spans_both_signs(found: tuple[int, int], high: int) -> bool:
    """Tell whether these may be unsigned values, the upper half of which was taken for negative."""
    return found[0] < -high // 2 and found[1] > high // 2


def _judge_padding(ds: Dataset, read: NDArray[Any], image: ImagePixel) -> None:
    """Refuse a Pixel Padding Value that no stored value can have, where there was more in the cells."""
    value = integer_of(ds, "PixelPaddingValue", -(2**15), 2**16 - 1)
    low, high = limits(image.stored, image.signed)
    if value is not None and not low <= int(np.array(value).astype(read.dtype)) <= high:
        raise contradiction(f"Pixel Padding Value is {value}, Bits Stored {image.stored}")


def _judge_length(ds: Dataset, syntax: UID, image: ImagePixel) -> _Frame:
    """Compare the length of native Pixel Data with what the attributes declare."""
    expected = image.native_bytes
    actual = len(ds.PixelData)
    if actual < expected:
        raise unreadable(f"Pixel Data has {actual} bytes where {expected} are declared")
    if actual >= 2 * expected:
        raise unreadable(f"Pixel Data has {actual} bytes, more than one frame of {expected}")
    if actual - expected > expected // image.rows and any(ds.PixelData[expected:]):
        raise contradiction(
            f"Pixel Data has {actual} bytes where {image.rows} x {image.columns} pixels need {expected}"
        )
    return _Frame(ds.PixelData, syntax, image)


def _judge_frame(ds: Dataset, syntax: UID, image: ImagePixel) -> _Frame:
    """Judge the compressed frame before a decoder sees it; return how to decode it."""
    with translated("Reading the encapsulated frame"):
        frame = first_frame(ds.PixelData)
    cells = image.rows * image.columns * image.samples * image.allocated // 8
    if syntax in _CODESTREAMS:
        return _judge_codestream(frame, syntax, image)
    if syntax == RLELossless and not cells // _MOST_PACKED <= len(frame) <= 1024 + 2 * cells:
        raise unreadable(f"The RLE frame has {len(frame)} bytes for {cells} bytes of pixels")
    return _Frame(frame, syntax, image)


def _judge_codestream(frame: bytes, syntax: UID, image: ImagePixel) -> _Frame:
    if syntax in JPEG2000TransferSyntaxes:
        frame = bare_codestream(frame)
        header = j2k_header(frame)
    else:
        header = jpeg_header(frame)
    if header is None:
        raise unreadable("The compressed frame does not start with a header of its transfer syntax")
    if header[:3] != (image.rows, image.columns, image.samples):
        raise unreadable(
            f"The compressed frame is {header.rows} x {header.columns} x {header.samples} where"
            f" {image.rows} x {image.columns} x {image.samples} are declared"
        )
    if not 1 <= header.precision <= image.allocated:
        raise unreadable(f"The compressed frame has {header.precision} bits in {image.allocated} allocated")
    if image.high_bit >= max(header.precision, image.stored):
        raise contradiction(f"High Bit is {image.high_bit}, but the codestream has {header.precision} bits")
    if len(frame) < header.least_bytes:
        raise unreadable(f"The compressed frame has {len(frame)} bytes, too few for its pixels")
    if not has_end(frame):
        raise unreadable("The compressed frame is truncated: it has no end marker")
    if syntax in JPEG2000TransferSyntaxes:
        require_whole_j2k(frame)
    if syntax in JPEGTransferSyntaxes:
        return _judge_jpeg(frame, syntax, image, header)
    return _Frame(frame, syntax, image, header, syntax in _LOSSY)


def _judge_jpeg(frame: bytes, syntax: UID, image: ImagePixel, header: Codestream) -> _Frame:
    if syntax in _LOSSY_JPEG:
        if header.precision < image.stored:
            raise contradiction(
                f"Bits Stored is {image.stored}, the lossy codestream has {header.precision} bits"
            )
        if header.precision == 8:  # in cells of 8 bits
            bits = image._replace(allocated=8, stored=min(8, image.stored), high_bit=min(8, image.stored) - 1)
            return _Frame(frame, syntax, bits, header, is_lossy=True)
    essence = jpeg_essence(frame)
    if essence is None:
        raise unreadable("The JPEG frame has a malformed or unexpected marker segment")
    # pydicom keeps 12-bit JPEG from GDCM, which decodes it well; GDCM takes the process from the codestream.
    return _Frame(essence, JPEGLossless, image, header, syntax in _LOSSY)
