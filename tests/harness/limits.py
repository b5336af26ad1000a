"""A test that takes too long fails alone, with the stacks of all threads; its worker and the run go on.

Set-up, call and tear-down have the limit each, for what hangs in one may hang in the next: a finaliser that
waits for a program, for example. Programs that the test started are killed first, so nobody waits for them.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TextIO

import pytest

_AGAIN_SECONDS = 20.0  # until what goes on in its ``finally`` is interrupted once more
_PROGRAMS = pytest.StashKey[set[int]]()


class TookTooLong(BaseException):
    """A test ran into its limit; hypothesis and the product take it for no failure of theirs."""


class Limits:
    """Hooks that interrupt each phase of a test at its limit.

    Parameters
    ----------
    seconds
        The limit of a phase.
    stuck_seconds
        How much longer a phase may go on that no signal interrupts, because it waits outside Python; then the
        worker is ended, the stacks are written, and xdist fails the test.
    stacks
        Where they are written then.
    """

    def __init__(self, seconds: float, stuck_seconds: float, stacks: TextIO) -> None:
        self._seconds = seconds
        self._stuck_seconds = stuck_seconds
        self._stacks = stacks
        self._end_if_stuck()  # collecting has a limit too

    def pytest_collection_finish(self) -> None:
        """Let a worker wait for its first test."""
        faulthandler.cancel_dump_traceback_later()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None]:
        """Limit the fixtures."""
        item.stash[_PROGRAMS] = _programs()
        with self._limited(item, "setup", pytest.fail.Exception):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        """Limit the test itself."""
        with self._limited(item, "call", TookTooLong):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        """Limit the finalisers."""
        with self._limited(item, "teardown", pytest.fail.Exception):
            return (yield)

    @contextmanager
    def _limited(self, item: pytest.Item, phase: str, error: type[BaseException]) -> Iterator[None]:
        def interrupt(_number: int, _frame: FrameType | None) -> None:
            item.add_report_section(phase, "stacks of all threads", _all_stacks())
            known: set[int] = item.stash.get(_PROGRAMS, set())
            for program in _programs() - known:
                _kill(program)
            raise error(f"The {phase} took longer than {self._seconds:g} seconds.")

        before = signal.signal(signal.SIGALRM, interrupt)
        self._end_if_stuck()
        signal.setitimer(signal.ITIMER_REAL, self._seconds, _AGAIN_SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGALRM, before)

    def _end_if_stuck(self) -> None:
        after = self._seconds + self._stuck_seconds
        faulthandler.dump_traceback_later(after, exit=True, file=self._stacks)


def _all_stacks() -> str:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read()


def _programs() -> set[int]:
    """Return the ids of the processes that this one started, each with its process group at most once."""
    children: set[int] = set()
    for thread in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # the thread ended meanwhile
            children.update(map(int, thread.read_text().split()))
    return children


def _kill(program: int) -> None:
    """Kill a process and all below it."""
    below: set[int] = set()
    for thread in Path(f"/proc/{program}/task").glob("*/children"):
        with suppress(OSError):
            below.update(map(int, thread.read_text().split()))
    with suppress(ProcessLookupError):
        os.kill(program, signal.SIGKILL)
    for child in below:
        _kill(child)
