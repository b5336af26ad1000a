"""Alerts: what is told, when, and only once; by e-mail and by webhook to servers that listen."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email import message_from_string, policy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from db.session import Database
from pacs_node.config import DatabaseSettings, NodeSettings, Settings
from pacs_node.config_alerts import AlertSettings
from pacs_node.demo.peers import free_port
from pacs_node.running.alerts import Alerts, alerting, problems_of, tellers
from tests.helpers.commands import wait_for
from tests.helpers.receiving import logged

NOW = datetime(2026, 12, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
DOWN = "3 reports wait for PACS. No route to host"
FULL = "The spool is almost full: images are refused until there is space."


class Told:
    """What was told; it may fail."""

    def __init__(self) -> None:
        self.all: list[tuple[str, list[str]]] = []
        self.fails = False

    def __call__(self, subject: str, problems: Sequence[str]) -> None:
        if self.fails:
            raise ConnectionRefusedError
        self.all.append((subject, [*problems]))


@pytest.fixture
def told() -> Told:
    return Told()


def alerts(told: Told, folder: Path) -> Alerts:
    return Alerts(told, folder / "alerts.json", 5 * MINUTE)


def test_a_problem_is_told_once_when_it_has_lasted(told: Told, tmp_path: Path) -> None:
    one = alerts(told, tmp_path)
    for minute in range(60):
        one.look([DOWN.replace("3", str(minute))], NOW + minute * MINUTE)
    assert [subject for subject, _ in told.all] == ["1 problem"]
    assert told.all[0][1] == [DOWN.replace("3", "5")]


def test_what_passes_by_itself_is_not_told(told: Told, tmp_path: Path) -> None:
    one = alerts(told, tmp_path)
    for minute in range(60):
        one.look([DOWN] if minute % 5 else [], NOW + minute * MINUTE)
    assert told.all == []


def test_each_further_thing_is_told_and_then_that_all_is_well(told: Told, tmp_path: Path) -> None:
    one = alerts(told, tmp_path)
    for minute, problems in enumerate([[DOWN]] * 10 + [[DOWN, FULL]] * 10 + [[FULL]] * 10 + [[]] * 10):
        one.look(problems, NOW + minute * MINUTE)
    assert told.all == [("1 problem", [DOWN]), ("2 problems", [DOWN, FULL]), ("well again", [])]
    one.look([DOWN], NOW + 60 * MINUTE)
    one.look([DOWN], NOW + 70 * MINUTE)
    assert told.all[3:] == [("1 problem", [DOWN])]


def test_a_restart_tells_nothing_twice_and_still_that_all_is_well(told: Told, tmp_path: Path) -> None:
    for minute in (0, 10):
        one = alerts(told, tmp_path)
        one.look([DOWN], NOW + minute * MINUTE)
        one.look([DOWN], NOW + (minute + 6) * MINUTE)
    alerts(told, tmp_path).look([], NOW + 20 * MINUTE)
    assert [subject for subject, _ in told.all] == ["1 problem", "well again"]
    (tmp_path / "alerts.json").write_text("{ broken")
    alerts(told, tmp_path).look([], NOW)


def test_what_could_not_be_told_is_tried_again(told: Told, tmp_path: Path) -> None:
    one = alerts(told, tmp_path)
    one.look([DOWN], NOW)
    told.fails = True
    with pytest.raises(ConnectionRefusedError):
        one.look([DOWN], NOW + 6 * MINUTE)
    told.fails = False
    one.look([DOWN], NOW + 7 * MINUTE)
    assert len(told.all) == 1


class MailServer(threading.Thread):
    """Takes one message by SMTP (RFC 5321)."""

    def __init__(self) -> None:
        super().__init__()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.envelope: list[str] = []
        self.message = ""

    def run(self) -> None:
        with (
            self._listening,
            self._listening.accept()[0] as peer,
            peer.makefile("rw", newline="\r\n") as talk,
        ):
            talk.write("220 here\n")
            talk.flush()
            for line in talk:
                said = line.strip()
                answer = "250 fine"
                if said.upper().startswith(("MAIL", "RCPT")):
                    self.envelope.append(said)
                elif said.upper() == "DATA":
                    talk.write("354 go on\n")
                    talk.flush()
                    while (text := next(talk).rstrip("\r\n")) != ".":
                        self.message += text + "\n"
                elif said.upper() == "QUIT":
                    answer = "221 bye"
                talk.write(f"{answer}\n")
                talk.flush()
                if said.upper() == "QUIT":
                    return


@pytest.fixture
def posts() -> Iterator[tuple[str, list[Any]]]:
    """An address that takes POSTs, and what came."""
    came: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", came
    server.shutdown()
    thread.join()
    server.server_close()


def test_mail_and_webhook_say_what_status_says(posts: tuple[str, list[Any]]) -> None:
    address, came = posts
    server = MailServer()
    server.start()
    named = AlertSettings(email_to=("a@example.org", "b@example.org"), smtp_port=server.port, webhook=address)
    for tell in tellers(Settings(alerts=named)).values():
        tell("2 problems", [DOWN, FULL])
    server.join()
    assert [line.split(":", 1)[1].split()[0] for line in server.envelope] == [
        *("<pacs-node@localhost>", "<a@example.org>", "<b@example.org>")
    ]
    mail = message_from_string(server.message, policy=policy.default)
    assert mail["Subject"].startswith("PACS_NODE on ")
    assert mail["Subject"].endswith(": 2 problems")
    assert f"- {DOWN}\n- {FULL}\n" in mail.get_content()
    assert [(one["is_well"], one["problems"]) for one in came] == [(False, [DOWN, FULL])]


def test_a_database_that_is_down_is_a_problem_and_its_password_is_not_told() -> None:
    url = f"postgresql+psycopg://node:se%40cret@127.0.0.1:{free_port()}/results"
    database = Database(url)
    (said,) = problems_of(Settings(), database, NOW)
    database.close()
    assert "does not work" in said
    assert "cret" not in said


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_node_without_processes_tells_it(
    database: Database, database_url: str, tmp_path: Path, posts: tuple[str, list[Any]]
) -> None:
    address, came = posts
    settings = Settings(
        node=NodeSettings(state_folder=tmp_path),
        database=DatabaseSettings(url=database_url),
        alerts=AlertSettings(webhook=address, after_minutes=0.001),
    )
    with alerting(settings):
        wait_for(lambda: bool(came), "a call")
    assert any("No receive process is running" in said for said in came[0]["problems"])
    assert (tmp_path / "alerts-webhook.json").exists()


@pytest.fixture
def nonsense() -> Iterator[int]:
    """The port of a server that answers what is neither mail nor HTTP."""
    listening, stopped = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def answer() -> None:
        while not stopped.is_set():
            peer, _ = listening.accept()
            with peer:
                peer.sendall(b"what?\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    port = listening.getsockname()[1]
    yield port
    stopped.set()
    socket.create_connection(("127.0.0.1", port)).close()
    thread.join()
    listening.close()


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize("is_silent", [True, False])
def test_a_mail_server_that_fails_does_not_keep_the_webhook_and_nothing_is_told_twice(
    database: Database,
    database_url: str,
    tmp_path: Path,
    posts: tuple[str, list[Any]],
    nonsense: int,
    *,
    is_silent: bool,
) -> None:
    address, came = posts
    settings = Settings(
        node=NodeSettings(state_folder=tmp_path),
        database=DatabaseSettings(url=database_url),
        alerts=AlertSettings(
            webhook=address,
            email_to=("a@example.org",),
            smtp_port=free_port() if is_silent else nonsense,
            after_minutes=0.001,
        ),
    )
    with logged() as lines, alerting(settings):
        wait_for(lambda: lines().count("alert not sent") >= 5, "five looks")
    assert len(came) == 1
    assert "way=email" in lines()


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_webhook_that_answers_nonsense_is_tried_again(
    database: Database, database_url: str, tmp_path: Path, nonsense: int
) -> None:
    settings = Settings(
        node=NodeSettings(state_folder=tmp_path),
        database=DatabaseSettings(url=database_url),
        alerts=AlertSettings(webhook=f"http://127.0.0.1:{nonsense}/", after_minutes=0.001),
    )
    with logged() as lines, alerting(settings):
        wait_for(lambda: lines().count("alert not sent") >= 2, "a second look")
