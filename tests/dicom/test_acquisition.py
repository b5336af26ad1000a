"""What is kept of how an image was made: the same by both parsers, clean, and of bounded length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom.dataelem import DataElement
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pacs_node.dicom.acquisition import Acquisition
from pacs_node.dicom.header import identity, read_header, scan
from tests.conftest import radiograph
from tests.dicom.test_header import data_set_of
from tests.helpers.part10 import encoded

TAGS = {
    "PatientSex": "F",
    "PatientAge": "007Y",
    "StudyTime": "083015.25",
    "StationName": "ROOM 2",
    "InstitutionName": "General Hospital",
    "Manufacturer": "Maker",
    "ManufacturerModelName": "DR 1",
    "DeviceSerialNumber": "SN-0042",
    "SoftwareVersions": ["1.2", "b7"],
    "PresentationIntentType": "FOR PRESENTATION",
}


def both(tmp_path: Path, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> tuple[Acquisition, bool]:
    """Return what the full parser reads, and whether the fast one read the same, not nothing."""
    path = encoded(radiograph(**tags), syntax, tmp_path / "x.dcm")
    found = identity(read_header(path))
    fast = scan(data_set_of(path), syntax)
    assert fast in (None, found)
    return found.acquisition, fast is not None


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_what_an_image_says_of_its_making_is_read_in_every_encoding(syntax: str, tmp_path: Path) -> None:
    found, is_fast = both(tmp_path, syntax, PatientBirthDate="", **TAGS)
    assert is_fast is (syntax != ExplicitVRBigEndian)
    assert (found.patient_sex, found.patient_age, found.study_time) == ("F", 7.0, "083015.25")
    assert (found.station_name, found.institution_name) == ("ROOM 2", "General Hospital")
    assert (found.manufacturer, found.manufacturer_model_name) == ("Maker", "DR 1")
    assert (found.device_serial_number, found.software_versions) == ("SN-0042", "1.2\\b7")
    assert found.presentation_intent_type == "FOR PRESENTATION"
    image = radiograph()
    assert (found.image_rows, found.image_columns) == (image.Rows, image.Columns)
    assert found.bits_stored == image.BitsStored


@pytest.mark.parametrize("character_set", ["ISO_IR 100", "ISO_IR 192"])
def test_a_hospital_with_an_umlaut_does_not_slow_reception_down(character_set: str, tmp_path: Path) -> None:
    tags = {"SpecificCharacterSet": character_set, "InstitutionName": "Universitätsspital Zürich"}
    assert both(tmp_path, **tags) == (both(tmp_path, **tags)[0], True)
    assert both(tmp_path, **tags)[0].institution_name == "Universitätsspital Zürich"


def test_a_text_of_an_undeclared_character_set_leaves_names_as_they_are(tmp_path: Path) -> None:
    image = radiograph(PatientName="Doe^Jane")
    image.SpecificCharacterSet = None
    image[0x00080080] = DataElement(0x00080080, "LO", "Zürich".encode("latin-1").decode("latin-1"))
    path = encoded(image, ExplicitVRLittleEndian, tmp_path / "x.dcm")
    found = identity(read_header(path))
    assert found.patient_name == "Doe^Jane"
    assert scan(data_set_of(path), ExplicitVRLittleEndian) in (None, found)


@pytest.mark.filterwarnings("ignore")  # pydicom's, of values that break the Standard
@pytest.mark.parametrize(
    ("tags", "name", "expected"),
    [
        ({"PatientAge": "", "PatientBirthDate": "20000101", "StudyDate": "20260101"}, "patient_age", 26.0),
        ({"PatientAge": "006M"}, "patient_age", 0.5),
        ({"PatientAge": "old", "PatientBirthDate": ""}, "patient_age", None),
        ({"SoftwareVersions": ["1 ", " 2"]}, "software_versions", None),
        ({"Manufacturer": "M" * 80}, "manufacturer", "M" * 63 + "…"),
        ({"StationName": "A\tB"}, "station_name", "AB"),
    ],
)
def test_both_parsers_agree_on_unusual_values(
    tags: dict[str, Any], name: str, expected: object, tmp_path: Path
) -> None:
    found, _ = both(tmp_path, **{"PatientBirthDate": "", **tags})
    if name != "software_versions":
        assert getattr(found, name) == pytest.approx(expected, abs=0.01)
