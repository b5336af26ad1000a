"""Rows without what tells who a patient is, for research (PS3.15 Annex E).

The Basic Application Level Confidentiality Profile, with the options Retain Longitudinal Temporal Information
With Modified Dates and Retain Patient Characteristics: identifiers are replaced, moments are shifted by a
time that is the same for all rows of one patient, and what may hold any text is removed. A column without a
rule is an error: a new column cannot come out unnoticed.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pacs_node.errors import UserError

_KEY_BYTES = 32
_OLDEST_AGE = 90.0
"""Years. Ages above 89 identify a person (45 CFR 164.514(b)(2)(i)(C)): 90 means 90 or more."""

_LONGEST_SHIFT = 3650  # days, into the past
_DAY = 86400
_SEXES = ("M", "F", "O", "")  # of VR CS, in which a modality may write other text

_KEPT = (
    *("sop_class_uid", "transfer_syntax_uid", "modality", "view", "presentation_intent_type"),
    *("image_rows", "image_columns", "bits_stored"),
    *("manufacturer", "manufacturer_model_name", "software_versions"),
    *("probability", "highest_probability", "threshold", "decision", "reason", "reasons", "novelty"),
    *("model_name", "model_version", "model_sha256"),
    *("images_scored", "images_not_scored", "images_waiting", "seconds_to_delivery"),
    *("report_revision", "result", "state", "tries", "status", "study_problem"),
    *("is_newest", "is_replaced", "is_rescore"),
)
_REMOVED = (
    *("patient_name", "patient_birth_date", "issuer_of_patient_id", "study_time"),
    *("detail", "error"),  # any text: tags, names of hosts
    "deliveries",  # names of destinations
)
_UIDS = ("study_instance_uid", "series_instance_uid", "sop_instance_uid", "report_uid", "sent_uid")
_NAMES = {
    "patient_id": "PATIENT",
    "accession_number": "ORDER",
    "calling_ae_title": "SENDER",
    "station_name": "STATION",
    "device_serial_number": "DEVICE",
    "institution_name": "INSTITUTION",
    "destination": "DESTINATION",
}
_MOMENTS = (
    *("received_at", "scored_at", "reported_at", "first_received_at", "last_received_at"),
    *("removed_at", "delivered_at", "committed_at", "give_up_at"),
)

Row = Mapping[str, Any]
_Rule = Callable[["Deidentifier", Any, timedelta], Any]


class Deidentifier:
    """Replaces what identifies, the same value by the same pseudonym.

    Parameters
    ----------
    key
        The secret without which no pseudonym can be computed, not even of a known identifier.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def rows(self, rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
        """Yield rows of any view without what identifies."""
        return map(self.row, rows)

    def row(self, row: Row) -> dict[str, Any]:
        """Return one row without what identifies.

        Raises
        ------
        KeyError
            If there is no rule for a column.
        """
        shift = self._shift(row.get("patient_id") or f"study {row['study_instance_uid']}")
        return {
            name: None if value is None else _RULES[name](self, value, shift) for name, value in row.items()
        }

    def _shift(self, patient: str) -> timedelta:
        number = int.from_bytes(self._digest("shift", patient)[:16])
        days, seconds = 1 + number % _LONGEST_SHIFT, number // _LONGEST_SHIFT % _DAY
        return -timedelta(days=days, seconds=seconds)

    def pseudonym(self, kind: str, value: str) -> str:
        """Return the name that stands for a value; an empty one stays empty."""
        return f"{kind}-{self._digest(kind, value).hex()[:16].upper()}" if value else value

    def uid(self, value: str) -> str:
        """Return a UID derived from a UUID (PS3.5 B.2)."""
        return f"2.25.{uuid.UUID(bytes=self._digest('UID', value)[:16], version=5).int}" if value else value

    def _digest(self, kind: str, value: str) -> bytes:
        return hmac.digest(self._key, f"{kind}\0{value}".encode("utf-8", "surrogatepass"), hashlib.sha256)


def _date(_: Deidentifier, value: str, shift: timedelta) -> str | None:
    """Shift a date of VR DA by whole days; what is no date is removed."""
    try:
        return f"{datetime.strptime(value, '%Y%m%d') + timedelta(days=shift.days):%Y%m%d}"  # noqa: DTZ007
    except (ValueError, OverflowError):
        return None


def _named(kind: str) -> _Rule:
    return lambda by, value, _: by.pseudonym(kind, value)


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_KEPT, lambda _by, value, _shift: value),
    **dict.fromkeys(_REMOVED, lambda _by, _value, _shift: None),
    **dict.fromkeys(_UIDS, lambda by, value, _shift: by.uid(value)),
    **dict.fromkeys(_MOMENTS, lambda _by, value, shift: value + shift),
    **{name: _named(kind) for name, kind in _NAMES.items()},
    "age": lambda _by, value, _shift: min(value, _OLDEST_AGE),
    "patient_sex": lambda _by, value, _shift: value if value in _SEXES else None,
    "study_date": _date,
}


def fresh_key() -> bytes:
    """Return a key for one run."""
    return secrets.token_bytes(_KEY_BYTES)


def key_of(path: Path) -> bytes:
    """Return the key in a file, which is made, readable by this user alone, where there is none.

    Raises
    ------
    UserError
    """
    try:
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            return _parsed(path)
        key = fresh_key()
        with os.fdopen(file, "w", encoding="ascii") as new:
            new.write(key.hex() + "\n")
            new.flush()
            os.fsync(new.fileno())
    except OSError as error:
        raise UserError(f"Cannot use the key file {path}: {error.strerror}.") from error
    return key


def _parsed(path: Path) -> bytes:
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except ValueError:
        key = b""
    if len(key) < _KEY_BYTES:
        raise UserError(f"{path} holds no key; name a file that does not exist, and one is made.")
    return key
