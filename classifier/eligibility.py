"""Is this image a frontal chest radiograph? Decided from the tags alone, before any pixel is decoded.

Coded attributes come before free text: descriptions are asked only where the coded attributes are silent, and
where several coded attributes contradict each other the image is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydicom.dataset import Dataset
from pydicom.uid import DigitalXRayImageStorageForProcessing

from classifier.config import PROJECTION_RADIOGRAPHS, SECONDARY_CAPTURES, Eligibility
from classifier.errors import NotScorable, Reason
from classifier.tags import Code, codes, integer, items, plain, quiet, quote, text, texts, values

_RADIOGRAPHY = {"CR", "DX", "RG", "XR"}  # XR is no Defined Term of PS3.3 C.7.3.1.1.1, but some senders use it
_VAGUE_MODALITY = {"", "OT"}
_SNOMED = {"SCT", "SRT", "SNM3", "99SDM"}

# CID 4031: chest, thoracic structure, thoracic cavity, lung; SNOMED CT and the retired SNOMED RT identifiers
_CHEST_CODES = {"816094009", "51185008", "43799004", "39607008", "T-D3000", "T-D3200", "T-28000"}
# CID 4010: the views in the frontal plane that are neither oblique nor axial
_FRONTAL_CODES = {
    "272479007": "PA",
    "R-10214": "PA",
    "R-40888": "PA",
    "399348003": "AP",
    "R-10206": "AP",
    "399033003": "frontal",
    "R-10202": "frontal",
}
_UNTOLD = {"UNKNOWN", "UNSPECIFIED", "UNDEFINED", "NONE", "NA", "N A", "OTHER", "DEFAULT", "ANY", "NULL"}

_CHEST_WORDS = re.compile(
    r"\b(?:(?:PORTABLE|PORT|MOBILE|BEDSIDE|ADULT|PEDIATRIC|CHILD|INFANT)?(?:CHEST|THORAX|TORAX|LUNGS?|CXR)"
    r"(?:PA|AP|LAT|LATERAL|FRONTAL|ROUTINE|\d+ ?VIEWS?)*|TORACE|POUMONS?|LUNGE)\b|胸部|胸片|흉부"
)
_OTHER_WORDS = re.compile(
    r"\b(?:ABD|ABDOMEN|ABDOMINAL|KUB|PELVIS|HIPS?|\w*SPINE|SPINAL|VERTEBRAE?|SKULL|HEAD|NECK|SINUS(?:ES)?|FACE|"
    r"FACIAL|JAW|HANDS?|FINGERS?|THUMB|WRISTS?|FOREARM|ELBOWS?|HUMERUS|ARM|SHOULDERS?|CLAVICLES?|SCAPULA|RIBS?|"
    r"STERNUM|BREASTS?|FEMUR|LEGS?|KNEES?|TIBIA|FIBULA|ANKLES?|FOOT|FEET|TOES?|HEEL|CALCANEUS|"
    r"EXTREMIT(?:Y|IES)|LIMBS?|BONE AGE|WHOLE ?BODY)\b|腹部"
)
_PA_WORDS = re.compile(r"\b(?:CHEST|THORAX)?P ?A\b|\bPOSTERO ?ANTERIOR\b")
_AP_WORDS = re.compile(r"\b(?:CHEST|THORAX)?A ?P\b|\bANTERO ?POSTERIOR\b")
_FRONTAL_WORDS = re.compile(r"\bFRONTAL\b|正面|正位")
_OTHER_VIEW_WORDS = re.compile(
    r"\b(?:CHEST|THORAX)?LAT(?:ERAL)?\b|\b[LR]L\b|\b[LR]?LATERO?\b|\b(?:LLD|RLD|LDECUB|RDECUB)\b|\b[LR][APL]O\b|"
    r"OBLIQU?E?|DECUB|LORDO|AXIAL|APICAL|SAGITTAL|TANGENTIAL|側面|侧位|측면"
)
_SUBTRACTED_TYPE = re.compile(r"SUBTRACT|ENERGY|SUPPRESS|\bBONE|\bSOFT|\bES\b")
_SUBTRACTED_TEXT = re.compile(
    r"\b(?:BONES?|RIBS?) ?(?:SUPPRESS|SUBTRACT)|ENERGY ?SUBTRACT|SOFT ?TISSUE (?:IMAGE|ONLY)"
)
_PIXEL_SUBTRACTION = "113062"  # DCM, pixel by pixel subtraction (CID 7203)

_DESCRIPTIONS = (
    "SeriesDescription",
    "ProtocolName",
    "PerformedProcedureStepDescription",
    "AcquisitionDeviceProcessingDescription",
    "RequestedProcedureDescription",
    "StudyDescription",
)
_PROCEDURE_CODES = (
    "PerformedProtocolCodeSequence",
    "RequestedProcedureCodeSequence",
    "ProcedureCodeSequence",
)


def check(header: Dataset, rules: Eligibility) -> str:
    """Decide from the tags whether this is one original, processed, frontal chest radiograph.

    Parameters
    ----------
    header
        The data set; Pixel Data is not needed.
    rules
        What to do where the tags leave body part or view open.

    Returns
    -------
    str
        The view: ``"PA"``, ``"AP"``, ``"frontal"`` where the tags do not tell which of the two, or
        ``"unknown"`` where they tell nothing and `rules` say to score it all the same.

    Raises
    ------
    NotScorable
        With the first reason that applies.

    References
    ----------
    PS3.3 C.7.6.1 (Image Type, Patient Orientation), C.8.11 (DX), PS3.16 CID 4010 and CID 4031.
    """
    with quiet():
        _check_kind(header)
        _check_original(header)
        _check_chest(header, rules)
        return _check_view(header, rules)


def _check_kind(header: Dataset) -> None:
    sop_class, modality = text(header, "SOPClassUID"), text(header, "Modality")
    if sop_class not in PROJECTION_RADIOGRAPHS:
        raise NotScorable(Reason.NOT_RADIOGRAPH, f"SOP Class UID is {quote(sop_class)}")
    if not _is_radiography(header, sop_class, modality):
        raise NotScorable(Reason.NOT_RADIOGRAPH, f"Modality is {quote(modality)}")
    intent = text(header, "PresentationIntentType")
    if sop_class == DigitalXRayImageStorageForProcessing or intent == "FOR PROCESSING":
        raise NotScorable(Reason.FOR_PROCESSING, "Presentation Intent Type is FOR PROCESSING")
    frames = integer(header, "NumberOfFrames")
    if frames is not None and frames > 1:
        raise NotScorable(Reason.MULTI_FRAME, f"Number of Frames is {frames}")


def _is_radiography(header: Dataset, sop_class: str, modality: str) -> bool:
    """Trust CR and DX classes without a Modality; a secondary capture only where coded tags vouch for it."""
    if modality in _RADIOGRAPHY:
        return True
    if modality not in _VAGUE_MODALITY:
        return False
    if sop_class not in SECONDARY_CAPTURES:
        return True
    return _coded_body_part(header) == "chest" and _coded_view(header) in ("PA", "AP", "frontal")


def _check_original(header: Dataset) -> None:
    image_type = [plain(value) for value in values(header, "ImageType")]
    is_capture = text(header, "SOPClassUID") in SECONDARY_CAPTURES
    flavours = " ".join(image_type[2:]).replace("_", " ")
    derivation = {code.value for code in codes(header, "DerivationCodeSequence")}
    labels = " ".join(_spaced(text(header, k)) for k in ("SeriesDescription", "DerivationDescription"))
    if (
        "LOCALIZER" in image_type
        or (image_type[1:2] == ["SECONDARY"] and not is_capture)
        or _SUBTRACTED_TYPE.search(flavours)
        or _SUBTRACTED_TEXT.search(labels)
        or _PIXEL_SUBTRACTION in derivation
    ):
        raise NotScorable(Reason.NOT_ORIGINAL, f"Image Type is {quote('/'.join(image_type))}")


def _check_chest(header: Dataset, rules: Eligibility) -> None:
    part = _coded_body_part(header) or _first(_text_body_part(words) for words in _descriptions(header))
    if part == "other":
        found = [text(header, "BodyPartExamined"), _meanings(header, "AnatomicRegionSequence")]
        raise NotScorable(Reason.NOT_CHEST, _detail("Body part", found))
    if part is None and rules.unknown_body_part == "refuse":
        raise NotScorable(Reason.NO_BODY_PART, "No tag or description tells the body part")


def _coded_body_part(header: Dataset) -> str | None:
    """Return "chest", "other" or None; one attribute that says "other" is enough."""
    found = {_code_body_part(code) for code in codes(header, "AnatomicRegionSequence")}
    found |= {_term_body_part(_spaced(value)) for value in texts(header, "BodyPartExamined")}
    return "other" if "other" in found else "chest" if "chest" in found else None


def _code_body_part(code: Code) -> str | None:
    if code.scheme in _SNOMED and code.value in _CHEST_CODES:
        return "chest"
    return _term_body_part(_spaced(code.meaning)) or (
        "other" if code.scheme in _SNOMED and code.value else None
    )


def _term_body_part(term: str) -> str | None:
    if not term or term in _UNTOLD:
        return None
    return "chest" if _text_body_part(term) == "chest" else "other"


def _text_body_part(words: str) -> str | None:
    chest, other = bool(_CHEST_WORDS.search(words)), bool(_OTHER_WORDS.search(words))
    if chest == other:  # silent, or two body parts in one study
        return None
    return "chest" if chest else "other"


def _check_view(header: Dataset, rules: Eligibility) -> str:
    view = _coded_view(header) or _plane(header) or _first(_text_view(words) for words in _view_texts(header))
    if view == "other":
        found = [text(header, "ViewPosition"), _meanings(header, "ViewCodeSequence")]
        found += ["/".join(texts(header, "PatientOrientation"))]
        raise NotScorable(Reason.NOT_FRONTAL, _detail("View", found))
    if view is None and rules.unknown_view == "refuse":
        raise NotScorable(Reason.NO_VIEW, "No tag or description tells the view")
    return view or "unknown"


def _coded_view(header: Dataset) -> str | None:
    """Return "PA", "AP", "frontal", "other" or None; one attribute that says "other" is enough."""
    found = {_code_view(code) for code in codes(header, "ViewCodeSequence")}
    found |= {_term_view(_spaced(value)) for value in texts(header, "ViewPosition")}
    for item in items(header, "ViewCodeSequence"):
        if _OTHER_VIEW_WORDS.search(_spaced(_meanings(item, "ViewModifierCodeSequence"))):
            found.add("other")
    if "other" not in found and {"PA", "AP"} <= found:
        return "frontal"
    return next((view for view in ("other", "PA", "AP", "frontal") if view in found), None)


def _code_view(code: Code) -> str | None:
    if code.scheme in _SNOMED and code.value:
        return _FRONTAL_CODES.get(code.value) or _term_view(_spaced(code.meaning)) or "other"
    return _term_view(_spaced(code.meaning))


def _term_view(term: str) -> str | None:
    if _OTHER_VIEW_WORDS.search(term):
        return "other"
    pa, ap = bool(_PA_WORDS.search(term)), bool(_AP_WORDS.search(term))
    if pa != ap:
        return "PA" if pa else "AP"
    return "frontal" if pa or _FRONTAL_WORDS.search(term) else None


def _text_view(words: str) -> str | None:
    """Return the view that a description tells; one of a study with both views tells nothing."""
    view = _term_view(words)
    if view == "other" and _term_view(_OTHER_VIEW_WORDS.sub(" ", words)):
        return None
    return view


def _plane(header: Dataset) -> str | None:
    """Return the plane that Patient Orientation tells (PS3.3 C.7.6.1.1.1).

    A side along the patient's left-right axis means a frontal image, along anterior-posterior a lateral one.
    Which way up it lies is for `orientation` to tell.
    """
    directions = [plain(value) for value in values(header, "PatientOrientation")]
    if len(directions) != 2 or not all(directions):
        return None
    across, along = sorted(directions, key=lambda direction: direction[0] in "FH")  # also of a turned image
    if across[0] in "LR" and along[0] in "FH":
        return "frontal" if not set(across) & set("AP") else "other"
    return "other" if {across[0], along[0]} & set("AP") else None


def _descriptions(header: Dataset) -> Iterator[str]:
    """Yield the free texts of a data set, the most specific first."""
    requests = items(header, "RequestAttributesSequence")
    for keyword in _DESCRIPTIONS:
        for owner in (header, *requests):
            yield _spaced(text(owner, keyword))
    for keyword in _PROCEDURE_CODES:
        for owner in (header, *requests):
            yield _spaced(_meanings(owner, keyword))


def _view_texts(header: Dataset) -> Iterator[str]:
    yield _spaced(text(header, "BodyPartExamined"))
    yield from _descriptions(header)


def _meanings(ds: Dataset, keyword: str) -> str:
    return " ".join(code.meaning for code in codes(ds, keyword))


def _detail(question: str, found: list[str]) -> str:
    """Name the coded values found; a free text may hold patient data and is not repeated."""
    told = ", ".join(quote(value) for value in found if value)
    return f"{question} is {told or 'told by a description'}"


def _spaced(term: str) -> str:
    """Return the words of a term with single spaces between them: CHEST_P-A becomes CHEST P A."""
    return " ".join(re.sub(r"[\W_]+", " ", term).split())


def _first(found: Iterator[str | None]) -> str | None:
    return next((one for one in found if one), None)
