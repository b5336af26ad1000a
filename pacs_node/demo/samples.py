"""Data sets for a demonstration: drawn studies with known truth, and pictures wrapped as DICOM."""

from __future__ import annotations

import os
import re
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.misc import is_dicom
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    SecondaryCaptureImageStorage,
)

from pacs_node.demo.phantom import FloatImage, frontal_chest, hand, lateral_chest
from pacs_node.dicom.header import identity, read_header
from pacs_node.errors import UnreadableHeader, UserError

Expected: TypeAlias = Literal["negative", "positive", "NOT_FRONTAL", "NOT_CHEST", "UNREADABLE", "OTHER_AGE"]

KINDS = ("JPEG", "PNG")
SPACING_MM = 0.3  # fits a child's chest in life size on the phantom's 1120 columns

# SNOMED CT codes with their meanings: views (CID 4010) and regions (CID 4009).
VIEWS = {
    "PA": ("272479007", "postero-anterior"),
    "AP": ("399348003", "antero-posterior"),
    "LL": ("399173006", "left lateral"),
}
REGIONS = {"CHEST": ("816094009", "Chest"), "HAND": ("85562004", "Hand")}


@dataclass(frozen=True)
class Sample:
    """One SOP instance in a Part 10 file, and what is known about it.

    Parameters
    ----------
    patient
        Patient ID (0010,0020).
    truth
        Short text for people; empty if nothing is known.
    expected
        What the node should answer; `None` if nothing is known.
    """

    patient: str
    truth: str
    expected: Expected | None
    path: Path
    study_instance_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class SampleImages:
    """What `read_images` found: samples to send, and each file left out with the reason."""

    samples: list[Sample]
    skipped: list[tuple[Path, str]]


@dataclass(frozen=True)
class _View:
    """One image of a demonstration study."""

    truth: str
    expected: Expected
    draw: Callable[[], FloatImage]
    position: str = "PA"
    kind: Literal["DX", "CR"] = "DX"
    region: str = "CHEST"
    laterality: Literal["U", "R"] = "U"
    orientation: tuple[str, str] = ("L", "F")
    photometric: Literal["MONOCHROME1", "MONOCHROME2"] = "MONOCHROME2"
    bits: int = 12
    compressed: bool = False
    truncated: bool = False


@dataclass(frozen=True)
class _SampleStudy:
    name: str
    age: int  # years
    sex: Literal["F", "M", "O"]
    views: Sequence[_View]


# The seeds are chosen so that the shipped model answers as the drawing asks. The demonstration shows that
# the node works; it does not measure a model, which calls only 9 of the clear chests of seeds 1 to 60
# negative.
STUDIES = (
    _SampleStudy("Demo^Clear Lungs", 5, "F", [
        _View("clear lungs", "negative", partial(frontal_chest, 21)),
        _View("lateral view", "NOT_FRONTAL", partial(lateral_chest, 21), "LL", orientation=("P", "F")),
    ]),
    _SampleStudy("Demo^Opacity Right", 2, "M", [
        _View("opacity, right lower zone", "positive", partial(frontal_chest, 8, 0.9, "right")),
    ]),
    _SampleStudy("Demo^Hanako=試験^花子=しけん^はなこ", 4, "F", [
        _View("opacities, both lower zones", "positive", partial(frontal_chest, 26, 0.9, "both"), "AP", "CR",
              photometric="MONOCHROME1"),
    ]),
    _SampleStudy("Demo^Clear Bedside", 3, "M", [
        _View("clear lungs", "negative", partial(frontal_chest, 13), "AP", "CR", bits=10),
    ]),
    _SampleStudy("Demo^Opacity Left", 5, "F", [
        _View("opacity, left lower zone (JPEG 2000)", "positive", partial(frontal_chest, 5, 0.9, "left"),
              compressed=True),
    ]),
    _SampleStudy("Demo^Hand", 9, "M", [
        _View("hand", "NOT_CHEST", partial(hand, 1), region="HAND", laterality="R", orientation=("L", "H")),
    ]),
    _SampleStudy("Demo^Broken File", 8, "O", [
        _View("broken file (pixel data cut short)", "UNREADABLE", partial(frontal_chest, 4), truncated=True),
    ]),
    _SampleStudy("Demo^Grown Up", 62, "F", [
        _View("clear lungs, adult", "OTHER_AGE", partial(frontal_chest, 10)),
    ]),
)  # fmt: skip


def write_samples(folder: Path) -> list[Sample]:
    """Draw the demonstration studies into Part 10 files under `folder`, with new UIDs at every call."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now().astimezone()
    return [
        sample
        for number, study in enumerate(STUDIES, 1)
        for sample in _write_study(folder, study, f"DEMO-{number:02}", now)
    ]


def read_images(folder: Path, into: Path) -> SampleImages:
    """Collect the images of a folder and its subfolders.

    DICOM files are used unchanged, in their place. JPEG and PNG files are wrapped with
    `radiograph_from_picture` into Part 10 files under `into`, each as a separate study. The truth is known if
    the parent folder is named ``NORMAL`` or ``PNEUMONIA``. Hidden files are ignored.

    Raises
    ------
    UserError
        If `folder` is not a folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    into.mkdir(parents=True, exist_ok=True)
    images = SampleImages([], [])
    for path in _files(folder, without=into):
        try:
            images.samples.append(_read(path, into / f"{len(images.samples) + 1:06}.dcm"))
        except ValueError as error:
            images.skipped.append((path, str(error)))
    return images


def radiograph_from_picture(path: Path) -> Dataset:
    """Wrap a JPEG or PNG file as Secondary Capture Image (PS3.3 A.8.1) of a chest, antero-posterior.

    Colour becomes grey, 16 bits become 8. The Patient ID is a digest of the file, so that one picture under
    two names is one patient.

    Raises
    ------
    ValueError
        If the file is not a JPEG or PNG, or does not decode; the message says why.
    """
    encoded = path.read_bytes()
    picture, is_jpeg = _grey(encoded)
    digest = sha256(encoded).hexdigest()[:12].upper()
    ds = _instance(SecondaryCaptureImageStorage, datetime.now().astimezone())
    ds.SpecificCharacterSet = "ISO_IR 192"
    # PS3.5 6.2: in PN, backslash, caret and equals sign have a meaning, and 64 characters is the limit
    name = path.stem.encode("utf-8", "replace").decode()
    ds.PatientName = "Picture^" + re.sub(r"[\\^=\x00-\x1f\x7f]", "_", name)[:56]
    ds.PatientID, ds.PatientBirthDate, ds.PatientSex = f"PIC-{digest}", "", ""
    ds.AccessionNumber, ds.StudyID = "", "1"
    ds.StudyDescription = "Chest, picture file"
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "CR", 1, 1
    ds.ConversionType, ds.ImageType = "WSD", ["DERIVED", "SECONDARY"]
    ds.BodyPartExamined, ds.ViewPosition = "CHEST", "AP"
    ds.PatientOrientation = ["L", "F"]
    _set_view_codes(ds, "CHEST", "AP")
    ds.LossyImageCompression = "01" if is_jpeg else "00"
    if is_jpeg:
        ds.LossyImageCompressionMethod = "ISO_10918_1"
        ds.LossyImageCompressionRatio = f"{picture.size / len(encoded):.4g}"
    # C.11.2.1.2.1: the whole scale of 8 bits, so that a pale picture is not stretched to more contrast
    ds.WindowCenter, ds.WindowWidth = "128", "256"
    _set_pixels(ds, picture, 8, "MONOCHROME2")
    return ds


def _files(folder: Path, without: Path) -> Iterator[Path]:
    """Yield the visible files under `folder` in the order of their names, but not our own output."""
    own = without.resolve()
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and (here / f).resolve() != own)
        if here.resolve() != own:
            yield from (here / name for name in sorted(names) if not name.startswith("."))


def _read(path: Path, target: Path) -> Sample:
    """Return the sample in `path`, wrapped into `target` if a picture; ValueError if neither."""
    try:
        if is_dicom(path):
            return _as_it_is(path)
        ds = radiograph_from_picture(path)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from error
    ds.save_as(target, enforce_file_format=True)
    return _sample(ds, target, *_named_truth(path))


def _as_it_is(path: Path) -> Sample:
    """Return the sample in a DICOM file; ValueError if it has no image."""
    try:
        header = read_header(path)
        found = identity(header)
    except UnreadableHeader as error:
        raise ValueError(f"a DICOM file that is not understood: {error}") from error
    if "Rows" not in header:
        raise ValueError("a DICOM file without an image: Rows is missing")
    uids = found.study_instance_uid, found.sop_instance_uid
    return Sample(found.patient_id, *_named_truth(path), path, *uids)


def _named_truth(path: Path) -> tuple[str, Expected | None]:
    known: dict[str, Expected] = {"NORMAL": "negative", "PNEUMONIA": "positive"}
    folder = path.absolute().parent.name
    expected = known.get(folder)
    return (folder.lower() if expected else ""), expected


def _sample(ds: Dataset, path: Path, truth: str, expected: Expected | None) -> Sample:
    patient = str(ds.get("PatientID", "") or "")
    return Sample(patient, truth, expected, path, str(ds.StudyInstanceUID), str(ds.SOPInstanceUID))


def _grey(encoded: bytes) -> tuple[NDArray[np.uint8], bool]:
    """Return the picture (rows, columns) uint8, and whether it is a JPEG."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(BytesIO(encoded), formats=KINDS) as picture:
            grey, is_jpeg = _eight_bits(ImageOps.exif_transpose(picture)), picture.format == "JPEG"
    except UnidentifiedImageError as error:
        raise ValueError("no DICOM, JPEG or PNG file") from error
    except Exception as error:
        # Decoders raise nearly anything on bad bytes: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"a picture that does not decode: {error}") from error
    if max(grey.shape) > 0xFFFF:
        raise ValueError("a picture with more rows or columns than DICOM allows")
    return grey, is_jpeg


def _eight_bits(picture: Image.Image) -> NDArray[np.uint8]:
    if picture.mode.startswith("I"):
        return (np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8)
    return np.asarray(picture.convert("L"))


def _write_study(folder: Path, study: _SampleStudy, patient: str, now: datetime) -> Iterator[Sample]:
    study_uid, series_uid = _new_uid(), _new_uid()
    for number, view in enumerate(study.views, 1):
        ds = _radiograph(view, now)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study_uid, series_uid
        ds.SeriesNumber, ds.InstanceNumber = 1, number
        _set_patient(ds, study, patient, now)
        path = folder / f"{patient}-{number}.dcm"
        ds.save_as(path, enforce_file_format=True)
        yield _sample(ds, path, view.truth, view.expected)


def _set_patient(ds: Dataset, study: _SampleStudy, patient: str, now: datetime) -> None:
    if not study.name.isascii():
        ds.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    ds.PatientName, ds.PatientID, ds.IssuerOfPatientID = study.name, patient, "PACS-NODE-DEMO"
    born = now - timedelta(days=round(365.25 * study.age) + 100)
    ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = f"{born:%Y%m%d}", study.sex, f"{study.age:03}Y"
    ds.AccessionNumber = f"{patient}-{now:%y%m%d}"  # SH, 16 characters at most
    ds.StudyID = patient


def _radiograph(view: _View, now: datetime) -> Dataset:
    """Return the image of one view as a DX (PS3.3 A.26) or CR (A.2) data set, without patient and study."""
    sop_class = (
        DigitalXRayImageStorageForPresentation if view.kind == "DX" else ComputedRadiographyImageStorage
    )
    ds = _instance(sop_class, now)
    ds.Modality, ds.Manufacturer, ds.ManufacturerModelName = view.kind, "Synthetic", "Phantom"
    ds.DeviceSerialNumber, ds.SoftwareVersions, ds.InstitutionName = "1", "1", "Demo Hospital"
    ds.StudyDescription = ds.SeriesDescription = f"X-ray {view.region.lower()}"
    ds.BodyPartExamined, ds.ViewPosition = view.region, view.position
    ds.PatientOrientation = list(view.orientation)
    ds.ImageType = ["ORIGINAL", "PRIMARY", ""] if view.kind == "DX" else ["ORIGINAL", "PRIMARY"]
    ds.ImagerPixelSpacing = [SPACING_MM, SPACING_MM]
    ds.LossyImageCompression, ds.BurnedInAnnotation = "00", "NO"
    _set_view_codes(ds, view.region, view.position)
    if view.kind == "DX":
        _set_dx(ds, view)
    _set_film(ds, view)
    return ds


def _instance(sop_class: UID, now: datetime) -> Dataset:
    """Return a data set with new UIDs, dated `now`, ready to be saved as Explicit VR Little Endian."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, _new_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = _new_uid(), _new_uid()
    for step in ("Study", "Series", "Acquisition", "Content"):
        setattr(ds, f"{step}Date", f"{now:%Y%m%d}")
        setattr(ds, f"{step}Time", f"{now:%H%M%S}")
    ds.TimezoneOffsetFromUTC = f"{now:%z}"
    ds.ReferringPhysicianName, ds.Manufacturer = "", ""
    return ds


def _set_view_codes(ds: Dataset, region: str, position: str) -> None:
    ds.AnatomicRegionSequence = [_code(*REGIONS[region])]
    ds.ViewCodeSequence = [_code(*VIEWS[position])]


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def _set_dx(ds: Dataset, view: _View) -> None:
    """Add what the DX modules require in addition to CR (PS3.3 C.8.11)."""
    ds.PresentationIntentType, ds.ImageLaterality = "FOR PRESENTATION", view.laterality
    ds.ViewCodeSequence[0].ViewModifierCodeSequence = []
    # C.8.11.3.1.2: here higher values stand for less X-ray intensity
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    ds.PresentationLUTShape = "IDENTITY"
    ds.DetectorType, ds.AcquisitionContextSequence = "SCINTILLATOR", []
    ds.PositionerType = "COLUMN"


def _set_film(ds: Dataset, view: _View) -> None:
    """Add the drawn pixels, leaving headroom above and below the window as detectors do."""
    top = 2**view.bits - 1
    low, high = round(0.05 * top), round(0.95 * top)
    stored = np.rint(low + view.draw() * (high - low)).astype(np.uint16)
    if view.photometric == "MONOCHROME1":
        stored = (low + high - stored).astype(np.uint16)
    # C.11.2.1.2.1: this window of the LINEAR function runs exactly from `low` to `high`
    ds.WindowCenter, ds.WindowWidth = f"{(low + high + 1) / 2:g}", f"{high - low + 1}"
    _set_pixels(ds, stored, view.bits, view.photometric)
    if view.compressed:
        ds.compress(JPEG2000Lossless, generate_instance_uid=False)
    if view.truncated:
        ds.PixelData = ds.PixelData[: len(ds.PixelData) // 4 * 2]


def _set_pixels(ds: Dataset, stored: NDArray[Any], bits: int, photometric: str) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, photometric
    ds.Rows, ds.Columns = stored.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = stored.itemsize * 8, bits, bits - 1
    ds.PixelRepresentation = 0
    encoded = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    ds.PixelData = encoded + b"\0" * (len(encoded) % 2)
    ds["PixelData"].VR = "OB" if stored.itemsize == 1 else "OW"


def _new_uid() -> str:
    return f"2.25.{uuid.uuid4().int}"
