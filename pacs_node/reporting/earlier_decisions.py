"""Reads from the bytes of earlier reports what they decide, for the view `studies`.

Versions before 0005 of the database did not record it. This runs beside all other work, once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from pydicom.dataset import Dataset

from db import decisions
from db.errors import DatabaseError
from db.session import Database
from pacs_node import log
from pacs_node.errors import InvalidReport
from pacs_node.progress import Progress
from pacs_node.reporting import codes
from pacs_node.reporting.report import parsed

_log = log.get(__name__)

_AT_ONCE = 50  # reports
_TELL_EVERY = 10_000
_HUNG_SECONDS = 300.0  # that no batch takes
_WORDS = {codes.ANSWERS[word].value: word for word in ("positive", "negative", "undetermined")}


class DecisionReader:
    """Goes through the reports without a recorded decision, then waits for `stop`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stopped = threading.Event()
        self.progress = Progress(_HUNG_SECONDS)

    def stop(self) -> None:
        """Let `run` return, after the batch at hand."""
        self._stopped.set()

    def run(self) -> None:
        """Work until `stop`."""
        try:
            self.read_all()
        except DatabaseError as error:
            _log.error("decisions of earlier reports not read", cause=str(error))
        self.progress.rest()
        self._stopped.wait()

    def read_all(self) -> int:
        """Read and record; return how many reports there were.

        Raises
        ------
        db.errors.DatabaseError
        """
        last = number = 0
        while not self._stopped.is_set():
            with self._database.read() as session:
                some = decisions.unread(session, last, _AT_ONCE)
            if not some:
                break
            found = {report_id: decision_in(content) for report_id, content in some}
            with self._database.write() as session:
                decisions.record(session, {one: word for one, word in found.items() if word})
            last, number = some[-1][0], number + len(some)
            self.progress.step()
            if number % _TELL_EVERY == 0:
                _log.info("reading decisions of earlier reports", reports=number)
        if number:
            _log.info("decisions of earlier reports read", reports=number)
        return number


def decision_in(content: bytes) -> str | None:
    """Return what a report decides on its study: positive, negative or undetermined."""
    try:
        report = parsed(content)
    except InvalidReport:
        return None
    answers = (_value(item) for item in _evaluations(report) if _concept(item) == codes.PNEUMONIA.value)
    return next((_WORDS[answer] for answer in answers if answer in _WORDS), None)


def _evaluations(report: Dataset) -> Iterator[Dataset]:
    for container in report.get("ContentSequence", []):
        if _concept(container) == codes.QUALITATIVE_EVALUATIONS.value:
            yield from container.get("ContentSequence", [])


def _concept(item: Dataset) -> str:
    return _code(item.get("ConceptNameCodeSequence"))


def _value(item: Dataset) -> str:
    return _code(item.get("ConceptCodeSequence"))


def _code(sequence: Any) -> str:
    return str(sequence[0].get("CodeValue", "")) if sequence else ""
