"""Decoding straight to the size that a network takes: the same image as resizing afterwards, sooner."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from imagecodecs import jpeg2k_decode, jpeg8_encode
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from classifier.decoding import codecs
from classifier.decoding.decode import decode
from classifier.decoding.jpeg2000 import reduced
from classifier.decoding.resample import WHOLE, resample
from classifier.errors import NotScorable
from classifier.model.transforms import Resize
from classifier.reasons import Reason
from tests.conftest import pixels
from tests.helpers.decoding import compressed, encoded, image_of, lut, picture

SIDE = 48
SAME = 2e-5  # of the grey scale
CLOSE = 0.01
CHEST = pixels(531, 437)  # odd, and more than SIDE holds several times
WINDOW: dict[str, Any] = {"WindowCenter": 2048, "WindowWidth": 4096}


def afterwards(source: Any) -> NDArray[np.float32]:
    plane: NDArray[np.float32] = Resize(SIDE)(decode(source))[0].numpy()
    return plane


def assert_same(source: Any, tolerance: float = SAME) -> None:
    np.testing.assert_allclose(decode(source, size=SIDE)[0], afterwards(source), atol=tolerance)


def j2k(syntax: UID = JPEG2000Lossless, values: NDArray[Any] = CHEST, **tags: Any) -> Dataset:
    ds = image_of(values, **tags)
    ds.compress(syntax, j2k_cr=[10] if syntax == JPEG2000 else None)
    return ds


def frame_of(ds: Dataset) -> bytes:
    return get_frame(ds.PixelData, 0, number_of_frames=1)


@pytest.mark.parametrize("shape", [(1300, 1011), (97, 211), (48, 48), (40, 36), (33, 2000), (1, 1)])
def test_resampling_is_that_of_torch(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random(shape, np.float32)
    np.testing.assert_allclose(resample(image, SIDE), Resize(SIDE)(image[None])[0], atol=SAME)


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEGLSLossless])
@pytest.mark.parametrize("kind", ["u1", "<u2", "<i2"])
def test_whole_images(syntax: UID | None, kind: str) -> None:
    values = {"u1": CHEST >> 4, "<u2": CHEST, "<i2": CHEST.astype("<i4") - 1900}[kind].astype(kind)
    ds = image_of(values, 8 if kind == "u1" else 12)
    if syntax is not None:  # GDCM's own RLE encoder ends the process on an odd number of pixels
        ds.compress(syntax, encoding_plugin="pydicom" if syntax == RLELossless else "")
    assert_same(encoded(ds))


@pytest.mark.parametrize("predictor", [1, 4, 7])
def test_jpeg_lossless(predictor: int) -> None:
    frame = bytes(jpeg8_encode(CHEST, lossless=True, predictor=predictor, bitspersample=12))
    source = encoded(compressed(frame, JPEGLosslessSV1, CHEST))
    np.testing.assert_allclose(decode(source), decode(image_of(CHEST)), atol=1e-6)
    assert_same(source)


@pytest.mark.parametrize(
    "tags",
    [
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"RescaleSlope": -2, "RescaleIntercept": 5000},
        {"WindowCenter": 2000, "WindowWidth": 700},
        {"WindowCenter": 2000, "WindowWidth": 900, "VOILUTFunction": "SIGMOID"},
        {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 1200},
        {"ModalityLUTSequence": [lut(np.arange(4096)[::-1].astype("<u2"), 0, 12)]},
        {"VOILUTSequence": [lut((np.arange(4096) ** 2 // 4096).astype("<u2"), 0, 12)]},
    ],
)
def test_the_grayscale_pipeline(tags: dict[str, Any]) -> None:
    assert_same(image_of(CHEST, **tags))


def test_overlays_and_colour() -> None:
    assert_same(image_of(CHEST | np.where(CHEST > 2500, 0xF000, 0).astype("<u2")))
    colour = np.random.default_rng(0).integers(0, 256, (200, 150, 3), "u1")
    assert_same(image_of(colour, 8, PhotometricInterpretation="RGB"))


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEG2000])
@pytest.mark.parametrize("values", [CHEST, CHEST.astype("<i2") - 1900])
def test_jpeg_2000_under_a_window_is_decoded_with_less_detail(syntax: UID, values: NDArray[Any]) -> None:
    centre = 2048 - 1900 * (values.dtype.kind == "i")
    ds = j2k(syntax, values, WindowCenter=centre, WindowWidth=4096)
    small, sampling = reduced(frame_of(ds), 120)
    assert sampling.step == 2
    assert jpeg2k_decode(small).shape == (266, 219)
    assert not np.array_equal(decode(ds, size=SIDE)[0], afterwards(ds))
    assert_same(ds, CLOSE)


@pytest.mark.parametrize(
    "options", [{}, {"irreversible": True, "quality_layers": [8]}, {"progression": "RPCL"}]
)
@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_a_shortened_codestream_is_what_openjpeg_makes_of_the_whole_one(
    options: dict[str, Any], halvings: int
) -> None:
    file = picture(Image.fromarray(CHEST[:512, :384] >> 4 << 4), "JPEG2000", no_jp2=True, **options)
    with Image.open(file) as image:
        image.reduce = halvings  # type: ignore[method-assign, assignment]
        expected = np.asarray(image)
    small, sampling = reduced(file.getvalue(), 384 >> halvings)
    assert sampling.step == 2**halvings
    np.testing.assert_array_equal(jpeg2k_decode(small), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"quality_layers": [40, 20, 8], "irreversible": True},
        {"tile_size": (256, 256)},
        {"progression": "CPRL"},
        {"num_resolutions": 1},
        {"no_jp2": False},
    ],
)
def test_another_codestream_is_decoded_whole(options: dict[str, Any]) -> None:
    file = picture(Image.fromarray(CHEST), "JPEG2000", **{"no_jp2": True, **options})
    assert reduced(file.getvalue(), 100) == (file.getvalue(), WHOLE)


def test_a_small_image_is_decoded_whole() -> None:
    frame = frame_of(j2k())
    assert reduced(frame, 219) == (frame, WHOLE)
    assert reduced(frame, 218)[1].step == 2


@pytest.mark.parametrize("tags", [{}, {**WINDOW, "PixelPaddingValue": 0}])
def test_detail_is_kept_where_single_values_count(tags: dict[str, Any]) -> None:
    assert_same(j2k(**tags))


def dot(row: int, column: int) -> NDArray[np.uint16]:
    """Return a soft dot on black."""
    y, x = np.mgrid[0:512, 0:512]
    grey: NDArray[np.uint16] = (4000 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 800)).astype("<u2")
    return grey


@pytest.mark.parametrize("kind", ["lossless", "lossy", "JPEG"])
def test_nothing_moves(kind: str) -> None:
    values = dot(370, 140)
    if kind == "JPEG":
        source: Any = picture(Image.fromarray((values >> 4).astype("u1")), "JPEG", quality=98)
    else:
        source = j2k(JPEG2000 if kind == "lossy" else JPEG2000Lossless, values, **WINDOW)
    found, expected = decode(source, size=SIDE)[0], afterwards(source)
    for axis in (0, 1):
        places = np.arange(SIDE)
        moved = (found.sum(axis) @ places) / found.sum() - (expected.sum(axis) @ places) / expected.sum()
        assert abs(moved) < 0.01


@pytest.mark.parametrize("kind", ["lossless", "lossy", "JPEG"])
def test_edges_do_not_leave_the_grey_scale(kind: str) -> None:
    """Training keeps grey values in bytes, where 256 would be black."""
    values = np.zeros((512, 512), "<u2")
    values[100:300, 200:] = 4095
    if kind == "JPEG":
        source: Any = picture(Image.fromarray((values >> 4).astype("u1")), "JPEG", quality=98)
    else:
        source = j2k(JPEG2000 if kind == "lossy" else JPEG2000Lossless, values, **WINDOW)
    found = decode(source, size=SIDE)
    assert found.dtype == np.float32
    assert (found.min(), found.max()) == (0, 1)


def test_jpeg_files_and_frames() -> None:
    grey = (pixels(1001, 803) >> 4).astype("u1")
    frame = picture(Image.fromarray(grey), "JPEG", quality=90)
    assert_same(frame, CLOSE)
    ds = compressed(frame.getvalue(), JPEGBaseline8Bit, grey, 8)
    ds.WindowCenter, ds.WindowWidth = 128, 256
    assert_same(encoded(ds), CLOSE)
    with Image.open(frame) as image:
        assert codecs.draft(image, SIDE).step == 4


def test_a_turned_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = (pixels(1001, 803) >> 4).astype("u1")
    assert_same(picture(Image.fromarray(grey), "JPEG", quality=90, exif=exif), CLOSE)


@pytest.mark.parametrize("ending", [b"", b"\xff\xd9"])
def test_a_truncated_codestream_is_refused_all_the_same(ending: bytes) -> None:
    ds = j2k(**WINDOW)
    frame = frame_of(ds)
    ds.PixelData = encapsulate([frame[: len(frame) * 3 // 4] + ending])
    for size in (None, SIDE):
        with pytest.raises(NotScorable) as caught:
            decode(ds, size=size)
        assert caught.value.reason == Reason.UNREADABLE


def test_what_has_contrast_only_in_detail_is_no_constant_image() -> None:
    values = np.full((512, 512), 1000, "<u2")
    values[100, 101] = 1001
    assert decode(j2k(values=values, **WINDOW), size=SIDE).shape == (1, SIDE, SIDE)
    with pytest.raises(NotScorable) as caught:
        decode(j2k(values=np.full((512, 512), 1000, "<u2"), **WINDOW), size=SIDE)
    assert caught.value.reason == Reason.CONSTANT_IMAGE


def test_damaged_codestreams_end_in_an_image_or_a_refusal() -> None:
    whole = encoded(j2k(**WINDOW)).getvalue()
    random = np.random.default_rng(1)
    outcomes: set[object] = set()
    for _ in range(150):
        damaged = bytearray(whole)
        for position in random.integers(len(whole) - 60_000, len(whole), 3):
            damaged[position] = random.integers(256)
        try:
            outcomes.add(decode(io.BytesIO(damaged), size=SIDE).shape)
        except NotScorable as error:
            outcomes.add(error.reason)
    assert (1, SIDE, SIDE) in outcomes
