"""The processes of the node, each with one role: receive, score, or deliver.

Each function builds what its role needs, says that it is ready, and works until it is told to stop. Only the
scoring process loads torch: a crash of CUDA leaves associations answering.
"""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Protocol

from db import queries
from db.errors import DatabaseError
from db.rows import StoredModel
from db.session import Database
from pacs_node import __version__, log
from pacs_node.config import Settings
from pacs_node.custody import Housekeeper
from pacs_node.dispatch import CommitStage, ConfirmStage, DeliverStage
from pacs_node.errors import ConfigError, ModelUnusable
from pacs_node.pipeline import ReportStage, Scorer, ScoreStage, algorithm
from pacs_node.receive import Receiver
from pacs_node.report import InvalidReport, Node
from pacs_node.spool import Spool
from pacs_node.worker import Stage, Worker

_log = log.get(__name__)

SIGN_SECONDS = 10.0


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
    scorer, model = _load_model(settings, database)
    stage = ScoreStage(database, spool, scorer, model, settings.classifier.batch_size)
    _spare_collector()
    ready()
    _work(settings, stopped, database, [stage])


def deliver(settings: Settings, stopped: threading.Event, ready: Ready) -> None:
    """Make reports and send them, each destination in threads of its own; and keep house."""
    database, spool = _open(settings)
    try:
        node = Node(
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


@contextmanager
def giving_signs(settings: Settings, role: str, number: int = 0) -> Iterator[None]:
    """Tell the database every few seconds that this process is at work, for `status` to see."""
    role = f"{role} {number + 1}" if number else role
    database, host = Database(settings.database.url), socket.gethostname()
    started_at, ended = datetime.now(UTC), threading.Event()

    def give() -> None:
        while True:
            with suppress(DatabaseError), database.write() as session:
                queries.record_sign(session, role, host, started_at)
            if ended.wait(SIGN_SECONDS):
                return

    thread = threading.Thread(target=give, daemon=True)
    thread.start()
    yield
    ended.set()
    thread.join()
    with suppress(DatabaseError), database.write() as session:
        queries.forget_sign(session, role, host)


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


def _load_model(settings: Settings, database: Database) -> tuple[Scorer, StoredModel]:
    from classifier.config import Eligibility  # noqa: PLC0415
    from classifier.errors import ClassifierError  # noqa: PLC0415
    from classifier.predict import Predictor  # noqa: PLC0415 - torch, in this process alone

    wanted = settings.classifier
    rules = Eligibility(wanted.unknown_body_part, wanted.unknown_view, wanted.max_pixels)
    try:
        predictor = Predictor.load(
            wanted.model,
            wanted.device,
            rules,
            cautious=wanted.is_cautious,
            engine=wanted.engine,
            unknown_age=wanted.unknown_age,
        )
        card = predictor.card
        model = StoredModel(
            id=0,
            sha256=card.sha256,
            name=card.name,
            version=card.version,
            threshold=card.threshold,
            preprocessing=card.preprocessing_text,
        )
        algorithm(model)  # what cannot stand in a report must fail now, not then
        row = {name: value for name, value in asdict(model).items() if name != "id"}
        with database.write() as session:
            row["card"] = card.model_dump_json()
            model = replace(model, id=queries.register_model(session, row, datetime.now(UTC)))
    except (ClassifierError, InvalidReport) as error:
        raise ModelUnusable(str(error)) from error
    _log.info(
        "model loaded",
        model=card.name,
        version=card.version,
        sha256=card.sha256,
        device=predictor.device,
        engine=predictor.engine,
    )
    return predictor, model


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
