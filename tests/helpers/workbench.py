"""One node without its network, whose stages tests run by hand, and what they read in its reports."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_charset_files
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage
from sqlalchemy import select, update

from classifier.decoding.copies import Fingerprint, fingerprint
from classifier.errors import NotScorable
from classifier.heat_map import HeatMap
from classifier.outcome import Decision, Prediction, StillDecoding
from classifier.reasons import Reason
from db import queries
from db.models import Delivery, Instance, Job, Report, Score, Study
from db.queue import Kind
from db.results import Filter, results
from db.rows import Received, StoredModel
from db.session import Database
from db.status import Failure, counts, failures, retry
from pacs_node.config import Destination, Settings
from pacs_node.dicom.header import identity, read_header
from pacs_node.reporting.heat_map_stage import HeatMapStage
from pacs_node.reporting.page_stage import PageStage
from pacs_node.reporting.report import ObserverDevice
from pacs_node.reporting.stage import ReportStage
from pacs_node.scoring.stage import Scorer, ScoreStage
from pacs_node.storage.arriving import digest
from pacs_node.storage.intake import described
from pacs_node.storage.spool import Spool
from pacs_node.worker import Stage, Worker
from tests.conftest import radiograph, save
from tests.helpers.reports import find

PATIENT_NAME = 0x00100010
PACS = Destination(ae_title="PACS", host="127.0.0.1", port=104)
ARCHIVE = Destination(ae_title="ARCHIVE", host="127.0.0.1", port=105)
NODE = ObserverDevice(software_version="0.1.0", station_name="CXRAI01")
A_WHILE = 50.0  # seconds
_CELLS = np.outer(np.linspace(-1, 3, 5), np.linspace(0, 4, 5)).astype(np.float32)


class Viewer:
    """Scores by looking at the header; it opens each file, and keeps what it was asked."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def attempt(self, sources: Sequence[Path]) -> list[Prediction | OSError | StillDecoding]:
        self.batches.append([source.stem for source in sources])
        return [self._attempt(source) for source in sources]

    def fingerprints(
        self, sources: Sequence[Path]
    ) -> list[Fingerprint | NotScorable | OSError | StillDecoding]:
        return [_fingerprint(source) for source in sources]

    def _attempt(self, source: Path) -> Prediction | OSError:
        try:
            return self._predict(source)
        except OSError as error:
            return error

    def _predict(self, source: Path) -> Prediction:
        image: Any = dcmread(BytesIO(source.read_bytes()), stop_before_pixels=True)
        refused = None
        if image.SOPClassUID == CTImageStorage:
            refused = Reason.NOT_RADIOGRAPH
        elif image.ViewPosition not in ("PA", "AP"):
            refused = Reason.NOT_FRONTAL
        if refused:
            return Prediction(None, Decision.NOT_SCORED, refused, f"It is {image.Modality}", None)
        heat_map = HeatMap.of(_CELLS, bias=-0.5)
        return Prediction(0.8731, Decision.POSITIVE, None, "", image.ViewPosition, heat_map=heat_map)


def _fingerprint(source: Path) -> Fingerprint | NotScorable | OSError:
    try:
        with source.open("rb") as file:
            return fingerprint(file, 10**8)
    except (NotScorable, OSError) as error:
        return error


class Bench:
    """One node without its network: what it received goes through its stages by hand.

    Parameters
    ----------
    scorer
        What scores; a `Viewer` unless it matters.
    settings
        The destinations count, which are PACS alone when nothing is said.
    """

    def __init__(
        self, database: Database, folder: Path, scorer: Scorer | None = None, settings: Settings | None = None
    ) -> None:
        self.database = database
        self.spool = Spool(folder / "spool")
        self.spool.prepare()
        self.viewer = Viewer()
        self.scorer = scorer or self.viewer
        self.settings = settings or Settings(destinations=(PACS,))
        self.model = self.register("5e" * 32)

    def register(self, sha256: str, threshold: float = 0.5) -> StoredModel:
        """Put a model to use."""
        named = {"sha256": sha256, "name": "DenseNet121-CXR", "version": "2025.06"}
        row = {**named, "threshold": threshold, "preprocessing": "resize 224x224", "card": "{}"}
        with self.database.write() as session:
            queries.register_model(session, row, datetime.now(UTC))
        with self.database.read() as session:
            model = queries.newest_model(session)
        assert model is not None
        return model

    def receive(self, image: Dataset, quiet_seconds: float = 0) -> str:
        """Keep and record an object as the receiver does; return its digest."""
        received = save(image, self.spool.incoming / "received")
        syntax = str(image.file_meta.TransferSyntaxUID)
        content = digest(received, syntax)
        size = received.stat().st_size
        new = described(
            identity(read_header(received)),
            transfer_syntax_uid=syntax,
            digest=content,
            size=size,
            calling_ae_title="MODALITY",
        )
        self.spool.keep(received, content)
        with self.database.write() as session:
            queries.add_instance(session, new, quiet_seconds)
        return content

    def receive_again(self, image: Dataset) -> Received:
        """Tell what the database takes the very same object for."""
        before = self.counts().instances
        self.receive(image, A_WHILE)
        return Received.AGAIN if self.counts().instances == before else Received.NEW

    def work(self, stage: Stage) -> None:
        """Do all jobs of a stage that are due."""
        worker = Worker(self.database, stage, poll_seconds=0.01, lease_seconds=60)
        while worker.work_once():
            pass

    def score(self, batch_size: int = 16) -> None:
        self.work(ScoreStage(self.database, self.spool, self.scorer, self.model, batch_size))

    def report(self) -> None:
        self.work(self.report_stage())

    def draw_pages(self) -> None:
        self.work(PageStage(self.database, self.spool, self.settings))

    def draw_heat_maps(self) -> None:
        self.work(HeatMapStage(self.database, self.spool, self.settings))

    def report_stage(self) -> ReportStage:
        return ReportStage(self.database, self.spool, NODE, self.settings)

    def hurry(self) -> None:
        """Let all pauses be over."""
        with self.database.write() as session:
            session.execute(update(Job).values(visible_at=0))
            session.execute(update(Study).values(quiet_at=0))

    def deliver_all(self) -> None:
        """Let all that is on its way have arrived."""
        with self.database.write() as session:
            session.execute(update(Delivery).values(state="delivered", delivered_at=datetime.now(UTC)))
            session.execute(update(Job).where(Job.kind == Kind.DELIVER).values(state="done"))

    def leave_orphan(self, image: Dataset) -> None:
        """Keep an object, and record nothing, as a receiver does that is killed then; long ago."""
        received = save(image, self.spool.incoming / "received")
        place = self.spool.keep(received, digest(received, str(image.file_meta.TransferSyntaxUID)))
        os.utime(place, (0, 0))

    def retry(self) -> int:
        with self.database.write() as session:
            return retry(session, None, datetime.now(UTC) + timedelta(hours=1))

    def reports(self) -> list[Report]:
        """Return all reports in the order in which they were made."""
        with self.database.read() as session:
            return list(session.scalars(select(Report).order_by(Report.id)))

    def instances(self) -> list[Instance]:
        with self.database.read() as session:
            return list(session.scalars(select(Instance).order_by(Instance.id)))

    def deliveries(self) -> list[Delivery]:
        with self.database.read() as session:
            return list(session.scalars(select(Delivery).order_by(Delivery.id)))

    def jobs(self, kind: Kind) -> list[Job]:
        with self.database.read() as session:
            return list(session.scalars(select(Job).where(Job.kind == kind).order_by(Job.ref)))

    def states(self, kind: Kind) -> list[str]:
        return [job.state for job in self.jobs(kind)]

    def rows(self) -> list[dict[str, Any]]:
        """Return what people see, in the order in which it came."""
        with self.database.read() as session:
            return sorted(results(session, Filter()), key=lambda row: str(row["received_at"]))

    def scores(self) -> list[tuple[str, str | None]]:
        """Return decision and reason of each score, in the order of the images."""
        with self.database.read() as session:
            rows = session.scalars(select(Score).order_by(Score.instance_id, Score.id))
            return [(row.decision, row.reason) for row in rows]

    def failures(self) -> list[Failure]:
        with self.database.read() as session:
            return failures(session, 10)

    def counts(self) -> Any:
        with self.database.read() as session:
            return counts(session)


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Bench:
    return Bench(database, tmp_path)


def parsed(report: Report) -> Any:
    return dcmread(BytesIO(report.content))


def images_in(report: Report) -> list[str]:
    """Return the SOP Instance UIDs that a report gives as evidence."""
    return [
        reference.ReferencedSOPInstanceUID
        for study in parsed(report).CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for reference in series.ReferencedSOPSequence
    ]


def reasons_in(report: Report) -> list[str]:
    values = find(report.content, "Reason image was not scored")
    return [value.split(" ", maxsplit=1)[0] for value in values]


def other(sop_class: str, modality: str, number: int, study: str = "1") -> Dataset:
    """Return an object that is no radiograph."""
    made = radiograph(number=number, study=study, SOPClassUID=sop_class, Modality=modality)
    made.file_meta.MediaStorageSOPClassUID = UID(sop_class)
    return made


def only(values: Sequence[Any]) -> Any:
    (value,) = values
    return value


CHARSET_FILES = {
    Path(file).stem: file
    for file in map(str, get_charset_files("*.dcm"))
    if PATIENT_NAME in dcmread(file, stop_before_pixels=True, specific_tags=[PATIENT_NAME])
}
OF_THE_IMAGE = (0x0008, 0x0018, 0x0020, 0x0028, 0x7FE0)


def named(name: str) -> tuple[Dataset, bytes]:
    """Return a chest radiograph with the patient of one of pydicom's files, and the bytes of the name."""
    source = dcmread(CHARSET_FILES[name], stop_before_pixels=True)
    value = bytes(source.get_item(PATIENT_NAME).value)
    image = radiograph(study=str([*CHARSET_FILES].index(name)))
    for element in image:
        if element.tag.group in OF_THE_IMAGE:
            source[element.tag] = element
    source.file_meta = image.file_meta
    return source, value
