"""The process that decodes: it reads what strangers made, and may hang or die at any instruction.

`classifier.decoding.decoders` starts it, gives it one file at a time over a socket, and ends it. It never
loads torch, holds nothing that is worth keeping, and does not outlive the process that started it.
"""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from classifier.config import DecodeLimits, Eligibility
from classifier.decoding.copies import Fingerprint, fingerprint
from classifier.decoding.decode import Radiograph, read
from classifier.errors import NotScorable
from classifier.reasons import Reason

READY, LOADED = b"ready", b"loaded"
"""What it says before it takes work, and when it has read a file."""

Found: TypeAlias = Radiograph | Fingerprint | NotScorable | tuple[int, str]
"""What it answers: an image, whose pixels follow; a fingerprint; a refusal; or why a file is unreadable."""

_ORPHAN_SECONDS = 5.0  # beyond the limit, after which the kernel ends what nobody else is left to end
_MOST_GROWTH = 512 * 2**20  # bytes that it may have more than at its start before another takes its place
_PR_SET_PDEATHSIG = 1  # prctl(2)


class Request(NamedTuple):
    """What is asked of it.

    Attributes
    ----------
    path
        A DICOM, JPEG or PNG file.
    rules, size
        As `classifier.decoding.decode.read` takes them.
    limits
        What decoding may take.
    is_copy
        Whether its fingerprint is wanted, and not the image.
    """

    path: Path
    rules: Eligibility | None = None
    size: int | None = None
    limits: DecodeLimits = DecodeLimits()
    is_copy: bool = False


def main(descriptor: int, parent: int) -> None:
    """Serve the process at the other end of a socket until it closes it."""
    for ignored in (signal.SIGINT, signal.SIGTERM):  # meant for the process that started this one
        signal.signal(ignored, signal.SIG_IGN)
    _end_with(parent)
    with suppress(EOFError, ConnectionError), Connection(descriptor) as connection:
        connection.send_bytes(READY)
        first = _address_space()
        while _address_space() - first < _MOST_GROWTH:
            request: Request = connection.recv()
            found = _decoded(request, lambda: connection.send_bytes(LOADED))
            _send(connection, found)


def _end_with(parent: int) -> None:
    """Let the kernel end this process with its parent, even if it never comes to see that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()


def _decoded(request: Request, loaded: Callable[[], None]) -> Found:
    try:
        with _Watched(request.path, loaded) as file, _bounded(request.limits):
            return _judged(file, request)
    except OSError as error:
        return error.errno or 0, error.strerror or type(error).__name__


def _judged(file: _Watched, request: Request) -> Found:
    """Return the image or its refusal: whatever is raised once the file is read, the image provoked."""
    try:
        if request.is_copy:
            return fingerprint(file, (request.rules or Eligibility()).max_pixels)
        return read(file, request.rules, request.size)
    except Exception as error:
        if isinstance(error, OSError) and not file.was_read:
            raise
        if _is_for_memory(error):
            return needs_more(request.limits)
        return error if isinstance(error, NotScorable) else _unforeseen(error)


def _is_for_memory(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, MemoryError):
        error = error.__cause__
    return error is not None


def needs_more(limits: DecodeLimits) -> NotScorable:
    """Return the refusal of an image that wants more memory than it may have."""
    return NotScorable(Reason.UNREADABLE, f"Decoding needs more memory than {limits.mebibytes} MiB")


def _unforeseen(error: Exception) -> NotScorable:
    where = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__} in {Path(where.filename).name}, line {where.lineno}"
    return NotScorable(Reason.UNREADABLE, f"Decoding failed with {what}")


class _Watched(io.BufferedReader):
    """A file that tells when it has been read: until then, what is slow is the disk."""

    def __init__(self, path: Path, on_read: Callable[[], None]) -> None:
        super().__init__(io.FileIO(path))
        self.was_read = False
        self._on_read = on_read

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        if not self.was_read:
            self.was_read = True
            self._on_read()
        return content


@contextmanager
def _bounded(limits: DecodeLimits) -> Iterator[None]:
    """Bound memory; and time, in case that the process which watches this one is gone."""
    space = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        wanted = _address_space() + limits.mebibytes * 2**20
        soft = wanted if space[1] == resource.RLIM_INFINITY else min(wanted, space[1])
        resource.setrlimit(resource.RLIMIT_AS, (soft, space[1]))
    # No handler, so that the kernel ends the process even while the interpreter stands still
    signal.setitimer(signal.ITIMER_REAL, limits.seconds + _ORPHAN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, space)


def _address_space() -> int:
    """Return the bytes of address space that this process has; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm", "rb", buffering=0) as statm:  # noqa: PTH123 - at every image
        return int(statm.read().split()[0]) * resource.getpagesize()


def _send(connection: Connection, found: Found) -> None:
    if not isinstance(found, Radiograph):
        connection.send_bytes(pickle.dumps((found, None)))
        return
    pixels = np.ascontiguousarray(found.pixels, np.float32)
    bare = replace(found, pixels=None)  # type: ignore[arg-type]  # they follow
    connection.send_bytes(pickle.dumps((bare, pixels.shape)))
    connection.send_bytes(pixels.data.cast("B"))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
