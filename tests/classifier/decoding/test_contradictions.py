"""Pixel attributes that contradict each other or the pixels: read as DCMTK does, or refused by name."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagecodecs import jpeg2k_encode, jpegls_encode
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from classifier.decoding.decode import decode
from classifier.errors import NotScorable
from classifier.reasons import Reason
from tests.conftest import pixels, save
from tests.helpers.decoding import compressed, encoded, image_of, lut, put, stretched

CHEST = pixels(128, 96)
WIDE = pixels(128, 96, bits=13)


def refusal(source: Any) -> NotScorable:
    with pytest.raises(NotScorable) as caught:
        decode(source)
    return caught.value


def in_jpeg_ls(ds: Dataset, values: np.ndarray[Any, Any]) -> Dataset:
    other = compressed(bytes(jpegls_encode(values)), JPEGLSLossless, values)
    other.PixelRepresentation = ds.PixelRepresentation
    return other


# --- Bits Stored, High Bit, sign


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 4096, "WindowWidth": 8192}])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_values_beyond_bits_stored_are_not_wrapped_around(
    window: dict[str, Any], is_compressed: bool
) -> None:
    ds = image_of(WIDE, bits=12, **window)
    found = refusal(in_jpeg_ls(ds, WIDE) if is_compressed else ds)
    assert found.reason == Reason.CONTRADICTION
    assert "Bits Stored is 12" in found.detail
    assert str(WIDE.max()) in found.detail


def test_unsigned_values_declared_as_signed() -> None:
    ds = image_of(CHEST)
    ds.PixelRepresentation = 1
    assert refusal(ds).reason == refusal(in_jpeg_ls(ds, CHEST)).reason == Reason.CONTRADICTION
    whole = image_of(CHEST << 4, bits=16)
    whole.PixelRepresentation = 1
    assert refusal(whole).reason == Reason.CONTRADICTION


def test_signed_values_declared_as_unsigned() -> None:
    ds = image_of(CHEST.astype("<i2") - 2048)
    ds.PixelRepresentation = 0
    assert refusal(ds).reason == Reason.CONTRADICTION


def test_a_wrong_sign_is_seen_also_where_the_bits_above_repeat_it() -> None:
    extended = image_of(np.where(CHEST >= 2048, CHEST.astype("<i4") - 4096, CHEST).astype("<i2"))
    extended.PixelRepresentation = 1  # unsigned, called signed
    assert refusal(extended).reason == Reason.CONTRADICTION


def test_bits_above_bits_stored_are_cleared_before_an_image_is_made_smaller() -> None:
    chest = pixels(512, 512).astype("<u2")
    overlaid = chest | (np.indices(chest.shape).sum(0) % 2 << 15).astype("<u2")
    frame = bytes(jpeg2k_encode(overlaid, codecformat="j2k", level=0, reversible=True))
    found = decode(compressed(frame, JPEG2000Lossless, chest), size=32)
    np.testing.assert_allclose(found, decode(image_of(chest), size=32), atol=0.01)


def test_a_sign_that_the_codestream_contradicts() -> None:
    signed = CHEST.astype("<i2") - 2048
    as_signed, as_unsigned = (
        compressed(bytes(jpeg2k_encode(v, codecformat="j2k", level=0, reversible=True)), JPEG2000Lossless)
        for v in (signed, (signed & 0xFFF).astype("<u2"))
    )
    for ds in (as_signed, as_unsigned):
        ds.Rows, ds.Columns = CHEST.shape
    as_unsigned.PixelRepresentation = 1
    for ds in (as_signed, as_unsigned):
        found = refusal(ds)
        assert found.reason == Reason.CONTRADICTION
        assert "Pixel Representation" in found.detail
    as_signed.PixelRepresentation = 1
    np.testing.assert_allclose(decode(as_signed)[0], stretched(signed), atol=1e-6)


def test_fewer_bits_in_a_lossy_codestream_than_are_stored() -> None:
    frame = io.BytesIO()
    Image.fromarray((CHEST >> 4).astype("u1")).save(frame, "JPEG")
    ds = compressed(frame.getvalue(), JPEGBaseline8Bit, CHEST, bits=12)
    assert refusal(ds).detail == "Bits Stored is 12, the lossy codestream has 8 bits"


def test_lossy_compression_may_overshoot_but_not_by_much() -> None:
    for values, is_fit in ((CHEST + 3, True), (CHEST * 2, False)):
        ds = compressed(bytes(jpegls_encode(values, level=2)), JPEGLSNearLossless, values)
        if is_fit:
            np.testing.assert_allclose(decode(ds)[0], stretched(np.minimum(values, 4095)), atol=0.002)
        else:
            assert refusal(ds).reason == Reason.CONTRADICTION


@pytest.mark.parametrize(
    "tags",
    [
        {"HighBit": 3},
        {"HighBit": 16},
        {"BitsStored": 17},
        {"SamplesPerPixel": 3},
        {"PhotometricInterpretation": "RGB"},
        {"Columns": 84},  # of 96: rows are shifted against each other
    ],
)
def test_attributes_that_do_not_go_together(tags: dict[str, Any]) -> None:
    assert refusal(image_of_any(tags)).reason in (Reason.CONTRADICTION, Reason.UNREADABLE)


@pytest.mark.parametrize(
    "tags",
    [
        *({keyword: None} for keyword in ("BitsStored", "BitsAllocated", "PixelRepresentation", "Rows")),
        {"BitsStored": 0},
        {"PixelRepresentation": 2},
        {"HighBit": 65535},
    ],
)
def test_attributes_that_are_missing_or_impossible(tags: dict[str, Any]) -> None:
    found = refusal(image_of_any(tags))
    assert found.reason == Reason.UNREADABLE
    assert "Bit" in found.detail or "Pixel Representation" in found.detail or "Rows" in found.detail


def image_of_any(tags: dict[str, Any]) -> Dataset:
    ds = image_of(CHEST)
    for keyword, value in tags.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def test_padding_that_needs_more_bits_than_are_stored() -> None:
    padded = CHEST.copy()
    padded[:20] = 0xFFFF
    ds = image_of(padded)
    ds.add_new("PixelPaddingValue", "US", 0xFFFF)
    assert refusal(ds).reason == Reason.CONTRADICTION
    clean = image_of(CHEST)
    clean.add_new("PixelPaddingValue", "US", 0xFFFF)  # which no pixel has
    np.testing.assert_allclose(decode(clean)[0], stretched(CHEST), atol=1e-6)


# --- lookup tables

SIGNED = CHEST.astype("<i2") - 2048
RAMP = np.arange(4096).astype("<u2")


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize(("vr", "first"), [("US", 63488), ("SS", -2048)])
def test_the_first_value_of_a_lut_follows_pixel_representation(keyword: str, vr: str, first: int) -> None:
    table = lut(RAMP, 0, 12)
    table.add_new("LUTDescriptor", vr, [4096, first, 12])
    ds = image_of(SIGNED, 12, **{keyword: [table]})
    expected = CHEST / 4095 if keyword == "VOILUTSequence" else stretched(CHEST)
    np.testing.assert_allclose(decode(encoded(ds))[0], expected, atol=1e-6)


def test_the_first_value_of_a_voi_lut_follows_what_rescaling_gives() -> None:
    table = lut(RAMP, 63488, 12)
    ds = image_of(CHEST, VOILUTSequence=[table], RescaleSlope=1, RescaleIntercept=-2048)
    np.testing.assert_allclose(decode(encoded(ds))[0], CHEST / 4095, atol=1e-6)


def test_the_first_value_of_a_lut_for_large_unsigned_values() -> None:
    values = CHEST + np.uint16(40000)
    table = lut(RAMP, 0, 12)
    table.add_new("LUTDescriptor", "SS", [4096, 40000 - 65536, 12])
    np.testing.assert_allclose(
        decode(image_of(values, 16, VOILUTSequence=[table]))[0], CHEST / 4095, atol=1e-6
    )


def test_a_lut_for_other_values_than_the_image_has() -> None:
    found = refusal(image_of(CHEST, VOILUTSequence=[lut(RAMP, 50000, 12)]))
    assert found.reason == Reason.CONTRADICTION
    assert "from 50000 to 54095" in found.detail


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize(
    ("vr", "descriptor"),
    [
        ("US", [4096, 0, 0]),
        ("US", [4096, 0, 17]),
        ("US", [4096, 0, 65535]),
        ("US", [4096, 0]),
        ("DS", ["1e300", "0", "12"]),
        ("DS", ["4096", "1e300", "12"]),
        ("DS", ["4096", "0", "1e300"]),
        ("DS", ["4096", "inf", "12"]),
        ("DS", ["4096", "nan", "12"]),
        ("LO", ["4096", "0", "twelve"]),
    ],
)
def test_a_lut_descriptor_that_makes_no_sense(keyword: str, vr: str, descriptor: list[Any]) -> None:
    table = lut(RAMP, 0, 12)
    put(table, "LUTDescriptor", vr, descriptor)
    found = refusal(encoded(image_of(CHEST, 12, **{keyword: [table]})))
    assert found.reason == Reason.UNREADABLE
    assert "LUT Descriptor" in found.detail


@pytest.mark.parametrize("value", ["1e300", "inf", "70000", "1.5"])
def test_a_padding_value_that_no_pixel_can_have(value: str) -> None:
    ds = image_of(CHEST)
    put(ds, "PixelPaddingValue", "DS", value)
    assert "Pixel Padding Value" in refusal(encoded(ds)).detail


# --- DCMTK as judge


def judged(path: Path, *options: str) -> np.ndarray[Any, Any]:
    """Return what DCMTK shows, 0 to 1."""
    picture = path.with_suffix(".pgm")
    subprocess.run(["dcm2pnm", *options, "+opw", str(path), str(picture)], check=True, capture_output=True)
    with Image.open(picture) as image:
        shown = np.asarray(image).astype(float)
    return shown / 65535 if shown.max() > 255 else shown / 255


needs_dcmtk = pytest.mark.skipif(shutil.which("dcm2pnm") is None, reason="DCMTK is not installed")


@needs_dcmtk
@pytest.mark.parametrize("tool", ["dcmcjpls", "dcmcjpeg", "dcmcrle"])
@pytest.mark.parametrize("signed", [False, True])
def test_overlay_bits_in_what_dcmtk_compresses(tmp_path: Path, tool: str, signed: bool) -> None:
    stored = CHEST.copy()
    stored[:40] |= 0x1000
    stored[30:50, 20:60] |= 0x8000
    ds = image_of(stored, WindowCenter=0 if signed else 2048, WindowWidth=4096)
    if signed:
        ds.PixelData = ((CHEST.astype(int) - 2048 & 0xFFF) | (stored & 0xF000)).astype("<u2").tobytes()
        ds.PixelRepresentation = 1
    native = save(ds, tmp_path / "native.dcm")
    subprocess.run([tool, str(native), str(tmp_path / "compressed.dcm")], check=True, capture_output=True)
    expected = decode(native)
    np.testing.assert_array_equal(decode(tmp_path / "compressed.dcm"), expected)
    np.testing.assert_allclose(expected[0], judged(native, "+Wi", "1"), atol=0.002)


@needs_dcmtk
@pytest.mark.parametrize(("vr", "first"), [("US", 63488), ("SS", -2048)])
def test_dcmtk_looks_up_in_the_same_way(tmp_path: Path, vr: str, first: int) -> None:
    table = lut((RAMP.astype(int) ** 2 // 4095).astype("<u2"), 0, 12)
    table.add_new("LUTDescriptor", vr, [4096, first, 12])
    ds = image_of(SIGNED, VOILUTSequence=[table])
    ds.file_meta.TransferSyntaxUID = UID(ExplicitVRLittleEndian)
    path = save(ds, tmp_path / "lut.dcm")
    np.testing.assert_allclose(decode(path)[0], judged(path, "+Wl", "1"), atol=0.002)
