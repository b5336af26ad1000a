"""Decodes files in processes of their own, which are watched from here and ended when one takes too much.

Decoding meets bytes of strangers: it may hang with the interpreter's lock held, crash, or want all memory.
Here that costs the image at hand, which is refused, and a moment; its neighbours go on in other processes.

There are as many processes as asked for. For each that is at one image for long there is one more, up to
twice as many, so that a few images that hang do not hold up others.
"""

from __future__ import annotations

import errno
import logging
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from typing import NamedTuple

from classifier.decoding.decoder import Request
from classifier.decoding.watchdog import DecoderProcess, Died, Outcome
from classifier.errors import NotScorable
from classifier.reasons import Reason

__all__ = ["Decoders", "Outcome", "Request"]

_log = logging.getLogger(__name__)

_LARGE = 32 * 2**20  # bytes of a file: of such, one at a time bounds the memory
_LATE_SECONDS = 2.0  # at one image, before another process takes over the others
_KEPT_SECONDS = 300.0  # that the outcome of a late image waits for being asked for again
_CRASHES = 2  # at an image, until they are its fault and not that of whoever killed the process
_MOST_LIVES = 5
_END_SECONDS = 5.0


class _Task(NamedTuple):
    request: Request
    is_large: bool
    future: Future[Outcome]


_known: weakref.WeakValueDictionary[int, Decoders] = weakref.WeakValueDictionary()


class Decoders:
    """Processes that decode; they end with this object, with the program, and when it is killed.

    Parameters
    ----------
    processes
        How many files are decoded at a time.
    """

    def __init__(self, processes: int) -> None:
        self._slots = _Slots(processes)
        self._late: dict[Request, tuple[Future[Outcome], float]] = {}
        weakref.finalize(self, self._slots.close)

    @classmethod
    def shared(cls, processes: int) -> Decoders:
        """Return those of this program, which all who want as many share."""
        found = _known.get(processes)
        if found is None:
            _known[processes] = found = cls(processes)
        return found

    def start(self) -> None:
        """Start all processes now, and not when there is work for them."""
        self._slots.start()

    def submit(self, request: Request) -> Future[Outcome]:
        """Decode a file as soon as a process is free."""
        future: Future[Outcome] = Future()
        try:
            is_large = request.path.stat().st_size > _LARGE
        except OSError as error:
            future.set_result(error)
        else:
            self._slots.put(_Task(request, is_large, future))
        return future

    def decode(self, requests: Sequence[Request], patience: float | None = None) -> list[Outcome | None]:
        """Decode files.

        Parameters
        ----------
        patience
            Seconds in which none gets finished before those left, if they have begun, are for later; ``None``
        waits for all.

        Returns
        -------
        list of Radiograph, NotScorable, OSError or None
            In the order of `requests`. An OSError says that the file could not be read, or that no process
            could be started. ``None`` is an image that takes long: it goes on, and is to be asked for again.
        """
        late = [self._late.pop(request, None) for request in requests]
        futures = [
            known[0] if known else self.submit(request) for known, request in zip(late, requests, strict=True)
        ]
        hanging = {future for future, known in zip(futures, late, strict=True) if known and future.running()}
        _wait(set(futures) - hanging or hanging, patience)
        self._keep(requests, futures)
        return [future.result() if future.done() else None for future in futures]

    def _keep(self, requests: Sequence[Request], futures: Sequence[Future[Outcome]]) -> None:
        now = time.monotonic()
        for request in [request for request, (_, until) in self._late.items() if until < now]:
            self._late.pop(request, None)
        for request, future in zip(requests, futures, strict=True):
            if not future.done():
                self._late[request] = future, now + request.limits.seconds + _KEPT_SECONDS


def _wait(futures: Collection[Future[Outcome]], patience: float | None) -> None:
    """Wait for all, as long as now and then one gets finished, or some have yet to begin."""
    pending = set(futures)
    while pending:
        have_begun = all(future.running() for future in pending)
        done, pending = wait(pending, timeout=patience, return_when=FIRST_COMPLETED)
        if have_begun and not done:
            return


class _Slots:
    """Tasks, and the threads that take them, each of which has a process."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._small: deque[_Task] = deque()
        self._large: deque[_Task] = deque()
        self._changed = threading.Condition()
        self._all = self._idle = self._late = 0
        self._has_large = self._is_closed = False
        self._processes: set[DecoderProcess] = set()
        self._threads: set[threading.Thread] = set()

    def start(self) -> None:
        """Have all processes."""
        with self._changed:
            while self._all - self._late < self._number:
                self._add()

    def put(self, task: _Task) -> None:
        """Let one take a task."""
        with self._changed:
            (self._large if task.is_large else self._small).append(task)
            self._suffice()
            self._changed.notify_all()

    def close(self) -> None:
        """End all processes; what they are at is lost."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            processes, threads = [*self._processes], self._threads - {threading.current_thread()}
        for process in processes:
            process.kill()  # its thread does the rest
        for thread in threads:
            thread.join(_END_SECONDS)

    def _suffice(self) -> None:
        """Add a thread if there are fewer than may be and than there is work for."""
        is_wanted = self._idle < len(self._small) + len(self._large)
        if is_wanted and self._all - self._late < self._number and self._all < 2 * self._number:
            self._add()

    def _add(self) -> None:
        self._all += 1
        self._idle += 1
        thread = threading.Thread(target=self._serve, name="decoder", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _serve(self) -> None:
        slot = _Slot(self._started, self._ended)
        slot.start()
        while (task := self._take()) is not None:
            clock = _Clock(self._count_late)
            outcome = slot.decode(task.request, clock.tick)
            is_spare = self._finish(task, clock.is_late)
            task.future.set_result(outcome)
            if is_spare:
                break
            slot.start()
        slot.end()
        with self._changed:
            self._threads.discard(threading.current_thread())

    def _take(self) -> _Task | None:
        with self._changed:
            while not self._is_closed:
                if self._large and not self._has_large:
                    self._has_large = True
                    self._idle -= 1
                    return self._running(self._large)
                if self._small:
                    self._idle -= 1
                    return self._running(self._small)
                self._changed.wait()
        return None

    @staticmethod
    def _running(tasks: deque[_Task]) -> _Task:
        task = tasks.popleft()
        task.future.set_running_or_notify_cancel()
        return task

    def _finish(self, task: _Task, was_late: bool) -> bool:
        """Count one less at work; tell whether there are more threads than are wanted."""
        with self._changed:
            self._late -= was_late
            self._has_large &= not task.is_large
            is_spare = self._all - self._late > self._number
            self._all -= is_spare
            self._idle += not is_spare
            self._changed.notify_all()
            return is_spare

    def _count_late(self) -> None:
        with self._changed:
            self._late += 1
            self._suffice()

    def _started(self, process: DecoderProcess) -> None:
        with self._changed:
            self._processes.add(process)
            is_closed = self._is_closed
        if is_closed:
            process.kill()

    def _ended(self, process: DecoderProcess) -> None:
        with self._changed:
            self._processes.discard(process)


class _Clock:
    """Notices when a task takes long."""

    def __init__(self, on_late: Callable[[], None]) -> None:
        self.is_late = False
        self._since = time.monotonic()
        self._on_late = on_late

    def tick(self) -> None:
        if not self.is_late and time.monotonic() - self._since >= _LATE_SECONDS:
            self.is_late = True
            self._on_late()


class _Slot:
    """One process after the other."""

    def __init__(
        self, on_start: Callable[[DecoderProcess], None], on_end: Callable[[DecoderProcess], None]
    ) -> None:
        self._process: DecoderProcess | None = None
        self._on_start = on_start
        self._on_end = on_end

    def start(self) -> None:
        """Have a process before there is work; what is wrong with that is told with the work."""
        with suppress(OSError):
            self._alive()

    def decode(self, request: Request, on_wait: Callable[[], None]) -> Outcome:
        """Decode a file; an image that ends two processes is refused."""
        crashes = 0
        for _ in range(_MOST_LIVES):
            try:
                return self._alive().decode(request, on_wait)
            except OSError as error:
                return error
            except Died as died:
                self._log_death()
                crashes += died.was_at_image
            if crashes == _CRASHES:
                return NotScorable(Reason.UNREADABLE, "The decoder process crashed")
        return ChildProcessError(errno.ECHILD, "Processes that decode end at once", str(request.path))

    def _alive(self) -> DecoderProcess:
        if self._process is not None and not self._process.is_alive:
            self.end()
        if self._process is None:
            self._process = DecoderProcess()
            self._on_start(self._process)
        self._process.wait_until_ready()
        return self._process

    def end(self) -> int | None:
        """End the process that there is; return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        self._on_end(process)
        return process.end()

    def _log_death(self) -> None:
        code = self.end() or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        _log.warning("A process that decodes ended with %s", how)
