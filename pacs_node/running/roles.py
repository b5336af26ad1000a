"""The processes of the node, each with one role: receive, score, or deliver.

Each function builds what its role needs, says that it is ready, and works until it is told to stop. Only the
scoring process loads torch: a crash of CUDA leaves associations answering.
"""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from db import queries
from db.session import Database
from pacs_node import __version__, log
from pacs_node.commitment.stages import CommitStage, ConfirmStage
from pacs_node.config import Settings
from pacs_node.delivering.stage import DeliverStage
from pacs_node.errors import ConfigError, InvalidReport
from pacs_node.receiving.receiver import Receiver
from pacs_node.reporting.report import ObserverDevice
from pacs_node.reporting.stage import ReportStage
from pacs_node.scoring.load import load_model
from pacs_node.scoring.stage import ScoreStage
from pacs_node.storage.housekeeper import Housekeeper
from pacs_node.storage.spool import Spool
from pacs_node.worker import Stage, Worker

_log = log.get(__name__)


class Runs(Protocol):
    """What works until it is told to stop."""

    def run(self) -> None:
        """Work until `stop`."""
        ...

    def stop(self) -> None:
        """Let `run` return."""
        ...


Ready = Callable[[], None]
Role = Callable[[Settings, threading.Event, Ready], None]


def receive(
    settings: Settings,
    stopped: threading.Event,
    ready: Ready,
    number: int = 0,
    listening: socket.socket | None = None,
) -> None:
    """Answer associations, as one of the receivers that share a listening socket."""
    database, spool = _open(settings, number)
    leftovers = spool.leftovers(None if number else settings.receive.process_count)
    receiver = Receiver(settings, database, spool, listening)
    _spare_collector()
    port = receiver.start()
    for path in leftovers:  # only now: a node that runs here already would have kept the port
        _log.warning("incomplete object removed", file=path.name)
        path.unlink(missing_ok=True)
    _log.info("listening", ae_title=settings.node.ae_title, host=settings.node.host, port=port)
    ready()
    stopped.wait()
    receiver.stop()


def score(settings: Settings, stopped: threading.Event, ready: Ready) -> None:
    """Score images."""
    database, spool = _open(settings)
    scorer, model = load_model(settings, database)
    wanted = settings.classifier
    stage = ScoreStage(database, spool, scorer, model, wanted.batch_size, max_pixels=wanted.max_pixels)
    _spare_collector()
    ready()
    _work(settings, stopped, database, [stage])


def deliver(settings: Settings, stopped: threading.Event, ready: Ready) -> None:
    """Make reports and send them, each destination in threads of its own; and keep house."""
    database, spool = _open(settings)
    try:
        node = ObserverDevice(
            software_version=__version__,
            station_name=settings.node.station_name,
            purpose=settings.node.purpose,
            timezone=settings.node.timezone or None,
        )
    except InvalidReport as error:
        raise ConfigError(f"Correct [node] in the settings: {error}.") from error
    stages: list[Stage] = [
        ReportStage(database, spool, node, settings),
        ConfirmStage(database, spool, settings),
    ]
    for destination in settings.destinations:
        for stage in (DeliverStage, CommitStage):
            stages.append(stage(database, destination, settings.node.ae_title, settings.deliver))
    _spare_collector()
    ready()
    _work(settings, stopped, database, stages, [Housekeeper(settings, database, spool)])


def _spare_collector() -> None:
    """Let the garbage collector pass over what is loaded now, for it stays.

    To go through it takes 0.1 s, in which nothing else is done. pynetdicom's server asks for that with every
    60th association.
    """
    gc.collect()
    gc.freeze()


ROLES: dict[str, Role] = {"receive": receive, "score": score, "deliver": deliver}


def _open(settings: Settings, number: int = 0) -> tuple[Database, Spool]:
    database = Database(settings.database.url)
    database.require_current()
    return database, open_spool(settings, database, number)


def open_spool(settings: Settings, database: Database, number: int = 0) -> Spool:
    """Return the spool, ready for use.

    Raises
    ------
    SpoolUnusable, db.errors.DatabaseError
    """
    with database.read() as session:
        is_empty = not queries.has_instances(session)
    spool = Spool(settings.spool.path, settings.node.port, number)
    spool.prepare(may_be_new=is_empty)
    return spool


def _work(
    settings: Settings,
    stopped: threading.Event,
    database: Database,
    stages: Sequence[Stage],
    others: Sequence[Runs] = (),
) -> None:
    """Run a worker for each stage, and what else there is, until `stopped`; end all when one fails."""
    poll, lease = settings.work.poll_seconds, settings.work.lease_seconds
    workers: list[Runs] = [Worker(database, stage, poll, lease) for stage in stages]
    workers += others
    threads = [threading.Thread(target=worker.run, daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    while not stopped.wait(0.2) and all(thread.is_alive() for thread in threads):
        pass
    for worker in workers:
        worker.stop()
    for thread in threads:
        thread.join()
    if not stopped.is_set():
        raise RuntimeError("a worker ended unexpectedly; its traceback stands above")
