"""Whether anything was lost, doubled or got stuck: what senders were told, against database and PACS."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import func, select

from db.models import Delivery, Instance, Job, Report, Score, Study
from db.session import Database
from pacs_node.reporting.report import REPORT_CLASSES
from tests.faults.world import World

Image = tuple[str, str]
"""Study Instance UID and SOP Instance UID."""


@dataclass
class Verdict:
    """What came out; all is well when the lists are empty."""

    studies: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    seconds: float = 0.0  # until nothing was left to do

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, doubled or stuck."""
        return not (self.lost or self.doubled or self.stuck)

    def __str__(self) -> str:
        said = [f"{name}: {getattr(self, name)[:5]}" for name in ("lost", "doubled", "stuck")]
        return "; ".join(said)


def settled(world: World, seconds: float, expected_failures: int = 0) -> list[str]:
    """Wait until no job is left to do; return what is still there after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        left = _unfinished(world.database)
        failed = [job for job in left if job.endswith("failed")]
        if len(left) == len(failed) == expected_failures:
            return []
        if time.monotonic() > deadline:
            return left if len(failed) != expected_failures else [job for job in left if job not in failed]
        time.sleep(0.1)


def judge(
    world: World,
    acknowledged: Iterable[Image],
    reports: Callable[[], list[bytes]],
    *,
    seconds: float = 120.0,
    expected_failures: int = 0,
    destinations: int = 1,
    files: Iterable[Path] = (),
) -> Verdict:
    """Wait until the node is through, then compare.

    Parameters
    ----------
    acknowledged
        The images that were answered with Success.
    reports
        What the PACS holds, or got: each send that it took, in the order of arrival.
    expected_failures
        Jobs that are to be given up.
    files
        What was sent, if its bytes are to be compared with those in the spool.
    """
    started = time.monotonic()
    verdict = Verdict(stuck=settled(world, seconds, expected_failures))
    verdict.seconds = time.monotonic() - started
    images = set(acknowledged)
    verdict.studies = len({study for study, _ in images})
    _judge_database(world.database, images, verdict)
    _judge_reports(world.database, images, reports(), verdict)
    judge_files(world, images, files, verdict)
    return verdict


def _unfinished(database: Database) -> list[str]:
    with database.read() as session:
        rows = session.execute(select(Job.kind, Job.lane, Job.ref, Job.state).where(Job.state != "done"))
        return [f"{kind} {lane} {ref} {state}" for kind, lane, ref, state in rows]


def _judge_database(database: Database, images: set[Image], verdict: Verdict) -> None:
    with database.read() as session:
        rows = session.execute(
            select(Study.study_instance_uid, Instance.sop_instance_uid, Instance.id).join(
                Instance, Instance.study_id == Study.id
            )
        ).all()
        scores = Counter(session.scalars(select(Score.instance_id)))
        failed = set(session.scalars(select(Job.ref).where(Job.kind == "score", Job.state == "failed")))
        jobs = Counter(session.scalars(select(Job.ref).where(Job.kind == "score")))
        sent = Counter(session.scalars(select(Delivery.report_id).where(Delivery.state == "pending")))
    recorded = Counter((study, uid) for study, uid, _ in rows)
    verdict.lost += [f"no row: {uid}" for _, uid in sorted(images - recorded.keys())]
    verdict.doubled += [f"{n} rows: {uid}" for (_, uid), n in recorded.items() if n > 1]
    for _, uid, id_ in rows:
        if jobs[id_] != 1:
            verdict.lost.append(f"{jobs[id_]} score jobs: {uid}")
        if not scores[id_] and id_ not in failed:
            verdict.lost.append(f"no score: {uid}")
        if scores[id_] > 1:
            verdict.doubled.append(f"{scores[id_]} scores: {uid}")
    verdict.stuck += [f"report {id_} not delivered" for id_ in sent]


def _judge_reports(database: Database, images: set[Image], reports: list[bytes], verdict: Verdict) -> None:
    with database.read() as session:
        per_study = dict(
            session.execute(
                select(Study.study_instance_uid, func.count())
                .join(Report, Report.study_id == Study.id)
                .group_by(Study.study_instance_uid)
            ).all()
        )
        stored = dict(session.execute(select(Report.sop_instance_uid, Report.content)).all())
    contents: dict[str, set[bytes]] = defaultdict(set)
    by_study: dict[str, set[str]] = defaultdict(set)
    stated: dict[str, set[str]] = defaultdict(set)
    for content in reports:
        report = dcmread(BytesIO(content))
        contents[report.SOPInstanceUID].add(report.to_json().encode())
        by_study[report.StudyInstanceUID].add(report.SOPInstanceUID)
        stated[report.StudyInstanceUID] |= set(_referenced(report))
        verdict.doubled += _differences(content, report, stored.get(report.SOPInstanceUID))
    for study, uid in sorted(images):
        if uid not in stated[study]:
            verdict.lost.append(f"in no report at the PACS: {uid}")
    verdict.doubled += [f"{uid} came with {len(c)} contents" for uid, c in contents.items() if len(c) > 1]
    for study, uids in by_study.items():
        if len(uids) > per_study.get(study, 0):
            verdict.doubled.append(f"{len(uids)} reports of {per_study.get(study, 0)} revisions: {study}")


def judge_files(world: World, images: set[Image], files: Iterable[Path], verdict: Verdict) -> None:
    """Compare the bytes of each acknowledged image with those that its sender has."""
    sent = {image: path for path in files if (image := image_of(path)) in images}
    with world.database.read() as session:
        rows = session.execute(select(Instance.sop_instance_uid, Instance.digest)).all()
    digests = dict(rows)
    for (_, uid), path in sorted(sent.items()):
        kept = world.spool / "objects" / digests.get(uid, "")[:2] / f"{digests.get(uid)}.dcm"
        if not kept.is_file():
            verdict.lost.append(f"no file: {uid}")
        elif data_set(kept.read_bytes()) != data_set(path.read_bytes()):
            verdict.lost.append(f"other bytes: {uid}")


def _differences(content: bytes, report: FileDataset, stored: bytes | None) -> Iterable[str]:
    """Yield what is not as it is stored; in another report class, or another syntax, it may be."""
    is_as_stored = report.SOPClassUID == REPORT_CLASSES[0]
    is_as_stored &= report.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    if is_as_stored and stored is None:
        yield f"a report that is not stored: {report.SOPInstanceUID}"
    elif is_as_stored and stored is not None and data_set(content) != data_set(stored):
        yield f"other bytes than are stored: {report.SOPInstanceUID}"


def data_set(content: bytes) -> bytes:
    """Return the encoded data set of a Part 10 file: what follows File Meta Information."""
    return content[144 + int.from_bytes(content[140:144], "little") :]


def image_of(path: Path) -> Image:
    """Return what names an image."""
    header = dcmread(path, stop_before_pixels=True, specific_tags=["StudyInstanceUID", "SOPInstanceUID"])
    return str(header.StudyInstanceUID), str(header.SOPInstanceUID)


def _referenced(report: Dataset) -> Iterable[str]:
    for item in report.get("CurrentRequestedProcedureEvidenceSequence", []):
        for series in item.ReferencedSeriesSequence:
            yield from (one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence)
