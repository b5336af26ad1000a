"""An image that lies otherwise than radiologists look at it is turned upright before it is scored."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import JPEG2000Lossless

from classifier.decoding.decode import Eligibility, decode, read
from classifier.decoding.orientation import UPRIGHT, Turn
from classifier.errors import NotScorable
from classifier.reasons import Reason
from tests.conftest import pixels, radiograph
from tests.helpers.decoding import image_of, picture

UPRIGHT_IMAGE = pixels(120, 90)
WINDOW: dict[str, Any] = {"WindowCenter": 2048, "WindowWidth": 4096}
# Patient Orientation of an image that was moved in this way, told by hand: numpy's names are of what was done
STORED = {
    ("L", "F"): UPRIGHT_IMAGE,
    ("R", "F"): np.fliplr(UPRIGHT_IMAGE),
    ("L", "H"): np.flipud(UPRIGHT_IMAGE),
    ("R", "H"): np.rot90(UPRIGHT_IMAGE, 2),
    ("F", "L"): UPRIGHT_IMAGE.T,
    ("F", "R"): np.rot90(UPRIGHT_IMAGE),  # anticlockwise: the left of the patient is up
    ("H", "L"): np.rot90(UPRIGHT_IMAGE, -1),
    ("H", "R"): np.rot90(UPRIGHT_IMAGE.T, 2),
}


@pytest.mark.parametrize("told", STORED)
@pytest.mark.parametrize("size", [None, 48])
def test_a_turned_image_is_scored_upright(told: tuple[str, str], size: int | None) -> None:
    plain = decode(image_of(UPRIGHT_IMAGE, **WINDOW), size=size)
    stored = np.ascontiguousarray(STORED[told])
    found = read(
        image_of(stored, PatientOrientation=list(told), ViewPosition="", **WINDOW), Eligibility(), size
    )
    np.testing.assert_allclose(found.pixels, plain, atol=2e-6)
    assert found.view == "frontal"
    over_the_stored = found.turn.undone(found.pixels[0])
    expected = decode(image_of(stored, PatientOrientation=None, **WINDOW), size=size)[0]
    np.testing.assert_allclose(over_the_stored, expected, atol=2e-6)


def test_a_codestream_with_less_detail_is_turned_too() -> None:
    values = pixels(531, 437)
    upside_down = image_of(np.ascontiguousarray(values[::-1]), PatientOrientation=["L", "H"], **WINDOW)
    upside_down.compress(JPEG2000Lossless)
    upright = image_of(values, **WINDOW)
    np.testing.assert_allclose(decode(upside_down, size=48), decode(upright, size=48), atol=0.02)


@pytest.mark.parametrize("told", [None, "", ["", ""]])
def test_an_image_without_patient_orientation_counts_as_upright(told: Any) -> None:
    assert read(image_of(UPRIGHT_IMAGE, PatientOrientation=told), Eligibility()).turn == UPRIGHT


@pytest.mark.parametrize("told", [["LF", "FR"], ["L", "FR"]])
def test_a_tilt_is_no_turn(told: list[str]) -> None:
    assert read(image_of(UPRIGHT_IMAGE, PatientOrientation=told), Eligibility()).turn == UPRIGHT


@pytest.mark.parametrize(
    "told",
    ["L", ["L", "R"], ["H", "F"], ["L", "F", "H"], ["L", ""], ["", "F"], ["X", "F"], ["L", "1"], ["LE", "D"]],
)
def test_a_patient_orientation_that_is_not_understood_is_a_doubt(told: Any) -> None:
    with pytest.raises(NotScorable) as caught:
        read(image_of(UPRIGHT_IMAGE, PatientOrientation=told), Eligibility())
    assert caught.value.reason == Reason.NO_ORIENTATION
    assert ("/".join(told) if isinstance(told, list) else told) in caught.value.detail


@pytest.mark.parametrize(
    "turned",
    [
        {"FieldOfViewRotation": "180"},
        {"FieldOfViewHorizontalFlip": "YES"},
        {"ImageRotation": 90},
        {"ImageHorizontalFlip": "Y"},
    ],
)
def test_two_attributes_that_tell_of_a_turn_are_a_doubt(turned: dict[str, Any]) -> None:
    with pytest.raises(NotScorable, match=r"R/H.*(Rotation|Flip)") as caught:
        decode(image_of(UPRIGHT_IMAGE, PatientOrientation=["R", "H"], **turned))
    assert caught.value.reason == Reason.NO_ORIENTATION
    # The device turned the image, and what it stored is upright
    assert read(image_of(UPRIGHT_IMAGE, PatientOrientation=["L", "F"], **turned)).turn == UPRIGHT


@pytest.mark.parametrize("turned", [{"FieldOfViewRotation": "0"}, {"FieldOfViewHorizontalFlip": "NO"}])
def test_attributes_that_tell_of_no_turn_contradict_nothing(turned: dict[str, Any]) -> None:
    found = read(image_of(UPRIGHT_IMAGE, PatientOrientation=["R", "H"], **turned))
    assert found.turn == Turn(mirrored=True, upside_down=True)


def test_a_lateral_image_is_brought_head_up_and_not_mirrored() -> None:
    ds = radiograph("CR", PatientOrientation=["P", "H"])
    assert read(ds).turn == Turn(upside_down=True)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_turn_of_a_picture_file_is_kept(orientation: int) -> None:
    grey = (UPRIGHT_IMAGE >> 4).astype("u1")
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = picture(Image.fromarray(grey), "PNG", exif=exif)
    found = read(file)
    np.testing.assert_allclose(found.turn.undone(found.pixels[0]), grey / 255, atol=1e-6)
    with Image.open(io.BytesIO(file.getvalue())) as image:
        from PIL import ImageOps

        np.testing.assert_allclose(
            found.pixels[0], np.asarray(ImageOps.exif_transpose(image)) / 255, atol=1e-6
        )
