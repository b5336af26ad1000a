"""What is asked and recorded with an empty database and with a full one, on SQLite and PostgreSQL."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from db import deliveries, queries, queue, results, status, stock
from db.queue import Claim, Kind
from db.results import Filter
from db.rows import NewInstance, NewReport, NewScore
from db.session import Database
from tests.benchmarks.grown import fill
from tests.helpers.postgres import OwnServer, own_folder

_LIMIT = 100  # rows, as the command line asks for
_SOON_MS = 50.0
_KEPT = 0.9  # of the speed
_AT_ONCE = 100  # objects in a round
_REPORT_BYTES = 12_000
_DAY = timedelta(days=1)
_SLICES = 256  # of the spool, as housekeeping reads them

Ask = Callable[[Session], object]
_Choice = Callable[[Database], Ask]


@dataclass(frozen=True, kw_only=True)
class Grown:
    """One thing measured with an empty database and with a full one.

    Attributes
    ----------
    what, engine, rows
        What was done, on what, and how many results the full database has.
    unit
        ``ms``, of which less is better, or ``1/s``, of which more is.
    empty, full
        What was measured, once for each repetition.
    wanted
        The most milliseconds with the full database, or the least share of the speed with the empty one.
    """

    what: str
    engine: str
    rows: int
    unit: str
    empty: Sequence[float]
    full: Sequence[float]
    wanted: float | None = None

    @property
    def ratio(self) -> float:
        """The full database's median by the empty one's."""
        return median(self.full) / median(self.empty)

    @property
    def is_met(self) -> bool:
        """Whether what is wanted is reached."""
        if self.wanted is None:
            return True
        return median(self.full) <= self.wanted if self.unit == "ms" else self.ratio >= self.wanted

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        """What and where, with the empty database, with the full one, ratio, and what is wanted."""
        wanted = "" if self.wanted is None else f"{self.wanted:g} {'ok' if self.is_met else 'missed'}"
        what = f"{self.what}, {self.engine}, {self.unit}"
        return what, _spread(self.empty), _spread(self.full), f"{self.ratio:.2f}", wanted


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def growth(scratch: Path, rounds: int, rows: int) -> Iterator[Grown]:
    """Yield what is asked and recorded, beside the same with an empty database.

    Parameters
    ----------
    rows
        Results in the full database; a million takes 2 GB of disk for each engine.
    """
    for engine, opened in (("SQLite", _sqlite), ("PostgreSQL", _postgresql)):
        try:
            with opened(scratch, rows) as (empty, full):
                yield from compared(empty, full, engine, rounds, rows)
        except pytest.skip.Exception:
            continue  # there is no PostgreSQL here


def compared(empty: Database, full: Database, engine: str, rounds: int, rows: int) -> Iterator[Grown]:
    """Yield what two databases of one engine take for the same."""
    for what, ask, wanted in _questions():
        measured = [_asked(database, ask, rounds) for database in (empty, full)]
        yield Grown(
            what=what, engine=engine, rows=rows, unit="ms", empty=measured[0], full=measured[1], wanted=wanted
        )
    lives = [_Life(database) for database in (empty, full)]
    speeds: dict[str, tuple[list[float], list[float]]] = {}
    for turn in range(-1, rounds):  # the first one warms up
        for side, life in enumerate(lives):
            for what, speed in life.speeds():
                if turn >= 0:
                    speeds.setdefault(what, ([], []))[side].append(speed)
    for what, (of_empty, of_full) in speeds.items():
        yield Grown(
            what=what, engine=engine, rows=rows, unit="1/s", empty=of_empty, full=of_full, wanted=_KEPT
        )


@contextmanager
def _sqlite(scratch: Path, rows: int) -> Iterator[tuple[Database, Database]]:
    empty, full = (scratch / f"{name}.sqlite" for name in ("empty", "full"))
    try:
        with _opened(f"sqlite:///{empty}", 0) as one, _opened(f"sqlite:///{full}", rows) as other:
            yield one, other
    finally:
        full.unlink(missing_ok=True)  # it may be large


@contextmanager
def _postgresql(_scratch: Path, rows: int) -> Iterator[tuple[Database, Database]]:
    settings = {"max_wal_size": "8GB", "checkpoint_timeout": "1h"}  # both sides without checkpoints
    with (
        own_folder() as folder,
        OwnServer(folder, settings) as server,
        _opened(server.create(), 0) as one,
        _opened(server.create(), rows) as other,
    ):
        yield one, other


@contextmanager
def _opened(url: str, rows: int) -> Iterator[Database]:
    with closing(Database(url)) as database:
        database.upgrade()
        if rows:
            database.close()  # nobody else may have the file open while its journal is off
            fill(url, rows)
        yield database


# Asked


def _questions() -> Iterator[tuple[str, _Choice, float | None]]:
    now = datetime.now(UTC)

    def of(what: str, ask: Any, column: str | None = None, **known: Any) -> _Choice:
        def chosen(database: Database) -> Ask:
            given: dict[str, Any] = {what: _any(database, column)} if column else known
            return lambda session: ask(session, Filter(limit=_LIMIT, **given))

        return chosen

    for name, ask in (("Results", results.results), ("Ledger", results.ledger)):
        yield f"{name}, the newest", of("", ask), _SOON_MS
        yield f"{name} of a patient", of("patient", ask, "patient_id"), _SOON_MS
        yield f"{name} by accession number", of("accession", ask, "accession_number"), _SOON_MS
        yield f"{name} of a study", of("study", ask, "study_instance_uid"), _SOON_MS
        day: Any = {"since": now - 701 * _DAY, "until": now - 700 * _DAY}
        yield f"{name} of a day two years ago", of("", ask, **day), _SOON_MS
    yield "Results by patient's name", of("patient", results.results, "patient_name"), _SOON_MS
    yield "Results of a study date", _of_a_study_date, _SOON_MS
    yield "Results of a study date, SQL on the view", _by_hand, None
    for least in (0.5, 0.9, 0.99, 0.999):
        yield f"Results from probability {least}", of("", results.results, min_probability=least), _SOON_MS
    for decision in ("positive", "undetermined", "waiting"):
        yield f"Results that are {decision}", of("", results.results, decision=decision), _SOON_MS
    yield "Ledger of failed deliveries", of("", results.ledger, state="failed"), _SOON_MS
    yield "Status", lambda _: _status, None
    yield "Taking stock: the rows of 1/256 of the spool", lambda _: _slice, None
    yield "Retention: which studies are due", lambda _: lambda s: stock.spent(s, now - _DAY, 100), None
    yield "Start: whether anything was received", lambda _: queries.has_instances, None


def _any(database: Database, column: str) -> str:
    """Return what some study has, or nothing that any has."""
    with database.read() as session:
        last = session.execute(text("SELECT MAX(id) FROM study")).scalar_one() or 0
        asked = text(f"SELECT {column} FROM study WHERE id = :id")
        return str(session.execute(asked, {"id": random.randint(0, last)}).scalar())


def _of_a_study_date(database: Database) -> Ask:
    day = _any(database, "study_date")
    return lambda session: results.results(session, Filter(limit=_LIMIT, study_dates=(day, day)))


def _by_hand(database: Database) -> Ask:
    asked = text(
        "SELECT * FROM results WHERE study_date = :day ORDER BY received_at DESC, sop_instance_uid LIMIT 100"
    )
    day = {"day": _any(database, "study_date")}
    return lambda session: session.execute(asked, day).all()


def _status(session: Session) -> None:
    """Ask all that `pacs_node.running.status` asks."""
    status.counts(session)
    status.oldest_waiting(session)
    status.failures(session, 20)
    queries.newest_model(session)
    status.heartbeats(session)
    status.undelivered(session)


def _slice(session: Session) -> None:
    first = random.randrange(_SLICES - 1)
    stock.held(session, f"{first:02x}", f"{first + 1:02x}")


def _asked(database: Database, chosen: Callable[[Database], Ask], rounds: int) -> list[float]:
    """Return milliseconds, with another value each time, statement built and pages met before."""
    found = []
    for turn in range(-2, max(5, rounds)):
        ask = chosen(database)
        started = time.perf_counter()
        with database.read() as session:
            ask(session)
        if turn >= 0:
            found.append(1000 * (time.perf_counter() - started))
    return found


# Recorded


class _Life:
    """What the node records of a study, from its reception to its delivery, each step in its transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._at = datetime.now(UTC)
        self._number = 0
        model = {"sha256": "0" * 64, "name": "DenseNet121", "version": "1"}
        with database.write() as session:
            known = {"threshold": 0.5, "preprocessing": "", "card": "{}"}
            self._model = queries.register_model(session, {**model, **known}, self._at)

    def speeds(self) -> Iterator[tuple[str, float]]:
        """Do each step for some objects; yield how many it does in a second."""
        for what, step in (
            ("Objects received, each committed", self._receive),
            ("Score jobs claimed and finished", self._score),
            ("Reports made and recorded", self._report),
            ("Deliveries claimed and finished", self._deliver),
        ):
            started, done = time.perf_counter(), 0
            while done < _AT_ONCE:
                done += step()
            yield what, done / (time.perf_counter() - started)

    def _receive(self) -> int:
        self._number += 1
        second = f"{int(time.time())}.{self._number}"
        image = f"1.2.826.0.1.3680043.8.498.{self._number % 8 + 1}.{second}"
        study = f"{image}.1"
        new = NewInstance(
            study_instance_uid=study,
            patient_id=f"P{random.randrange(10**7)}",
            issuer_of_patient_id="",
            patient_name=f"DOE^{random.randrange(10**7)}",
            patient_birth_date="",
            accession_number=f"A{1_900_000_000 + self._number}",
            study_date=f"{self._at:%Y%m%d}",
            sop_instance_uid=image,
            sop_class_uid="1.2.840.10008.5.1.4.1.1.1.1",
            series_instance_uid=f"{study}.1",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            modality="DX",
            view_position="PA",
            digest=uuid.uuid4().hex + uuid.uuid4().hex,
            size=8_000_000,
            calling_ae_title="MODALITY",
            received_at=datetime.now(UTC),
        )
        with self._database.write() as session:
            queries.add_instance(session, new, 0.0)
        return 1

    def _claim(self, kind: Kind, limit: int, lane: str = "") -> Claim:
        with self._database.write() as session:
            return queue.claim(session, kind, lane, limit=limit, lease_seconds=60)

    def _score(self) -> int:
        claim = self._claim(Kind.SCORE, 16)
        with self._database.read() as session:
            images = queries.instances(session, [job.ref for job in claim.jobs])
        with self._database.write() as session:
            for job, image in zip(claim.jobs, images, strict=True):
                queue.finish(session, claim.token, [job.id])
                score = NewScore(
                    instance_id=image.id,
                    model_id=self._model,
                    probability=0.25,
                    threshold=0.5,
                    decision="negative",
                    reason=None,
                    detail="",
                    view="PA",
                    scored_at=self._at,
                )
                queries.add_score(session, score)
        return len(claim.jobs)

    def _report(self) -> int:
        claim = self._claim(Kind.REPORT, 4)
        for job in claim.jobs:
            with self._database.read() as session:
                queries.study_uid(session, job.ref)
                images = queries.study_instances(session, job.ref)
                last = queries.last_report(session, job.ref)
                queries.newest_model(session)
            uid = f"2.25.{uuid.uuid4().int}"
            new = NewReport(
                study_id=job.ref,
                revision=last.revision + 1 if last else 1,
                sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
                sop_instance_uid=uid,
                series_instance_uid=f"{uid}.1",
                content=bytes(_REPORT_BYTES),
                made_at=self._at,
                decision="negative",
                images=frozenset((one.id, one.score.id if one.score else None) for one in images),
                destinations=["PACS"],
                give_up_at=self._at + 3 * _DAY,
            )
            with self._database.write() as session:
                queue.finish(session, claim.token, [job.id])
                queries.add_report(session, new)
        return len(claim.jobs)

    def _deliver(self) -> int:
        claim = self._claim(Kind.DELIVER, 16, "PACS")
        with self._database.read() as session:
            deliveries.pending(session, [job.ref for job in claim.jobs])
        for job in claim.jobs:
            with self._database.write() as session:
                queue.renew(session, claim.token, 60)
            with self._database.write() as session:
                queue.finish(session, claim.token, [job.id])
                deliveries.record_delivered(
                    session,
                    job.ref,
                    "PACS",
                    commits=False,
                    at=self._at,
                    give_up_at=self._at,
                    status=0,
                    sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
                    sop_instance_uid=f"2.25.{uuid.uuid4().int}",
                )
        return len(claim.jobs)
