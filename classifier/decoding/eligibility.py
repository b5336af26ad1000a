"""Is this image a frontal chest radiograph? Decided from the tags alone, before any pixel is decoded.

Each refusal says how sure it is (`classifier.reasons.Bearing`). A reason that is sure counts before a doubt:
a hand is no chest radiograph, whatever else the tags leave open.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.dataset import Dataset
from pydicom.uid import DigitalXRayImageStorageForProcessing

from classifier.config import PROJECTION_RADIOGRAPHS, SECONDARY_CAPTURES, Eligibility
from classifier.decoding import origin, places, vocabulary
from classifier.decoding.places import DOUBTS, Finding
from classifier.decoding.quiet import silence_warnings
from classifier.decoding.tags import integer, quote, text
from classifier.errors import NotScorable
from classifier.reasons import Bearing, Reason

_VIEWS = {"pa": "PA", "ap": "AP", "frontal": "frontal", None: "unknown"}


def check(header: Dataset, rules: Eligibility) -> str:
    """Decide from the tags whether this is one original, processed, frontal chest radiograph.

    Parameters
    ----------
    header
        The data set; Pixel Data is not needed.
    rules
        What to do where the tags tell nothing of body part or view. A value that is not understood is refused
        all the same.

    Returns
    -------
    str
        The view: ``"PA"``, ``"AP"``, ``"frontal"`` where the tags do not tell which of the two, or
        ``"unknown"`` where they tell nothing and `rules` say to score it all the same.

    Raises
    ------
    NotScorable
        With the first reason that is sure, else with the first doubt.

    References
    ----------
    PS3.3 C.7.6.1 (Image Type, Patient Orientation), C.8.11 (DX), PS3.16 CID 4010 and CID 4031.
    """
    silence_warnings()
    body_part, view = places.body_part(header), places.view(header)
    doubt = None
    for refusal in _refusals(header, rules, body_part, view):
        if refusal.reason.bearing is not Bearing.OPEN:
            raise refusal
        doubt = doubt or refusal
    if doubt:
        raise doubt
    return _VIEWS[view.means]


def _refusals(
    header: Dataset, rules: Eligibility, body_part: Finding, view: Finding
) -> Iterator[NotScorable]:
    of_kind = _judge_kind(header, body_part, view)
    of_origin = origin.judge(header)
    # What the node or a program made is named as such, whatever its SOP class
    found = (
        of_origin if of_origin and of_origin.reason is Reason.OWN_RESULT else None,
        of_kind,
        of_origin,
        _judge_body_part(body_part, rules),
        _judge_view(view, rules),
        _judge_frames(header),
    )
    yield from (refusal for refusal in found if refusal)


def _judge_kind(header: Dataset, body_part: Finding, view: Finding) -> NotScorable | None:
    sop_class, modality = text(header, "SOPClassUID"), text(header, "Modality")
    if sop_class not in PROJECTION_RADIOGRAPHS:
        return NotScorable(Reason.NOT_RADIOGRAPH, f"SOP Class UID is {quote(sop_class)}")
    kind = vocabulary.term(modality, "modality")
    if kind == "radiograph":
        return None
    if modality and kind is None:
        return NotScorable(Reason.NO_MODALITY, f"Modality is {quote(modality)}")
    if kind == "other" or (sop_class in SECONDARY_CAPTURES and not _vouches(header, body_part, view)):
        return NotScorable(Reason.NOT_RADIOGRAPH, f"Modality is {quote(modality)}")
    return None  # CR and DX classes are trusted without a Modality


def _vouches(header: Dataset, body_part: Finding, view: Finding) -> bool:
    """Tell whether a secondary capture of no modality may be a chest film: by its tags, or as a film."""
    is_film = text(header, "ConversionType") == "DF"
    is_chest = body_part.means in ("chest", *DOUBTS) and places.is_coded(body_part)
    is_frontal = (places.is_frontal(view.means) or view.means in DOUBTS) and places.is_coded(view)
    return body_part.means != "other" and (is_film or is_chest or is_frontal)


def _judge_frames(header: Dataset) -> NotScorable | None:
    intent = text(header, "PresentationIntentType")
    if text(header, "SOPClassUID") == DigitalXRayImageStorageForProcessing or intent == "FOR PROCESSING":
        return NotScorable(Reason.FOR_PROCESSING, "Presentation Intent Type is FOR PROCESSING")
    frames = integer(header, "NumberOfFrames")
    if frames is not None and frames > 1:
        return NotScorable(Reason.MULTI_FRAME, f"Number of Frames is {frames}")
    return None


def _judge_body_part(found: Finding, rules: Eligibility) -> NotScorable | None:
    if found.means == "other":
        return NotScorable(Reason.NOT_CHEST, found.detail)
    if found.means in DOUBTS:
        return NotScorable(Reason.NO_BODY_PART, found.detail)
    if found.means is None and rules.unknown_body_part == "refuse":
        return NotScorable(Reason.NO_BODY_PART, "No tag or description tells the body part")
    return None


def _judge_view(found: Finding, rules: Eligibility) -> NotScorable | None:
    if found.means in ("lateral", "angled"):
        return NotScorable(Reason.NOT_FRONTAL, found.detail)
    if found.means in DOUBTS:
        return NotScorable(Reason.NO_VIEW, found.detail)
    if found.means is None and rules.unknown_view == "refuse":
        return NotScorable(Reason.NO_VIEW, "No tag or description tells the view")
    return None
