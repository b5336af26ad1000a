"""The processes of the node, each with one role: receive, score, deliver, or web.

Each function builds what its role needs, says that it is ready, and works until it is told to stop. Only the
scoring process loads torch: a crash of CUDA leaves associations answering.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

from db import queries
from db.session import Database
from pacs_node import __version__, log
from pacs_node.commitment.stages import CommitStage, ConfirmStage
from pacs_node.config import Settings
from pacs_node.delivering.stage import DeliverStage
from pacs_node.errors import ConfigError, InvalidReport
from pacs_node.network.server import Listening
from pacs_node.progress import Progress
from pacs_node.receiving.receiver import Receiver
from pacs_node.reporting.earlier_decisions import DecisionReader
from pacs_node.reporting.report import ObserverDevice
from pacs_node.reporting.stage import ReportStage
from pacs_node.running.status import Snapshot, snapshot
from pacs_node.scoring.load import load_model
from pacs_node.scoring.rescore import RescoreStage
from pacs_node.scoring.stage import ScoreStage
from pacs_node.storage.housekeeper import Housekeeper
from pacs_node.storage.spool import Spool
from pacs_node.worker import Stage, Worker

_log = log.get(__name__)

_HUNG_SECONDS = 900.0  # without settling anything, but for what others may take to answer


class Runs(Protocol):
    """What works until it is told to stop, and keeps account of getting on."""

    progress: Progress

    def run(self) -> None:
        """Work until `stop`."""
        ...

    def stop(self) -> None:
        """Let `run` return."""
        ...


Ready = Callable[[Sequence[Progress]], None]
"""Told that a process is at work, and by which loops."""

Role = Callable[[Settings, threading.Event, Ready], None]


def receive(
    settings: Settings,
    stopped: threading.Event,
    ready: Ready,
    number: int = 0,
    listening: Listening | None = None,
) -> None:
    """Answer associations, as one of the receivers that share what they listen on."""
    database, spool = _open(settings, number)
    leftovers = spool.leftovers(None if number else settings.receive.process_count)
    receiver = Receiver(settings, database, spool, listening)
    _spare_collector()
    port = receiver.start()
    for path in leftovers:  # only now: a node that runs here already would have kept the port
        _log.warning("incomplete object removed", file=path.name)
        path.unlink(missing_ok=True)
    tls = {"tls_port": settings.tls.port} if settings.tls.port else {}
    _log.info("listening", ae_title=settings.node.ae_title, host=settings.node.host, port=port, **tls)
    ready([receiver.progress])
    stopped.wait()
    receiver.stop()


def score(settings: Settings, stopped: threading.Event, ready: Ready) -> None:
    """Score images."""
    database, spool = _open(settings)
    scorer, model = load_model(settings, database)
    stage = ScoreStage(database, spool, scorer, model, settings.classifier.batch_size)
    _spare_collector()
    again = RescoreStage(database, spool, scorer, model, settings.classifier.batch_size)
    _work(stopped, ready, _workers(settings, database, [stage], again))


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
    wanted = {result for destination in settings.destinations for result in destination.send}
    if "pdf" in wanted:  # these load fonts and start decoders
        from pacs_node.reporting.page_stage import PageStage  # noqa: PLC0415

        stages.append(PageStage(database, spool, settings))
    if "heatmap" in wanted:
        from pacs_node.reporting.heat_map_stage import HeatMapStage  # noqa: PLC0415

        stages.append(HeatMapStage(database, spool, settings))
    for destination in settings.destinations:
        for stage in (DeliverStage, CommitStage):
            tls = settings.tls_of(destination)
            stages.append(stage(database, destination, settings.node.ae_title, settings.deliver, tls))
    _spare_collector()
    keepers: list[Runs] = [Housekeeper(settings, database, spool), DecisionReader(database)]
    workers = [*_workers(settings, database, stages), *keepers]
    _work(stopped, ready, workers)


def web(settings: Settings, stopped: threading.Event, ready: Ready) -> None:
    """Serve the reading list."""
    from pacs_node.web.serving import serve  # noqa: PLC0415 - the other roles need no web framework

    database, spool = _open(settings)

    def look() -> Snapshot:
        return snapshot(settings, database, datetime.now(UTC))

    serve(settings, database, spool, stopped, lambda: ready([]), look=look)


def _spare_collector() -> None:
    """Let the garbage collector pass over what is loaded now, for it stays.

    To go through it takes 0.1 s, in which nothing else is done. pynetdicom's server asks for that with every
    60th association.
    """
    gc.collect()
    gc.freeze()


ROLES: dict[str, Role] = {"receive": receive, "score": score, "deliver": deliver, "web": web}


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
    spool = Spool(settings.spool.path, settings.node.port or settings.tls.port, number)
    spool.prepare(may_be_new=is_empty)
    return spool


def _workers(
    settings: Settings, database: Database, stages: Sequence[Stage], idle_stage: Stage | None = None
) -> list[Runs]:
    """Return a worker for each stage, which does what `idle_stage` has when it has nothing else to do."""
    poll, lease = settings.work.poll_seconds, settings.work.lease_seconds
    hung = _HUNG_SECONDS + settings.deliver.connect_seconds + settings.deliver.answer_seconds
    return [Worker(database, stage, poll, lease, hung, idle_stage=idle_stage) for stage in stages]


def _work(stopped: threading.Event, ready: Ready, workers: Sequence[Runs]) -> None:
    """Let all work until `stopped`; end all when one fails."""
    threads = [threading.Thread(target=worker.run, daemon=True) for worker in workers]
    ready([worker.progress for worker in workers])
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
