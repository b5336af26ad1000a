"""`pacs-node serve`: starts one process for each role, starts those anew that die or hang, and ends them all.

Each process has a socket to the supervisor. It says over it that it is ready, and then, as long as its work
gets on, gives a heartbeat every second; one that gives none is ended by force. It ends by itself when the
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
from pacs_node.errors import DatabaseUnusable, ModelUnusable, SpoolUnusable
from pacs_node.network.server import Listening
from pacs_node.network.tls import server_context
from pacs_node.progress import Progress
from pacs_node.running.alerts import alerting
from pacs_node.running.heartbeat import READY, heartbeats, starting
from pacs_node.running.metrics import monitoring
from pacs_node.running.roles import ROLES, open_spool, receive

_log = log.get(__name__)

USER_ERROR = 2  # exit code: the person at the keyboard can mend it
_ENDING = (signal.SIGTERM, signal.SIGINT)
_POLL_SECONDS = 0.1
_START_SECONDS = 600.0  # to get ready, with a large model from a slow disk
_TERM_SECONDS = 5.0  # from SIGTERM to SIGKILL, for a process that was silent
_GRACE_SECONDS = 30  # to finish what is at hand
_MOST_BACK_OFF = 30.0
_MOST_SAID = 4096  # bytes
_MOST_BETWEEN = 1.0  # seconds of silence that one look at a process adds
_HEALTHY_SECONDS = 60  # a process that lived so long starts its next life without pause


class _Process:
    """One role, through all its lives.

    Parameters
    ----------
    number
        Which of several with this role it is.
    silent_seconds
        How long it may give no heartbeat.
    listening
        What it shares with them.
    """

    def __init__(
        self,
        role: str,
        config: Path | None,
        silent_seconds: float,
        number: int = 0,
        listening: Listening | None = None,
    ) -> None:
        self.role = role
        self._silent_seconds = silent_seconds
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
            command += ["--number", str(self._number)]
            for option, shared in (
                ("--listening", self._listening.plain),
                ("--listening-tls", self._listening.tls),
            ):
                if shared is not None:
                    command += [option, str(shared.fileno())]
                    passed.append(shared.fileno())
        if self._config is not None:
            command += ["--config", str(self._config)]
        self._popen = subprocess.Popen(command, pass_fds=passed, stdin=subprocess.DEVNULL)
        theirs.close()
        ours.setblocking(False)
        self._socket = ours
        self._started_at = self._heard_at = time.monotonic()
        self._silence, self._is_ready, self._is_told_to_end = 0.0, False, False
        self.restart_at = None

    def check(self) -> int | None:
        """Notice readiness and death; return the exit code of one that says a person must mend its start."""
        if self.restart_at is not None:
            if time.monotonic() >= self.restart_at:
                self._start()
            return None
        self._listen()
        code = self._popen.poll()
        if code is None:
            self._end_if_silent()
            return None
        self._socket.close()
        if not self.was_ready and code == USER_ERROR:
            return code
        self._plan_restart(code)
        return None

    def _listen(self) -> None:
        """Take what it said; measure its silence, of which no look at it adds more than a moment.

        So a supervisor that stood still, as all processes of a machine do at times, blames no other for it.
        """
        now = time.monotonic()
        said = b""
        with suppress(BlockingIOError, ConnectionError):
            said = self._socket.recv(_MOST_SAID)
        self._is_ready |= READY in said
        self.was_ready |= self._is_ready
        self._silence = 0.0 if said else self._silence + min(now - self._heard_at, _MOST_BETWEEN)
        self._heard_at = now

    def _end_if_silent(self) -> None:
        """End a process that gives no heartbeat; the interpreter of one that hangs never sees SIGTERM."""
        allowed = self._silent_seconds if self._is_ready else _START_SECONDS
        if self._silence > allowed and not self._is_told_to_end:
            self._is_told_to_end = True
            silent = round(self._silence)
            _log.error("process hangs", role=self.role, pid=self._popen.pid, silent_seconds=silent)
            self._popen.terminate()
        if self._silence > allowed + _TERM_SECONDS:
            self._popen.kill()

    def _plan_restart(self, code: int) -> None:
        lived = time.monotonic() - self._started_at
        self._deaths = 1 if lived > _HEALTHY_SECONDS else self._deaths + 1
        pause = min(_MOST_BACK_OFF, 0.25 * 2**self._deaths)
        _log.error("process died", role=self.role, exit_code=code, restart_seconds=pause)
        self.restart_at = time.monotonic() + pause

    @property
    def is_at_work(self) -> bool:
        """Whether it runs, and said in this life that it is ready."""
        return self._is_ready and self.restart_at is None

    def terminate(self) -> None:
        """Let the process finish what is at hand and end; one that is still starting has nothing at hand."""
        if self._is_ready:
            self._popen.terminate()
        else:
            self._popen.kill()

    def join(self, deadline: float) -> None:
        """Wait for its end; end it by force when it gives no heartbeat, or after `deadline`."""
        while self._popen.poll() is None and time.monotonic() < deadline:
            self._listen()
            self._end_if_silent()
            time.sleep(_POLL_SECONDS)
        if self._popen.poll() is None:
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
    DatabaseUnusable, ModelUnusable, PortInUse, SpoolUnusable, TlsUnusable
    """
    if "score" in roles:
        _require_model(settings)
    if "receive" in roles and settings.tls.port:
        server_context(settings.tls)
    with stop_on_signals() as stopped, ExitStack() as stack:
        listening = None
        if "receive" in roles:  # first of all: a node that runs here already has the port
            node = settings.node
            listening = stack.enter_context(Listening.on(node.host, node.port, settings.tls.port))
        _prepare(settings)
        _log.info("starting", version=__version__, roles=",".join(roles))
        silent = settings.work.silent_seconds
        processes: list[_Process] = []
        stack.enter_context(monitoring(settings, lambda: all(one.is_at_work for one in processes)))
        processes += [_Process(role, config, silent) for role in roles if role != "receive"]
        if listening is not None:
            count = settings.receive.process_count
            processes += [_Process("receive", config, silent, number, listening) for number in range(count)]
        stack.enter_context(alerting(settings))
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


def _require_model(settings: Settings) -> None:
    """Notice at once what the scoring process would notice seconds later, with the port open."""
    model, device = settings.classifier.model, settings.classifier.device
    if model is not None and not model.is_file():
        raise ModelUnusable(
            f"Cannot read the model {model}: there is no such file; correct [classifier] model."
        )
    if device.startswith("cuda"):
        number = int(device.partition(":")[2] or 0)
        there = cuda_devices()
        if number >= there:
            count = f"{there} GPUs are" if there > 1 else "only one GPU is" if there else "no GPU is"
            raise ModelUnusable(
                f'[classifier] device is {device!r}, but {count} there; check the driver, or set "auto".'
            )


def cuda_devices() -> int:
    """Return how many GPUs the CUDA driver finds, without torch, and without the driver in this process."""
    done = subprocess.run([sys.executable, "-c", _COUNT_DEVICES], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else 0


_COUNT_DEVICES = """
import ctypes
driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
assert driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
print(count.value)
"""


def _prepare(settings: Settings) -> None:
    _make_state_folder(settings.node.state_folder)
    try:
        database = Database(settings.database.url)
        database.upgrade()
        open_spool(settings, database)
        database.close()
    except DatabaseError as error:
        raise DatabaseUnusable(str(error)) from error


def _make_state_folder(folder: Path | None) -> None:
    if folder is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        why = f"The state folder {folder} cannot be made: {error.strerror}"
        raise SpoolUnusable(
            f"{why}; make it for the user of the node, or set [node] state_folder."
        ) from error


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
    listening: Listening | None = None,
) -> None:
    """Be the process of one role; end with the supervisor."""
    work = partial(receive, number=number, listening=listening) if role == "receive" else ROLES[role]
    with stop_on_signals() as stopped, ExitStack() as stack:
        if control is not None:
            threading.Thread(target=_end_with, args=(control,), daemon=True).start()

        start = stack.enter_context(ExitStack())
        start.enter_context(starting(settings, role, number))

        def ready(loops: Sequence[Progress]) -> None:
            start.close()
            stack.enter_context(heartbeats(settings, role, number, loops, control))
            if control is not None:
                control.sendall(READY)

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
