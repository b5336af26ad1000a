"""Make the page of each report, for destinations that want it; `delivering` sends it.

The report is made and sent without waiting for it: a page that cannot be made fails alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from io import BytesIO

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from sqlalchemy.orm import Session

from classifier.config import DecodeLimits
from classifier.decoding.decode import Radiograph
from classifier.decoding.decoders import Decoders, Request
from db import deliveries, queries
from db.queue import Claimed, Kind
from db.rows import NewResult, ReportToDraw, StoredInstance, StoredModel
from db.session import Database
from pacs_node import log
from pacs_node.config import Settings
from pacs_node.dicom.header import Identity, identity
from pacs_node.errors import InvalidReport
from pacs_node.reporting import codes
from pacs_node.reporting.conclusion import answer_of, warning_of, why_not
from pacs_node.reporting.encapsulated_pdf import encapsulate
from pacs_node.reporting.from_rows import image_result
from pacs_node.reporting.input import ImageResult
from pacs_node.reporting.page import MOST_SHOWN, Page, PageImage, draw, drawable
from pacs_node.reporting.study_state import newest_copies
from pacs_node.storage.spool import Spool
from pacs_node.worker import Done, GivenUp, Outcome, Settled

PDF = "pdf"
"""The result class, as `[[destinations]] send` names it."""

_log = log.get(__name__)

_LARGEST_SIDE = 400  # pixels of an image on the page


class PageStage:
    """Show reports on pages."""

    kind = Kind.PAGE
    lane = ""
    batch_size = 1

    def __init__(self, database: Database, spool: Spool, settings: Settings) -> None:
        self._database = database
        self._spool = spool
        self._destinations = [one.name for one in settings.destinations if PDF in one.send]
        self._give_up_after = timedelta(hours=settings.deliver.give_up_hours)
        wanted = settings.classifier
        self._decoders = Decoders.shared(1)
        self._limits = DecodeLimits(wanted.decode_seconds, wanted.decode_mebibytes)

    def run(self, jobs: Sequence[Claimed], may_go_on: Callable[[], bool]) -> Iterator[Settled]:  # noqa: ARG002
        """Make the pages of the jobs."""
        for job in jobs:
            yield [(job, self._page(job.ref))]

    def give_up(self, session: Session, ref: int) -> None:
        """Nothing more to record: the job says it all."""

    def _page(self, report_id: int) -> Outcome:
        with self._database.read() as session:
            report = queries.report_to_draw(session, report_id)
            model = queries.newest_model(session)
        try:
            new = self._made(report_id, report, model)
        except InvalidReport as error:
            _log.error("page failed", study=report.study_instance_uid, cause=str(error))
            return GivenUp(f"No page can be made: {error}")
        _log.info("page made", study=report.study_instance_uid, revision=report.revision)
        now = datetime.now(UTC)
        return Done(
            partial(
                deliveries.add_results,
                results=[new],
                destinations=self._destinations,
                give_up_at=now + self._give_up_after,
                at=now,
            )
        )

    def _made(self, report_id: int, report: ReportToDraw, model: StoredModel | None) -> NewResult:
        images = newest_copies(report.images)
        results = [image_result(one, Dataset(), model) for one in images]
        pictures = self._pictures(images[:MOST_SHOWN])
        pdf = draw(_page_of(report, results, pictures))
        made = encapsulate(report.content, pdf, [(one.sop_class_uid, one.sop_instance_uid) for one in images])
        return NewResult(
            report_id=report_id,
            result=PDF,
            sop_class_uid=made.sop_class_uid,
            sop_instance_uid=made.sop_instance_uid,
            series_instance_uid=made.series_instance_uid,
            content=made.content,
        )

    def _pictures(self, images: Sequence[StoredInstance]) -> list[list[Image.Image]]:
        """Return the small pictures of each image; none where it cannot be decoded, or its file is gone."""
        if not images:
            return []
        requests = [Request(self._spool.path(one.digest), limits=self._limits) for one in images]
        found = self._decoders.decode(requests)
        return [[_small(one)] if isinstance(one, Radiograph) else [] for one in found]


def _small(radiograph: Radiograph) -> Image.Image:
    grey = Image.fromarray(np.uint8(np.rint(radiograph.pixels[0].clip(0, 1) * 255)))
    grey.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.BOX)
    return grey


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
    return PageImage(f"Image {number}: {result.decision}", f"{score}; {why}" if why else score, pictures)
