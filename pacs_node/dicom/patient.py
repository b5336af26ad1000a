"""Whether objects name the same patient, by values read as the Standard reads them and not byte by byte."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Patient:
    """What identifies a patient (PS3.3 C.7.1.1), decoded; an empty text says nothing.

    Parameters
    ----------
    patient_id, issuer
        Patient ID and Issuer of Patient ID (LO): case counts, spaces around them do not (PS3.5 6.2).
    name
        Patient's Name (PN): upper and lower case are the same (PS3.4 C.2.2.2.1), and so are names of which
        one leaves out a component group or ends in empty components.
    birth_date
        Patient's Birth Date (DA) as YYYYMMDD.
    """

    patient_id: str
    issuer: str
    name: str
    birth_date: str


def are_different(patients: Collection[Patient]) -> bool:
    """Tell whether any two of these are not the same patient."""
    return not all(itertools.starmap(is_same, itertools.combinations(set(patients), 2)))


def is_same(one: Patient, other: Patient) -> bool:
    """Tell whether both name the same patient.

    Patient IDs that differ are those of two patients. A Patient ID is only unique together with its issuer:
    where an issuer, or a Patient ID, is missing, name and birth date decide as well.
    """
    ids = _text(one.patient_id), _text(other.patient_id)
    issuers = _text(one.issuer), _text(other.issuer)
    has_ids = all(ids)
    if has_ids and ids[0] != ids[1]:
        return False
    if has_ids and all(issuers):
        return issuers[0] == issuers[1]
    born = one.birth_date, other.birth_date
    if all(born) and born[0] != born[1]:
        return False
    return _is_same_name(one.name, other.name, may_be_missing=has_ids)


def _is_same_name(one: str, other: str, *, may_be_missing: bool) -> bool:
    """Compare the component groups that both have: alphabetic, ideographic and phonetic (PS3.5 6.2.1)."""
    ones, others = _groups(one), _groups(other)
    if not any(ones) or not any(others):
        return may_be_missing or any(ones) == any(others)
    common = [pair for pair in zip(ones, others, strict=False) if all(pair)]
    return bool(common) and all(mine == theirs for mine, theirs in common)


def _groups(name: str) -> list[tuple[str, ...]]:
    return [_components(group) for group in name.split("=")]


def _components(group: str) -> tuple[str, ...]:
    # Only now: a fullwidth equals sign or caret is a character of a name and delimits nothing
    parts = (unicodedata.normalize("NFKC", part) for part in group.split("^"))
    components = [" ".join(part.casefold().split()) for part in parts]
    while components and not components[-1]:
        components.pop()
    return tuple(components)


def _text(value: str) -> str:
    return unicodedata.normalize("NFC", value).strip()
