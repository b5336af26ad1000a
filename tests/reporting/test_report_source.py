"""What the report takes from the header of its source: bytes that stay the same, and nothing illegal."""

from __future__ import annotations

import copy
import warnings
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_charset_files
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from pacs_node.errors import InvalidReport
from pacs_node.reporting.report import REPORT_CLASSES, as_class
from tests.conftest import code, radiograph
from tests.helpers.reports import ALGORITHM, assert_valid, errors, find, not_scored, report, scored, tree

PATIENT_NAME, PATIENT_ID, SPECIFIC_CHARACTER_SET = 0x00100010, 0x00100020, 0x00080005
PHYSICIAN, STUDY_DESCRIPTION, ACCESSION_NUMBER = 0x00080090, 0x00081030, 0x00080050


def put(header: Dataset, tag: int, value: bytes, vr: str | None = None) -> None:
    """Set an element to bytes, as reading a file would leave it."""
    header[tag] = RawDataElement(Tag(tag), vr or dictionary_VR(tag), len(value), value, 0, False, True)


def received(charset: bytes = b"", **values: bytes) -> Dataset:
    """Return a header with raw values, by keyword; its charset is absent where empty."""
    header = radiograph()
    del header.PixelData
    if charset:
        put(header, SPECIFIC_CHARACTER_SET, charset, "CS")
    for keyword, value in values.items():
        put(header, tag_for_keyword(keyword) or 0, value)
    return header


def raw(content: bytes, tag: int) -> bytes:
    """Return the bytes of a value at the root of a file, where pydicom has not touched them."""
    read = read_back(content)
    return charset_of(read) if tag == SPECIFIC_CHARACTER_SET else bytes(read.get_item(tag).value or b"")


def read_back(content: bytes) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some tests keep a character set that pydicom lacks
        return dcmread(BytesIO(content))


def charset_of(read: Dataset) -> bytes:
    """Return Specific Character Set, which pydicom decodes while it reads; empty where absent."""
    value = read[SPECIFIC_CHARACTER_SET].value if SPECIFIC_CHARACTER_SET in read else ""
    return (value if isinstance(value, str) else "\\".join(value)).encode()


def in_file(content: bytes, value: bytes) -> bool:
    """Tell whether the file holds a value of exactly these bytes, padded, after a two-byte length."""
    padded = value + b" " * (len(value) % 2)
    return len(padded).to_bytes(2, "little") + padded in content


def grave(said: list[str]) -> list[str]:
    """Leave out that text cannot be read under the character set declared, which the report keeps."""
    about = ("invalid for character repertoire", "SpecificCharacterSet", "Specific Character Set")
    rest = [line for line in said if not any(words in line for words in about)]
    return [] if all("contains invalid data values" in line for line in rest) else rest


CHARSET_FILES = {
    Path(file).stem: file
    for file in map(str, get_charset_files("*.dcm"))
    if PATIENT_NAME in dcmread(file, stop_before_pixels=True, specific_tags=[PATIENT_NAME])
}


@pytest.mark.parametrize("sop_class", REPORT_CLASSES)
@pytest.mark.parametrize("name", CHARSET_FILES)
def test_real_names_keep_their_bytes(name: str, sop_class: str, tmp_path: Path) -> None:
    source = dcmread(CHARSET_FILES[name], stop_before_pixels=True)
    value = bytes(source.get_item(PATIENT_NAME).value)
    header = radiograph()
    header[SPECIFIC_CHARACTER_SET] = source[SPECIFIC_CHARACTER_SET]
    for tag in (PATIENT_NAME, PHYSICIAN):
        put(header, tag, value)
    put(header, STUDY_DESCRIPTION, value.split(b"=", maxsplit=1)[0])
    content = as_class(report(scored(header)).content, sop_class).content
    assert raw(content, PATIENT_NAME) == value + b" " * (len(value) % 2)
    assert raw(content, PHYSICIAN).startswith(value)
    assert raw(content, SPECIFIC_CHARACTER_SET) == charset_of(source)
    assert dcmread(BytesIO(content)).PatientName == source.PatientName
    assert_valid(content, tmp_path)


NAMES = {
    "Chinese GB18030": (b"GB18030", "Wang^XiaoDong=王^小东", "gb18030"),
    "Chinese GBK": (b"GBK", "Wang^XiaoDong=王^小东", "gbk"),
    "a GBK character that ends in a backslash": (b"GBK", "乗^小", "gbk"),
    "UTF-8": (b"ISO_IR 192", "Wang^XiaoDong=王^小东=", "utf-8"),
    "Polish": (b"ISO_IR 101", "Żółć^Łucja", "iso8859_2"),
    "Maltese": (b"ISO_IR 109", "Ħaġar^Ċensu", "iso8859_3"),
    "Latvian": (b"ISO_IR 110", "Bērziņš^Jānis", "iso8859_4"),
    "Turkish": (b"ISO_IR 148", "Çavuşoğlu^İpek", "iso8859_9"),
    "Thai": (b"ISO_IR 166", "สมชาย^ใจดี", "iso8859_11"),
    "half-width Katakana": (b"ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ", "shift_jis"),
    "Japanese with JIS X 0212": (b"\\ISO 2022 IR 87\\ISO 2022 IR 159", "Yama=丂^山", "iso2022_jp_2"),
    "64 characters of 3 bytes": (b"ISO_IR 192", "東" * 64, "utf-8"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_all_character_sets_keep_their_bytes(name: str) -> None:
    charset, text, codec = NAMES[name]
    value = text.encode(codec)
    content = report(scored(received(charset, PatientName=value))).content
    assert raw(content, PATIENT_NAME).rstrip(b" ") == value
    assert raw(content, SPECIFIC_CHARACTER_SET).rstrip(b" ") == charset


@pytest.mark.parametrize("name", CHARSET_FILES)
def test_names_that_pydicom_decoded_meanwhile_still_say_the_same(name: str) -> None:
    header = dcmread(CHARSET_FILES[name], stop_before_pixels=True)
    expected = header.PatientName
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(header, keyword, radiograph()[keyword].value)
    assert dcmread(BytesIO(report(scored(header)).content)).PatientName == expected


def test_the_decoded_text_of_a_made_header_is_encoded_in_its_character_set() -> None:
    header = radiograph(SpecificCharacterSet="ISO_IR 144", PatientName="Люкceмбypг", StudyDescription="é")
    content = report(scored(header)).content
    assert raw(content, PATIENT_NAME) == "Люкceмбypг".encode("iso8859_5")
    assert raw(content, STUDY_DESCRIPTION) == b"? "  # not in the set; pydicom's replacement


def test_text_in_sequences_keeps_its_bytes_and_its_own_character_set(tmp_path: Path) -> None:
    kanji, greek = "胸部".encode("iso2022_jp"), "Θώρακας".encode("iso8859_7")
    header = received(b"\\ISO 2022 IR 87", PatientName=b"Yamada^Tarou")
    request, procedure = header.RequestAttributesSequence[0], code("CXR", "99LOCAL", "Chest")
    put(request, SPECIFIC_CHARACTER_SET, b"ISO_IR 126", "CS")
    put(request, 0x00321060, greek)
    put(procedure, 0x00080104, kanji)
    header.ProcedureCodeSequence = [procedure]
    content = report(scored(header)).content
    assert content.count(kanji) == 2  # ProcedureCodeSequence and (121058, DCM, "Procedure reported")
    assert in_file(content, greek)
    read = dcmread(BytesIO(content))
    assert read.ReferencedRequestSequence[0].RequestedProcedureDescription == "Θώρακας"
    assert find(content, "Procedure reported") == ["CXR 99LOCAL 胸部"]
    header.ProcedureCodeSequence = []
    put(request.RequestedProcedureCodeSequence[0], 0x00080104, greek)
    content = report(scored(header)).content
    assert find(content, "Procedure reported") == ["399208008 SCT Θώρακας"]
    assert_valid(content, tmp_path)


@pytest.mark.parametrize(
    ("declared", "name", "becomes"),
    [
        (b"", b"M\xfcller^Eva", b"ISO_IR 100"),
        (b" ", b"M\xfcller^Eva", b"ISO_IR 100"),
        (b"\\", b"M\xfcller^Eva", b"ISO_IR 100"),
        (b"", "김^희중".encode("euc-kr"), b"ISO_IR 100"),
        (b"", b"Mueller", b""),
        (b"", "Müller^Eva".encode(), b"ISO_IR 192"),
        (b"ISO_IR 6", b"M\xfcller^Eva", b"ISO_IR 6"),
        (b"ISO_IR 999", b"M\xfcller^Eva", b"ISO_IR 999"),
        (b"ISO_IR 999", "Müller^Eva".encode(), b"ISO_IR 192"),
        (b"x-sjis", "山田".encode("shift_jis"), b"x-sjis"),
        (b"ISO_IR 149", "김^희중".encode("euc-kr"), b"ISO 2022 IR 149"),
        (b"EUC-KR", "김^희중".encode("euc-kr"), b"ISO 2022 IR 149"),
        (b"UTF-8", "Müller^Eva".encode(), b"ISO_IR 192"),
        (b"ISO-8859-1", b"M\xfcller^Eva", b"ISO_IR 100"),
        (b"gb 18030", "王^小东".encode("gb18030"), b"GB18030"),
        (b"\\ISO_IR 87", b"Yamada=\x1b$B;3ED\x1b(B", b"\\ISO 2022 IR 87"),
        (b"utf-8", "Müller^Eva".encode(), b"ISO_IR 192"),
        (b"ISO-IR 144", b"\xbb\xee\xda", b"ISO_IR 144"),
        (b"iso_ir 100", b"Mueller", b"ISO_IR 100"),
        (b"windows-1252", b"Mueller", b"ISO_IR 100"),
        (b"my own set", b"Mueller", b""),
        (b"ISO_IR 999", b"Mueller", b"ISO_IR 999"),
        (b"ISO_IR 192", b"M\xfcller^Eva", b"ISO_IR 192"),
    ],
)
def test_a_wrong_character_set_is_mended_and_the_text_is_not(
    declared: bytes, name: bytes, becomes: bytes, tmp_path: Path
) -> None:
    content = report(scored(received(declared, PatientName=name))).content
    assert raw(content, PATIENT_NAME).rstrip() == name
    assert (
        raw(content, SPECIFIC_CHARACTER_SET) if becomes else charset_of(read_back(content))
    ).rstrip() == becomes
    said = errors(content, tmp_path)
    assert (said if declared.strip(b" \\") == b"" else grave(said)) == []


@pytest.mark.parametrize(
    ("physician", "in_report", "declared"),
    [
        ("Köhler".encode(), "Köhler".encode(), b"ISO_IR 192"),
        (b"K\xf6hler", b"", b"ISO_IR 192"),
        (b"Koehler ", b"Koehler ", b"ISO_IR 192"),
    ],
)
def test_name_and_ids_decide_what_undeclared_text_is(
    physician: bytes, in_report: bytes, declared: bytes, tmp_path: Path
) -> None:
    name = "Müller^Eva".encode()
    header = received(PatientName=name, ReferringPhysicianName=physician)
    content = report(scored(header)).content
    assert raw(content, SPECIFIC_CHARACTER_SET) == declared
    assert raw(content, PATIENT_NAME).rstrip() == name
    assert raw(content, PHYSICIAN).rstrip() == in_report.rstrip()
    assert errors(content, tmp_path) == []


@pytest.mark.parametrize("name", [b"Mueller", b"M\xfcller", "Müller".encode()])
@pytest.mark.parametrize("procedure", [b"R\xf6ntgen Thorax", "Röntgen Thorax".encode()])
def test_undeclared_text_in_sequences_is_legal_in_the_report(
    name: bytes, procedure: bytes, tmp_path: Path
) -> None:
    header = received(PatientName=name)
    request = header.RequestAttributesSequence[0]
    header.ProcedureCodeSequence = []
    put(request, 0x00321060, procedure)
    put(request, 0x60003000, b"\xff\xff", "OW")  # an attribute without a tag of its own
    put(request.RequestedProcedureCodeSequence[0], 0x00080104, procedure)
    content = report(scored(header)).content
    assert in_file(content, procedure)
    read = dcmread(BytesIO(content))
    assert read.ReferencedRequestSequence[0].RequestedProcedureDescription == "Röntgen Thorax"
    assert find(content, "Procedure reported") == ["399208008 SCT Röntgen Thorax"]
    assert errors(content, tmp_path) == []


@pytest.mark.parametrize(
    ("keyword", "value", "becomes"),
    [
        ("PatientID", b"A" * 65, b""),
        ("PatientID", b"A\\B", b""),
        ("PatientID", b"A\nB", b""),
        ("PatientID", b" 0815 ", b" 0815 "),
        ("PatientID", b"0815\0", b"0815"),
        ("PatientID", b"0815" + b" " * 66, b"0815"),
        ("AccessionNumber", b"A" * 17, b""),
        ("PatientName", b"A^B^C^D^E", b"A^B^C^D^E "),
        ("PatientName", b"A^B^C^D^E^F", b""),
        ("PatientName", b"Doe^John^^^^^^", b"Doe^John"),
        ("PatientName", b"A=B=C=D", b""),
        ("PatientName", b"A" * 65, b""),
        ("PatientName", b"M\x81ller", b""),
        ("PatientName", b"=\x1b$B;3\x1aED\x1b(B", b""),
        ("PatientBirthDate", b"1960", b""),
        ("PatientBirthDate", b"20250229", b""),
        ("PatientBirthDate", b"1960.02.28", b"19600228"),
        ("StudyTime", b"25:00", b""),
        ("StudyTime", b"2500", b""),
        ("StudyTime", b"10:11:12.5", b"101112.5"),
        ("StudyDate", b"2026.11.01", b"20261101"),
        ("StudyDate", b"2026-11-01", b"20261101"),
        ("StudyDate", b"01.11.2026", b""),
        ("StudyTime", b"101530.123456 ", b"101530.123456 "),
        ("PatientSex", b"W ", b""),
        ("PatientSex", b"m ", b""),
        ("PatientAge", b"65", None),
        ("PatientWeight", b"70,5", None),
        ("PatientWeight", b"70.5", b"70.5"),
        ("TimezoneOffsetFromUTC", b"+1500 ", None),
    ],
)
def test_a_value_that_its_vr_forbids_is_left_out(
    keyword: str, value: bytes, becomes: bytes | None, tmp_path: Path
) -> None:
    tag = tag_for_keyword(keyword) or 0
    content = report(scored(received(b"ISO 2022 IR 100\\ISO 2022 IR 87", **{keyword: value}))).content
    assert (raw(content, tag) if tag in dcmread(BytesIO(content)) else None) == becomes
    assert errors(content, tmp_path) == []


def test_8_bit_text_under_a_7_bit_character_set_is_what_the_images_say() -> None:
    header = received(b"\\ISO 2022 IR 87", PatientName=b"M\xfcller", StudyDescription=b"CHEST ")
    content = report(scored(header)).content
    assert raw(content, PATIENT_NAME) == b"M\xfcller"
    assert raw(content, STUDY_DESCRIPTION) == b"CHEST "
    assert raw(content, SPECIFIC_CHARACTER_SET) == b"\\ISO 2022 IR 87"


def test_broken_codes_and_sequences_cost_only_themselves(tmp_path: Path) -> None:
    header = received(ProcedureCodeSequence=b"\xfe\xff\x00\xe0\xff\xff", ViewCodeSequence=b"junk")
    too_long = code("CXR1", "99LOCAL", "Chest")
    put(too_long, 0x00080100, b"A" * 17)
    header.RequestAttributesSequence[0].RequestedProcedureCodeSequence = [
        too_long,
        code("CXR", "", "no scheme"),
        code("CXR2", "99LOCAL", "Chest two views"),
    ]
    content = report(scored(header)).content
    assert find(content, "Procedure reported") == ["CXR2 99LOCAL Chest two views"]
    assert "ProcedureCodeSequence" not in dcmread(BytesIO(content))
    assert_valid(content, tmp_path)
    header.RequestAttributesSequence = []
    assert find(report(scored(header)).content, "Procedure reported") == ["399208008 SCT Plain chest X-ray"]


def test_the_issuers_and_the_order_reach_the_report(tmp_path: Path) -> None:
    header = radiograph()
    issuer, patient = Dataset(), Dataset()
    issuer.UniversalEntityID, issuer.UniversalEntityIDType = "1.2.3", "ISO"
    patient.PatientID, patient.IssuerOfPatientID, patient.TypeOfPatientID = "OTHER", "HOSPITAL-B", "TEXT"
    header.IssuerOfAccessionNumberSequence = [issuer]
    header.IssuerOfPatientIDQualifiersSequence = [issuer]
    header.OtherPatientIDsSequence = [patient, Dataset()]
    content = report(scored(header)).content
    read = dcmread(BytesIO(content))
    assert read.IssuerOfPatientID == "HOSPITAL-A"
    assert read.IssuerOfAccessionNumberSequence[0].UniversalEntityID == "1.2.3"
    assert read.IssuerOfPatientIDQualifiersSequence[0].UniversalEntityIDType == "ISO"
    assert [item.PatientID for item in read.OtherPatientIDsSequence] == ["OTHER"]
    (request,) = read.ReferencedRequestSequence
    assert (request.AccessionNumber, request.RequestedProcedureID) == ("ACC-1", "RP77")
    assert request.StudyInstanceUID == header.StudyInstanceUID
    assert_valid(content, tmp_path)


def test_a_uid_with_leading_zeros_stays_the_key_that_the_archive_has(tmp_path: Path) -> None:
    header = received(StudyInstanceUID=b"1.02.003", SOPInstanceUID=b"1.2.0004\0")
    content = report(scored(header)).content
    assert raw(content, 0x0020000D) == b"1.02.003"
    assert content.count(b"1.2.0004") == 3  # evidence, image library, measurement group
    said = errors(content, tmp_path)
    assert all("Leading zero" in line or "invalid data values" in line for line in said)
    for broken in (b"", b"1.2.abc", b"1.2\\1.3", b"1" * 65):
        with pytest.raises(InvalidReport, match="no legal SOPInstanceUID"):
            report(scored(received(SOPInstanceUID=broken)))


def test_the_image_library_takes_only_what_is_legal() -> None:
    plain = tree(report(scored(radiograph("SC", Modality=None))).content)
    assert any("Modality = OT DCM Other" in line for line in plain)
    assert not any("Pixel Spacing" in line for line in plain)
    header = received(
        ImagerPixelSpacing=b"0\\0 ", PatientOrientation=b"L ", StudyDate=b"2025", ViewPosition=b"??"
    )
    put(header, 0x00280010, b"\0\1\2")
    lines = tree(report(scored(header)).content)
    for absent in ("Spacing", "Orientation", "Study Date", "Pixel Data Rows"):
        assert not any(absent in line for line in lines)
    assert any("Image View = 272479007 SCT postero-anterior" in line for line in lines)  # the code stands in
    leap = report(scored(received(AcquisitionTime=b"235960"))).content
    assert find(leap, "Acquisition Time") == ["235960"]


UIDS = {0x00080016, 0x00080018, 0x0020000D, 0x0020000E}
TEMPLATE = radiograph()
del TEMPLATE.PixelData
TAGS = sorted({*map(int, TEMPLATE.keys()), 0x00080051, 0x00100024, 0x00101002, 0x0040A370, 0x00101030} - UIDS)
CHARSETS = [
    b"",
    b"ISO_IR 100",
    b"\\ISO 2022 IR 87",
    b"ISO_IR 192",
    b"\\ISO 2022 IR 149",
    b"ISO_IR 6",
    b"l\\x",
]
NASTY = [
    *(
        b"",
        b"\0",
        b"  ",
        b"1960",
        b"25:00",
        b"20250231",
        b"A\\B",
        b"A" * 70,
        b"A\tB",
        b"M\xfcller",
        b"\x1b$B",
    ),
    *(b"A^B^C^D^E^F", b"=====", b"\\\\", b"\xff" * 20, "Müller".encode(), b"-1", b"1e999", b"nan", b"+9900"),
    *(b"\xfe\xff\x00\xe0\x04\x00\x00\x00junk", b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\x80\x9f", b"\x1b(J\\"),
]
DAMAGE = st.dictionaries(
    st.sampled_from(TAGS),
    st.one_of(st.none(), st.sampled_from(NASTY), st.binary(max_size=80)),
    max_size=len(TAGS),
)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(damage=DAMAGE, charset=st.sampled_from(CHARSETS), untyped=st.booleans())
def test_no_header_crashes_or_makes_an_invalid_report(
    damage: dict[int, bytes | None], charset: bytes, untyped: bool, tmp_path: Path
) -> None:
    header = copy.deepcopy(TEMPLATE)
    for tag, value in damage.items():
        if value is None:
            header.pop(tag, None)
        else:
            put(header, tag, value, "UN" if untyped else None)
    put(header, SPECIFIC_CHARACTER_SET, charset, "CS")
    content = report(scored(header), not_scored(radiograph(number=2))).content
    assert ALGORITHM.sha256.encode() in content
    said = errors(content, tmp_path)
    assert (grave(said) if charset else said) == []
