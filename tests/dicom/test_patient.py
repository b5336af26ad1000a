"""Whether two objects name the same patient, in all the ways in which the same and others are written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pacs_node.dicom.header import identity, read_header
from pacs_node.dicom.patient import Patient, are_different, is_same
from tests.conftest import radiograph, save

ONE = Patient("P-ONE", "HOSPITAL-A", "One^Patient", "20210214")
NO_ISSUER = replace(ONE, issuer="")
NO_ID = replace(ONE, patient_id="", issuer="")
NOBODY = Patient("", "", "", "")

SAME = {
    "padding": (ONE, replace(ONE, patient_id=" P-ONE  ", issuer="HOSPITAL-A ")),
    "spelling of a name": (ONE, replace(ONE, name="Won^Patient", birth_date="20210215")),
    "issuer left out": (ONE, NO_ISSUER),
    "issuer left out of both": (NO_ISSUER, NO_ISSUER),
    "ID left out": (ONE, NO_ID),
    "case of a name": (NO_ID, replace(NO_ID, name="ONE^PATIENT")),
    "trailing components": (NO_ID, replace(NO_ID, name="One^Patient^^^")),
    "spaces in components": (NO_ID, replace(NO_ID, name=" One ^ Patient ")),
    "component groups": (NO_ID, replace(NO_ID, name="One^Patient=一^患者=いち^かんじゃ")),
    "trailing groups": (NO_ID, replace(NO_ID, name="One^Patient==")),
    "birth date left out": (NO_ISSUER, replace(NO_ISSUER, birth_date="")),
    "name left out beside an ID": (NO_ISSUER, replace(NO_ISSUER, name="")),
    "half width": (replace(NO_ID, name="ﾔﾏﾀﾞ^ﾀﾛｳ"), replace(NO_ID, name="ヤマダ^タロウ")),
    "composed letters": (replace(NO_ID, name="Müller"), replace(NO_ID, name="Mu\u0308ller")),
    "nobody": (NOBODY, NOBODY),
}
DIFFERENT = {
    "ID": (ONE, replace(ONE, patient_id="P-TWO")),
    "ID without issuer": (NO_ISSUER, replace(NO_ISSUER, patient_id="P-TWO")),
    "case of an ID": (ONE, replace(ONE, patient_id="p-one")),
    "leading zeros": (replace(ONE, patient_id="0012"), replace(ONE, patient_id="12")),
    "issuer": (ONE, replace(ONE, issuer="HOSPITAL-B")),
    "name beside an ID without issuer": (ONE, replace(NO_ISSUER, name="Two^Patient")),
    "birth date beside an ID without issuer": (ONE, replace(NO_ISSUER, birth_date="20220214")),
    "name without ID": (NO_ID, replace(NO_ID, name="Two^Patient")),
    "birth date without ID": (NO_ID, replace(NO_ID, birth_date="20220214")),
    "ideographic group": (replace(NO_ID, name="Wang^Wei=王^伟"), replace(NO_ID, name="Wang^Wei=王^薇")),
    "other separators": (replace(NO_ID, name="One^Two"), replace(NO_ID, name="One Two")),
    "fullwidth caret": (replace(NO_ID, name="One^Two"), replace(NO_ID, name="One＾Two")),
    "no group in common": (replace(NO_ID, name="=一^患者"), NO_ID),
    "nobody and somebody": (NOBODY, NO_ID),
}


@pytest.mark.parametrize("pair", SAME.values(), ids=[*SAME])
def test_the_same_patient_is_known_however_it_is_written(pair: tuple[Patient, Patient]) -> None:
    assert is_same(*pair)
    assert is_same(*reversed(pair))


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=[*DIFFERENT])
def test_two_patients_are_told_apart(pair: tuple[Patient, Patient]) -> None:
    assert not is_same(*pair)
    assert not is_same(*reversed(pair))


def test_every_pair_of_a_study_is_compared() -> None:
    elsewhere = replace(ONE, issuer="HOSPITAL-B")
    assert not are_different([NO_ISSUER, ONE])
    assert not are_different([NO_ISSUER, elsewhere])
    assert are_different([NO_ISSUER, ONE, elsewhere])
    assert not are_different([])


@pytest.mark.parametrize("terms", ["ISO_IR 192", "ISO_IR 100"])
def test_a_name_is_the_same_in_each_character_set(terms: str, tmp_path: Path) -> None:
    image = radiograph(SpecificCharacterSet=terms, PatientName="Müller^Jörg", PatientID="É1")
    found = identity(read_header(save(image, tmp_path / "image.dcm")))
    assert (found.patient_name, found.patient_id) == ("Müller^Jörg", "É1")
    assert (found.issuer_of_patient_id, found.patient_birth_date) == ("HOSPITAL-A", "20210214")
