"""One look at the whole node: counts, ages, space. Nothing here writes."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from datetime import datetime, timedelta

from db import queries, status
from db.rows import StoredModel
from db.session import Database
from db.status import Counts, Failure, Heartbeat, ProblemStudies, Undelivered, Waiting
from pacs_node.config import Settings
from pacs_node.running.certificates import Expiry, expiring
from pacs_node.storage.spool import Spool
from pacs_node.storage.stock import Stock, take_stock

ROLES = ("receive", "score", "deliver")

_MOST_FAILURES = 20
_SILENT_SECONDS = 60.0
_FORGOTTEN_SECONDS = 3600.0  # of one of several processes: its machine is gone
_LONG_WAIT = timedelta(minutes=10)
_PATIENT_TRIES = 3  # of a delivery, before a person should look


@dataclass(frozen=True)
class Snapshot:
    """The state of the node at one moment.

    Attributes
    ----------
    free_bytes, floor_bytes
        Space left for the spool, and below how much of it images are refused; ``None`` without spool.
    unconfigured
        Destinations for which deliveries wait but which config.toml does not name.
    problem_studies
        Those that get no report before a person has done something.
    stock
        Where database and spool do not agree; ``None`` if that was not looked at.
    expiring
        Certificates that must be renewed.
    """

    at: datetime
    counts: Counts
    waiting: Waiting | None
    failures: list[Failure]
    model: StoredModel | None
    heartbeats: list[Heartbeat]
    undelivered: list[Undelivered]
    free_bytes: int | None
    floor_bytes: int
    unconfigured: list[str]
    problem_studies: list[ProblemStudies]
    stock: Stock | None
    expiring: list[Expiry]

    @property
    def problems(self) -> list[str]:
        """What a person should look at, one sentence each; none when all is well."""
        found = []
        for role in ROLES:
            beats = [beat for beat in self.heartbeats if beat.role.split()[0] == role]
            ages = [beat.age_seconds for beat in beats]
            if not ages:
                found.append(f"No {role} process is running; start `pacs-node serve`.")
            elif min(ages) > _SILENT_SECONDS:
                found.append(
                    f"The last {role} heartbeat was {min(ages):.0f} s ago; see the log of `pacs-node serve`."
                )
            else:
                silent = (beat for beat in beats if _SILENT_SECONDS < beat.age_seconds < _FORGOTTEN_SECONDS)
                found += map(_hanging, silent)
        if self.waiting and self.at - self.waiting.received_at > _LONG_WAIT:
            found.append(f"An image waits for its score since {self.waiting.received_at.astimezone():%H:%M}.")
        for late in self.undelivered:
            if late.tries >= _PATIENT_TRIES:
                found.append(f"{late.reports} reports wait for {late.destination}. {late.error}")
        found += map(_held, self.problem_studies)
        failed = sum(number for (_, state), number in self.counts.jobs.items() if state == "failed")
        if failed:
            found.append(f"{failed} jobs failed: see the reasons, then `pacs-node retry --failed`.")
        if self.free_bytes is not None and self.free_bytes < self.floor_bytes:
            found.append("The spool is almost full: images are refused until there is space.")
        if self.stock and self.stock.missing:
            found.append(
                f"{_files(self.stock.missing)} missing from the spool; put the files back from a backup, or "
                "get them again: `pacs-node reconcile --fetch`."
            )
        if self.stock and self.stock.orphans:
            found.append(
                f"{_files(self.stock.orphans)} in the spool without a row; `pacs-node serve` takes them in "
                "within the hour, or says in its log why not."
            )
        found += [one.told(self.at) for one in self.expiring]
        for name in self.unconfigured:
            found.append(
                f"Reports wait for {name}, which is not among the [[destinations]]: add it, or give them up "
                f"for good with `pacs-node abandon`."
            )
        return found


def _held(held: ProblemStudies) -> str:
    one = held.studies == 1
    whose = f"study {held.study_instance_uid}" if one else f"{held.studies} studies"
    first = "" if one else f" The first is {held.study_instance_uid}."
    return (
        f"{held.problem}: the images of {whose} name different patients, so no report is made.{first} "
        "Correct them at their source and send all images again, or `pacs-node dismiss STUDY_UID`."
    )


def _hanging(beat: Heartbeat) -> str:
    return (
        f"The process {beat.role} on {beat.host} gave its last heartbeat {beat.age_seconds:.0f} s ago; "
        "see the log of `pacs-node serve`."
    )


def _files(found: Sized) -> str:
    return f"{len(found)} {'object is' if len(found) == 1 else 'objects are'}"


def snapshot(settings: Settings, database: Database, at: datetime, *, with_files: bool = False) -> Snapshot:
    """Look at everything.

    Parameters
    ----------
    with_files
        Whether to look for each file of the spool too, which takes seconds for each million.

    Raises
    ------
    db.errors.DatabaseError
        When the database cannot be asked.
    """
    with database.read() as session:
        counts = status.counts(session)
        waiting = status.oldest_waiting(session)
        failures = status.failures(session, _MOST_FAILURES)
        model = queries.newest_model(session)
        heartbeats = status.heartbeats(session)
        undelivered = status.undelivered(session)
        problem_studies = status.problem_studies(session)
    known = {destination.name for destination in settings.destinations}
    pending = {name for (name, state), number in counts.deliveries.items() if state == "pending" and number}
    spool = Spool(settings.spool.path)
    stock = None
    if with_files and spool.is_there:
        stock = take_stock(database, spool, settings.spool.orphan_minutes * 60)
    return Snapshot(
        at=at,
        counts=counts,
        waiting=waiting,
        failures=failures,
        model=model,
        heartbeats=heartbeats,
        undelivered=undelivered,
        free_bytes=spool.free_bytes() if spool.root.is_dir() else None,
        floor_bytes=settings.receive.min_free_mebibytes * 2**20,
        unconfigured=sorted(pending - known),
        problem_studies=problem_studies,
        stock=stock,
        expiring=expiring(settings, at),
    )
