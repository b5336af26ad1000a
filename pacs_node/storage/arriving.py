"""A file that is being received, and the digest that names its content."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from pacs_node.dicom.part10 import seek_data_set, split_meta

_CHUNK = 2**20
_HEAD = 2**15  # bytes, more than nearly all headers have


class Disk(Protocol):
    """What knows the space that is left."""

    def free_bytes(self) -> int:
        """Return it."""
        ...


class _Sha:
    """What `digest` returns, of a file that is being written from its beginning."""

    def __init__(self) -> None:
        self._head = bytearray()  # until the file meta information is complete
        self._sha: Any = None

    def begin(self, transfer_syntax_uid: str, content: bytes | bytearray = b"") -> None:
        """Begin with the data set."""
        self._sha = hashlib.sha256(transfer_syntax_uid.encode() + b"\0")
        self._sha.update(content)

    def update(self, content: bytes | memoryview) -> None:
        if self._sha is not None:
            self._sha.update(content)
            return
        self._head += content
        meta = split_meta(self._head)
        if meta is not None:
            transfer_syntax_uid, start = meta
            self.begin(transfer_syntax_uid, self._head[start:])

    def hex(self) -> str:
        return str(self._sha.hexdigest())


class Arriving:
    """A file that is being received, and digested meanwhile.

    It is written by a thread of the network, which an exception would end without an answer to the sender. So
    none is raised here: the first one waits in `error`, and nothing is written after it.

    Attributes
    ----------
    head
        The beginning of the data set, after `begin`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: OSError | None = None
        self.head = bytearray()
        self._is_begun = False
        self._sha = _Sha()
        self._opened: BinaryIO | None = None
        with self._error_kept():
            self._opened = _create(path)

    def write(self, content: bytes | memoryview) -> None:
        """Write, unless something went wrong before."""
        if self._opened is not None and self.error is None:
            with self._error_kept():
                self._opened.write(content)
                self._sha.update(content)
        if self._is_begun and len(self.head) < _HEAD:
            self.head += content[: _HEAD - len(self.head)]

    def begin(self, file_meta: bytes, transfer_syntax_uid: str) -> None:
        """Write all that comes before the data set; from now on, `head` is kept."""
        self._is_begun = True
        self._sha.begin(transfer_syntax_uid)
        if self._opened is not None:
            with self._error_kept():
                self._opened.write(file_meta)

    def digest(self) -> str:
        """Return what `digest` would, of the whole file."""
        return self._sha.hex()

    def require_space(self, disk: Disk, least_free: int) -> None:
        """Write nothing more, and free what is written, where too little space is left on the disk."""
        if self._opened is None or self.error is not None:
            return
        with self._error_kept():
            if disk.free_bytes() < least_free:
                self._opened.truncate(0)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close; may be repeated."""
        if self._opened is not None:
            with self._error_kept():
                self._opened.close()

    def discard(self) -> None:
        """Remove what is here; where `Spool.keep` has it already, nothing is."""
        self.close()
        with suppress(OSError):
            self.path.unlink()

    @contextmanager
    def _error_kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error


def digest(path: Path, transfer_syntax_uid: str) -> str:
    """Return the SHA-256, in hex, of the transfer syntax UID and the encoded data set of a Part 10 file.

    File Meta Information is left out: it differs between two senders of one object.
    """
    sha = hashlib.sha256(transfer_syntax_uid.encode() + b"\0")
    with path.open("rb") as file:
        seek_data_set(file)
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def _create(path: Path) -> BinaryIO:
    """Open a new file for writing."""
    return os.fdopen(private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")


def private(path: str | Path, flags: int) -> int:
    """Open a file that only the user of the node can read: it holds patient data."""
    return os.open(path, flags, 0o600)
