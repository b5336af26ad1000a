"""One image in every encoding that the node accepts, drawn from a seed; the native one is the truth."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from imagecodecs import htj2k_encode, jpeg2k_encode, jpeg8_encode, jpegls_encode, packbits_encode
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import JPEGLSLosslessEncoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.helpers.decoding import image_of

Values = NDArray[Any]

NATIVE = {
    ImplicitVRLittleEndian: (True, True),
    ExplicitVRLittleEndian: (False, True),
    DeflatedExplicitVRLittleEndian: (False, True),
    ExplicitVRBigEndian: (False, False),
}
COMPRESSED = (*(RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless),)
SYNTAXES = (*NATIVE, *COMPRESSED)
# What may be in the bits above Bits Stored
ABOVE = ("zeros", "sign", "ones", "noise", "overlay")


@dataclass(frozen=True)
class Encoding:
    """How one image is written.

    Attributes
    ----------
    high_bit
        Above ``stored - 1`` the values lie in the upper bits of their cells, with noise below them.
    above
        What is in the bits above High Bit; one of `ABOVE`.
    is_narrow
        The codestream has as many bits as are stored; else it has whole cells, with all that is in them.
    """

    syntax: UID
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    above: str
    is_narrow: bool
    seed: int
    shape: tuple[int, int]

    def values(self) -> Values:
        """Return the stored values: two lungs with noise, over the whole range of Bits Stored."""
        rows, columns = self.shape
        random = np.random.default_rng(self.seed)
        y, x = np.mgrid[0:rows, 0:columns] / max(self.shape)
        lungs = sum(np.exp(-((x - c) ** 2) / 0.02 - (y - 0.5) ** 2 / 0.06) for c in (0.3, 0.7))
        grey = 0.9 - 0.8 * lungs + random.normal(0, 0.01, self.shape)
        grey = np.clip((grey - grey.min()) / (grey.max() - grey.min()), 0, 1)
        low = -(2 ** (self.stored - 1)) if self.signed else 0
        kind = f"{'i' if self.signed else 'u'}{self.allocated // 8}"
        stored: Values = (np.round(grey * (2**self.stored - 1)) + low).astype(np.int32).astype(kind)
        return stored

    def cells(self) -> Values:
        """Return the whole cells, unsigned, with what is around the stored bits."""
        random = np.random.default_rng(self.seed + 1)
        mask = 2**self.stored - 1
        below = self.high_bit + 1 - self.stored
        cells = (self.values().astype(np.int64) & mask) << below
        cells |= random.integers(0, 2**below, self.shape)
        room = 2 ** (self.allocated - 1 - self.high_bit) - 1
        above: Any = {
            "zeros": 0,
            "sign": np.where(self.values() < 0, room, 0),
            "ones": room,
            "noise": random.integers(0, room + 1, self.shape),
            "overlay": np.where(_letters(self.shape), (room + 1) // 2, 0),
        }[self.above]
        whole: Values = (cells | above << self.high_bit + 1).astype(f"u{self.allocated // 8}")
        return whole

    def native(self) -> Dataset:
        """Return the image as plainly as it can be written: values in whole cells, with their sign."""
        return image_of(self.values(), self.stored)

    def dataset(self) -> Dataset:
        """Return the image as it is to be written."""
        ds = image_of(self.cells(), self.stored, HighBit=self.high_bit)
        ds.PixelRepresentation = int(self.signed)
        if self.above == "overlay" and self.high_bit + 1 < self.allocated:
            _declare_overlay(ds, self.allocated - 1, self.allocated)
        ds.file_meta.TransferSyntaxUID = self.syntax
        if self.syntax in NATIVE:
            implicit, little = NATIVE[self.syntax]
            if not little:
                _swap(ds, self.cells(), self.seed)
            ds.set_original_encoding(implicit, little)
            return ds
        frame = _ENCODERS[self.syntax](self)
        ds.PixelData = encapsulate([frame], fragments_per_frame=1 + self.seed % 3)
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
        return ds

    def file(self) -> bytes:
        """Return the file, PS3.10."""
        file = io.BytesIO()
        self.dataset().save_as(file, enforce_file_format=True)
        return file.getvalue()

    def coded(self) -> tuple[Values, int]:
        """Return what a codestream is made of, and its bits."""
        if not self.is_narrow:
            return self.cells(), self.allocated
        return self.cells() & np.array(2**self.stored - 1, self.cells().dtype), self.stored


def drawn(seed: int, syntax: UID | None = None) -> Encoding:
    """Draw an encoding; the same seed draws the same one."""
    random = np.random.default_rng(seed)
    syntax = syntax or SYNTAXES[random.integers(len(SYNTAXES))]
    allocated = int(random.choice([8, 16, 16]))
    stored = int(random.integers(1, allocated + 1))
    signed = bool(random.integers(2))
    is_narrow = syntax not in NATIVE and syntax != RLELossless and bool(random.integers(2)) and stored > 1
    high_bit = stored - 1
    if not is_narrow and random.random() < 0.25:
        high_bit = int(random.integers(stored - 1, allocated))
    if syntax == HTJ2KLossless or (syntax == JPEG2000Lossless and signed):
        is_narrow = False  # its encoder takes the bits of the array
    rows, columns = (int(n) for n in random.integers(17, 70, 2))
    above = ABOVE[random.integers(len(ABOVE))]
    if signed and syntax in (JPEG2000Lossless, HTJ2KLossless):  # a codestream with a sign of its own
        high_bit, above = stored - 1, "sign"
    return Encoding(syntax, allocated, stored, high_bit, signed, above, is_narrow, seed, (rows, columns))


def _letters(shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return strokes as of burnt-in letters."""
    rows, columns = np.indices(shape)
    strokes: NDArray[np.bool_] = (rows % 7 == 2) & (columns < shape[1] // 2) | (columns % 9 == 4) & (
        rows > 20
    )
    return strokes


def _declare_overlay(ds: Dataset, bit: int, allocated: int) -> None:
    ds.add_new(0x60000010, "US", ds.Rows)
    ds.add_new(0x60000011, "US", ds.Columns)
    ds.add_new(0x60000040, "CS", "G")
    ds.add_new(0x60000050, "SS", [1, 1])
    ds.add_new(0x60000100, "US", allocated)
    ds.add_new(0x60000102, "US", bit)


def _swap(ds: Dataset, cells: Values, seed: int) -> None:
    """Write cells as Big Endian has them: of 8 bits, either as they are or two in a swapped word."""
    if cells.itemsize == 2:
        ds.PixelData = cells.byteswap().tobytes()
    elif seed % 2:
        ds["PixelData"].VR = "OB"
    else:
        ds.PixelData = np.frombuffer(ds.PixelData, "u2").byteswap().tobytes()
        ds["PixelData"].VR = "OW"


def _rle(encoding: Encoding) -> bytes:
    """Encode by the bytes of cells, the most significant first (PS3.5 G)."""
    cells = encoding.cells()
    planes = (
        np.ascontiguousarray(cells.astype(cells.dtype.newbyteorder(">")))
        .view("u1")
        .reshape(-1, cells.itemsize)
    )
    segments = []
    for plane in planes.T:
        packed = b"".join(bytes(packbits_encode(row.tobytes())) for row in plane.reshape(cells.shape))
        segments.append(packed + b"\0" * (len(packed) % 2))
    starts = [64, 64 + len(segments[0])][: len(segments)]
    header = np.zeros(16, "<u4")
    header[0], header[1 : 1 + len(starts)] = len(starts), starts
    return header.tobytes() + b"".join(segments)


def _jpeg_lossless(encoding: Encoding) -> bytes:
    cells, bits = encoding.coded()
    predictor = 1 if encoding.syntax == JPEGLosslessSV1 else 1 + encoding.seed % 7
    if bits <= 8:
        cells = cells.astype("u1")
    return bytes(jpeg8_encode(cells, lossless=True, predictor=predictor, bitspersample=max(bits, 2)))


def _jpeg_ls(encoding: Encoding) -> bytes:
    cells, bits = encoding.coded()
    if bits == encoding.allocated:
        return bytes(jpegls_encode(cells))
    plain = image_of(cells, bits)
    return JPEGLSLosslessEncoder.encode(plain, encoding_plugin="pyjpegls")


def _jpeg_2000(encoding: Encoding) -> bytes:
    if encoding.signed:
        return bytes(jpeg2k_encode(encoding.values(), codecformat="j2k", level=0, reversible=True))
    cells, bits = encoding.coded()
    return bytes(jpeg2k_encode(cells, codecformat="j2k", level=0, reversible=True, bitspersample=bits))


def _htj2k(encoding: Encoding) -> bytes:
    source = encoding.values() if encoding.signed else encoding.cells()
    return bytes(htj2k_encode(source, reversible=True))


_ENCODERS: dict[UID, Callable[[Encoding], bytes]] = {
    RLELossless: _rle,
    JPEGLossless: _jpeg_lossless,
    JPEGLosslessSV1: _jpeg_lossless,
    JPEGLSLossless: _jpeg_ls,
    JPEG2000Lossless: _jpeg_2000,
    HTJ2KLossless: _htj2k,
}
