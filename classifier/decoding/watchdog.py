"""One decoder process, watched from outside: a limit that it kept itself would hang with it."""

from __future__ import annotations

import errno
import io
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from classifier.decoding import decoder
from classifier.decoding.copies import Fingerprint
from classifier.decoding.decode import Radiograph
from classifier.decoding.decoder import LOADED, READY, Request, needs_more
from classifier.errors import NotScorable
from classifier.reasons import Reason

Outcome: TypeAlias = Radiograph | Fingerprint | NotScorable | OSError

_START_SECONDS = 120.0
_READ_SECONDS = 60.0  # for a file; longer, it is as one that cannot be read
_SLICE_SECONDS = 0.5
_MOST_HEADER = 2**20  # bytes
_ROOT = Path(__file__).parents[2]


class Died(Exception):
    """The process ended, or said what it never says, while it had a file.

    Attributes
    ----------
    was_at_image
        Whether it had read the file, so that the image may be the cause.
    """

    def __init__(self, *, was_at_image: bool) -> None:
        super().__init__()
        self.was_at_image = was_at_image


class DecoderProcess:
    """A new process; `end` must follow.

    Raises
    ------
    OSError
        When it cannot be started.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", decoder.__name__, str(theirs.fileno()), str(os.getpid())]
            self._popen = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
            )
        self._connection = Connection(ours.detach())
        self._is_ready = False

    def wait_until_ready(self) -> None:
        """Return when it can be given a file; ends it if it never can.

        Raises
        ------
        OSError
        """
        with suppress(EOFError, OSError):
            self._is_ready = self._is_ready or self._next(_START_SECONDS) == READY
        if self._is_ready:
            return
        self.end()
        raise ChildProcessError(errno.ECHILD, "A process that decodes cannot be started")

    def decode(self, request: Request, on_wait: Callable[[], None] = lambda: None) -> Outcome:
        """Decode one file.

        Parameters
        ----------
        on_wait
            Called now and then while it is at it.

        Returns
        -------
        Radiograph, NotScorable or OSError
            Beyond the limits a refusal; then, and when its file takes too long to read, the process is ended.

        Raises
        ------
        Died
        """
        is_loaded = False
        try:
            self._connection.send(request)
            said = self._next(_READ_SECONDS, on_wait)
            if said == LOADED:
                is_loaded = True
                said = self._next(request.limits.seconds, on_wait)
            if said is not None:
                outcome = self._received(said, request.path)
                if isinstance(outcome, NotScorable) and outcome.detail == needs_more(request.limits).detail:
                    self.end()  # what is left of its memory may be in pieces
                return outcome
        except (EOFError, OSError) as error:
            raise Died(was_at_image=is_loaded) from error
        self.end()
        if not is_loaded:
            return TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), str(request.path))
        return NotScorable(Reason.UNREADABLE, f"Decoding took longer than {request.limits.seconds:g} s")

    def end(self) -> int | None:
        """End it, whatever it is at; return its exit code, negative after a signal, unless it lingers."""
        self._connection.close()
        return self.kill()

    def kill(self) -> int | None:
        """End it from another thread than the one that uses it; `end` must still follow."""
        self._popen.kill()
        with suppress(subprocess.TimeoutExpired):
            return self._popen.wait(_SLICE_SECONDS)
        return None

    @property
    def is_alive(self) -> bool:
        """Whether it can be given a file."""
        return not self._connection.closed and self._popen.poll() is None

    def _next(self, seconds: float, on_wait: Callable[[], None] = lambda: None) -> bytes | None:
        """Return what it says next, or nothing when the time is over."""
        left = seconds
        while not self._connection.poll(min(left, _SLICE_SECONDS)):
            # Each wait counts once: if this program stood still meanwhile, so did the other
            left -= _SLICE_SECONDS
            if left <= 0:
                return None
            on_wait()
        return self._connection.recv_bytes(_MOST_HEADER)

    def _received(self, header: bytes, path: Path) -> Outcome:
        """Read what it found; a process that was led astray by an image must not lead this one astray."""
        try:
            found, shape = _Reader(io.BytesIO(header)).load()
            if isinstance(found, Radiograph):
                pixels = np.empty(shape, np.float32)
                if pixels.size:
                    self._connection.recv_bytes_into(pixels.data.cast("B"))
                return replace(found, pixels=pixels)
            is_whole = isinstance(found, NotScorable | Fingerprint)
            return found if is_whole else OSError(*found, str(path))
        except (EOFError, OSError):
            raise
        except Exception as error:
            raise EOFError("not what a decoder says") from error


class _Reader(pickle.Unpickler):
    """Makes objects of the classifier's own classes alone."""

    def find_class(self, module: str, name: str, /) -> Any:
        found = super().find_class(module, name) if module.startswith("classifier.") else None
        if isinstance(found, type) and found.__module__.startswith("classifier."):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is not expected")


def _environment() -> dict[str, str]:
    """Return the environment in which Python finds this very package."""
    places = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(places)}
