"""Tells people when the node needs one, and when it is well again; each thing once.

The supervisor does it, so that it also tells when all other processes are dead. What was told stands in a
file of this machine, because the database may be what is down.
"""

from __future__ import annotations

import json
import re
import smtplib
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path

from db.errors import DatabaseError
from db.session import Database
from pacs_node import log
from pacs_node.config import Settings
from pacs_node.config_alerts import AlertSettings
from pacs_node.running.status import snapshot

_log = log.get(__name__)

_LOOK_SECONDS = 20.0
_SEND_SECONDS = 30.0
_FILE = "alerts-{way}.json"

Tell = Callable[[str, Sequence[str]], None]


class Alerts:
    """Decides what is told, and when.

    Parameters
    ----------
    tell
        Tells people: a subject, and the problems there are. Raises `OSError` where that fails; then it is
        tried again.
    file
        Where is kept what was told in this way.
    after
        How long a problem must last before it is told.
    """

    def __init__(self, tell: Tell, file: Path, after: timedelta) -> None:
        self._tell, self._file, self._after = tell, file, after
        self._since: dict[str, datetime] = {}
        self._told = _read(file)

    def look(self, problems: Sequence[str], at: datetime) -> None:
        """Tell what has lasted long enough and was not told, or that everything is well again."""
        found = {_kind(problem): problem for problem in problems}
        self._since = {kind: self._since.get(kind, at) for kind in found}
        new = [kind for kind in found if kind not in self._told and at - self._since[kind] >= self._after]
        if new:
            self._send(f"{len(found)} {'problem' if len(found) == 1 else 'problems'}", problems)
            self._keep(self._told & set(found) | set(new))
        elif self._told and not found:
            self._send("well again", [])
            self._keep(set())
        elif self._told - set(found):
            self._keep(self._told & set(found))

    def _send(self, subject: str, problems: Sequence[str]) -> None:
        self._tell(subject, problems)
        _log.info("alert sent", subject=subject)

    def _keep(self, told: set[str]) -> None:
        self._told = told
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(sorted(told)))
        part.replace(self._file)


def _kind(problem: str) -> str:
    """Return what stays the same of a problem while its numbers, names and times change."""
    return re.sub(r"\d+", "#", problem.partition(".")[0])


def _read(file: Path) -> set[str]:
    with suppress(OSError, ValueError):
        return set(map(str, json.loads(file.read_text())))
    return set()


@contextmanager
def alerting(settings: Settings) -> Iterator[None]:
    """Look after the node inside, where somebody is to be told."""
    if not settings.alerts.is_on:
        yield
        return
    stopped = threading.Event()
    thread = threading.Thread(target=_watch, args=(settings, stopped), name="alerts", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _watch(settings: Settings, stopped: threading.Event) -> None:
    database = Database(settings.database.url)
    folder = settings.node.state_folder or Path()
    after = timedelta(minutes=settings.alerts.after_minutes)
    ways = {
        way: Alerts(tell, folder / _FILE.format(way=way), after) for way, tell in tellers(settings).items()
    }
    while not stopped.wait(min(_LOOK_SECONDS, after.total_seconds() / 2)):
        now = datetime.now(UTC)
        problems = problems_of(settings, database, now)
        for way, alerts in ways.items():
            try:
                alerts.look(problems, now)
            except Exception as error:  # noqa: BLE001 - a server may answer anything; the next look tries again
                _log.error("alert not sent", way=way, cause=str(error) or type(error).__name__)
    database.close()


def problems_of(settings: Settings, database: Database, at: datetime) -> list[str]:
    """Return what `pacs-node status` would say, also where database or spool do not answer."""
    try:
        return snapshot(settings, database, at).problems
    except (DatabaseError, OSError) as error:
        return [str(error)]


def tellers(settings: Settings) -> dict[str, Tell]:
    """Return what tells people as configured, by way; when one fails, the other ways go on."""
    alerts, node = settings.alerts, f"{settings.node.ae_title} on {socket.gethostname()}"
    ways: dict[str, Tell] = {}
    if alerts.email_to:
        ways["email"] = lambda subject, problems: _mail(alerts, f"{node}: {subject}", problems)
    if alerts.webhook:
        ways["webhook"] = lambda _subject, problems: _post(
            alerts.webhook, {"node": node, "is_well": not problems, "problems": [*problems]}
        )
    return ways


def _mail(alerts: AlertSettings, subject: str, problems: Sequence[str]) -> None:
    message = EmailMessage()
    message["Subject"], message["From"] = subject, alerts.email_from
    message["To"] = ", ".join(alerts.email_to)
    told = "\n".join(f"- {problem}" for problem in problems) or "Nothing needs a person any more."
    message.set_content(f"{told}\n\nMore: pacs-node status\n")
    trusted = ssl.create_default_context()
    with _server(alerts, trusted) as server:
        if alerts.smtp_security == "starttls":
            server.starttls(context=trusted)
        if alerts.smtp_user:
            server.login(alerts.smtp_user, alerts.smtp_password)
        server.send_message(message)


def _server(alerts: AlertSettings, trusted: ssl.SSLContext) -> smtplib.SMTP:
    if alerts.smtp_security == "tls":
        return smtplib.SMTP_SSL(alerts.smtp_host, alerts.smtp_port, timeout=_SEND_SECONDS, context=trusted)
    return smtplib.SMTP(alerts.smtp_host, alerts.smtp_port, timeout=_SEND_SECONDS)


def _post(address: str, content: object) -> None:
    request = urllib.request.Request(
        address, json.dumps(content).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=_SEND_SECONDS):
        pass
