"""Make the page of each report, for destinations that want it; `delivering` sends it."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset

from classifier.decoding.resample import Grey
from classifier.heat_map import HeatMap
from db.queue import Kind
from db.rows import ReportToDraw, StoredInstance, StoredModel
from pacs_node.dicom.header import Identity, identity
from pacs_node.errors import InvalidReport
from pacs_node.reporting import codes
from pacs_node.reporting.beside_stage import BesideStage
from pacs_node.reporting.conclusion import answer_of, warning_of, why_not
from pacs_node.reporting.encapsulated_pdf import encapsulate
from pacs_node.reporting.from_rows import has_heat_map, image_result
from pacs_node.reporting.heat_map_picture import overlaid
from pacs_node.reporting.input import ImageResult
from pacs_node.reporting.page import MOST_SHOWN, Page, PageImage, draw, drawable
from pacs_node.reporting.report import EncodedReport
from pacs_node.reporting.study_state import newest_copies

_HEAT_MAP = "Right: heat map, red for pneumonia; what the model used, not where disease is"
_LARGEST_SIDE = 400  # pixels of an image on the page


class PageStage(BesideStage):
    """Show reports on pages."""

    kind = Kind.PAGE
    result = "pdf"
    called = "page"

    def make(self, report: ReportToDraw, newest: StoredModel | None) -> list[EncodedReport]:
        """Return the one page of a report."""
        images = newest_copies(report.images)
        results = [image_result(one, Dataset(), newest) for one in images]
        shown = images[:MOST_SHOWN]
        pictures = [_pictures(*pair) for pair in zip(self.decoded(shown), shown, strict=True)]
        pdf = draw(_page_of(report, results, pictures))
        about = [(one.sop_class_uid, one.sop_instance_uid) for one in images]
        return [encapsulate(report.content, pdf, about)]


def _pictures(grey: Grey | None, image: StoredInstance) -> list[Image.Image]:
    """Return the image small, and beside it the same under its heat map where that may be shown."""
    if grey is None:
        return []
    small = Image.fromarray(np.uint8(np.rint(grey.clip(0, 1) * 255)))
    small.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.BOX)
    if not has_heat_map(image):
        return [small]
    assert image.score is not None
    heat_map = HeatMap.from_bytes(image.score.heat_map or b"")
    return [small, overlaid(grey, heat_map, _LARGEST_SIDE)]


def _page_of(
    report: ReportToDraw, results: Sequence[ImageResult], pictures: Sequence[Sequence[Image.Image]]
) -> Page:
    read = dcmread(BytesIO(report.content))
    answer, warning = answer_of(report.decision), warning_of(str(read.ContentQualification))
    shown = [*pictures, *([()] * (len(results) - len(pictures)))]
    return Page(
        answer=answer,
        decision=report.decision,
        sentence=_conclusion(read).removeprefix(f"{answer}. ").removesuffix(f" {warning}"),
        warning=warning,
        facts=[*_whose(identity(read)), *_about(report, read, results)],
        images=[_image(n, one, seen) for n, (one, seen) in enumerate(zip(results, shown, strict=True), 1)],
    )


def _conclusion(read: Dataset) -> str:
    for item in read.ContentSequence:
        if item.ConceptNameCodeSequence[0].CodeValue == codes.CONCLUSION.value:
            return str(item.TextValue)
    raise InvalidReport("the report has no conclusion")


def _whose(who: Identity) -> list[tuple[str, str]]:
    names = [group.replace("^", " ").strip() for group in who.patient_name.split("=")]
    return [
        ("Patient", _shown(*names)),
        ("Patient ID", _shown(who.patient_id)),
        ("Born", _shown(_date(who.patient_birth_date))),
        ("Accession number", _shown(who.accession_number)),
        ("Study date", _shown(_date(who.study_date))),
    ]


def _shown(*candidates: str) -> str:
    if not any(candidates):
        return "-"
    return drawable(*candidates) or "(see the attributes of this object)"


def _date(value: str) -> str:
    return f"{value[:4]}-{value[4:6]}-{value[6:]}" if len(value) == len("20261201") else value


def _about(report: ReportToDraw, read: Dataset, results: Sequence[ImageResult]) -> list[tuple[str, str]]:
    time, zone = str(read.ContentTime), read.get("TimezoneOffsetFromUTC", "UTC")
    models = dict.fromkeys(f"{one.algorithm.name} {one.algorithm.version}" for one in results)
    return [
        ("Made", f"{_date(str(read.ContentDate))} {time[:2]}:{time[2:4]}:{time[4:6]} {zone}"),
        ("By", f"{read.Manufacturer} {read.SoftwareVersions[0]}, model {', '.join(models)}"),
        ("Structured report", f"revision {report.revision}, {read.SOPInstanceUID}"),
    ]


def _image(number: int, result: ImageResult, pictures: Sequence[Image.Image]) -> PageImage:
    why = why_not(result)
    if result.percent is None:
        return PageImage(f"Image {number}: not analysed", why, pictures)
    score = f"Score {result.percent} %, positive from {result.algorithm.threshold_percent} %"
    said = [f"{score}; {why}" if why else score, *([_HEAT_MAP] if len(pictures) > 1 else [])]
    return PageImage(f"Image {number}: {result.decision}", ". ".join(said), pictures)
