"""The run outlives its workers: one that dies fails the test that it was at, and takes its programs with it.

Whoever holds the other end of a dead worker's pipe, a child of it for example, lets the run wait for ever.
So each worker leads a process group, and the run kills the group as soon as its leader is dead.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import pytest

_ROOM = "TESTS_ROOM"  # environment: the folder of the run; in memory where there is some
_LOOK_SECONDS = 1.0
_MEMORY = Path("/dev/shm")
_ENOUGH = 2**32  # bytes


class Run:
    """Hooks of the process that hands out the tests."""

    def __init__(self) -> None:
        self._room = Path(tempfile.mkdtemp(prefix="pacs-node-tests-", dir=memory()))
        self._room.chmod(0o755)  # PostgreSQL runs as another user
        os.environ[_ROOM] = str(self._room)
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._bury, name="watch over workers", daemon=True)
        self._watch.start()

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, report: Any) -> None:
        """Show where a worker was that ended itself."""
        stacks = self._room / f"{report.node.gateway.id}.stacks"
        if stacks.exists() and stacks.stat().st_size:
            report.longrepr = f"{report.longrepr}\n{stacks.read_text()}"

    def pytest_unconfigure(self) -> None:
        """Leave nothing of what workers started."""
        self._ended.set()
        self._watch.join()
        for worker in self._room.glob("*.pid"):
            _kill_group(int(worker.read_text()))
        shutil.rmtree(self._room, ignore_errors=True)

    def _bury(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            for worker in self._room.glob("*.pid"):
                pid = int(worker.read_text() or 0)
                if pid and _is_dead(pid):
                    worker.unlink()
                    _kill_group(pid)


def join(name: str) -> TextIO:
    """Make this worker one of the run; return the file for its stacks."""
    room = Path(os.environ[_ROOM])
    os.setpgid(0, 0)
    new = room / f"{name}.new"
    new.write_text(str(os.getpid()))
    new.rename(room / f"{name}.pid")
    return (room / f"{name}.stacks").open("w")


def shared_folder(otherwise: pytest.TempPathFactory) -> Path:
    """Return a folder that all workers have; without workers, one of the session."""
    return Path(os.environ[_ROOM]) if _ROOM in os.environ else otherwise.mktemp("shared")


def room() -> Path:
    """Return where there is room for the data of servers; the run empties it."""
    return Path(os.environ.get(_ROOM) or memory() or tempfile.gettempdir())


def memory() -> str | None:
    """Return a folder in memory, if there is room: each database is some three hundred files."""
    enough = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ENOUGH
    return str(_MEMORY) if enough else None


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return sys.platform == "linux"


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
