"""The data sets of the demonstration: drawn studies with their truth, and folders of images of one's own."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import warnings
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, SecondaryCaptureImageStorage

from classifier.decoding.decode import Eligibility, decode, read
from classifier.errors import NotScorable
from pacs_node.demo import samples
from pacs_node.demo.phantom import FloatImage
from pacs_node.demo.samples import Sample, SampleImages, read_images, write_samples
from pacs_node.errors import UserError
from tests.conftest import pixels, radiograph, save
from tests.helpers.peers import program


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the studies be small sketches: what is drawn in them takes seconds, and is tested elsewhere."""
    studies = [
        replace(study, views=[replace(view, draw=sketch) for view in study.views])
        for study in samples.STUDIES
    ]
    monkeypatch.setattr(samples, "STUDIES", studies)


def sketch() -> FloatImage:
    return (pixels() / 4095).astype(np.float32)


@pytest.fixture
def drawn(sketched: None, tmp_path: Path) -> list[Sample]:
    """The studies of the demonstration, in a folder that was not there."""
    return write_samples(tmp_path / "new" / "images")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for images."""
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def errors(path: Path) -> list[str]:
    """Return what dciodvfy calls an error."""
    run = subprocess.run([program("dciodvfy"), path], capture_output=True, check=False)
    said = (run.stdout + run.stderr).decode("utf-8", "replace").splitlines()
    assert any("Image" in line for line in said), said  # it names the IOD that it checked against
    return [line for line in said if line.startswith("Error")]


def picture(path: Path, mode: str = "L", **options: Any) -> Path:
    """Save a picture that uses half of the grey scale."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(120, 97, bits=8) // 2 + 40).convert(mode).save(path, **options)
    return path


def found(folder: Path) -> SampleImages:
    return read_images(folder, folder.parent / "wrapped")


def skipped(folder: Path) -> dict[str, str]:
    """Return the reason for each file of a folder that was left out."""
    return {path.name: why for path, why in found(folder).skipped}


# --- drawn studies


def test_the_drawn_studies_say_what_they_show_and_what_to_expect(drawn: list[Sample]) -> None:
    assert [(s.path.stem, s.truth, s.expected) for s in drawn] == [
        ("DEMO-01-1", "clear lungs", "negative"),
        ("DEMO-01-2", "lateral view", "NOT_FRONTAL"),
        ("DEMO-02-1", "opacity, right lower zone", "positive"),
        ("DEMO-03-1", "opacities, both lower zones", "positive"),
        ("DEMO-04-1", "clear lungs", "negative"),
        ("DEMO-05-1", "opacity, left lower zone (JPEG 2000)", "positive"),
        ("DEMO-06-1", "hand", "NOT_CHEST"),
        ("DEMO-07-1", "broken file (pixel data cut short)", "UNREADABLE"),
        ("DEMO-08-1", "clear lungs, adult", "OTHER_AGE"),
    ]
    assert all(sample.path.name.startswith(sample.patient) for sample in drawn)


def test_the_drawn_files_are_valid_but_for_the_broken_one(drawn: list[Sample]) -> None:
    for sample in drawn:
        assert bool(errors(sample.path)) == (sample.expected == "UNREADABLE"), sample.truth


def test_the_drawn_studies_are_refused_for_the_reasons_they_expect(drawn: list[Sample]) -> None:
    for sample in drawn:
        if sample.expected in ("negative", "positive", "OTHER_AGE"):
            radiograph = read(sample.path, Eligibility())
            assert radiograph.view in ("PA", "AP")
            assert radiograph.age.years is not None
            assert not radiograph.age.doubt
            assert (radiograph.age.years < 6) == (sample.expected != "OTHER_AGE")
        else:
            with pytest.raises(NotScorable) as caught:
                read(sample.path, Eligibility())
            assert caught.value.reason == sample.expected


def test_every_call_writes_new_uids_over_the_old_files(sketched: None, tmp_path: Path) -> None:
    runs = [write_samples(tmp_path), write_samples(tmp_path)]
    assert [s.path for s in runs[0]] == [s.path for s in runs[1]] == sorted(tmp_path.iterdir())
    uids = [
        uid for run in runs for uid in {s.study_instance_uid for s in run} | {s.sop_instance_uid for s in run}
    ]
    assert len(set(uids)) == len(uids)
    assert all(UID(uid).is_valid for uid in uids)
    for sample in runs[1]:
        ds = dcmread(sample.path)
        assert (ds.StudyInstanceUID, ds.SOPInstanceUID) == (
            sample.study_instance_uid,
            sample.sop_instance_uid,
        )
        assert ds.file_meta.MediaStorageSOPInstanceUID == sample.sop_instance_uid


# --- a folder of one's own


def test_dicom_files_are_taken_as_they_are(folder: Path) -> None:
    """The name does not matter."""
    paths = [
        save(radiograph(study=str(n)), folder / name) for n, name in enumerate(["1.2.840.7", "a.jpg", "b"])
    ]
    before = [path.read_bytes() for path in paths]
    images = found(folder)
    assert [s.path for s in images.samples] == paths
    assert [path.read_bytes() for path in paths] == before
    assert [s.patient for s in images.samples] == ["PID-0", "PID-1", "PID-2"]
    assert images.samples[0].sop_instance_uid == dcmread(paths[0]).SOPInstanceUID
    assert not images.skipped
    assert not list((folder.parent / "wrapped").iterdir())


@pytest.mark.parametrize(("name", "mode"), [
    ("grey.jpeg", "L"),
    ("colour.jpg", "RGB"),
    ("print.jpg", "CMYK"),
    ("grey.png", "L"),
    ("colour.png", "RGB"),
    ("alpha.png", "RGBA"),
    ("palette.png", "P"),
    ("line.png", "1"),
    ("no_suffix", "L"),
])  # fmt: skip
def test_pictures_become_valid_secondary_captures(name: str, mode: str, folder: Path) -> None:
    picture(folder / name, mode, format=None if "." in name else "PNG")
    (sample,) = found(folder).samples
    assert sample.path.parent == folder.parent / "wrapped"
    assert errors(sample.path) == []
    ds = dcmread(sample.path)
    assert ds.SOPClassUID == SecondaryCaptureImageStorage
    assert (ds.Rows, ds.Columns, ds.LossyImageCompression) == (120, 97, "01" if ".j" in name else "00")
    assert (ds.SOPInstanceUID, ds.PatientID) == (sample.sop_instance_uid, sample.patient)
    assert str(ds.PatientName).endswith(Path(name).stem)
    assert read(sample.path, Eligibility()).view == "AP"


@pytest.mark.parametrize("name", ["grey.png", "grey.jpeg"])
def test_a_wrapped_picture_is_scored_like_the_picture_itself(name: str, folder: Path) -> None:
    """Its contrast is not stretched on the way."""
    path = picture(folder / name)
    (sample,) = found(folder).samples
    image = decode(path)
    assert 0.1 < image.min() < image.max() < 0.7
    np.testing.assert_allclose(decode(sample.path), image, atol=1e-6)


def test_a_picture_that_a_camera_turned_is_wrapped_upright(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(folder / "turned.jpeg", exif=exif)
    ds = dcmread(found(folder).samples[0].path)
    assert (ds.Rows, ds.Columns) == (97, 120)


def test_two_names_of_one_picture_are_one_patient_and_two_studies(folder: Path) -> None:
    picture(folder / "a.png")
    shutil.copy(folder / "a.png", folder / "b.png")
    first, second = found(folder).samples
    assert first.patient == second.patient
    assert first.study_instance_uid != second.study_instance_uid
    assert first.path != second.path


def test_the_names_of_folders_tell_the_truth(folder: Path) -> None:
    picture(folder / "deep/down/NORMAL/1.png")
    picture(folder / "val/PNEUMONIA/2.jpeg")
    save(radiograph(), (folder / "val/PNEUMONIA/3.dcm"))
    picture(folder / "val/PNEUMONIA/bacteria/4.png")
    picture(folder / "normal/5.png")
    picture(folder / "6.png")
    images = found(folder)
    truth = {str(dcmread(s.path).PatientName): (s.truth, s.expected) for s in images.samples}
    assert truth == {
        "Picture^1": ("normal", "negative"),
        "Picture^2": ("pneumonia", "positive"),
        "Test^Alice": ("pneumonia", "positive"),
        "Picture^4": ("", None),
        "Picture^5": ("", None),
        "Picture^6": ("", None),
    }


def test_the_folder_itself_can_tell_the_truth(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(folder / "NORMAL/1.png")
    monkeypatch.chdir(folder / "NORMAL")
    (sample,) = read_images(Path(), folder / "wrapped").samples
    assert sample.expected == "negative"


def test_hidden_files_and_folders_are_passed_over(folder: Path) -> None:
    picture(folder / "seen.png")
    for hidden in (".thumb.png", ".cache/1.png", ".cache/deeper/2.png", "open/.3.png", "open/._4.jpg"):
        picture(folder / hidden, format="PNG")
    (folder / ".DS_Store").touch()
    images = found(folder)
    assert [str(dcmread(s.path).PatientName) for s in images.samples] == ["Picture^seen"]
    assert images.skipped == []


def test_wrapped_files_inside_the_folder_are_not_read_again(folder: Path) -> None:
    picture(folder / "1.png")
    for _ in range(2):
        assert len(read_images(folder, folder / "wrapped").samples) == 1


def test_an_empty_folder_holds_nothing(folder: Path) -> None:
    assert found(folder) == SampleImages([], [])


@pytest.mark.parametrize("make_file", [True, False])
def test_what_is_no_folder_is_named(make_file: bool, tmp_path: Path) -> None:
    path = tmp_path / "path"
    if make_file:
        path.touch()
    with pytest.raises(UserError, match="path is not a folder"):
        read_images(path, tmp_path / "wrapped")


# --- what is left out, and why


def test_files_that_are_no_images_are_named(folder: Path) -> None:
    (folder / "notes.txt").write_text("notes")
    (folder / "empty.jpg").touch()
    Image.new("L", (9, 9)).save(folder / "other.gif")
    assert skipped(folder) == dict.fromkeys(
        ["empty.jpg", "notes.txt", "other.gif"], "no DICOM, JPEG or PNG file"
    )


def test_files_that_cannot_be_opened_are_named(folder: Path) -> None:
    (folder / "dangling.png").symlink_to(folder / "nowhere")
    assert skipped(folder) == {"dangling.png": "cannot be read: No such file or directory"}


@pytest.mark.parametrize("suffix", ["jpeg", "png"])
def test_a_truncated_picture_is_named(suffix: str, folder: Path) -> None:
    whole = picture(folder / f"cut.{suffix}").read_bytes()
    (folder / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    assert skipped(folder)[f"cut.{suffix}"].startswith("a picture that does not decode: ")


def test_a_picture_with_malformed_exif_is_named(folder: Path) -> None:
    """Pillow raises `struct.error` when it turns such a picture upright."""
    entries = struct.pack("<HHIf", 0x0100, 11, 1, 1.5) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    picture(folder / "odd.jpeg", exif=b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4))
    assert skipped(folder)["odd.jpeg"].startswith("a picture that does not decode: ")


def test_a_picture_too_wide_for_dicom_is_named(folder: Path) -> None:
    Image.new("L", (0x10000, 1)).save(folder / "wide.png")
    Image.new("L", (0xFFFF, 1)).save(folder / "fits.png")
    images = found(folder)
    assert skipped(folder) == {"wide.png": "a picture with more rows or columns than DICOM allows"}
    assert dcmread(images.samples[0].path).Columns == 0xFFFF


def test_dicom_files_without_image_or_identity_are_named(folder: Path) -> None:
    save(radiograph(Rows=None, PixelData=None), folder / "document.dcm")
    save(radiograph(StudyInstanceUID=None), folder / "missing.dcm")
    save(radiograph(SeriesInstanceUID=""), folder / "empty.dcm")
    (folder / "cut.dcm").write_bytes(save(radiograph(), folder / "whole.dcm").read_bytes()[:250])
    (folder / "bare.dcm").write_bytes(bytes(128) + b"DICM")
    reasons = skipped(folder)
    assert reasons.pop("document.dcm") == "a DICOM file without an image: Rows is missing"
    understood = "a DICOM file that is not understood: "
    assert reasons.pop("missing.dcm") == f"{understood}StudyInstanceUID is missing"
    assert reasons.pop("empty.dcm") == f"{understood}SeriesInstanceUID is missing"
    assert sorted(reasons) == ["bare.dcm", "cut.dcm"]
    assert all(reason.startswith(understood) for reason in reasons.values())


def deflated() -> bytes:
    ds = radiograph()
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file = BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def test_damaged_files_are_taken_or_named_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    """A byte changed anywhere must never stop the demonstration, nor print a warning into it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    pictures = [picture(tmp_path / name, exif=exif).read_bytes() for name in ("1.png", "1.jpeg")]
    whole = [*pictures, deflated(), save(radiograph(), tmp_path / "1.dcm").read_bytes()[:3000]]
    chance = random.Random(1)
    for number in range(400):
        damaged = bytearray(whole[number % len(whole)])
        start = 132 if damaged[128:132] == b"DICM" else 0
        for _ in range(3):
            damaged[chance.randrange(start, min(len(damaged), 1000))] = chance.randrange(256)
        (folder / f"{number:03}").write_bytes(damaged)
    images = found(folder)
    assert len(images.samples) + len(images.skipped) == 400
    assert len(images.samples) > 20
    assert all(why for _, why in images.skipped)


def test_transparent_palettes_are_wrapped_without_a_warning(folder: Path) -> None:
    picture(folder / "palette.png", "P", transparency=bytes(range(256)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert len(found(folder).samples) == 1
    assert said == []
