"""What an object is to those that came before under its SOP Instance UID: the same image, or another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from classifier.decoding.copies import Copy, Fingerprint, compare
from classifier.errors import NotScorable
from classifier.outcome import StillDecoding
from db.rows import StoredInstance
from pacs_node.reporting.from_rows import DUPLICATE, LOSSY
from pacs_node.reporting.report import NotScoredReason
from pacs_node.storage.spool import Spool


class Fingerprinter(Protocol):
    """What decodes files to compare them; `classifier.scoring.predict.Predictor` does."""

    def fingerprints(
        self, sources: Sequence[Path]
    ) -> list[Fingerprint | NotScorable | OSError | StillDecoding]:
        """Return for each file its fingerprint, why it has none, or that it is to be asked for again."""
        ...


@dataclass(frozen=True)
class CopyResult:
    """What came of comparing.

    Attributes
    ----------
    image_id
        The first object of the same image; ``None`` where none before is.
    reason
        Why it is not scored; ``None`` where it is the image that came first under the UID, which is scored by
        this object's own tags.
    detail
        What was found, one sentence.
    """

    image_id: int | None
    reason: NotScoredReason | None
    detail: str = ""


def judge(
    instance: StoredInstance, earlier: Sequence[StoredInstance], spool: Spool, scorer: Fingerprinter
) -> CopyResult | OSError | StillDecoding:
    """Compare an object with all that came before under its UID.

    Another SOP class, study or series makes another object, whatever its pixels.

    Returns
    -------
    CopyResult, OSError or StillDecoding
        The error says that a file that is there, or the object's own file, cannot be read.
    """
    near = [one for one in earlier if _place(one) == _place(instance)]
    mine, *others = scorer.fingerprints([spool.path(one.digest) for one in (instance, *near)])
    if isinstance(mine, OSError | StillDecoding):
        return mine
    found = set[Copy]()
    detail = "It has other pixels" if near else "It has another SOP class, study or series"
    for one, theirs in zip(near, others, strict=True):
        if isinstance(theirs, FileNotFoundError):
            detail = "The file that came before is gone, so the two cannot be compared"
        elif isinstance(theirs, OSError | StillDecoding):
            return theirs
        elif isinstance(mine, Fingerprint) and isinstance(theirs, Fingerprint):
            copy = compare(mine, theirs)
            if copy is Copy.SAME:
                return _same(one, earlier[0])
            found.add(copy)
    if Copy.LOSSY in found:
        return CopyResult(None, LOSSY, "It has other pixels, and one of the two is compressed with loss")
    return CopyResult(None, DUPLICATE, detail)


def _same(one: StoredInstance, first: StoredInstance) -> CopyResult:
    image_id = one.image_id or one.id
    if image_id == first.id:
        return CopyResult(image_id, None)
    was_lossy = one.score is not None and one.score.reason == LOSSY.code
    return CopyResult(image_id, LOSSY if was_lossy else DUPLICATE, "It has other pixels than the first one")


def _place(instance: StoredInstance) -> tuple[str, int, str]:
    return instance.sop_class_uid, instance.study_id, instance.series_instance_uid
