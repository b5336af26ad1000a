"""Broken, hostile and hopeless images: what cannot be decoded is refused for a named reason, at low cost."""

from __future__ import annotations

import base64
import io
import struct
import threading
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLSLossless,
    RLELossless,
)

from classifier.decoding.decode import Eligibility, decode, read
from classifier.errors import NotScorable
from classifier.reasons import Reason
from tests.conftest import code, pixels, radiograph, save
from tests.helpers.decoding import CODESTREAMS, RAMP, compressed, encoded, image_of, lut, refused


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
    assert refused(radiograph("CR", **tags)) in (Reason.UNREADABLE, Reason.CONTRADICTION)


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


def test_warnings_stay_inside_also_with_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = image_of(RAMP)
    ds.PixelData += bytes(64)  # excess padding, of which pydicom warns
    path = save(ds, tmp_path / "padded.dcm")
    said: list[warnings.WarningMessage] = []

    def disturb_filters() -> None:
        for _ in range(200):
            with warnings.catch_warnings():  # as other libraries do, which swaps the filters of all threads
                pass

    def read() -> None:
        for _ in range(20):
            decode(path)

    monkeypatch.setattr(warnings, "_showwarnmsg", said.append)
    threads = [threading.Thread(target=target) for target in (read, read, read, read, disturb_filters)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == []
