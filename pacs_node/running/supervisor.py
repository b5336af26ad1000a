"""`pacs-node serve`: starts one process for each role, restarts those that die, and ends them in good order.

Each process has a socket to the supervisor. It sends one byte when it is ready, and ends by itself when the
supervisor is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from db.errors import DatabaseDown, DatabaseError
from db.session import Database
from pacs_node import __version__, log
from pacs_node.config import Settings
from pacs_node.errors import DatabaseUnusable, ModelUnusable
from pacs_node.network.server import listen
from pacs_node.running.heartbeat import heartbeats
from pacs_node.running.roles import ROLES, open_spool, receive

_log = log.get(__name__)

USER_ERROR = 2  # exit code: the person at the keyboard can mend it
_ENDING = (signal.SIGTERM, signal.SIGINT)
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 30  # to finish what is at hand
_MOST_BACK_OFF = 30.0
_HEALTHY_SECONDS = 60  # a process that lived so long starts its next life without pause


class _Process:
    """One role, through all its lives.

    Parameters
    ----------
    number
        Which of several with this role it is.
    listening
        The socket that it shares with them.
    """

    def __init__(
        self, role: str, config: Path | None, number: int = 0, listening: socket.socket | None = None
    ) -> None:
        self.role = role
        self._number = number
        self._listening = listening
        self._config = config
        self._deaths = 0
        self._started_at = 0.0
        self.restart_at: float | None = None
        self.was_ready = False
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "pacs_node", "role", self.role]
        command += ["--control", str(theirs.fileno())]
        passed = [theirs.fileno()]
        if self._listening is not None:
            passed.append(self._listening.fileno())
            command += ["--number", str(self._number), "--listening", str(self._listening.fileno())]
        if self._config is not None:
            command += ["--config", str(self._config)]
        self._popen = subprocess.Popen(command, pass_fds=passed, stdin=subprocess.DEVNULL)
        theirs.close()
        ours.setblocking(False)
        self._socket = ours
        self._started_at = time.monotonic()
        self.restart_at = None

    def check(self) -> int | None:
        """Notice readiness and death; return the exit code of one that says a person must mend its start."""
        if self.restart_at is not None:
            if time.monotonic() >= self.restart_at:
                self._start()
            return None
        with suppress(BlockingIOError, ConnectionError):
            self.was_ready = bool(self._socket.recv(1)) or self.was_ready
        code = self._popen.poll()
        if code is None:
            return None
        self._socket.close()
        if not self.was_ready and code == USER_ERROR:
            return code
        self._plan_restart(code)
        return None

    def _plan_restart(self, code: int) -> None:
        lived = time.monotonic() - self._started_at
        self._deaths = 1 if lived > _HEALTHY_SECONDS else self._deaths + 1
        pause = min(_MOST_BACK_OFF, 0.25 * 2**self._deaths)
        _log.error("process died", role=self.role, exit_code=code, restart_seconds=pause)
        self.restart_at = time.monotonic() + pause

    def terminate(self) -> None:
        """Let the process finish what is at hand and end; one that is still starting has nothing at hand."""
        if self.was_ready:
            self._popen.terminate()
        else:
            self._popen.kill()

    def join(self, deadline: float) -> None:
        """Wait for its end; end it by force after `deadline`."""
        try:
            self._popen.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _log.error("process ended by force", role=self.role)
            self._popen.kill()
            self._popen.wait()


def serve(settings: Settings, config: Path | None, roles: Sequence[str]) -> int:
    """Run the roles until SIGTERM or SIGINT.

    Parameters
    ----------
    settings, config
        The settings, and the file they came from.
    roles
        Keys of `ROLES`.

    Returns
    -------
    int
        Exit code: 0 after a signal, 2 when a role cannot start and a person must mend it.

    Raises
    ------
    DatabaseUnusable, PortInUse, SpoolUnusable
    """
    with stop_on_signals() as stopped, ExitStack() as stack:
        listening = None
        if "receive" in roles:  # first of all: a node that runs here already has the port
            listening = stack.enter_context(listen(settings.node.host, settings.node.port))
        _prepare(settings, roles)
        _log.info("starting", version=__version__, roles=",".join(roles))
        processes = [_Process(role, config) for role in roles if role != "receive"]
        if listening is not None:
            count = settings.receive.process_count
            processes += [_Process("receive", config, number, listening) for number in range(count)]
        try:
            return _watch(processes, stopped)
        finally:
            for process in processes:
                process.terminate()
            # One report may be on its way: longer than the destination may take
            patience = settings.deliver.connect_seconds + settings.deliver.answer_seconds
            deadline = time.monotonic() + patience + _GRACE_SECONDS
            for process in processes:
                process.join(deadline)
            _log.info("stopped")


def _prepare(settings: Settings, roles: Sequence[str]) -> None:
    model = settings.classifier.model
    if "score" in roles and model is not None and not model.is_file():
        raise ModelUnusable(
            f"Cannot read the model {model}: there is no such file; correct [classifier] model."
        )
    try:
        database = Database(settings.database.url)
        database.upgrade()
        open_spool(settings, database)
        database.close()
    except DatabaseError as error:
        raise DatabaseUnusable(str(error)) from error


def _watch(processes: Sequence[_Process], stopped: threading.Event) -> int:
    all_ready = False
    while not stopped.wait(_POLL_SECONDS):
        for process in processes:
            code = process.check()
            if code is not None:
                return code
        if not all_ready and all(process.was_ready for process in processes):
            all_ready = True
            _log.info("ready")
    return 0


def run_role(
    settings: Settings,
    role: str,
    control: socket.socket | None,
    number: int = 0,
    listening: socket.socket | None = None,
) -> None:
    """Be the process of one role; end with the supervisor."""
    work = partial(receive, number=number, listening=listening) if role == "receive" else ROLES[role]
    with stop_on_signals() as stopped, ExitStack() as stack:
        if control is not None:
            threading.Thread(target=_end_with, args=(control,), daemon=True).start()

        def ready() -> None:
            stack.enter_context(heartbeats(settings, role, number))
            if control is not None:
                control.sendall(b"R")

        try:
            work(settings, stopped, ready)
        except DatabaseDown as error:  # that may pass: end like a process that died, and be started again
            _log.error("database failed", role=role, cause=str(error))
            sys.exit(1)


def _end_with(control: socket.socket) -> None:
    """Wait for the supervisor's end of the socket to close, which happens however it ends."""
    with suppress(OSError):
        control.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Return an event that SIGTERM and SIGINT set."""
    stopped = threading.Event()
    # A handler runs in the middle of whatever the main thread does. That may be holding the event's own lock,
    # for which `set` would wait in vain; a SimpleQueue is made for this.
    came: SimpleQueue[int] = SimpleQueue()

    def hand_on() -> None:
        came.get()
        stopped.set()

    threading.Thread(target=hand_on, daemon=True).start()
    before = {s: signal.signal(s, lambda number, _: came.put(number)) for s in _ENDING}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        came.put(0)
