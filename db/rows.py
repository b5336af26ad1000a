"""What `db.queries` takes and returns: frozen values, so that no caller writes to the database by
accident.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Received(StrEnum):
    """How a received object relates to the database."""

    NEW = "new"
    AGAIN = "again"  # the same bytes were received before
    COPY = "copy"  # other bytes with this SOP Instance UID were received before: the same image, or another


@dataclass(frozen=True, kw_only=True)
class NewInstance:
    """One received object, as it goes into the database."""

    study_instance_uid: str
    patient_id: str
    issuer_of_patient_id: str
    patient_name: str
    patient_birth_date: str
    accession_number: str
    study_date: str
    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    modality: str
    view_position: str
    digest: str
    size: int
    calling_ae_title: str
    received_at: datetime
    patient_sex: str = ""
    patient_age: float | None = None  # years
    study_time: str = ""
    station_name: str = ""
    institution_name: str = ""
    manufacturer: str = ""
    manufacturer_model_name: str = ""
    device_serial_number: str = ""
    software_versions: str = ""
    presentation_intent_type: str = ""
    image_rows: int | None = None
    image_columns: int | None = None
    bits_stored: int | None = None


@dataclass(frozen=True, kw_only=True)
class StoredInstance:
    """One stored object with its newest score.

    Attributes
    ----------
    copy, turn, image_id
        See `db.models.Instance`.
    issuer_of_patient_id, patient_birth_date
        ``None`` if an earlier version recorded the object. It did not keep them, and the other identifiers
        are those of the first object of the study.
    """

    id: int
    study_id: int
    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    copy: int
    turn: int
    image_id: int | None
    digest: str
    patient_id: str
    issuer_of_patient_id: str | None
    patient_name: str
    patient_birth_date: str | None
    job_state: str | None
    score: StoredScore | None


@dataclass(frozen=True, kw_only=True)
class StoredScore:
    """The score of one instance by a model."""

    id: int
    model: StoredModel
    probability: float | None
    threshold: float
    decision: str
    reason: str | None
    detail: str
    heat_map: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A checkpoint that scored here."""

    id: int
    sha256: str
    name: str
    version: str
    threshold: float
    preprocessing: str


@dataclass(frozen=True, kw_only=True)
class NewScore:
    """The outcome for one instance."""

    instance_id: int
    model_id: int
    probability: float | None
    threshold: float
    decision: str
    reason: str | None
    detail: str
    view: str | None
    novelty: float | None = None
    age: float | None = None
    scored_at: datetime
    heat_map: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class StoredReport:
    """One revision of a report without its bytes; `images` are pairs of instance id and score id.

    `earlier_uids` are the SOP Instance UIDs of this and all earlier revisions.
    """

    id: int
    revision: int
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    images: frozenset[tuple[int, int | None]]
    earlier_uids: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class NewReport:
    """One revision of a report, with its decision on the study, the images it states and where it goes.

    `beside` are the jobs that make what destinations get beside it.
    """

    study_id: int
    revision: int
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    content: bytes
    made_at: datetime
    decision: str
    images: frozenset[tuple[int, int | None]]
    destinations: Sequence[str]
    give_up_at: datetime
    beside: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class PendingDelivery:
    """One report, or another result beside it, that a destination has not yet got."""

    id: int
    destination: str
    tries: int
    give_up_at: datetime
    revision: int
    study_instance_uid: str
    result: str
    content: bytes
    waits_for_earlier: bool


@dataclass(frozen=True, kw_only=True)
class NewResult:
    """One object that was made beside a report; see `db.models.ResultObject`."""

    report_id: int
    result: str
    number: int = 0
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    content: bytes


@dataclass(frozen=True, kw_only=True)
class ReportToDraw:
    """One revision of a report, to be shown in another form; `images` have the scores that it states."""

    content: bytes
    revision: int
    decision: str
    study_instance_uid: str
    images: Sequence[StoredInstance]
