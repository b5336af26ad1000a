"""Reading headers from bytes that anybody may have sent: bounded, clean, and refused where they must be."""

from __future__ import annotations

import struct
import time
import tracemalloc
import unicodedata
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_charset_files
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from pacs_node.dicom.header import identity, read_header, scan, text
from pacs_node.errors import UnreadableHeader
from tests.conftest import radiograph, save, uid
from tests.helpers.part10 import TEMPLATE, encoded, explicit_element, part10, raw

MEBIBYTE = 2**20
PATIENT_NAME, PATIENT_ID, STUDY_INSTANCE_UID = 0x00100010, 0x00100020, 0x0020000D
UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
SYNTAXES = [
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]


def bare() -> Dataset:
    """Return a header of nothing but its UIDs."""
    made = Dataset()
    for keyword in UIDS:
        setattr(made, keyword, "1.2.3")
    return made


@contextmanager
def bounded(mebibytes: int, seconds: float) -> Iterator[None]:
    """Fail when the block takes more memory or time."""
    tracemalloc.start()
    started = time.monotonic()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < mebibytes * MEBIBYTE
    assert time.monotonic() - started < seconds


# Transfer syntaxes


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: str(syntax.keyword))
def test_every_encoding_gives_the_same_identity_and_no_pixels(syntax: str, tmp_path: Path) -> None:
    ds = radiograph(SpecificCharacterSet="ISO_IR 192", PatientName="Müller^Eva=王^小东")
    header = read_header(encoded(ds, syntax, tmp_path / "image.dcm"))
    found = identity(header)
    assert "PixelData" not in header
    assert [found.sop_class_uid, found.sop_instance_uid] == [ds.SOPClassUID, ds.SOPInstanceUID]
    assert [found.study_instance_uid, found.series_instance_uid] == [uid("1", "study"), uid("1", "series")]
    assert [found.patient_name, found.patient_id] == ["Müller^Eva=王^小东", "PID-1"]
    assert [found.accession_number, found.study_date] == ["ACC-1", "20250610"]
    assert [found.modality, found.view_position] == ["DX", "PA"]


def test_an_object_without_pixels_reads_as_well(tmp_path: Path) -> None:
    path = save(radiograph(PixelData=None), tmp_path / "report.dcm")
    assert identity(read_header(path)).patient_id == "PID-1"


def test_pixels_cost_no_memory(tmp_path: Path) -> None:
    path = save(radiograph(PixelData=bytes(64 * MEBIBYTE)), tmp_path / "large.dcm")
    with bounded(mebibytes=4, seconds=5):
        identity(read_header(path))


def test_a_huge_element_before_the_pixels_costs_no_memory(tmp_path: Path) -> None:
    ds = radiograph()
    ds.add_new(0x00090010, "LO", "HOSTILE")
    ds.add_new(0x00091001, "OB", bytes(64 * MEBIBYTE))
    path = save(ds, tmp_path / "huge.dcm")
    with bounded(mebibytes=4, seconds=5):
        assert identity(read_header(path)).patient_id == "PID-1"


# Deflated objects that inflate to more than the memory


def deflated_zeros(head: bytes, zeros: int) -> bytes:
    """Return the deflate stream of `head` and so many zeros."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    start = deflater.compress(head) + deflater.flush(zlib.Z_FULL_FLUSH)
    block = deflater.compress(bytes(MEBIBYTE)) + deflater.flush(zlib.Z_FULL_FLUSH)
    return start + block * (zeros // MEBIBYTE) + deflater.flush()


def explicit(ds: FileDataset, path: Path) -> bytes:
    """Return the encoded data set of `ds` in Explicit VR Little Endian."""
    whole = encoded(ds, ExplicitVRLittleEndian, path).read_bytes()
    return whole[144 + int.from_bytes(whole[140:144], "little") :]


def test_a_deflate_bomb_in_the_pixels_is_read_in_little_memory(tmp_path: Path) -> None:
    head = explicit(radiograph(PixelData=None), tmp_path / "head.dcm")
    pixels = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, 2**30)
    bomb = part10(deflated_zeros(head + pixels, 2**30), DeflatedExplicitVRLittleEndian, tmp_path / "bomb.dcm")
    assert bomb.stat().st_size < 2 * MEBIBYTE
    with bounded(mebibytes=200, seconds=10):
        assert identity(read_header(bomb)).patient_id == "PID-1"


def test_a_deflate_bomb_before_the_uids_is_refused_in_little_memory(tmp_path: Path) -> None:
    giant = struct.pack("<HH2sHL", 0x0009, 0x1001, b"OB", 0, 2**30)
    bomb = part10(deflated_zeros(giant, 2**30), DeflatedExplicitVRLittleEndian, tmp_path / "bomb.dcm")
    with bounded(mebibytes=200, seconds=10), pytest.raises(UnreadableHeader):
        identity(read_header(bomb))


def test_a_large_deflated_object_is_not_read_whole(tmp_path: Path) -> None:
    path = encoded(radiograph(), DeflatedExplicitVRLittleEndian, tmp_path / "image.dcm")
    with path.open("ab") as file:
        file.truncate(400 * MEBIBYTE)
    with bounded(mebibytes=200, seconds=10):
        assert identity(read_header(path)).patient_id == "PID-1"


# Damaged objects


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_a_data_set_cut_anywhere_is_read_or_refused(syntax: str, tmp_path: Path) -> None:
    whole = encoded(radiograph(PixelData=None), syntax, tmp_path / "whole.dcm").read_bytes()
    cut = tmp_path / "cut.dcm"
    for length in range(0, len(whole), 7):
        cut.write_bytes(whole[:length])
        try:
            found = identity(read_header(cut))
        except UnreadableHeader:
            continue
        assert found.study_instance_uid == uid("1", "study")


def test_a_data_set_cut_in_its_pixels_is_read(tmp_path: Path) -> None:
    path = save(radiograph(), tmp_path / "cut.dcm")
    path.write_bytes(path.read_bytes()[:-1000])
    assert identity(read_header(path)).patient_id == "PID-1"


@pytest.mark.parametrize("content", [b"", b"DICM", bytes(128) + b"DICM", b"<html>" * 100])
def test_a_file_that_is_no_dicom_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(content)
    with pytest.raises(UnreadableHeader, match="does not parse"):
        read_header(path)


def test_sequences_nested_without_end_are_refused(tmp_path: Path) -> None:
    sequence = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    path = part10((sequence + item) * 20_000, ExplicitVRLittleEndian, tmp_path / "deep.dcm")
    with bounded(mebibytes=64, seconds=10), pytest.raises(UnreadableHeader):
        identity(read_header(path))


def test_a_file_that_is_not_there_is_an_error_of_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "absent.dcm")


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data_set=st.binary(max_size=200), syntax=st.sampled_from(SYNTAXES))
def test_random_bytes_are_refused(data_set: bytes, syntax: str, tmp_path: Path) -> None:
    path = part10(data_set, syntax, tmp_path / "random.dcm")
    with pytest.raises(UnreadableHeader):
        identity(read_header(path))


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(damage=st.binary(min_size=1, max_size=40), where=st.floats(0, 1), syntax=st.sampled_from(SYNTAXES[:3]))
def test_a_damaged_object_is_read_or_refused(
    damage: bytes, where: float, syntax: str, tmp_path: Path
) -> None:
    path = encoded(TEMPLATE, syntax, tmp_path / "damaged.dcm")
    content = bytearray(path.read_bytes())
    start = int(where * (len(content) - len(damage)))
    content[start : start + len(damage)] = damage
    path.write_bytes(content)
    try:
        found = identity(read_header(path))
    except UnreadableHeader:
        return
    assert_clean(found.patient_name, 324)
    assert_clean(found.patient_id, 64)


def assert_clean(value: str, most: int) -> None:
    """The text can stand in a log line, on a screen and in both databases."""
    assert len(value) <= most
    assert value == value.strip()
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in value)
    value.encode()


# Texts


@settings(max_examples=150, deadline=None, derandomize=True)
@given(value=st.one_of(st.binary(max_size=80), st.sampled_from([b"A\0B", b"\x1b[2J", b"A\r\nB", b"\0" * 9])))
def test_any_name_comes_out_clean(value: bytes) -> None:
    for charset in (b"", b"ISO_IR 192", b"\\ISO 2022 IR 87", b"ISO_IR 999"):
        header = raw(bare(), 0x00080005, "CS", charset)
        found = identity(raw(raw(header, PATIENT_NAME, "PN", value), PATIENT_ID, "LO", value))
        assert_clean(found.patient_name, 324)
        assert_clean(found.patient_id, 64)


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        (b"Doe^John\0", "Doe^John"),
        (b"Doe\0^John", "Doe^John"),
        (b" Doe^John ", "Doe^John"),
        (b"Doe\r\n^\x1b[31mJohn", "Doe^[31mJohn"),
        (b"\x7f\x9bDoe", "�Doe"),
        (b"", ""),
        (b"\0\0\0\0", ""),
    ],
)
def test_control_characters_are_left_out_of_a_name(value: bytes, becomes: str) -> None:
    assert identity(raw(radiograph(), PATIENT_NAME, "PN", value)).patient_name == becomes


def test_a_lone_surrogate_is_left_out_of_a_text() -> None:
    header: Any = {"PatientID": "A\ud800B\udfffC"}  # a decoder may leave one; no database takes it
    assert text(header, "PatientID", 64) == "ABC"


def test_very_long_values_are_cut() -> None:
    header = raw(radiograph(), PATIENT_NAME, "PN", b"A" * 100_000)
    found = identity(raw(header, PATIENT_ID, "LO", b"1" * 100_000))
    assert found.patient_name == "A" * 323 + "…"  # five components in three groups of 64, with delimiters
    assert found.patient_id == "1" * 63 + "…"  # and not another patient's


def test_an_id_with_a_backslash_reads_as_it_was_sent() -> None:
    header = raw(raw(radiograph(), PATIENT_ID, "LO", b"08\\15"), PATIENT_NAME, "PN", b"Doe\\Roe")
    found = identity(header)
    assert (found.patient_id, found.patient_name) == ("08\\15", "Doe\\Roe")


def test_a_value_that_does_not_decode_is_empty() -> None:
    header = raw(radiograph(), PATIENT_ID, "SQ", b"junk")
    assert identity(header).patient_id == ""


def test_absent_texts_are_empty() -> None:
    found = identity(bare())
    assert {found.patient_id, found.patient_name, found.study_date, found.modality} == {""}


CHARSET_FILES = {
    Path(path).stem: path
    for path in map(str, get_charset_files("*.dcm"))
    if PATIENT_NAME in dcmread(path, stop_before_pixels=True, specific_tags=[PATIENT_NAME])
}
READABLE = {
    "chrArab": "قباني^لنزار",
    "chrFren": "Buc^Jérôme",
    "chrGerm": "Äneas^Rüdiger",
    "chrGreek": "Διονυσιος",
    "chrH31": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "chrH32": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    "chrHbrw": "שרון^דבורה",
    "chrI2": "Hong^Gildong=洪^吉洞=홍^길동",
    "chrRuss": "Люкceмбypг",
    "chrX1": "Wang^XiaoDong=王^小東",
    "chrX2": "Wang^XiaoDong=王^小东",
}


@pytest.mark.parametrize("name", READABLE)
def test_names_of_all_scripts_come_out_as_people_read_them(name: str) -> None:
    header = read_header(Path(CHARSET_FILES[name]))
    assert text(header, "PatientName", 324) == READABLE[name]


@pytest.mark.parametrize("name", CHARSET_FILES)
def test_no_name_of_any_character_set_is_lost(name: str) -> None:
    value = text(read_header(Path(CHARSET_FILES[name])), "PatientName", 324)
    assert value
    assert "�" not in value
    assert_clean(value, 324)


# Character sets that are misspelt, unknown, or not declared

KOREAN = "김^희중"


@pytest.mark.parametrize(
    ("declared", "value", "name"),
    [
        *((term, KOREAN.encode("euc-kr"), KOREAN) for term in (b"ISO_IR 149", b"iso ir 149", b"EUC-KR")),
        *((term, b"M\xfcller", "Müller") for term in (b"ISO IR 100", b"ISO-8859-1", b"latin1")),
        *((term, "Müller^王".encode(), "Müller^王") for term in (b"UTF-8", b"utf8", b"ISO-IR 192")),
        *((term, "Müller^王".encode(), "Müller^王") for term in (b"", b"XYZ")),
        *((term, "小东".encode("gb18030"), "小东") for term in (b"gb18030", b"GB 18030", b"gbk", b"GB2312")),
        (b"\\ISO_IR 87", "山田".encode("iso2022_jp"), "山田"),
        (b"ISO_IR 87", "山田".encode("iso2022_jp"), "山田"),
        (b"\\ISO 2022 IR 149", KOREAN.encode("euc-kr"), KOREAN),
        (b"ISO_IR 999", b"M\xfcller", "M�ller"),
        *((term, b"M\xfcller", "Müller") for term in (b"", b" ", b"\\")),
        (b"", b"M\x81ller", "M�ller"),
        (b"", KOREAN.encode("euc-kr"), KOREAN.encode("euc-kr").decode("latin-1")),
        (b"ISO_IR 6", b"M\xfcller", "M�ller"),
        (b"ISO_IR 192", b"M\xfcller", "M�ller"),
        (b"x-sjis", "山".encode("shift_jis"), "�R"),
        (b"ISO_IR 999", b"Mueller", "Mueller"),
    ],
)
def test_a_name_is_read_by_what_its_sender_meant_or_shown_as_unreadable(
    declared: bytes, value: bytes, name: str
) -> None:
    header = raw(raw(radiograph(), 0x00080005, "CS", declared), PATIENT_NAME, "PN", value)
    found = identity(header).patient_name
    assert found == name
    assert identity(raw(header, PATIENT_NAME, "PN", b"Doe")).patient_name == "Doe"


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        ("20261101", "20261101"),
        ("2026.11.01", "20261101"),
        ("2026-11-01", "20261101"),
        ("20261101101112.00", "20261101"),
        ("01.11.2026", ""),
        ("2026.13.01", ""),
        ("20261101\\20261102", ""),
        ("20261332", "20261332"),
        ("2026", "2026"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_study_date_is_read_or_kept_and_never_cut(
    value: str, becomes: str, syntax: str, tmp_path: Path
) -> None:
    header = radiograph()
    raw(header, 0x00080020, "DA", value.encode())
    assert identity(header).study_date == becomes
    with warnings.catch_warnings(action="ignore"):
        path = encoded(header, syntax, tmp_path / "x")
    found = scan(data_set_of(path), syntax)
    assert found is not None
    assert found.study_date == identity(read_header(path)).study_date == becomes


# Data sets that parsers could read in two ways


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    "stray",
    [
        explicit_element(0x00020010, b"UI", b"1.2.840.10008.1.2.2\0"),
        explicit_element(0x00020010, b"UI", b"1.2.840.10008.1.2.4.70"),
        explicit_element(0x00020000, b"UL", b"\x40\0\0\0"),
        explicit_element(0x00020010, b"UI", b"1.2.840.10008.1.2\0", ">"),
        struct.pack("<HHL", 0x0000, 0x0002, 4) + b"1.2\0",
        struct.pack("<HHL", 0x0002, 0x0010, 18) + b"1.2.840.10008.1.2\0",
        bytes(128) + b"DICM",
    ],
)
def test_a_data_set_that_begins_with_another_group_is_refused_by_both_parsers(
    stray: bytes, syntax: str, tmp_path: Path
) -> None:
    rest = data_set_of(encoded(radiograph(), syntax, tmp_path / "plain"))
    if syntax == DeflatedExplicitVRLittleEndian:
        deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        data_set = deflater.compress(stray + zlib.decompress(rest, -zlib.MAX_WBITS)) + deflater.flush()
    else:
        data_set = stray + rest
    path = part10(data_set, syntax, tmp_path / "stray")
    assert scan(data_set, syntax) is None
    with pytest.raises(UnreadableHeader, match=r"group 000[02]|\(000[02],|does not parse|is missing"):
        identity(read_header(path))


def test_the_refusal_names_the_group(tmp_path: Path) -> None:
    stray = explicit_element(0x00020010, b"UI", b"1.2.840.10008.1.2.2\0")
    data_set = stray + data_set_of(encoded(radiograph(), ExplicitVRLittleEndian, tmp_path / "plain"))
    with pytest.raises(UnreadableHeader) as refused:
        read_header(part10(data_set, ExplicitVRLittleEndian, tmp_path / "stray"))
    assert str(refused.value) == "The data set begins with group 0002, which is no part of one"
    assert len(str(refused.value)) <= 64  # an Error Comment


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_stray_group_behind_others_is_refused(syntax: str, tmp_path: Path) -> None:
    plain = data_set_of(encoded(radiograph(PixelData=None), syntax, tmp_path / "x"))
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    stray = (
        struct.pack("<HHL", 2, 0x10, 18) + b"1.2.840.10008.1.2\0"
        if syntax == ImplicitVRLittleEndian
        else explicit_element(0x00020010, b"UI", b"1.2.840.10008.1.2\0", order)
    )
    data_set = plain + stray
    assert scan(data_set, syntax) is None
    with pytest.raises(UnreadableHeader, match=r"\(0002,0010\) is no part of a data set"):
        read_header(part10(data_set, syntax, tmp_path / "stray"))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(
    ("value", "is_refused"),
    [(b"OTHER ", True), (b"PID-1 ", False), (b"", True)],
    ids=["other", "same", "empty"],
)
def test_an_attribute_that_comes_twice_is_refused_where_it_differs(
    value: bytes, is_refused: bool, syntax: str, tmp_path: Path
) -> None:
    plain = data_set_of(encoded(radiograph(PixelData=None), syntax, tmp_path / "x"))
    if syntax == ImplicitVRLittleEndian:
        twice = struct.pack("<HHL", 0x0010, 0x0020, len(value)) + value
    else:
        twice = explicit_element(PATIENT_ID, b"LO", value, ">" if syntax == ExplicitVRBigEndian else "<")
    path = part10(plain + twice, syntax, tmp_path / "twice")
    if not is_refused:
        assert identity(read_header(path)).patient_id == "PID-1"
        return
    with pytest.raises(UnreadableHeader, match=r"^\(0010,0020\) is there twice, and differs$"):
        read_header(path)


def test_implicit_bytes_under_an_explicit_syntax_are_read_by_the_parser(tmp_path: Path) -> None:
    data_set = data_set_of(encoded(radiograph(), ImplicitVRLittleEndian, tmp_path / "x"))
    path = part10(data_set, ExplicitVRLittleEndian, tmp_path / "mixed")
    assert scan(data_set, ExplicitVRLittleEndian) is None
    assert identity(read_header(path)).patient_id == "PID-1"


def test_explicit_bytes_under_the_implicit_syntax_are_read_by_the_parser(tmp_path: Path) -> None:
    data_set = data_set_of(encoded(radiograph(), ExplicitVRLittleEndian, tmp_path / "x"))
    path = part10(data_set, ImplicitVRLittleEndian, tmp_path / "mixed")
    assert scan(data_set, ImplicitVRLittleEndian) is None
    assert identity(read_header(path)).patient_id == "PID-1"


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    value=st.text(alphabet="A1 \\^=\0\x1b(B\t;~", max_size=70),
    charset=st.sampled_from([b"", b"ISO_IR 100", b"ISO_IR 192", b"ISO_IR 6 "]),
    syntax=st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian]),
)
def test_any_ascii_is_scanned_as_it_is_parsed(
    value: str, charset: bytes, syntax: str, tmp_path: Path
) -> None:
    header = radiograph(PixelData=bytes(8))
    raw(header, 0x00080005, "CS", charset)
    for tag, vr in ((PATIENT_NAME, "PN"), (PATIENT_ID, "LO"), (0x00080050, "SH"), (0x00080020, "DA")):
        raw(header, tag, vr, value.encode() + b" " * (len(value) % 2))
    with warnings.catch_warnings(action="ignore"):
        path = encoded(header, syntax, tmp_path / "x")
        found = scan(data_set_of(path), syntax)
        if found is not None:
            assert found == identity(read_header(path))


# UIDs


@pytest.mark.parametrize("keyword", UIDS)
@pytest.mark.parametrize(
    ("value", "what"),
    [
        (None, "is missing"),
        (b"", "is missing"),
        (b"\0\0", "is missing"),
        (b"../../etc", "is no UID"),
        (b"1.2/3", "is no UID"),
        (b"1.2.abc", "is no UID"),
        (b"1.2\n.3", "is no UID"),
        (b"1.2\\1.3", "is no UID"),
        (b"1." + b"2" * 63, "is no UID"),
        ("1.2.٣".encode(), "is no UID"),
    ],
)
def test_a_uid_that_is_none_is_refused_by_name(keyword: str, value: bytes | None, what: str) -> None:
    header = radiograph()
    tag = header[keyword].tag
    del header[keyword]
    if value is not None:
        raw(header, tag, "UI", value)
    with pytest.raises(UnreadableHeader, match=f"^{keyword} {what}$"):
        identity(header)


@pytest.mark.parametrize("value", [b"1.2.3\0", b"1.2.3 ", b"1.2.3"])
def test_the_padding_of_a_uid_is_no_part_of_it(value: bytes) -> None:
    assert identity(raw(radiograph(), STUDY_INSTANCE_UID, "UI", value)).study_instance_uid == "1.2.3"


def test_a_uid_of_64_characters_is_taken() -> None:
    value = "1." + "2" * 62
    assert identity(radiograph(StudyInstanceUID=value)).study_instance_uid == value


def test_a_sequence_that_ends_in_the_middle_is_bad_bytes_and_no_fault_of_the_disk(tmp_path: Path) -> None:
    image = radiograph()
    for element in image:
        if element.tag.group >= 0x0040:
            del image[element.tag]
    path = save(image, tmp_path / "image.dcm")
    begun = b"\x54\x00\x20\x02SQ\x00\x00\xff\xff\xff\xff"  # View Code Sequence, of undefined length
    path.write_bytes(path.read_bytes() + begun + b"\xfe\xff\x00")
    with pytest.raises(UnreadableHeader):
        read_header(path)


# Scanning, which is faster and must say the same


def data_set_of(path: Path) -> bytes:
    """Return the encoded data set of a Part 10 file."""
    whole = path.read_bytes()
    return whole[144 + int.from_bytes(whole[140:144], "little") :]


@pytest.mark.parametrize("kind", ["CR", "DX", "SC"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_plain_object_is_scanned_as_it_is_parsed(kind: str, syntax: str, tmp_path: Path) -> None:
    path = encoded(
        radiograph(kind, PatientName="Test^Alice=", AccessionNumber="A\\B "), syntax, tmp_path / "x"
    )
    assert scan(data_set_of(path), syntax) == identity(read_header(path))
    assert scan(data_set_of(path)[:20_000], syntax) is not None


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_what_is_no_plain_little_endian_is_left_to_the_parser(syntax: str, tmp_path: Path) -> None:
    assert scan(data_set_of(encoded(radiograph(), syntax, tmp_path / "x")), syntax) is None


@pytest.mark.parametrize(
    "tags",
    [
        {"PatientName": "Müller^Eva", "SpecificCharacterSet": "ISO_IR 100"},
        {"SpecificCharacterSet": "ISO_IR 13"},
        {"SpecificCharacterSet": ["", "ISO 2022 IR 87"]},
        {"StudyInstanceUID": None},
        {"PixelData": None},
        {"ICCProfile": bytes(70_000)},
    ],
)
def test_what_takes_a_parser_is_left_to_it(tags: dict[str, Any], tmp_path: Path) -> None:
    path = encoded(radiograph(**tags), ExplicitVRLittleEndian, tmp_path / "x")
    assert scan(data_set_of(path)[:32_768], ExplicitVRLittleEndian) is None


def test_tags_that_do_not_ascend_are_left_to_the_parser(tmp_path: Path) -> None:
    data_set = data_set_of(encoded(radiograph(), ImplicitVRLittleEndian, tmp_path / "x"))
    twice = struct.pack("<HHL", 0x0008, 0x0016, 4) + b"1.2\0"
    assert scan(data_set, ImplicitVRLittleEndian) is not None
    pixels = data_set.index(b"\xe0\x7f\x10\0")
    assert scan(data_set[:pixels] + twice + data_set[pixels:], ImplicitVRLittleEndian) is None


def test_a_header_that_is_cut_is_left_to_the_parser(tmp_path: Path) -> None:
    data_set = data_set_of(encoded(radiograph(), ExplicitVRLittleEndian, tmp_path / "x"))
    pixels = data_set.index(b"\xe0\x7f\x10\x00OW")
    assert all(scan(data_set[:end], ExplicitVRLittleEndian) is None for end in range(pixels + 12))


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    damage=st.binary(min_size=1, max_size=12),
    where=st.floats(0, 1),
    syntax=st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian]),
)
def test_what_is_scanned_of_a_damaged_object_is_what_is_parsed(
    damage: bytes, where: float, syntax: str, tmp_path: Path
) -> None:
    path = encoded(radiograph(), syntax, tmp_path / "damaged.dcm")
    content = bytearray(path.read_bytes())
    start = len(content) - len(data_set_of(path))
    at = start + int(where * (1500 - len(damage)))
    content[at : at + len(damage)] = damage
    path.write_bytes(content)
    found = scan(data_set_of(path), syntax)
    if found is not None:
        assert found == identity(read_header(path))
