"""The demonstration's phantoms look as they say, and its data sets are valid DICOM."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.pixels.processing import apply_voi_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import SecondaryCaptureImageStorage

from pacs_node.demo.phantom import FloatImage, Zone, frontal_chest, hand, lateral_chest
from pacs_node.demo.samples import Sample, SampleImages, radiograph_from_picture, read_images, write_samples
from pacs_node.errors import UserError

LOWER_RIGHT = np.s_[480:640, 250:400]  # inside the lower lung of any of the phantoms
LOWER_LEFT = np.s_[480:640, 800:930]

drawn = functools.cache(frontal_chest)


def shown(sample: Sample) -> NDArray[Any]:
    """Return the pixels of a sample as a viewer shows them, 0..1, bone bright."""
    ds = dcmread(sample.path)
    windowed = apply_voi_lut(pixel_array(ds), ds)
    grey = windowed / (2**ds.BitsStored - 1)
    return np.asarray(1 - grey if ds.PhotometricInterpretation == "MONOCHROME1" else grey)


def errors_of(path: Path) -> list[str]:
    """Return what the validator calls an error."""
    if shutil.which("dciodvfy") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("dciodvfy is not installed, and CI must not pass without it")
        pytest.skip("dciodvfy (Debian package dicom3tools) is not installed")
    done = subprocess.run(
        ["dciodvfy", str(path)], capture_output=True, text=True, errors="replace", check=False
    )
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


@pytest.mark.parametrize("draw", [frontal_chest, lateral_chest, hand])
def test_a_phantom_is_a_grey_image_decided_by_its_seed(draw: Callable[[int], FloatImage]) -> None:
    image = draw(1)
    assert image.dtype == np.float32
    assert 900 <= min(image.shape) <= max(image.shape) <= 1200
    assert 0 <= image.min() < 0.02
    assert 0.7 < image.max() <= 1
    assert np.array_equal(image, draw(1))
    assert not np.array_equal(image, draw(2))


@pytest.mark.parametrize(("zone", "where", "elsewhere"), [
    ("right", LOWER_RIGHT, LOWER_LEFT),
    ("left", LOWER_LEFT, LOWER_RIGHT),
])  # fmt: skip
def test_an_opacity_brightens_its_own_zone_only(zone: Zone, where: Any, elsewhere: Any) -> None:
    clear, opaque = drawn(3), drawn(3, 0.9, zone)
    assert opaque[where].mean() > clear[where].mean() + 0.1
    assert opaque[elsewhere].mean() == pytest.approx(clear[elsewhere].mean(), abs=0.005)


def test_lungs_are_dark_and_the_spine_bright() -> None:
    image = drawn(3)
    assert image[LOWER_RIGHT].mean() < 0.5
    assert image[480:640, 540:580].mean() > 0.7


def test_the_demonstration_has_every_outcome(drawn_studies: list[Sample]) -> None:
    refused = {"NOT_FRONTAL", "NOT_CHEST", "UNREADABLE", "OTHER_AGE"}
    assert {s.expected for s in drawn_studies} == {"negative", "positive"} | refused
    assert len({s.sop_instance_uid for s in drawn_studies}) == len(drawn_studies) == 9
    assert len({s.study_instance_uid for s in drawn_studies}) == len({s.patient for s in drawn_studies}) == 8


def test_two_demonstrations_share_no_uid(drawn_studies: list[Sample], tmp_path: Path) -> None:
    again = write_samples(tmp_path)
    uids = [
        {u for s in run for u in (s.sop_instance_uid, s.study_instance_uid)} for run in (drawn_studies, again)
    ]
    assert not uids[0] & uids[1]
    assert [s.truth for s in drawn_studies] == [s.truth for s in again]


def test_demonstration_files_are_valid_but_for_the_broken_one(drawn_studies: list[Sample]) -> None:
    for sample in drawn_studies:
        errors = errors_of(sample.path)
        if sample.expected == "UNREADABLE":
            assert any("PixelData has incorrect value length" in e for e in errors)
        else:
            assert errors == [], sample.truth


def test_demonstration_headers_agree_with_their_truth(drawn_studies: list[Sample]) -> None:
    for sample in drawn_studies:
        ds = dcmread(sample.path)
        assert (ds.PatientID, ds.StudyInstanceUID, ds.SOPInstanceUID) == (
            sample.patient,
            sample.study_instance_uid,
            sample.sop_instance_uid,
        )
        assert ds.BodyPartExamined == ("HAND" if sample.expected == "NOT_CHEST" else "CHEST")
        assert (ds.ViewPosition == "LL") == (sample.expected == "NOT_FRONTAL")
        studied, born = (date.fromisoformat(d) for d in (ds.StudyDate, ds.PatientBirthDate))
        birthdays = studied.year - born.year - ((studied.month, studied.day) < (born.month, born.day))
        assert ds.PatientAge == f"{birthdays:03}Y"


def test_demonstration_pixels_show_the_drawing(drawn_studies: list[Sample]) -> None:
    shown_by_truth = {s.truth: shown(s) for s in drawn_studies if s.expected in ("negative", "positive")}
    drawings = {
        "opacity, right lower zone": drawn(8, 0.9, "right"),  # DX
        "opacities, both lower zones": drawn(26, 0.9, "both"),  # MONOCHROME1
        "opacity, left lower zone (JPEG 2000)": drawn(5, 0.9, "left"),
        "clear lungs": drawn(13),  # 10 bits
    }
    for truth, drawing in drawings.items():
        assert np.abs(shown_by_truth[truth] - drawing).max() < 0.002, truth


def test_a_name_in_kanji_reads_back(drawn_studies: list[Sample]) -> None:
    (name,) = {
        str(dcmread(s.path).PatientName) for s in drawn_studies if s.truth == "opacities, both lower zones"
    }
    assert name == "Demo^Hanako=試験^花子=しけん^はなこ"


def test_the_broken_file_has_half_its_pixels(drawn_studies: list[Sample]) -> None:
    (broken,) = (s for s in drawn_studies if s.expected == "UNREADABLE")
    ds = dcmread(broken.path)
    assert len(ds.PixelData) == ds.Rows * ds.Columns
    with pytest.raises(ValueError, match="less than expected"):
        pixel_array(ds)


def picture(path: Path, mode: str = "L", size: tuple[int, int] = (31, 25)) -> NDArray[Any]:
    """Save a random picture (rows, columns[, 3]) of odd size and return its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    top, dtype = (65535, np.uint16) if mode == "I;16" else (255, np.uint8)
    pixels = np.random.default_rng(len(path.stem)).integers(0, top, shape).astype(dtype)
    Image.fromarray(pixels).save(path)
    return pixels


def test_a_picture_wraps_into_a_valid_secondary_capture_with_the_same_pixels(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "NORMAL2-IM-0001.png")
    ds = radiograph_from_picture(tmp_path / "NORMAL2-IM-0001.png")
    ds.save_as(tmp_path / "sc.dcm", enforce_file_format=True)
    back = dcmread(tmp_path / "sc.dcm")
    assert np.array_equal(pixel_array(back), pixels)
    assert back.SOPClassUID == SecondaryCaptureImageStorage
    assert (back.Modality, back.ConversionType, back.LossyImageCompression) == ("CR", "WSD", "00")
    assert (back.BodyPartExamined, back.ViewPosition, back.PhotometricInterpretation) == (
        "CHEST",
        "AP",
        "MONOCHROME2",
    )
    assert errors_of(tmp_path / "sc.dcm") == []


def test_a_jpeg_keeps_its_decoded_pixels_and_says_it_was_lossy(tmp_path: Path) -> None:
    picture(tmp_path / "胸部=^\\1.jpeg", size=(64, 64))
    ds = radiograph_from_picture(tmp_path / "胸部=^\\1.jpeg")
    ds.save_as(tmp_path / "sc.dcm", enforce_file_format=True)
    back = dcmread(tmp_path / "sc.dcm")
    with Image.open(tmp_path / "胸部=^\\1.jpeg") as decoded:
        assert np.array_equal(pixel_array(back), np.asarray(decoded))
    assert (back.LossyImageCompression, back.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    assert str(back.PatientName) == "Picture^胸部___1"
    assert errors_of(tmp_path / "sc.dcm") == []


def test_16_bits_and_colour_become_8_bits_of_grey(tmp_path: Path) -> None:
    deep = picture(tmp_path / "deep.png", "I;16")
    assert np.array_equal(pixel_array_of(tmp_path / "deep.png"), deep >> 8)
    colour = picture(tmp_path / "colour.png", "RGB")
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(pixel_array_of(tmp_path / "colour.png") - luma).max() < 1


def pixel_array_of(path: Path) -> NDArray[Any]:
    """Return the pixels of a wrapped picture."""
    ds = radiograph_from_picture(path)
    return np.frombuffer(ds.PixelData, np.uint8)[: ds.Rows * ds.Columns].reshape(ds.Rows, ds.Columns)


@pytest.fixture
def mixed(drawn_studies: list[Sample], tmp_path: Path) -> SampleImages:
    """A folder as people have them: pictures, DICOM, broken files and others."""
    folder = tmp_path / "in"
    picture(folder / "NORMAL/a.png")
    picture(folder / "NORMAL/bb.jpeg")
    picture(folder / "PNEUMONIA/a.png", size=(40, 40))
    picture(folder / "loose.jpg")
    shutil.copy(drawn_studies[0].path, folder / "no_suffix")
    cut = (folder / "NORMAL/a.png").read_bytes()
    (folder / "cut.png").write_bytes(cut[: len(cut) // 2])
    (folder / "half.dcm").write_bytes(drawn_studies[0].path.read_bytes()[:200])
    (folder / "empty.jpg").touch()
    (folder / "README.txt").write_text("notes")
    (folder / ".DS_Store").write_text("")
    (folder / "dangling.png").symlink_to(folder / "nowhere")
    return read_images(folder, folder / "wrapped")


def test_a_mixed_folder_gives_its_images_and_names_what_it_skips(
    mixed: SampleImages, drawn_studies: list[Sample]
) -> None:
    assert sorted((s.truth, str(s.expected)) for s in mixed.samples) == [
        ("", "None"),
        ("", "None"),
        ("normal", "negative"),
        ("normal", "negative"),
        ("pneumonia", "positive"),
    ]
    (as_it_is,) = (s for s in mixed.samples if s.path.name == "no_suffix")
    assert as_it_is.sop_instance_uid == drawn_studies[0].sop_instance_uid
    skipped = {path.name: reason for path, reason in mixed.skipped}
    assert sorted(skipped) == ["README.txt", "cut.png", "dangling.png", "empty.jpg", "half.dcm"]
    assert skipped["README.txt"] == "no DICOM, JPEG or PNG file"
    assert "does not decode" in skipped["cut.png"]
    assert "No such file" in skipped["dangling.png"]


def test_every_picture_is_a_study_of_its_own(mixed: SampleImages) -> None:
    assert len({s.study_instance_uid for s in mixed.samples}) == len(mixed.samples)
    for sample in mixed.samples:
        ds = dcmread(sample.path)
        assert (ds.StudyInstanceUID, ds.SOPInstanceUID) == (
            sample.study_instance_uid,
            sample.sop_instance_uid,
        )


def test_wrapped_pictures_are_not_read_again(mixed: SampleImages, tmp_path: Path) -> None:
    again = read_images(tmp_path / "in", tmp_path / "in/wrapped")
    assert len(again.samples) == len(mixed.samples)


def test_a_missing_folder_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        read_images(tmp_path / "nowhere", tmp_path / "out")
