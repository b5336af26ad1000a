"""Decoding: every pixel encoding that a radiograph comes in, pictures, and real images."""

from __future__ import annotations

import base64
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from classifier.decoding.decode import Eligibility, decode, read
from classifier.reasons import Reason
from tests.conftest import pixels, radiograph, save
from tests.helpers.decoding import (
    CODESTREAMS,
    COLOUR,
    RAMP,
    compressed,
    encoded,
    image_of,
    picture,
    refused,
    stretched,
)
from tests.helpers.part10 import explicit_element


def test_shape_type_and_range() -> None:
    image = decode(encoded(image_of(RAMP)))
    assert image.shape == (1, 40, 36)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image[0], stretched(RAMP), atol=1e-6)


# --- transfer syntaxes


@pytest.mark.parametrize(
    ("syntax", "implicit", "little"),
    [
        (ImplicitVRLittleEndian, True, True),
        (ExplicitVRLittleEndian, False, True),
        (DeflatedExplicitVRLittleEndian, False, True),
        (ExplicitVRBigEndian, False, False),
    ],
)
@pytest.mark.parametrize("bits", [8, 12])
def test_native_syntaxes(syntax: UID, implicit: bool, little: bool, bits: int) -> None:
    values = RAMP if bits == 12 else (RAMP >> 4).astype("u1")
    ds = image_of(values, bits)
    ds.file_meta.TransferSyntaxUID = syntax
    if not little:
        # 8 bits as OW, the old way of Big Endian: two pixels in a swapped word
        ds.PixelData = values.byteswap().tobytes() if bits == 12 else values.view("u2").byteswap().tobytes()
        ds["PixelData"].VR = "OW"
    ds.set_original_encoding(implicit, little)
    np.testing.assert_allclose(decode(encoded(ds))[0], stretched(values), atol=1e-6)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("kind", ["u1", "<u2", "<i2"])
def test_lossless_syntaxes(syntax: UID, kind: str) -> None:
    values = {"u1": RAMP >> 4, "<u2": RAMP, "<i2": RAMP.astype("<i4") - 1900}[kind].astype(kind)
    ds = image_of(values, 8 if kind == "u1" else 12)
    ds.compress(syntax)
    np.testing.assert_allclose(decode(encoded(ds))[0], stretched(values), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "syntax", "tolerance"),
    [
        ("JPEGLossless", JPEGLossless, 0),
        ("JPEGLosslessSV1", JPEGLosslessSV1, 0),
        ("JPEGExtended12Bit", JPEGExtended12Bit, 0.005),
        ("HTJ2KLossless", HTJ2KLossless, 0),
        ("HTJ2K", HTJ2K, 0.01),
    ],
)
def test_syntaxes_written_by_other_encoders(name: str, syntax: UID, tolerance: float) -> None:
    image = decode(encoded(compressed(base64.b85decode(CODESTREAMS[name]), syntax)))
    np.testing.assert_allclose(image[0], stretched(RAMP), atol=tolerance + 1e-6)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit])
def test_8_bit_jpeg(syntax: UID) -> None:
    values = (RAMP >> 4).astype("u1")
    frame = io.BytesIO()
    Image.fromarray(values).save(frame, "JPEG", quality=98)
    image = decode(encoded(compressed(frame.getvalue(), syntax, values, 8)))
    np.testing.assert_allclose(image[0], stretched(values), atol=0.02)


def test_codestream_in_several_fragments() -> None:
    frame = base64.b85decode(CODESTREAMS["JPEGLossless"])
    ds = compressed(frame, JPEGLossless)
    ds.PixelData = encapsulate([frame], fragments_per_frame=3)
    np.testing.assert_allclose(decode(encoded(ds))[0], stretched(RAMP), atol=1e-6)


# --- bits


def test_overlay_in_the_high_bits_is_masked() -> None:
    dirty = RAMP | np.where(np.eye(40, 36, dtype=bool), 0xF000, 0).astype("<u2")
    np.testing.assert_allclose(decode(image_of(dirty))[0], stretched(RAMP), atol=1e-6)


def test_left_aligned_bits_are_shifted_down() -> None:
    shifted = (RAMP << 4) | 7
    np.testing.assert_allclose(decode(image_of(shifted, HighBit=15))[0], stretched(RAMP), atol=1e-6)


def test_sign_is_taken_from_the_stored_bits() -> None:
    signed = RAMP.astype("<i2") - 1900
    ds = image_of(signed & 0x0FFF)  # the four unused bits are zero, not the sign
    ds.PixelRepresentation = 1
    np.testing.assert_allclose(decode(ds)[0], stretched(signed), atol=1e-6)


def test_16_bits() -> None:
    values = RAMP * 16
    np.testing.assert_allclose(decode(image_of(values, 16))[0], stretched(values), atol=1e-6)


# --- colour


LUMINANCE = COLOUR @ np.array([0.299, 0.587, 0.114]) / 255


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb(planar: int) -> None:
    ds = image_of(COLOUR, 8, PhotometricInterpretation="RGB")
    ds.PlanarConfiguration = planar
    ds.PixelData = (COLOUR.transpose(2, 0, 1) if planar else COLOUR).tobytes()
    np.testing.assert_allclose(decode(ds)[0], LUMINANCE, atol=1e-5)


def test_ybr_full_and_422() -> None:
    grey = np.repeat(COLOUR[..., :1], 3, axis=2)
    grey[..., 1:] = 128
    full = image_of(grey, 8, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(decode(full)[0], grey[..., 0] / 255, atol=0.005)
    full.PhotometricInterpretation = "YBR_FULL_422"
    packed = np.full((32, 16, 4), 128, "u1")  # Y1 Y2 Cb Cr
    packed[..., :2] = grey[..., 0].reshape(32, 16, 2)
    full.PixelData = packed.tobytes()
    np.testing.assert_allclose(decode(full)[0], grey[..., 0] / 255, atol=0.005)


@pytest.mark.parametrize("photometric", ["YBR_RCT", "RGB"])
def test_colour_jpeg_2000(photometric: str) -> None:
    ds = image_of(COLOUR, 8, PhotometricInterpretation="RGB")
    ds.PhotometricInterpretation = photometric
    ds.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg")
    np.testing.assert_allclose(decode(encoded(ds))[0], LUMINANCE, atol=0.02)


def test_colour_jpeg() -> None:
    frame = io.BytesIO()
    smooth = np.kron(COLOUR[:2, :2], np.ones((8, 8, 1), "u1"))
    Image.fromarray(smooth).save(frame, "JPEG", quality=95, subsampling=0)
    ds = compressed(frame.getvalue(), JPEGBaseline8Bit, smooth, 8)
    ds.PhotometricInterpretation = "YBR_FULL_422"
    expected = smooth @ np.array([0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(decode(encoded(ds))[0], expected, atol=0.04)


def test_palette_color() -> None:
    index = (RAMP >> 4).astype("u1")
    ds = image_of(index, 8, PhotometricInterpretation="PALETTE COLOR")
    table = (np.arange(256)[::-1]).astype("<u2") * 257
    for colour in ("Red", "Green", "Blue"):
        ds.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        ds.add_new(f"{colour}PaletteColorLookupTableData", "OW", table.tobytes())
    np.testing.assert_allclose(decode(encoded(ds))[0], 1 - index / 255, atol=1e-5)


# --- picture files


def test_picture_files() -> None:
    grey = (RAMP >> 4).astype("u1")
    base = Image.fromarray(grey)
    expected = grey / 255
    np.testing.assert_allclose(decode(picture(base))[0], expected, atol=1e-6)
    np.testing.assert_allclose(decode(picture(base, "JPEG", quality=98))[0], expected, atol=0.02)
    np.testing.assert_allclose(decode(picture(base.convert("RGB")))[0], expected, atol=1e-6)
    np.testing.assert_allclose(decode(picture(base.convert("P")))[0], expected, atol=1e-6)
    cmyk = base.convert("RGB").convert("CMYK")
    np.testing.assert_allclose(decode(picture(cmyk, "JPEG", quality=98))[0], expected, atol=0.03)
    assert read(picture(base), Eligibility()).view is None


def test_16_bit_png() -> None:
    values = (RAMP * 16).astype("u2")
    np.testing.assert_allclose(decode(picture(Image.fromarray(values)))[0], values / 65535, atol=1e-6)


def test_transparent_pixels_are_black() -> None:
    rgba = np.full((8, 8, 4), 200, "u1")
    rgba[..., 3], rgba[:4, :, 3] = 255, 0
    image = decode(picture(Image.fromarray(rgba)))[0]
    assert not image[:4].any()
    np.testing.assert_allclose(image[4:], 200 / 255, atol=1e-6)


def test_exif_rotation_is_applied() -> None:
    grey = (RAMP >> 4).astype("u1")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    image = decode(picture(Image.fromarray(grey), "JPEG", quality=98, exif=exif))
    assert image.shape == (1, 36, 40)
    np.testing.assert_allclose(image[0], np.rot90(grey, -1) / 255, atol=0.02)


def bomb(side: int) -> io.BytesIO:
    """Return a PNG of a few bytes that declares side x side pixels."""
    file = io.BytesIO(b"")
    file.write(b"\x89PNG\r\n\x1a\n")
    PngImagePlugin.putchunk(file, b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    PngImagePlugin.putchunk(file, b"IDAT", zlib.compress(b"\0"))
    return file


@pytest.mark.parametrize("side", [10_001, 50_000])
def test_picture_bomb(side: int) -> None:
    assert refused(bomb(side)) == Reason.TOO_LARGE


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_picture(kind: str) -> None:
    whole = picture(Image.fromarray((pixels(128, 128) >> 4).astype("u1")), kind).getvalue()
    assert refused(io.BytesIO(whole[: len(whole) // 2])) == Reason.UNREADABLE


def test_constant_picture() -> None:
    assert refused(picture(Image.new("L", (9, 9), 80))) == Reason.CONSTANT_IMAGE


# --- real images and the import rule


def test_real_chest_has_dark_lungs_and_a_bright_spine(shared: Path) -> None:
    radiograph_read = read(shared / "data/dicom/RG1_J2KI.dcm", Eligibility())
    image = radiograph_read.pixels[0]
    assert radiograph_read.view == "PA"
    assert image.shape == (1955, 1841)
    upper = slice(500, 700)
    lungs = image[upper, 400:600].mean() + image[upper, 1250:1400].mean()
    assert 2 * image[upper, 850:950].mean() > lungs + 0.3


def test_real_leg_is_no_chest(shared: Path) -> None:
    path = shared / "data/dicom/RG3_J2KR.dcm"
    assert refused(path, Eligibility()) == Reason.NOT_CHEST
    assert decode(path).shape == (1, 1760, 1760)


def test_decoding_needs_no_torch() -> None:
    script = "import sys, classifier, classifier.decoding.decode, classifier.errors, classifier.outcome; "
    script += "sys.exit(any(name in sys.modules for name in ('torch', 'monai', 'torchvision')))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_what_stands_behind_the_pixels_changes_nothing(tmp_path: Path) -> None:
    plain = save(radiograph(), tmp_path / "plain.dcm")
    behind = tmp_path / "behind.dcm"
    inverted = explicit_element(0x00280004, b"CS", b"MONOCHROME1 ") + explicit_element(
        0x00101010, b"AS", b"045Y"
    )
    behind.write_bytes(plain.read_bytes() + inverted)
    found, expected = read(behind), read(plain)
    assert np.array_equal(found.pixels, expected.pixels)
    assert found.age == expected.age
