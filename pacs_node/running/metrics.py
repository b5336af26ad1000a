"""What monitoring asks over HTTP: ``/metrics`` for Prometheus, ``/healthz`` and ``/readyz``.

All figures come from the database when they are asked for, so they are those of all processes and machines,
and none starts from 0 again with a process. Nothing in them names a patient.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from db.errors import DatabaseError
from db.recent import Recent, recent
from db.session import Database
from pacs_node import __version__
from pacs_node.config import Settings
from pacs_node.errors import PortInUse
from pacs_node.running.status import Snapshot, snapshot

PREFIX = "pacs_node"

_RECENT = timedelta(hours=1)
_QUANTILES = (0.5, 0.95, 1.0)
_KEPT_SECONDS = 5.0  # that answers are given again: several may ask at a time

Samples = Iterable[tuple[Sequence[str], float]]


class NodeCollector(Collector):
    """Reads the state of the node when Prometheus asks.

    Parameters
    ----------
    settings, database
        Of the node.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._lock = threading.Lock()
        self._kept: tuple[float, list[Metric]] = (-_KEPT_SECONDS, [])

    def collect(self) -> Iterable[Metric]:
        """Return all figures; if the database does not answer, only that it does not."""
        with self._lock:
            at, metrics = self._kept
            if time.monotonic() - at >= _KEPT_SECONDS:
                metrics = self._read()
                self._kept = time.monotonic(), metrics
        return metrics

    def _read(self) -> list[Metric]:
        now = datetime.now(UTC)
        try:
            found = snapshot(self._settings, self._database, now)
            with self._database.read() as session:
                lately = recent(session, now - _RECENT)
        except DatabaseError:
            return [*_about_node(), _gauge("database_up", "Whether the database answers.", [((), 0)])]
        up = _gauge("database_up", "Whether the database answers.", [((), 1)])
        return [*_about_node(), up, *_of_now(found), *_of_last_hour(lately)]


def _about_node() -> Iterator[Metric]:
    yield _gauge("info", "Version of the node.", [((__version__,), 1)], "version")


def _of_now(found: Snapshot) -> Iterator[Metric]:
    counts = found.counts
    totals = {
        "studies": counts.studies,
        "objects": counts.instances,
        "scores": counts.scores,
        "reports": counts.reports,
    }
    stored = [((name,), number) for name, number in totals.items()]
    yield _gauge("stored", "Rows since the database was made.", stored, "what")
    jobs = [((kind, state), number) for (kind, state), number in counts.jobs.items() if state != "done"]
    yield _gauge("jobs", "Work that waits or failed.", jobs, "kind", "state")
    undelivered = list(counts.deliveries.items())
    yield _gauge(
        "undelivered_reports",
        "Reports not delivered, pending or failed.",
        undelivered,
        "destination",
        "state",
    )
    waiting = 0.0 if found.waiting is None else (found.at - found.waiting.received_at).total_seconds()
    yield _gauge("oldest_waiting_seconds", "Age of the oldest image without a score.", [((), waiting)])
    late = [((one.destination,), (found.at - one.since).total_seconds()) for one in found.undelivered]
    yield _gauge("oldest_undelivered_seconds", "Age of the oldest report not delivered.", late, "destination")
    beats = [((one.role, one.host), one.age_seconds) for one in found.heartbeats]
    yield _gauge("heartbeat_age_seconds", "Since the last heartbeat of a process.", beats, "role", "host")
    if found.free_bytes is not None:
        yield _gauge("spool_free_bytes", "Space for images.", [((), found.free_bytes)])
    yield _gauge("spool_floor_bytes", "With less free space, images are refused.", [((), found.floor_bytes)])
    held = [((one.problem,), one.studies) for one in found.problem_studies]
    yield _gauge("problem_studies", "Studies that get no report until a person acts.", held, "problem")
    yield _gauge("problems", "What `pacs-node status` names.", [((), len(found.problems))])
    if found.model is not None:
        model = (found.model.name, found.model.version, found.model.sha256)
        yield _gauge("model_info", "The model in use.", [(model, 1)], "name", "version", "sha256")


def _of_last_hour(lately: Recent) -> Iterator[Metric]:
    yield _gauge(
        "images_last_hour",
        "Images received within the last hour.",
        lately.images.items(),
        *("sender", "decision", "reason"),
    )
    spans = {("score", ""): lately.scoring_seconds, ("report", ""): lately.reporting_seconds}
    spans |= {("deliver", name): seconds for name, seconds in lately.delivering_seconds.items()}
    yield _gauge(
        "seconds_last_hour",
        "Time for scoring, reporting and delivering within the last hour: median, 95 %, longest.",
        [
            ((*key, f"{share:g}"), _quantile(seconds, share))
            for key, seconds in spans.items()
            if seconds
            for share in _QUANTILES
        ],
        *("stage", "destination", "quantile"),
    )


def _gauge(name: str, meaning: str, samples: Samples, *labels: str) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", meaning, labels=labels)
    for values, number in samples:
        family.add_metric(list(values), number)
    return family


def _quantile(seconds: Sequence[float], share: float) -> float:
    """Return the smallest value that so many are not above."""
    ordered = sorted(seconds)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


class _Server(ThreadingMixIn, WSGIServer):
    """Answers, and no question keeps the next from being answered for long."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = 10  # seconds for a request

    def log_message(self, *_: Any) -> None:
        """Say nothing: monitoring asks several times a minute."""


@contextmanager
def monitoring(settings: Settings, is_ready: Callable[[], bool]) -> Iterator[int | None]:
    """Answer monitoring inside; yield the port, or ``None`` where none is configured.

    Parameters
    ----------
    is_ready
        Tells whether all processes of this machine are at work.

    Raises
    ------
    PortInUse
        When the port cannot be listened on.
    """
    if not settings.metrics.port:
        yield None
        return
    database = Database(settings.database.url)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(settings, database))
    server = _listening(settings, _answers(registry, database, is_ready))
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        database.close()


def _listening(settings: Settings, app: Any) -> WSGIServer:
    host, port = settings.metrics.host, settings.metrics.port
    try:
        return make_server(host, port, app, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise PortInUse(
            f"Port {port} on {host} cannot be listened on ({error.strerror}); set [metrics] host and port."
        ) from error


def _answers(registry: CollectorRegistry, database: Database, is_ready: Callable[[], bool]) -> Any:
    def metrics() -> tuple[str, str, bytes]:
        return "200 OK", CONTENT_TYPE_LATEST, generate_latest(registry)

    def alive() -> tuple[str, str, bytes]:
        return "200 OK", "text/plain", b"alive\n"

    def ready() -> tuple[str, str, bytes]:
        if not is_ready():
            return "503 Service Unavailable", "text/plain", b"A process is not ready yet.\n"
        try:
            database.require_current()
        except DatabaseError:
            return "503 Service Unavailable", "text/plain", b"The database does not answer.\n"
        return "200 OK", "text/plain", b"ready\n"

    pages = {"/metrics": metrics, "/healthz": alive, "/readyz": ready}

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        page = pages.get(environ["PATH_INFO"])
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, kind, body = "405 Method Not Allowed", "text/plain", b"Only GET is answered.\n"
        elif page is None:
            status, kind, body = "404 Not Found", "text/plain", b"See /metrics, /healthz and /readyz.\n"
        else:
            status, kind, body = page()
        start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return app
