"""Decoding: every pixel encoding that a radiograph comes in, and every way in which one can be broken."""

from __future__ import annotations

import base64
import io
import struct
import subprocess
import sys
import threading
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset
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

from classifier.decode import Eligibility, decode, read
from classifier.errors import NotScorable, Reason
from tests.conftest import code, pixels, radiograph, save

RAMP = np.add.outer(np.arange(40) * 95, np.arange(36) * 2).astype("<u2")  # 12 bits
# RAMP as encoders other than the decoders under test wrote it
CODESTREAMS = {
    "JPEGLossless": (
        "|JeWF01!$>Nk#wx0RR9200961|HA+a3;-wqBmn^t0RO}Q7XSeP0RaF20000000000000070u2A!00;pA00aO4=l=lKwXJJf*"
        "0rr`TGq9#Yg*Q|t!rA=wO;@L000&600001UjP6A02S~60004B0000074QH600CbB0000L@Bjb+0bc+B000&600001UjP6A02"
        "S~60004B0000074QH600CbB0000L@Bjb+0bc+B000&600001UjP6A02S~60004B0000074QH600CbB0000L@Bjb+0bc+B000"
        "&600001UjP6A02S~60004B0000074QH600CbB0000L@Bjb+0bc+B000&600001UjP6A02S~60004B0000074QH600CbB0000"
        "V|Je"
    ),
    "JPEGLosslessSV1": (
        "|JeWF01!$>Nk#wx0RR9200961|HA+a3;-wqBmn^t0RO}Q761VO0RR910000000000000694FB2y2mt{A0RRBc{*p-~l1U_zN"
        "hFd<B$BVBl1U_zNhFd<B$7!atLY??NhFd<B$7!al1VE1NhFd<B$7!al1U_zO1_dwB$7!al1U_zNhFf5q>@P_l1U_zNhFd<B&"
        "+Epl1U_zNhFd<B$7!g`bi{`NhFd<B$7!al1jdkNhFd<B$7!al1U_zucVSmB$7!al1U_zNhGW3B$7!al1U_zNhFd<D*8zzl1U"
        "_zNhFd<B$7(Ll1U_zNhFd<B$7!alCPwaNhFd<B$7!al1U`1=_Ha#B$7!al1U_zNh<nDB$7!al1U_zNhFd=zLH5Kl1U_zNhFd"
        "<B$BVBl1U_zNhFd<B$7!atLY??NhFd<B$7!al1VE1NhFd<B$7!al1U_zO1_dwB$7!al1U_zNhFf5q>@P_l1U_zNhFd<B&+Ep"
        "l1U_zNhFd<B$7!g`bi{`NhFd<B$7!al1jdkNhFd<B$7!al1U_zucVSmB$7!al1U_zNhGW3B$7!al1U_zNhFd<D*8zzl1U_zN"
        "hFd<B$7(Ll1U_zNhFd<B$7!alCPwaNhFd<B$7!al1U`1=_Ha#B$7!al1U_zNh<nDB$7!al1U_zNhFd=zLH5Kl1U_zNhFd<B$"
        "BVBl1U_zNhFd<B$7!atLY??NhFd<B$7!al1VE1NhFd<B$7!al1U_zO1_dwB$7!al1U_zNhFf5q>@P_l1U_zNhFd<B&+Epl1U"
        "_zNhFd<B$7!g`bi{`NhFd<B$7!al1u;D"
    ),
    "JPEGExtended12Bit": (
        "|JeWF01!$>Nk#wx0RR9200961|JwjV009930RaI40RaI40RaI40s#R50RaL50RaL60s;a80s;a90|WyD0|NsB0s{mC0|W#F1"
        "Ox&D1qB2I1q1{H1pmPR3k(1#03-nc5di<h02crO0RaI30000000000000082MrGY!~h`>000I80R;d6000000000000s*vGe"
        "%M40t6&uai;&;00;pA002J#;-<?;o<`EKNz@Ppq)#JhSfuI*0@5duw5(Ef1OaIi$l6vZI)$^KMDw=b(!M9xh-&H<kvxs1Vw0"
        "#K3rL<u(y>X@5Cx=9BWYNq>IeeTCy}(QQgsVwK#AvV!KHjpuMpMLEh2dvO2sEoKo*fajiq9fs2~eSo<`EKNz@Ppq)#JhSfuI"
        "}&Vduo+k;B@pI#xWs9HqwHkFD_pnxqRc^gW_Cs05Zkvxs1Vw0#K3rL<u(y>X@Eu8`<owo*+@jkpmS5UNx<ZUYyok0LvMDjM3"
        "icX+_Eh2dvO2sEoKo*fajiq9fs9QP&Pdjc6E8=~4hyU3"
    ),
    "HTJ2KLossless": (
        "|4;u>04YEK0000a0000e00000000000000a0000e0000000000009pH0sl|{2mk^A000XAQUDA90ssL30t5s=0smY83LuD(k"
        "dTOoi2q~&7XSfIaAj^vP)HzFWpW@eE;2SQGcNy-015yA0003;00IA#zyL3@!2f>-{qO&G`QQI@{OA8Q{_p=7|8@Ts|8xHo|8"
        "f5kzwckjf6!mt|7SnAzvu7m-}!U<bN<@?n?JU{=5Otv`BQsizS90dKZ$>!zli@&AH?71_weueIsAEk4gVcKhQH2l;hpnR_>2"
        "2y{looa{ouY>|2H43-`n@<@AkR+xqYqvZ6B*!+qLQ+^fvhm`ZD<gy-R*Tuaf^yH_7kkMe_G~kNkXIBln)O$PfQszgd5OuV1X"
        "cf7h?pUw`Y@>n@;u2mr=H05QJ-zyKA{00pcFAP@-r@9XvY{eDY%0IF40RaI40RaO5m0}+g1d-gGb?7aZM04*2*1=4^30Py?&"
        "6!i4;^z`)f^zwcHygVL{$K&yMJRXn7<MDXB|9gN#*n|haVh|qvh(LSxApz{Q0sq+"
    ),
    "HTJ2K": (
        "|4;u>04YEK0000a0000e00000000000000a0000e0000000000009pH0sl|{2mk^A001TbQUDA90ssL30t5s=0RLP75h8cyX"
        "f<dxXn0^6U>a|~|6~9c00B>MWo}APNFY{aav(4+GBz$VF8`1K3IG5A008a)0soW00ew^*;Q4QW=AQwU{{@izE5Pxe0L4E74F"
        "3lp_&0#xKlc+q?nnIFKYZIa{Ms*k+9&+kAAH#t{MZlttWWt^Kjp6;<*okYtKQ_PzT~H#<fVS(qh93oUD@aRWXE@8zxQLecVn"
        ";jVyAavpZ8&xcVXZ3G_UE=Jk!q{)6M+S%iPk*ywb;<(#3qz!~75bUcXs?f3IJxzkk=S)?a_?*Xu5Tyv74sF@Vs&0iXeG00M*"
        "zG9+Y3$dHgh{(plX@>8eDP2aw?>OKIV0?+^g0QmoVhu`nt@89p=?7aa0*#"
    ),
}


def image_of(values: np.ndarray[Any, Any], bits: int = 12, **tags: Any) -> Dataset:
    """Return a plain CR image with these stored values and nothing of the grayscale pipeline."""
    ds = radiograph("CR", bits=bits, **tags)
    ds.Rows, ds.Columns = values.shape[:2]
    ds.SamplesPerPixel = 1 if values.ndim == 2 else values.shape[2]
    ds.BitsAllocated, ds.PixelRepresentation = values.itemsize * 8, int(values.dtype.kind == "i")
    ds.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    if ds.SamplesPerPixel == 3:
        ds.PlanarConfiguration = 0
    return ds


def compressed(frame: bytes, syntax: UID, values: np.ndarray[Any, Any] = RAMP, bits: int = 12) -> Dataset:
    ds = image_of(values, bits)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return ds


def encoded(ds: Dataset) -> io.BytesIO:
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    file.seek(0)
    return file


def refused(source: Any, rules: Eligibility | None = None) -> Reason:
    with pytest.raises(NotScorable) as caught:
        decode(source, rules)
    return caught.value.reason


def stretched(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    low, high = float(values.min()), float(values.max())
    grey: np.ndarray[Any, Any] = (values - low) / (high - low)
    return grey


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


# --- grayscale pipeline


def test_monochrome1_is_inverted_once_whatever_the_lut_shape() -> None:
    expected = 1 - stretched(RAMP)
    for shape in (None, "IDENTITY", "INVERSE"):
        ds = image_of(RAMP, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape=shape)
        np.testing.assert_allclose(decode(ds)[0], expected, atol=1e-6)
    np.testing.assert_allclose(decode(image_of(RAMP, PresentationLUTShape="INVERSE"))[0], expected, atol=1e-6)


def test_first_window_of_several() -> None:
    ds = image_of(RAMP, WindowCenter=[1000.5, 5], WindowWidth=[1001, 7])
    expected = np.clip((RAMP - 1000.0) / 1000 + 0.5, 0, 1)  # PS3.3 C.11.2.1.2.1
    np.testing.assert_allclose(decode(ds)[0], expected, atol=1e-6)


def test_window_functions() -> None:
    exact = image_of(RAMP, WindowCenter=1000, WindowWidth=800, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_allclose(decode(exact)[0], np.clip((RAMP - 1000.0) / 800 + 0.5, 0, 1), atol=1e-6)
    sigmoid = image_of(RAMP, WindowCenter=1000, WindowWidth=80, VOILUTFunction="SIGMOID")
    np.testing.assert_allclose(decode(sigmoid)[0], 1 / (1 + np.exp(-4 * (RAMP - 1000.0) / 80)), atol=1e-5)


@pytest.mark.parametrize(
    "window", [(None, None), ("", ""), (1000, 0), (1000, 0.5), ("nan", "5"), (1000, None)]
)
def test_useless_window_falls_back_to_the_range_of_the_pixels(window: tuple[Any, Any]) -> None:
    with warnings.catch_warnings(action="ignore"):
        ds = image_of(RAMP, WindowCenter=window[0], WindowWidth=window[1])
    np.testing.assert_allclose(decode(ds)[0], stretched(RAMP), atol=1e-6)


def test_window_of_width_one_is_a_step() -> None:
    np.testing.assert_array_equal(decode(image_of(RAMP, WindowCenter=1000, WindowWidth=1))[0], RAMP > 999.5)


def test_rescale_comes_before_the_window() -> None:
    ds = image_of(RAMP, RescaleSlope=-2, RescaleIntercept=5000, WindowCenter=3000.5, WindowWidth=2001)
    expected = np.clip((5000 - 2.0 * RAMP - 3000) / 2000 + 0.5, 0, 1)
    np.testing.assert_allclose(decode(ds)[0], expected, atol=1e-6)


def lut(entries: np.ndarray[Any, Any], first: int, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", entries.tobytes())
    return item


def test_modality_lut() -> None:
    entries = (np.arange(2000)[::-1] * 2).astype("<u2")
    ds = image_of(RAMP, ModalityLUTSequence=[lut(entries, 500, 12)])
    expected = entries[np.clip(RAMP.astype(int) - 500, 0, 1999)]
    np.testing.assert_allclose(decode(encoded(ds))[0], stretched(expected), atol=1e-6)


@pytest.mark.parametrize("kind", ["<u2", "u1"])
def test_voi_lut_wins_over_the_window(kind: str) -> None:
    """Also with 8-bit entries, two in a word, in a table far longer than 256."""
    bits = 12 if kind == "<u2" else 8
    entries = np.linspace(0, 2**bits - 1, 4096).astype(kind)
    ds = image_of(RAMP, VOILUTSequence=[lut(entries, 0, bits)], WindowCenter=10, WindowWidth=20)
    np.testing.assert_allclose(decode(encoded(ds))[0], entries[RAMP] / (2**bits - 1), atol=1e-6)


def test_voi_lut_of_big_endian() -> None:
    ds = image_of(RAMP, VOILUTSequence=[lut(np.arange(4096).astype(">u2"), 0, 12)])
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    ds.PixelData = RAMP.byteswap().tobytes()
    ds.set_original_encoding(is_implicit_vr=False, is_little_endian=False)
    np.testing.assert_allclose(decode(encoded(ds))[0], RAMP / 4095, atol=1e-6)


def test_lut_shorter_than_its_descriptor() -> None:
    item = lut(np.arange(64).astype("<u2"), 0, 12)
    item.LUTDescriptor = [4096, 0, 12]
    assert refused(image_of(RAMP, VOILUTSequence=[item])) == Reason.UNREADABLE


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_outside_the_range(photometric: str) -> None:
    values = RAMP.copy()
    values[:4], values[4] = 4095, 4090
    tags: dict[str, Any] = {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 4090}
    image = decode(image_of(values, PhotometricInterpretation=photometric, **tags))[0]
    expected = stretched(RAMP[5:])
    if photometric == "MONOCHROME1":
        expected = 1 - expected
    assert not image[:5].any()
    np.testing.assert_allclose(image[5:], expected, atol=1e-6)


def test_padding_value_of_the_wrong_sign() -> None:
    values = RAMP.astype("<i2")
    values[:4] = -2000
    ds = image_of(values, 16)
    ds.add_new("PixelPaddingValue", "US", 65536 - 2000)
    np.testing.assert_allclose(decode(ds)[0][4:], stretched(values[4:]), atol=1e-6)


# --- colour


COLOUR = np.random.default_rng(0).integers(0, 256, (32, 32, 3), "u1")
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


# --- broken, hostile and hopeless


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLossless, RLELossless])
def test_60000_by_60000_is_refused_without_allocating(syntax: UID) -> None:
    ds = image_of(RAMP)
    if syntax.is_encapsulated:
        ds = compressed(base64.b85decode(CODESTREAMS["JPEGLossless"]), syntax)
    ds.Rows = ds.Columns = 60000
    file = encoded(ds)
    tracemalloc.start()
    assert refused(file) == Reason.TOO_LARGE
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["JPEGLossless", "HTJ2KLossless"])
def test_codestream_of_another_size_is_refused_before_it_is_decoded(name: str) -> None:
    frame = base64.b85decode(CODESTREAMS[name])
    size, lie = (struct.pack(">HH", 40, 36), struct.pack(">HH", 60000, 60000))
    if name == "HTJ2KLossless":
        size, lie = struct.pack(">II", 36, 40), struct.pack(">II", 60000, 60000)
    assert size in frame
    syntax = JPEGLossless if name == "JPEGLossless" else HTJ2KLossless
    with pytest.raises(NotScorable, match="60000 x 60000") as caught:
        decode(compressed(frame.replace(size, lie, 1), syntax))
    assert caught.value.reason == Reason.UNREADABLE


def test_max_pixels_is_a_rule() -> None:
    rules = Eligibility(max_pixels=256 * 256 - 1)
    assert refused(radiograph(), rules) == Reason.TOO_LARGE
    assert read(radiograph(), Eligibility(max_pixels=256 * 256)).view == "PA"


def test_file_longer_than_any_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.dcm"
    with path.open("wb") as file:
        file.truncate(70 * 2**20)  # sparse
    assert refused(path, Eligibility(max_pixels=1000)) == Reason.TOO_LARGE


def test_deflated_bomb_is_refused() -> None:
    ds = image_of(RAMP)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole = encoded(ds).getvalue()
    start = 144 + int.from_bytes(whole[140:144], "little")
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    data_set = zlib.decompress(whole[start:], -zlib.MAX_WBITS)
    bomb = deflater.compress(data_set + bytes(80 * 2**20)) + deflater.flush()
    assert refused(io.BytesIO(whole[:start] + bomb), Eligibility(max_pixels=1000)) == Reason.TOO_LARGE


@pytest.mark.parametrize(
    "tags",
    [
        {"Rows": None},
        {"Columns": 0},
        {"PixelData": None},
        {"PixelData": b""},
        {"PixelData": bytes(100)},
        {"BitsAllocated": 1, "BitsStored": 1},
        {"BitsAllocated": 32},
        {"BitsStored": 17},
        {"HighBit": 3},
        {"SamplesPerPixel": 4},
        {"PhotometricInterpretation": "HSV"},
        {"PhotometricInterpretation": None},
        {"Rows": 100},
    ],
)
def test_attributes_that_do_not_make_an_image(tags: dict[str, Any]) -> None:
    assert refused(radiograph("CR", **tags)) == Reason.UNREADABLE


@pytest.mark.parametrize("syntax", [None, "", "1.2.3", "1.2.840.10008.1.2.4.102", "not a uid"])
def test_transfer_syntax_that_no_still_image_has(syntax: str | None) -> None:
    ds = image_of(RAMP)
    del ds.file_meta.TransferSyntaxUID
    if syntax is not None:
        with warnings.catch_warnings(action="ignore"):
            ds.file_meta.TransferSyntaxUID = UID(syntax)
    assert refused(ds) == Reason.UNREADABLE


@pytest.mark.parametrize("value", [0, 5, 4095])
def test_constant_image(value: int) -> None:
    assert refused(image_of(np.full((9, 9), value, "<u2"))) == Reason.CONSTANT_IMAGE


def test_nothing_but_padding_or_one_value_beside_it_is_constant() -> None:
    values = np.full((9, 9), 7, "<u2")
    assert refused(image_of(values, PixelPaddingValue=7)) == Reason.CONSTANT_IMAGE
    values[0] = 3
    assert refused(image_of(values, PixelPaddingValue=7)) == Reason.CONSTANT_IMAGE


def test_window_beside_all_pixels_is_constant() -> None:
    ds = image_of(RAMP, WindowCenter=40000, WindowWidth=10)
    assert refused(ds) == Reason.CONSTANT_IMAGE


def truncations() -> dict[str, tuple[bytes, UID]]:
    """Return whole frames of a noisy image, large enough that decoders give half of one back."""
    image = pixels(128, 128)
    frames: dict[str, tuple[bytes, UID]] = {}
    for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        ds = image_of(image)
        ds.compress(syntax)
        frames[syntax.keyword] = (ds.PixelData[16:], syntax)
    jpeg = io.BytesIO()
    Image.fromarray((image >> 4).astype("u1")).save(jpeg, "JPEG")
    frames["JPEGBaseline8Bit"] = (jpeg.getvalue(), JPEGBaseline8Bit)
    return frames


TRUNCATIONS = truncations()


@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
@pytest.mark.parametrize(
    ("name", "filled"),
    # zeros are valid RLE, so a filled-up RLE frame may decode
    [(name, filled) for name in TRUNCATIONS for filled in (False, True) if not (filled and "RLE" in name)],
)
def test_truncated_codestream(name: str, share: float, filled: bool) -> None:
    frame, syntax = TRUNCATIONS[name]
    cut = frame[: int(len(frame) * share)]
    bits = 8 if syntax == JPEGBaseline8Bit else 12
    values = np.zeros((128, 128), "u1" if bits == 8 else "<u2")
    if filled:  # a file of the full length whose end was never written
        cut += bytes(len(frame) - len(cut))
    assert refused(encoded(compressed(cut, syntax, values, bits))) == Reason.UNREADABLE


@pytest.mark.parametrize("name", ["JPEGLossless", "JPEGExtended12Bit", "HTJ2KLossless"])
@pytest.mark.parametrize("filled", [False, True])
def test_truncated_codestream_of_other_encoders(name: str, filled: bool) -> None:
    frame = base64.b85decode(CODESTREAMS[name])
    cut = frame[: len(frame) * 3 // 4] + bytes(len(frame) // 4 if filled else 0)
    syntax = {"JPEGLossless": JPEGLossless, "HTJ2KLossless": HTJ2KLossless}.get(name, JPEGExtended12Bit)
    assert refused(encoded(compressed(cut, syntax))) == Reason.UNREADABLE


@pytest.mark.parametrize("keep", [0, 3, 131, 140, 200, 700, 2000, 100_000])
def test_truncated_file(keep: int) -> None:
    whole = encoded(radiograph()).getvalue()
    assert keep < len(whole)
    assert refused(io.BytesIO(whole[:keep])) == Reason.UNREADABLE


def test_damaged_file_is_decoded_or_refused_and_nothing_else() -> None:
    """A byte changed anywhere must never end in another exception than the refusal."""
    ds = image_of(RAMP, ModalityLUTSequence=[lut(RAMP[:, 0], 0, 12)])
    ds.AnatomicRegionSequence = [code("816094009", "SCT", "Chest")]
    ds.compress(JPEG2000Lossless)
    whole = encoded(ds).getvalue()
    random = np.random.default_rng(1)
    outcomes: set[object] = set()
    for _ in range(400):
        damaged = bytearray(whole)
        for position in random.integers(132, len(whole), 3):
            damaged[position] = random.integers(256)
        try:
            outcomes.add(decode(io.BytesIO(damaged), Eligibility("score", "score")).shape)
        except NotScorable as error:
            outcomes.add(error.reason)
    assert (1, 40, 36) in outcomes
    assert Reason.UNREADABLE in outcomes


@pytest.mark.parametrize(
    "content", [b"", b"hello", bytes(500), b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"%PDF-1.7"]
)
def test_unknown_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert refused(path) == Reason.UNREADABLE


def test_missing_file_is_no_verdict_on_the_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "gone.dcm")


def test_details_tell_nothing_of_the_patient() -> None:
    ds = radiograph(view="LL", StudyDescription="Chest of Alice Test")
    with pytest.raises(NotScorable) as caught:
        decode(ds, Eligibility())
    assert "ALICE" not in str(caught.value).upper()


def test_warnings_stay_inside_also_with_threads(tmp_path: Path) -> None:
    before = list(warnings.filters)
    ds = image_of(RAMP)
    ds.PixelData += bytes(64)  # excess padding, of which pydicom warns
    path = save(ds, tmp_path / "padded.dcm")
    threads = [threading.Thread(target=lambda: [decode(path) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


# --- picture files


def picture(image: Image.Image, kind: str = "PNG", **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file


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
    script = "import sys, classifier, classifier.decode, classifier.errors, classifier.outcome; "
    script += "sys.exit(any(name in sys.modules for name in ('torch', 'monai', 'torchvision')))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
