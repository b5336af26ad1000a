"""What an object is to those that came before under its SOP Instance UID: the same image, or another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from classifier.decoding.copies import Copy, compare
from db.rows import StoredInstance
from pacs_node.reporting.from_rows import DUPLICATE, LOSSY
from pacs_node.reporting.report import NotScoredReason
from pacs_node.storage.spool import Spool


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
    error
        Why a file could not be read, so that nothing came of it.
    """

    image_id: int | None
    reason: NotScoredReason | None
    detail: str = ""
    error: OSError | None = None


def judge(
    instance: StoredInstance, earlier: Sequence[StoredInstance], spool: Spool, max_pixels: int
) -> CopyResult:
    """Compare an object with all that came before under its UID.

    Another SOP class, study or series makes another object, whatever its pixels.

    Raises
    ------
    OSError
        When a file that is there cannot be read, or the object's own file is missing.
    """
    mine, found, details = spool.path(instance.digest), set[Copy](), ["It has other pixels"]
    for one in earlier:
        if _place(one) != _place(instance):
            details.append("It has another SOP class, study or series")
            continue
        try:
            copy = compare(spool.path(one.digest), mine, max_pixels)
        except FileNotFoundError:
            if not mine.is_file():
                raise
            details.append("The file that came before is gone, so the two cannot be compared")
            continue
        if copy is Copy.SAME:
            return _same(one, earlier[0])
        found.add(copy)
    if Copy.LOSSY in found:
        return CopyResult(None, LOSSY, "It has other pixels, and one of the two is compressed with loss")
    return CopyResult(None, DUPLICATE, details[-1])


def _same(one: StoredInstance, first: StoredInstance) -> CopyResult:
    image_id = one.image_id or one.id
    if image_id == first.id:
        return CopyResult(image_id, None)
    was_lossy = one.score is not None and one.score.reason == LOSSY.code
    return CopyResult(image_id, LOSSY if was_lossy else DUPLICATE, "It has other pixels than the first one")


def _place(instance: StoredInstance) -> tuple[str, int, str]:
    return instance.sop_class_uid, instance.study_id, instance.series_instance_uid
