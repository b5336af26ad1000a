"""Is this an image of the patient, or something that was made of one?

Localizers and subtractions have an original beside them. Heat maps, annotated copies and other results of
programs are no images of the study at all. Where the tags leave it open, the image may be an original.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.dataset import Dataset

from classifier.config import OWN_EQUIPMENT, SECONDARY_CAPTURES
from classifier.decoding import vocabulary
from classifier.decoding.tags import Code, codes, integer, items, plain, quote, text, texts, values
from classifier.errors import NotScorable
from classifier.reasons import Reason

_LABELS = ("SeriesDescription", "ProtocolName", "DerivationDescription", "ImageComments")
_EQUIPMENT = (
    ("Manufacturer", "ManufacturerModelName"),
    ("SecondaryCaptureDeviceManufacturer", "SecondaryCaptureDeviceManufacturerModelName"),
)
_PROCESSING_EQUIPMENT = "109102"  # DCM, CID 7005
# Conversion Type, PS3.3 C.8.6.1: what was drawn or computed, what a workstation made, a scanned document
_DRAWN, _BY_WORKSTATION, _DOCUMENT = ("DRW", "SYN"), "WSD", "SD"


def judge(header: Dataset) -> NotScorable | None:
    """Return why a header is none of an original, or may be none; ``None`` where nothing speaks against it.

    References
    ----------
    PS3.3 C.7.6.1.1.2 (Image Type), C.8.6.1 (SC Equipment), C.12.1.1.5 (Contributing Equipment Sequence).
    """
    if _is_own(header):
        return NotScorable(Reason.OWN_RESULT, "Manufacturer and model are those of this node")
    image_type = [plain(value) for value in values(header, "ImageType")]
    labels = [text(header, keyword) for keyword in _LABELS]
    if _is_subtracted(header, image_type, labels):
        return NotScorable(Reason.NOT_ORIGINAL, _type_detail(image_type))
    if text(header, "SOPClassUID") in SECONDARY_CAPTURES:
        return _judge_capture(header, image_type, labels)
    return _judge_radiograph(header, image_type, labels)


def _is_own(header: Dataset) -> bool:
    own = tuple(plain(name) for name in OWN_EQUIPMENT)
    owners = (header, *items(header, "ContributingEquipmentSequence"))
    return any(
        (text(owner, maker), text(owner, model)) == own for owner in owners for maker, model in _EQUIPMENT
    )


def _is_subtracted(header: Dataset, image_type: list[str], labels: list[str]) -> bool:
    flavours = vocabulary.read(" ".join(image_type[2:]))
    return (
        "LOCALIZER" in image_type
        or flavours.has("subtracted.flavour")
        or flavours.has("subtracted")
        or any(vocabulary.read(label).has("subtracted") for label in labels)
        or any(vocabulary.code(code.value, "subtracted") is not None for code in _derivations(header))
    )


def _judge_capture(header: Dataset, image_type: list[str], labels: list[str]) -> NotScorable | None:
    """Judge a secondary capture, which is a digitised film, or whatever a program stores as a picture."""
    conversion = text(header, "ConversionType")
    made = [*_made_by_programs(header, image_type, labels, _maker_names(header))]
    if sources := [k for k in ("SourceImageSequence", "ReferencedImageSequence") if items(header, k)]:
        made.append(f"It refers to other images ({sources[0]})")
    if conversion in _DRAWN or (_is_colour(header) and conversion == _BY_WORKSTATION):
        made.append(f"Conversion Type is {quote(conversion)}{' of a colour image' * _is_colour(header)}")
    if any(
        _PROCESSING_EQUIPMENT in _purposes(item) for item in items(header, "ContributingEquipmentSequence")
    ):
        made.append("Contributing Equipment Sequence names processing equipment")
    if made:
        return NotScorable(Reason.DERIVED_RESULT, made[0])
    if _is_colour(header):
        return NotScorable(Reason.MAYBE_DERIVED, "It is a secondary capture in colour")
    if conversion == _DOCUMENT:
        return NotScorable(Reason.MAYBE_DERIVED, 'Conversion Type is "SD", a scanned document')
    if conversion == _BY_WORKSTATION and text(header, "BurnedInAnnotation") == "YES":
        return NotScorable(Reason.MAYBE_DERIVED, "A workstation made it, with burned in annotation")
    return None


def _judge_radiograph(header: Dataset, image_type: list[str], labels: list[str]) -> NotScorable | None:
    sure = next(_words("result.sure", image_type, labels), None)
    signs = [*_made_by_programs(header, image_type, labels, [])]
    if _is_colour(header):
        signs.append("It is in colour")
    is_secondary = image_type[1:2] == ["SECONDARY"]
    if sure or (signs and (is_secondary or (_is_colour(header) and len(signs) > 1))):
        return NotScorable(Reason.DERIVED_RESULT, sure or signs[0])
    if is_secondary:
        return NotScorable(Reason.MAYBE_DERIVED, _type_detail(image_type))
    return NotScorable(Reason.MAYBE_DERIVED, signs[0]) if signs else None


def _made_by_programs(
    header: Dataset, image_type: list[str], labels: list[str], makers: list[str]
) -> Iterator[str]:
    """Yield the signs that a program made this picture of an image."""
    yield from _words("result.sure", image_type, [*labels, *makers])
    yield from _words("result.maybe", image_type, labels)
    for code in _derivations(header):
        if vocabulary.code(code.value, "derivation") is None:
            yield f"Derivation Code Sequence is {quote(code.meaning or code.value)}"


def _words(meaning: str, image_type: list[str], labels: list[str]) -> Iterator[str]:
    for label in (" ".join(image_type[2:]), *labels):
        if vocabulary.read(label).has(meaning):
            yield f"It is called {quote(label)}"


def _maker_names(header: Dataset) -> list[str]:
    owners = (header, *items(header, "ContributingEquipmentSequence"))
    return [text(owner, keyword) for owner in owners for pair in _EQUIPMENT for keyword in pair]


def _purposes(equipment: Dataset) -> set[str]:
    return {code.value for code in codes(equipment, "PurposeOfReferenceCodeSequence")}


def _derivations(header: Dataset) -> list[Code]:
    return [code for code in codes(header, "DerivationCodeSequence") if code.value or code.meaning]


def _is_colour(header: Dataset) -> bool:
    photometric = texts(header, "PhotometricInterpretation")
    return (integer(header, "SamplesPerPixel") or 1) > 1 or any("MONOCHROME" not in p for p in photometric)


def _type_detail(image_type: list[str]) -> str:
    return f"Image Type is {quote('/'.join(image_type))}"
