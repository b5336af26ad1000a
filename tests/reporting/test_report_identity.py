"""Which report is the same report: UIDs, bytes, revisions and classes."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta, timezone
from pathlib import Path

import pytest

from pacs_node.errors import InvalidReport
from pacs_node.reporting.report import (
    COMPREHENSIVE_3D_SR,
    COMPREHENSIVE_SR,
    ENHANCED_SR,
    REPORT_CLASSES,
    Algorithm,
    ObserverDevice,
    as_class,
    build,
)
from tests.conftest import radiograph
from tests.helpers.reports import (
    ALGORITHM,
    MADE_AT,
    NEWER,
    NODE,
    PRODUCT,
    UNREADABLE,
    assert_valid,
    dcmread_bytes,
    not_scored,
    report,
    scored,
    tree,
)


def test_a_new_revision_names_its_predecessor_in_the_same_series(tmp_path: Path) -> None:
    first = report(scored(radiograph()))
    second = report(scored(radiograph()), scored(radiograph(number=2), 0.1), revision=2, after=first)
    assert second.series_instance_uid == first.series_instance_uid
    assert second.sop_instance_uid != first.sop_instance_uid
    for sop_class in REPORT_CLASSES:
        old, new = as_class(first.content, sop_class), as_class(second.content, sop_class)
        read = dcmread_bytes(new.content)
        assert read.InstanceNumber == 2
        assert "SeriesDate" not in read  # one series, so nothing in it may differ between revisions
        series = read.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
        (reference,) = series.ReferencedSOPSequence
        assert series.SeriesInstanceUID == old.series_instance_uid == new.series_instance_uid
        assert reference.ReferencedSOPInstanceUID == old.sop_instance_uid
        assert reference.ReferencedSOPClassUID == sop_class
        assert_valid(new.content, tmp_path)


def test_a_score_alone_makes_no_other_instance_but_a_correction_does() -> None:
    first, jitter = report(scored(radiograph(), 0.8731)), report(scored(radiograph(), 0.8732))
    assert first.sop_instance_uid == jitter.sop_instance_uid
    images = [scored(radiograph()), not_scored(radiograph(number=2))]
    assert report(*images).sop_instance_uid == report(*images[::-1]).sop_instance_uid
    correction = report(scored(radiograph(), 0.1), revision=2, after=first)
    again = report(scored(radiograph(), 0.2), revision=3, after=correction)
    assert len({made.sop_instance_uid for made in (first, correction, again)}) == 3


def test_what_changes_the_report_changes_its_uid() -> None:
    base = report(scored(radiograph()))
    other_threshold = Algorithm(
        ALGORITHM.name, ALGORITHM.version, ALGORITHM.sha256, 0.6, ALGORITHM.preprocessing
    )
    others = [
        report(scored(radiograph(), algorithm=other_threshold)),
        report(not_scored(radiograph())),
        report(not_scored(radiograph(), UNREADABLE)),
        report(scored(radiograph()), scored(radiograph(number=2))),
    ]
    new_series = [
        report(scored(radiograph(), algorithm=NEWER)),
        report(scored(radiograph()), node=ObserverDevice(software_version="0.2.0", station_name="CXRAI01")),
        report(scored(radiograph()), node=PRODUCT),
        as_class(base.content, COMPREHENSIVE_SR),
        as_class(base.content, ENHANCED_SR),
    ]
    uids = {made.sop_instance_uid for made in (base, *others, *new_series)}
    assert len(uids) == 1 + len(others) + len(new_series)
    assert {made.series_instance_uid for made in others} == {base.series_instance_uid}
    assert len({made.series_instance_uid for made in (base, *new_series)}) == 1 + len(new_series)


def test_another_class_is_the_same_document() -> None:
    base = report(scored(radiograph()), not_scored(radiograph(number=2)))
    for sop_class in REPORT_CLASSES:
        other = as_class(base.content, sop_class)
        assert as_class(other.content, sop_class) == other == as_class(base.content, sop_class)
        assert tree(other.content) == tree(base.content)
    assert as_class(base.content, COMPREHENSIVE_3D_SR) == base
    own = {"SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber"}
    before, after = dcmread_bytes(base.content), dcmread_bytes(as_class(base.content, ENHANCED_SR).content)
    assert {element.keyword for element in before if after[element.tag] != element} == own


def test_only_own_reports_change_class(tmp_path: Path) -> None:
    base = report(scored(radiograph())).content
    fallback = as_class(base, ENHANCED_SR).content
    image = tmp_path / "image.dcm"
    radiograph().save_as(image, enforce_file_format=True)
    foreign = base.replace(b"2.25.2622869", b"2.25.2622860", 1)  # Implementation Class UID
    for content in (b"", base[:-1], base[:200], image.read_bytes(), foreign):
        with pytest.raises(InvalidReport, match="not a report of this node"):
            as_class(content, ENHANCED_SR)
    with pytest.raises(InvalidReport, match="only a Comprehensive 3D SR"):
        as_class(fallback, COMPREHENSIVE_SR)
    with pytest.raises(InvalidReport, match="no class of a report"):
        as_class(base, "1.2.840.10008.5.1.4.1.1.88.11")


def test_the_same_input_gives_the_same_bytes_anywhere() -> None:
    program = (
        "import hashlib, tests.reporting.test_report as t\n"
        "made = [t.report(*images).content for images in t.STUDIES.values()]\n"
        "print(hashlib.sha256(b''.join(made)).hexdigest())"
    )
    digests = set()
    for zone, seed in (("Asia/Tokyo", "1"), ("America/St_Johns", "2")):
        environment = {**os.environ, "TZ": zone, "PYTHONHASHSEED": seed, "LC_ALL": "C"}
        run = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            check=True,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )
        digests.add(run.stdout)
    assert len(digests) == 1
    same_moment = MADE_AT.astimezone(timezone(timedelta(hours=5)))
    header = radiograph(TimezoneOffsetFromUTC=None)
    assert build([scored(header)], NODE, same_moment, 1, None) == report(scored(header))
