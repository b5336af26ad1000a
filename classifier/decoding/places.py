"""What a header says of body part and view, place by place.

The most specific place that says anything decides: coded attributes, then the texts of image and series, then
those of the study. What stands there and is not understood is a doubt, and no silence that a vaguer text may
fill; so is what two places say against each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from pydicom.dataset import Dataset

from classifier.decoding import vocabulary
from classifier.decoding.tags import codes, items, plain, quote, texts, values

Aspect = Literal["body", "view"]

UNKNOWN = "unknown"  # a value that is not understood
UNCLEAR = "unclear"  # a value that is understood and leaves it open, or several that contradict each other
DOUBTS = frozenset({UNKNOWN, UNCLEAR})

_CODED_SCHEMES = {"SCT", "SRT", "SNM3", "99SDM", "DCM"}
_PRESETS = (
    "AcquisitionDeviceProcessingDescription",
    "SeriesDescription",
    "ProtocolName",
    "AcquisitionProtocolName",
)
_NAMES_OF_SERIES = ("SeriesDescription", "ProtocolName")  # presets may hold settings, which no table knows
_OF_THE_STUDY = ("PerformedProcedureStepDescription", "RequestedProcedureDescription", "StudyDescription")
_STUDY_CODES = ("RequestedProcedureCodeSequence", "ProcedureCodeSequence")
_BEAMS = {"pa", "ap"}
_FRONTAL = {*_BEAMS, "frontal"}
_CODED_PLACES = {"AnatomicRegionSequence", "BodyPartExamined", "ViewCodeSequence", "ViewPosition"}
_PLACES = {
    "AcquisitionDeviceProcessingDescription": "Acquisition Device Processing Description",
    "AcquisitionProtocolName": "Acquisition Protocol Name",
    "AnatomicRegionSequence": "Anatomic Region Sequence",
    "BodyPartExamined": "Body Part Examined",
    "PatientOrientation": "Patient Orientation",
    "PerformedProcedureStepDescription": "Performed Procedure Step Description",
    "PerformedProtocolCodeSequence": "Performed Protocol Code Sequence",
    "PrimaryAnatomicStructureSequence": "Primary Anatomic Structure Sequence",
    "ProcedureCodeSequence": "Procedure Code Sequence",
    "ProtocolName": "Protocol Name",
    "RequestedProcedureCodeSequence": "Requested Procedure Code Sequence",
    "RequestedProcedureDescription": "Requested Procedure Description",
    "SeriesDescription": "Series Description",
    "StudyDescription": "Study Description",
    "ViewCodeSequence": "View Code Sequence",
    "ViewPosition": "View Position",
}


class Statement(NamedTuple):
    """What one place says; `means` is a meaning of the vocabulary or one of `DOUBTS`."""

    keyword: str
    value: str
    means: str

    def __str__(self) -> str:
        """Quote the value, but for texts of the study: someone typed them, and they may hold patient data."""
        told = self.means if self.keyword in _OF_THE_STUDY else quote(self.value)
        return f"{_PLACES[self.keyword]} is {told}"


class Finding(NamedTuple):
    """What a header says of one aspect.

    Attributes
    ----------
    means
        A meaning of the vocabulary; one of `DOUBTS`; ``None`` where nothing is said.
    statements
        The places from which it follows.
    """

    means: str | None
    statements: tuple[Statement, ...] = ()

    @property
    def detail(self) -> str:
        """One sentence for people, without the full stop."""
        told = ", ".join(dict.fromkeys(map(str, self.statements)))
        if self.means == UNKNOWN:
            return f"Not understood: {told}"
        return f"Not clear: {told}" if self.means == UNCLEAR else told


def body_part(header: Dataset) -> Finding:
    """Return what a header says of the body part: ``"chest"``, ``"other"``, a doubt or nothing."""
    regions = [
        *_coded_items(header, "AnatomicRegionSequence", "body"),
        *_coded_values(header, "BodyPartExamined", "body"),
    ]
    structures = [*_coded_items(header, "PrimaryAnatomicStructureSequence", "body")]
    series = [*_series_texts(header, "body")]
    found = _combined(regions, "body") or _combined(structures, "body")
    if found is None:
        return (
            _combined(series, "body") or _combined([*_study_texts(header, "body")], "body") or Finding(None)
        )
    return _held_against(found, _combined(series, "body"))


def view(header: Dataset) -> Finding:
    """Return what a header says of the view, ``"pa"``, ``"lateral"`` and so on, a doubt or nothing."""
    coded = [*_view_codes(header), *_coded_values(header, "ViewPosition", "view")]
    plane = [*_plane(header)]
    series = [*_view_of_body_part(header), *_series_texts(header, "view")]
    if not coded and not plane:
        return (
            _combined(series, "view") or _combined([*_study_texts(header, "view")], "view") or Finding(None)
        )
    if any(one.means == "angled" for one in coded):
        # A lordotic view is in the frontal plane as well, and its beam goes from front to back
        plane, coded = [], [one for one in coded if one.means not in _FRONTAL]
    found, beside = _combined([*coded, *plane], "view"), _combined(series, "view")
    assert found is not None
    if not coded and beside and beside.means == UNKNOWN:
        return beside  # devices write one and the same orientation into all images
    return _held_against(found, beside)


def is_frontal(means: str | None) -> bool:
    """Tell whether a view is one of those that are scored."""
    return means in _FRONTAL


def is_coded(found: Finding) -> bool:
    """Tell whether coded attributes say it, and not texts alone."""
    return any(one.keyword in _CODED_PLACES for one in found.statements)


def _combined(statements: Sequence[Statement], aspect: Aspect) -> Finding | None:
    """Return what places of one rank say together."""
    if not statements:
        return None
    found = {one.means for one in statements}
    means = _one(found - {UNKNOWN}, aspect)
    if UNKNOWN in found:
        means = UNKNOWN
        statements = [one for one in statements if one.means == UNKNOWN]
    return Finding(means, tuple(statements))


def _held_against(found: Finding, texts_of_series: Finding | None) -> Finding:
    """Doubt what coded attributes say where the texts of the series clearly say something else."""
    other = texts_of_series.means if texts_of_series else None
    if texts_of_series is None or {found.means, other} & DOUBTS or _family(found.means) == _family(other):
        return found
    return Finding(UNCLEAR, (*found.statements, *texts_of_series.statements))


def _family(means: str | None) -> str | None:
    return "frontal" if is_frontal(means) else "not frontal" if means in ("lateral", "angled") else means


def _one(found: Iterable[str], aspect: Aspect) -> str:
    """Return the one meaning of several, or that they leave it open."""
    kinds = set(found)
    if aspect == "view":
        if kinds >= _BEAMS:
            kinds = (kinds - _BEAMS) | {"frontal"}
        elif kinds & _BEAMS:
            kinds.discard("frontal")
        elif kinds == {"lateral", "angled"}:
            kinds = {"lateral"}
    return kinds.pop() if len(kinds) == 1 else UNCLEAR


# Coded attributes


def _coded_values(header: Dataset, keyword: str, aspect: Aspect) -> Iterator[Statement]:
    for value in texts(header, keyword):
        if means := _of_value(value, aspect):
            yield Statement(keyword, value, means)


def _of_value(value: str, aspect: Aspect) -> str | None:
    """Return what a coded value says; each of its words must be understood."""
    if means := vocabulary.term(value, aspect):
        return means
    reading = vocabulary.read(value)
    if reading.is_untold:
        return None if reading.meanings else UNKNOWN
    kinds = reading.of(aspect)
    if not reading.is_understood:
        return UNKNOWN
    return _of_words(kinds, aspect) if kinds else UNCLEAR


def _of_words(kinds: frozenset[str], aspect: Aspect) -> str:
    if aspect == "body" and "chest" in kinds:
        kinds -= {UNCLEAR}  # THORAX FACE is a chest, and so is COR/THORAX
    if aspect == "view" and "angled" in kinds and "lateral" not in kinds:
        kinds -= _FRONTAL  # AP LORDOTIC is the lordotic view
    return _one(kinds, aspect)


def _coded_items(header: Dataset, keyword: str, aspect: Aspect) -> Iterator[Statement]:
    for code in codes(header, keyword):
        if means := _of_code(code.value, code.scheme, code.meaning, aspect):
            yield Statement(keyword, code.meaning or code.value, means)


def _of_code(value: str, scheme: str, meaning: str, aspect: Aspect) -> str | None:
    by_value = vocabulary.code(value, aspect) if scheme in _CODED_SCHEMES else None
    by_meaning = _of_value(meaning, aspect) if meaning else None
    if by_value is None:
        return by_meaning or (UNKNOWN if value else None)
    if by_meaning is None or by_meaning in DOUBTS or _family(by_meaning) == _family(by_value):
        return by_value
    return UNCLEAR


def _view_codes(header: Dataset) -> Iterator[Statement]:
    for item, code in zip(items(header, "ViewCodeSequence"), codes(header, "ViewCodeSequence"), strict=True):
        means = _of_code(code.value, code.scheme, code.meaning, "view")
        value = code.meaning or code.value
        for modifier in codes(item, "ViewModifierCodeSequence"):
            added = _of_modifier(modifier.value, modifier.scheme, modifier.meaning)
            value = f"{value} {modifier.meaning or modifier.value}"
            if added and means not in (None, UNKNOWN):
                means = added if added in DOUBTS else _of_words(frozenset({means or added, added}), "view")
        if means:
            yield Statement("ViewCodeSequence", value, means)


def _of_modifier(value: str, scheme: str, meaning: str) -> str | None:
    """Return what a modifier adds; one that is understood may add nothing, such as "mouth closed"."""
    by_value = vocabulary.code(value, "view") if scheme in _CODED_SCHEMES else None
    reading = vocabulary.read(meaning)
    kinds = reading.of("view")
    by_meaning = _of_words(kinds, "view") if kinds else None
    return by_value or by_meaning or (None if meaning and reading.is_understood else UNKNOWN)


def _plane(header: Dataset) -> Iterator[Statement]:
    """Yield the plane that Patient Orientation tells (PS3.3 C.7.6.1.1.1).

    A side along the patient's left-right axis means a frontal image, along anterior-posterior a lateral one.
    Which way up it lies is for `orientation` to tell.
    """
    directions = [plain(value) for value in values(header, "PatientOrientation")]
    if len(directions) != 2 or not all(directions):
        return
    across, along = sorted(directions, key=lambda direction: direction[0] in "FH")  # also of a turned image
    means = None
    if across[0] in "LR" and along[0] in "FH":
        means = "frontal" if not set(across) & set("AP") else "lateral"
    elif {across[0], along[0]} & set("AP"):
        means = "lateral"
    if means:
        yield Statement("PatientOrientation", "/".join(directions), means)


# Texts


def _view_of_body_part(header: Dataset) -> Iterator[Statement]:
    """Yield the view that stands in Body Part Examined, such as CHEST LAT."""
    for value in texts(header, "BodyPartExamined"):
        kinds = vocabulary.read(value).of("view")
        if kinds and not vocabulary.term(value, "body"):
            yield Statement("BodyPartExamined", value, _of_words(kinds, "view"))


def _series_texts(header: Dataset, aspect: Aspect) -> Iterator[Statement]:
    for keyword in _PRESETS:
        yield from _of_text(keyword, texts(header, keyword), aspect)
    for code in codes(header, "PerformedProtocolCodeSequence"):
        yield from _of_text("PerformedProtocolCodeSequence", [code.meaning], aspect)


def _study_texts(header: Dataset, aspect: Aspect) -> Iterator[Statement]:
    for owner in (header, *items(header, "RequestAttributesSequence")):
        for keyword in _OF_THE_STUDY:
            yield from _of_text(keyword, texts(owner, keyword), aspect)
        for keyword in _STUDY_CODES:
            for code in codes(owner, keyword):
                means = vocabulary.code(code.value, aspect) if code.scheme in _CODED_SCHEMES else None
                told = [Statement(keyword, code.meaning or code.value, means)] if means else []
                yield from told or _of_text(keyword, [code.meaning], aspect)


def _of_text(keyword: str, told: Sequence[str], aspect: Aspect) -> Iterator[Statement]:
    """Yield what a text says of an aspect, if anything; it may say other things that nobody knows."""
    value = " ".join(told)
    reading = vocabulary.read(value)
    kinds = reading.of(aspect)
    if kinds:
        doubt = _is_unknown_beside(reading, aspect) or len(kinds) > 1
        yield Statement(keyword, value, _several(kinds, aspect) if doubt else next(iter(kinds)))
    elif keyword in _NAMES_OF_SERIES and not reading.is_understood:
        yield Statement(keyword, value, UNKNOWN)


def _several(kinds: frozenset[str], aspect: Aspect) -> str:
    return UNCLEAR if len(kinds) == 1 else _one(kinds - ({UNCLEAR} if "chest" in kinds else set()), aspect)


def _is_unknown_beside(reading: vocabulary.Reading, aspect: Aspect) -> bool:
    """Tell whether the text goes on with "and" and a word that is unknown, such as PA E XYZ."""
    words = [word for word in reading.meanings if word != {"plain"}]
    for place in range(1, len(words) - 1):
        before, between, after = words[place - 1 : place + 2]
        if "and" in between and (not before or not after):
            return any(meaning.startswith(f"{aspect}.") for word in (before, after) for meaning in word)
    return False
