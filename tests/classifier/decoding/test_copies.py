"""Whether two files hold the same image, in all encodings that senders choose."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import uid as uids
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
)

from classifier.decoding.copies import Copy, Fingerprint, fingerprint
from classifier.decoding.copies import compare as compare_fingerprints
from tests.conftest import radiograph, save
from tests.helpers.decoding import CODESTREAMS, RAMP, compressed, image_of, picture

MOST = 10**8


def compare(first: Path, second: Path, max_pixels: int) -> Copy:
    return compare_fingerprints(of_file(first, max_pixels), of_file(second, max_pixels))


def of_file(path: Path, max_pixels: int) -> Fingerprint:
    with path.open("rb") as file:
        return fingerprint(file, max_pixels)


def written(image: Dataset, folder: Path, name: str) -> Path:
    return save(image, folder / name)


def compared(one: Dataset, other: Dataset, folder: Path) -> Copy:
    first, second = written(one, folder, "one.dcm"), written(other, folder, "other.dcm")
    found = compare(first, second, MOST)
    assert compare(second, first, MOST) is found
    return found


def encoded_as(syntax: str, values: np.ndarray[Any, Any] = RAMP) -> Dataset:
    image = image_of(values)
    if syntax in (JPEG2000Lossless, JPEGLSLossless, RLELossless):
        image.compress(syntax, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        image.PixelData = values.astype(">u2").tobytes()
        image.set_original_encoding(is_implicit_vr=False, is_little_endian=False)
    image.file_meta.TransferSyntaxUID = UID(syntax)
    return image


@pytest.mark.parametrize(
    "syntax",
    [
        *(ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian),
        *(RLELossless, JPEG2000Lossless, JPEGLSLossless),
    ],
)
def test_the_same_pixels_are_the_same_image_in_each_lossless_encoding(syntax: str, tmp_path: Path) -> None:
    other = encoded_as(syntax)
    other.PatientName = "Corrected^Name"
    assert compared(image_of(RAMP), other, tmp_path) is Copy.SAME
    changed = RAMP.copy()
    changed[20, 20] += 1
    assert compared(image_of(changed), other, tmp_path) is Copy.OTHER


@pytest.mark.parametrize("name", ["JPEGLossless", "JPEGLosslessSV1", "HTJ2KLossless"])
def test_codestreams_of_other_encoders_are_the_same_image(name: str, tmp_path: Path) -> None:
    other = compressed(base64.b85decode(CODESTREAMS[name]), getattr(uids, name))
    assert compared(image_of(RAMP), other, tmp_path) is Copy.SAME


def test_lossy_compression_is_told_by_name(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (40, 36), np.uint8)
    jpeg = picture(Image.fromarray(noise), "JPEG", quality=80).getvalue()
    lossy = compressed(jpeg, JPEGBaseline8Bit, noise, 8)
    assert compared(image_of(noise, 8), lossy, tmp_path) is Copy.LOSSY
    assert compared(lossy, lossy, tmp_path) is Copy.SAME
    exact = compressed(base64.b85decode(CODESTREAMS["JPEGExtended12Bit"]), JPEGExtended12Bit)
    assert compared(image_of(RAMP), exact, tmp_path) is Copy.SAME  # nothing of a ramp is lost
    said = image_of(RAMP + 1)
    said.LossyImageCompression = "01"
    assert compared(image_of(RAMP), said, tmp_path) is Copy.LOSSY


def test_bits_above_bits_stored_are_no_pixels(tmp_path: Path) -> None:
    assert compared(image_of(RAMP), image_of(RAMP | 0x8000), tmp_path) is Copy.SAME


@pytest.mark.parametrize(
    "change",
    [
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"Rows": RAMP.shape[1], "Columns": RAMP.shape[0]},
        {"NumberOfFrames": 2, "PixelData": RAMP.tobytes() * 2},
        {"PixelData": None},
        {"PixelData": b"\0" * 100},
    ],
    ids=["inverted", "turned", "frames", "without pixels", "truncated"],
)
def test_what_the_pixels_mean_counts_and_what_cannot_be_decoded_is_another(
    change: dict[str, Any], tmp_path: Path
) -> None:
    other = image_of(RAMP)
    for keyword, value in change.items():
        if value is None:
            del other[keyword]
        else:
            setattr(other, keyword, value)
    assert compared(image_of(RAMP), other, tmp_path) is Copy.OTHER
    renamed = written(other, tmp_path, "renamed.dcm")
    other.PatientName = "Corrected^Name"
    assert compare(renamed, written(other, tmp_path, "again.dcm"), MOST) is Copy.SAME


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        compare(written(radiograph(), tmp_path, "one.dcm"), tmp_path / "gone.dcm", MOST)
