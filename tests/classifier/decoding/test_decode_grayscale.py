"""The grayscale pipeline: stored values become the grey that the image's own attributes ask for."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.uid import ExplicitVRBigEndian

from classifier.decoding.decode import decode
from classifier.errors import NotScorable
from classifier.reasons import Reason
from tests.helpers.decoding import RAMP, encoded, image_of, lut, put, refused, stretched


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


@pytest.mark.parametrize("window", [(None, None), ("", ""), (1000, None), (None, 1000)])
def test_without_window_the_range_of_the_pixels_is_shown(window: tuple[Any, Any]) -> None:
    ds = image_of(RAMP, WindowCenter=window[0], WindowWidth=window[1])
    np.testing.assert_allclose(decode(ds)[0], stretched(RAMP), atol=1e-6)


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 1000, "WindowWidth": 0},
        {"WindowCenter": 1000, "WindowWidth": 0.5},
        {"WindowCenter": 1000, "WindowWidth": -100},
        {"WindowCenter": "nan", "WindowWidth": "5"},
        {"WindowCenter": "1e308", "WindowWidth": "1e308"},
        {"WindowCenter": ["", "1000"], "WindowWidth": ["200", "300"]},
        {"WindowCenter": 1000, "WindowWidth": 200, "VOILUTFunction": "LOG"},
        {"RescaleSlope": 0, "RescaleIntercept": 0},
        {"RescaleSlope": "inf", "RescaleIntercept": 0},
        {"RescaleSlope": "1e300", "RescaleIntercept": "-1e300"},
        {"RescaleSlope": "1e-300", "RescaleIntercept": 0},
        {"RescaleSlope": 1, "RescaleIntercept": 1e8},
    ],
)
def test_a_number_that_makes_no_sense_is_refused_and_quoted(tags: dict[str, Any]) -> None:
    with warnings.catch_warnings(action="ignore"):
        ds = image_of(RAMP)
        for keyword, value in tags.items():
            put(ds, keyword, dictionary_VR(keyword), value)
    with pytest.raises(NotScorable, match=r'(Window|Rescale|VOI)[^"]*"|Function') as caught:
        decode(ds)
    assert caught.value.reason == Reason.UNREADABLE


def test_text_where_a_number_belongs_is_refused_and_quoted() -> None:
    whole = encoded(image_of(RAMP, RescaleSlope="1.234567", RescaleIntercept=0)).getvalue()
    with pytest.raises(NotScorable, match="Rescale Slope"):
        decode(io.BytesIO(whole.replace(b"1.234567", b"one     ")))


def test_window_of_width_one_is_a_step() -> None:
    np.testing.assert_array_equal(decode(image_of(RAMP, WindowCenter=1000, WindowWidth=1))[0], RAMP > 999.5)


def test_rescale_comes_before_the_window() -> None:
    ds = image_of(RAMP, RescaleSlope=-2, RescaleIntercept=5000, WindowCenter=3000.5, WindowWidth=2001)
    expected = np.clip((5000 - 2.0 * RAMP - 3000) / 2000 + 0.5, 0, 1)
    np.testing.assert_allclose(decode(ds)[0], expected, atol=1e-6)


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
