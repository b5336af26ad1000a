"""Ages and dates, in every form in which tags were seen to tell them."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from pydicom import config
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from classifier.decoding.ages import Age, told
from classifier.decoding.dates import exact, span
from classifier.decoding.tags import quiet


def age(**tags: Any) -> Age:
    """Return the age that tags tell, whatever their values are."""
    header = Dataset()
    for keyword, value in tags.items():
        vr = dictionary_VR(keyword)
        header.add(DataElement(keyword, vr, value, validation_mode=config.IGNORE))
    with quiet():
        return told(header)


@pytest.mark.parametrize(
    ("stated", "years"),
    [
        *((value, 45) for value in ("045Y", "45Y", "45", "045", "0045Y", " 45 Y", "45 YRS", "45yr", "45y.")),
        *((value, 45) for value in ("45 Years", "45J", "45 ans", "45 años", "４５Y", "45.0", "45Y\0")),
        *((value, 1.5) for value in ("018M", "18M", "18 months", "1Y6M", "1.5Y", "1,5")),
        *((value, 1.0) for value in ("052W", "365D", "012M")),
        *((value, 0) for value in ("000D", "0")),
        *((value, None) for value in ("", "Y", "ADULT", "45X", "-", "4-5Y", "O45Y", "045Y/M", "4 or 5")),
    ],
)
def test_patient_s_age_is_read_in_whatever_form_it_is_written(stated: str, years: float | None) -> None:
    found = age(PatientAge=stated)
    assert found.years == (None if years is None else pytest.approx(years, abs=0.01))
    assert found.doubt == ""


@pytest.mark.parametrize("stated", ["-5Y", "-1D", "131Y", "999Y", "9999D9999Y"])
def test_an_impossible_age_is_a_doubt(stated: str) -> None:
    assert "below 0 or above 130" in age(PatientAge=stated).doubt
    with_birth = age(PatientAge=stated, PatientBirthDate="20160101", StudyDate="20200101")
    assert with_birth.years == pytest.approx(4, abs=0.02)
    assert with_birth.doubt


BORN = ("19500101", "1950.01.01", "1950-01-01", "1950/1/1", "01.01.1950", "1.1.1950", "01/01/1950")
BORN_IN = ("1950", "195001", "19500000", "1950XXXX", "1950-01", "JAN 1950", "02/03/1950", "19501332")


@pytest.mark.parametrize("born", BORN + BORN_IN)
@pytest.mark.parametrize(
    "examined",
    [
        {"StudyDate": "20261101"},
        {"StudyDate": "2026.11.01"},
        {"StudyDate": "", "AcquisitionDate": "20261101"},
        {"StudyDate": "20261332", "SeriesDate": "20261101"},
        {"StudyDate": "00000000", "ContentDate": "20261101"},
        {"AcquisitionDateTime": "20261101101112.5+0100"},
        {"StudyDate": "2026"},
    ],
)
def test_a_birth_date_beside_any_date_of_the_image_tells_the_age(born: str, examined: dict[str, str]) -> None:
    found = age(PatientBirthDate=born, **examined)
    assert found.doubt == ""
    assert found.years is not None
    assert abs(found.years - 76.5) <= found.spread + 0.5
    assert found.spread <= 1.01
    assert (found.spread == 0) == (born in BORN and examined.get("StudyDate") != "2026")


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"PatientBirthDate": "19500101"},
        {"StudyDate": "20261101"},
        {"PatientBirthDate": "00000000", "StudyDate": "20261101"},
        {"PatientBirthDate": "01.01.50", "StudyDate": "20261101"},
        {"PatientBirthDate": "19122011", "StudyDate": "20261101"},  # 1912, or the 19th of December 2011
        {"PatientBirthDate": "190101", "StudyDate": "20261101"},  # 1901, or the 1st of January 2019
        {"PatientBirthDate": "ANONYMOUS", "StudyDate": "20261101"},
    ],
)
def test_what_tells_no_age_tells_none(tags: dict[str, str]) -> None:
    assert age(**tags) == Age()


@pytest.mark.parametrize(
    ("tags", "is_doubtful"),
    [
        ({"PatientAge": "004Y", "PatientBirthDate": "20160101", "StudyDate": "20200101"}, False),
        ({"PatientAge": "003Y", "PatientBirthDate": "20160101", "StudyDate": "20200101"}, False),
        ({"PatientAge": "005Y", "PatientBirthDate": "20160101", "StudyDate": "20200101"}, False),
        ({"PatientAge": "006Y", "PatientBirthDate": "20160101", "StudyDate": "20200101"}, True),
        ({"PatientAge": "002Y", "PatientBirthDate": "20160101", "StudyDate": "20200202"}, True),
        ({"PatientAge": "011M", "PatientBirthDate": "20160101", "StudyDate": "20170301"}, False),
        ({"PatientAge": "001M", "PatientBirthDate": "20151101", "StudyDate": "20170301"}, True),
        ({"PatientAge": "004Y", "PatientBirthDate": "1950", "StudyDate": "20200101"}, True),
        ({"PatientAge": "004Y", "PatientBirthDate": "19000101", "StudyDate": "20200101"}, True),
        ({"PatientAge": ["004Y", "045Y"]}, True),
        ({"PatientBirthDate": "20210101", "StudyDate": "20200101"}, True),
        ({"PatientBirthDate": "18000101", "StudyDate": "20200101"}, True),
        ({"PatientBirthDate": "20160101", "StudyDate": "20200101", "ContentDate": "20200301"}, False),
        ({"PatientBirthDate": "19500101", "StudyDate": "19530101", "AcquisitionDate": "20200101"}, True),
    ],
)
def test_attributes_that_are_more_than_a_year_apart_are_a_doubt(
    tags: dict[str, Any], is_doubtful: bool
) -> None:
    assert bool(age(**tags).doubt) == is_doubtful


@pytest.mark.parametrize(
    ("born", "studied", "completed"),
    [
        ("20200301", "20260228", 5),
        ("20200301", "20260301", 6),
        ("20190301", "20240229", 4),
        ("20181231", "20241230", 5),
        ("20200229", "20260228", 5),
        ("20200229", "20260301", 6),
    ],
)
def test_years_are_completed_on_the_birthday(born: str, studied: str, completed: int) -> None:
    assert age(PatientBirthDate=born, StudyDate=studied).completed() == (completed, completed)


def test_a_doubt_names_no_value() -> None:
    doubt = age(PatientAge="004Y", PatientBirthDate="19670512", StudyDate="20200101").doubt
    assert "1967" not in doubt
    assert "004" not in doubt


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("20261101", date(2026, 11, 1)),
        (" 20261101 ", date(2026, 11, 1)),
        ("2026.11.01", date(2026, 11, 1)),
        ("2026-11-01", date(2026, 11, 1)),
        ("20261101101112.000000+0100", date(2026, 11, 1)),
        ("2026-11-01T10:11:12", date(2026, 11, 1)),
        *(
            (text, None)
            for text in ("", "2026", "20261332", "2026.11", "01.11.2026", "202611010", "2026.11/01")
        ),
        *((text, None) for text in ("20261101\\20261102", "20261101-20261103", "0000.00.00")),
    ],
)
def test_a_date_is_exact_or_none(text: str, day: date | None) -> None:
    assert exact(text) == day
    if day:
        assert span(text) == (day, day)
