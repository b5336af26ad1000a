"""A study at one moment: its images, which of their copies count, and whose they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from classifier.reasons import RESULTS
from db.rows import StoredInstance, StoredModel, StoredReport
from pacs_node.dicom.patient import Patient, are_different
from pacs_node.reporting.from_rows import is_reportable
from pacs_node.reporting.report import REPORT_CLASSES, Predecessor


@dataclass(frozen=True)
class StudyState:
    """What a report is made of.

    Attributes
    ----------
    objects
        All that came of it, in the order in which it came.
    last
        The newest revision of its report.
    model
        The one in use.
    """

    id: int
    uid: str
    objects: Sequence[StoredInstance]
    last: StoredReport | None
    model: StoredModel | None

    @property
    def radiographs(self) -> list[StoredInstance]:
        """Those objects that count as images of the study."""
        return [*filter(is_reportable, self.objects)]

    @property
    def images(self) -> list[StoredInstance]:
        """The newest copy of each radiograph."""
        return newest_copies(self.radiographs)

    @property
    def waits_for_scores(self) -> bool:
        return any(one.score is None and one.job_state == "ready" for one in self.radiographs)

    @property
    def stated(self) -> frozenset[tuple[int, int | None]]:
        """What a report made now states, copies too; no score where its job was given up."""
        return frozenset((one.id, one.score.id if one.score else None) for one in self.radiographs)

    @property
    def is_stated(self) -> bool:
        """Whether the last report states all there is; where there are copies, another one may count now."""
        has_copies = any(one.image_id is not None for one in self.radiographs)
        return self.last is not None and self.last.images == self.stated and not has_copies

    @property
    def revision(self) -> int:
        return self.last.revision + 1 if self.last else 1

    @property
    def predecessor(self) -> Predecessor | None:
        last = self.last
        if last is None:
            return None
        return Predecessor(last.sop_class_uid, last.sop_instance_uid, last.series_instance_uid, self.uid)

    def names_different_patients(self, patient_of: Callable[[StoredInstance], Patient]) -> bool:
        """Tell whether the objects of the study are not all of one patient.

        Structured reports and results of programs do not count: they say something of images, and a PACS may
        send back those of the node itself, with the patient as it was then.
        """
        objects = newest_copies([one for one in self.objects if not _is_result(one)])
        return are_different([patient_of(one) for one in objects])


def _is_result(one: StoredInstance) -> bool:
    reason = one.score.reason if one.score else None
    return one.sop_class_uid in REPORT_CLASSES or reason in RESULTS


def newest_copies(objects: Sequence[StoredInstance]) -> list[StoredInstance]:
    """Return for each image the copy that came last, in the order in which the images came first."""
    newest: dict[int, StoredInstance] = {}
    for one in objects:
        image_id = one.image_id or one.id
        if image_id not in newest or one.turn >= newest[image_id].turn:
            newest[image_id] = one
    return list(newest.values())


def newest_header(images: Sequence[StoredInstance], available: Sequence[int]) -> int:
    """Return which image has the Patient and Study attributes that count: the last corrected, or the first.

    Parameters
    ----------
    available
        The ids of images of which the file is there.
    """
    there = [at for at, image in enumerate(images) if image.id in available]
    return max(there, key=lambda at: (images[at].turn > 0, images[at].id if images[at].turn else -at))
