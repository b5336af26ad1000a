"""Small files that would cost much: refused before they do, with a detail that says why."""

from __future__ import annotations

import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from imagecodecs import jpeg2k_encode, jpeg8_encode
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from classifier.decoding.decode import Eligibility, decode, read
from classifier.decoding.pixels import image_pixel
from classifier.errors import NotScorable
from classifier.reasons import Reason
from tests.conftest import pixels
from tests.helpers.decoding import compressed, encoded, image_of, picture

CHEST = pixels(128, 128)
GREY = (CHEST >> 4).astype("u1")
J2K = picture(Image.fromarray(GREY), "JPEG2000", no_jp2=True, tile_size=(64, 64)).getvalue()
JPEG = bytes(jpeg8_encode(GREY, level=90))


def refusal(source: Any, rules: Eligibility | None = None) -> NotScorable:
    started = time.process_time()
    with pytest.raises(NotScorable) as caught:
        read(source, rules)
    assert time.process_time() - started < 5
    return caught.value


def frame(data: bytes, syntax: UID, side: int = 128) -> Dataset:
    ds = compressed(data, syntax, GREY, 8)
    ds.Rows = ds.Columns = side
    return ds


def start_of_data_set(file: bytes) -> int:
    return 144 + int.from_bytes(file[140:144], "little")


def deflated(data_set: bytes, *parts: bytes) -> io.BytesIO:
    """Return a deflated file with `parts` before what the plain data set has."""
    ds = image_of(CHEST)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole = encoded(ds).getvalue()
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    body = b"".join(map(deflater.compress, (*parts, data_set))) + deflater.flush()
    return io.BytesIO(whole[: start_of_data_set(whole)] + body)


def plain_data_set() -> bytes:
    whole = encoded(image_of(CHEST)).getvalue()
    return whole[start_of_data_set(whole) :]


def private(length: int) -> bytes:
    return struct.pack("<HH2sHI", 9, 0x1010, b"OB", 0, length) + bytes(length)


def test_a_deflated_data_set_is_inflated_as_far_as_its_pixels_need() -> None:
    np.testing.assert_array_equal(decode(deflated(plain_data_set())), decode(image_of(CHEST)))
    # A private element of 20 MiB before the pixels is unusual and harmless
    np.testing.assert_array_equal(
        decode(deflated(plain_data_set(), private(20 * 2**20))), decode(image_of(CHEST))
    )
    for bomb in (
        deflated(plain_data_set(), private(70 * 2**20)),
        deflated(plain_data_set() + bytes(70 * 2**20)),
    ):
        assert refusal(bomb).reason in (Reason.TOO_LARGE, Reason.UNREADABLE)


@pytest.mark.parametrize("what", ["elements", "items", "nested"])
def test_more_elements_and_items_than_a_radiograph_has(what: str) -> None:
    sequence = struct.pack("<HH2sHI", 8, 0x2218, b"SQ", 0, 2**32 - 1)
    item, end = struct.pack("<HHI", 0xFFFE, 0xE000, 0), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    many = {
        "elements": struct.pack("<HH2sH", 8, 0x70, b"LO", 0) * 400_000,
        "items": sequence + item * 400_000 + end,
        "nested": (sequence + struct.pack("<HHI", 0xFFFE, 0xE000, 2**32 - 1)) * 100_000,
    }[what]
    assert refusal(deflated(plain_data_set(), many)).reason in (Reason.TOO_LARGE, Reason.UNREADABLE)


def test_an_endless_value_of_a_tag() -> None:
    ds = image_of(CHEST, PatientOrientation=["L", "F"])
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    ds.set_original_encoding(is_implicit_vr=True, is_little_endian=True)
    told, endless = (
        struct.pack("<HHI", 0x20, 0x20, len(value)) + value for value in (b"L\\F ", b"L\\" * 3_000_000)
    )
    whole = encoded(ds).getvalue()
    assert told in whole
    refusal(io.BytesIO(whole.replace(told, endless)), Eligibility("score", "score"))


def test_more_fragments_than_a_frame_has() -> None:
    ds = frame(J2K, JPEG2000Lossless)
    ds.PixelData += struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 1_000_000
    assert refusal(ds).reason == Reason.TOO_LARGE


def test_colour_counts_threefold() -> None:
    ds = image_of(np.zeros((100, 100, 3), "u1"), 8, PhotometricInterpretation="RGB")
    assert image_pixel(ds, 30_000).samples == 3
    with pytest.raises(NotScorable) as caught:
        image_pixel(ds, 29_999)
    assert caught.value.reason == Reason.TOO_LARGE


def test_a_codestream_that_is_too_short_for_its_pixels() -> None:
    side = struct.pack(">HH", 128, 128)
    lie = frame(JPEG.replace(side, struct.pack(">HH", 9999, 9999), 1), JPEGBaseline8Bit, 9999)
    assert "too few" in refusal(lie).detail
    rle = frame(struct.pack("<16I", 2, 64, 66, *[0] * 13) + b"\x81\0\x81\0", RLELossless, 9999)
    assert refusal(rle).reason == Reason.UNREADABLE


def test_a_codestream_without_some_of_its_tiles() -> None:
    np.testing.assert_array_equal(decode(frame(J2K, JPEG2000Lossless)), decode(image_of(GREY, 8)))
    last = J2K.rindex(b"\xff\x90\x00\x0a")
    assert "tiles" in refusal(frame(J2K[:last] + b"\xff\xd9", JPEG2000Lossless)).detail


@pytest.mark.parametrize(
    ("offset", "value"),
    [(6, b"\xff\xff"), (10, b"\0\0"), (9, b"\x40")],  # of COD: layers, code-blocks of 4 x 4, levels
    ids=["layers", "code-blocks", "levels"],
)
def test_a_header_that_asks_for_more_than_the_codestream_holds(offset: int, value: bytes) -> None:
    side = 10_000  # one tile of so many pixels, in as many bytes as before
    changed = bytearray(J2K)
    size = changed.index(b"\xff\x51")
    struct.pack_into(">8I", changed, size + 6, side, side, 0, 0, side, side, 0, 0)
    first, second = (
        changed.index(b"\xff\x90\x00\x0a"),
        changed.index(b"\xff\x90\x00\x0a", changed.index(b"\xff\x90") + 1),
    )
    del changed[second:-2]
    coding = changed.index(b"\xff\x52")
    changed[coding + offset : coding + offset + len(value)] = value
    assert first > coding
    found = refusal(frame(bytes(changed), JPEG2000Lossless, side))
    assert "more than its length can hold" in found.detail


@pytest.mark.parametrize("marker", [b"\xff\x01", b"\xff\xd0"])
def test_a_frame_header_behind_a_marker_without_length(marker: bytes) -> None:
    """A decoder goes on behind the marker, and would find a header that was not judged."""
    start = JPEG.index(b"\xff\xc0")
    header = JPEG[start : start + 19]
    hidden = header.replace(struct.pack(">HH", 128, 128), struct.pack(">HH", 13_000, 13_000))
    bomb = JPEG[:start] + marker + struct.pack(">H", 2 + len(hidden)) + hidden + JPEG[start:]
    assert "does not start with a header" in refusal(frame(bomb, JPEGBaseline8Bit)).detail


def test_a_header_in_another_box_of_a_jp2_file() -> None:
    bare = bytes(jpeg2k_encode(GREY, codecformat="j2k", level=0, reversible=True))
    whole = bytes(jpeg2k_encode(GREY, codecformat="jp2", level=0, reversible=True))
    np.testing.assert_array_equal(decode(frame(whole, JPEG2000Lossless)), decode(image_of(GREY, 8)))
    box = whole.index(b"jp2c") - 4
    decoy = struct.pack(">I4s16s", 24 + 120, b"uuid", bytes(16)) + bare[:120]
    lie = whole[box:].replace(struct.pack(">II", 128, 128), struct.pack(">II", 60_000, 60_000))
    assert "60000 x 60000" in refusal(frame(whole[:box] + decoy + lie, JPEG2000Lossless)).detail


def test_an_offset_table_of_two_frames() -> None:
    ds = frame(J2K, JPEG2000Lossless)
    ds.PixelData = encapsulate([J2K, J2K])
    np.testing.assert_array_equal(decode(ds), decode(image_of(GREY, 8)))
