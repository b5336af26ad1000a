"""The folder of received objects. A file here is whole, fsynced, named by its content and never changed.

::

    spool/.pacs-node           says that this is a spool, and not the folder where one should be mounted
    spool/incoming/HOST-PORT-N/  being received; whatever a crash leaves here was never answered with Success
    spool/objects/ab/abcd….dcm received; named by the SHA-256 of transfer syntax UID and encoded data set
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pydicom.filereader import read_dataset

from pacs_node.errors import SpoolUnusable

_CHUNK = 2**20
_HEAD = 2**15  # bytes, more than nearly all headers have
_GROUP_LENGTH_VALUE, _META = 140, 144  # PS3.10 7.1


class Spool:
    """The spool folder.

    Parameters
    ----------
    root
        Its path; on a local disk, or on a shared one when several machines work together.
    port, number
        Of the receiver whose objects arrive here: several share a port.
    """

    def __init__(self, root: Path, port: int = 0, number: int = 0) -> None:
        self.root = root
        self._receivers = f"{socket.gethostname()}-{port}"
        self.incoming = root / "incoming" / f"{self._receivers}-{number}"
        self.objects = root / "objects"
        self._marker = root / ".pacs-node"

    @property
    def is_there(self) -> bool:
        """Whether the spool is here, and not only the folder where it should be mounted."""
        return self._marker.is_file()

    def prepare(self, *, may_be_new: bool = True) -> None:
        """Make the folders and try to write.

        Parameters
        ----------
        may_be_new
            Whether nothing was received yet; otherwise a folder that is no spool must not become one.

        Raises
        ------
        SpoolUnusable
            When that fails.
        """
        if not may_be_new and not self.is_there:
            raise SpoolUnusable(
                f"{self.root} is no spool, but the database knows objects in one; is its disk mounted?"
            )
        probe = self.incoming / f".probe-{os.getpid()}"
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.root, self.incoming.parent, self.incoming, self.objects):
                _make_private(folder)
            for number in range(256):  # made and flushed now, so that `keep` has no race to make them
                _make_private(self.objects / f"{number:02x}")
            with open(probe, "wb", opener=_private) as file:
                file.write(b"probe")
            probe.replace(self._marker)
            for folder in (self.root.parent, self.root, self.incoming.parent, self.incoming, self.objects):
                _fsync(folder)
        except OSError as error:
            raise SpoolUnusable(
                f"Cannot write the spool {self.root}: {error.strerror}; correct [spool] path or its rights."
            ) from error

    def leftovers(self, receivers: int | None = None) -> list[Path]:
        """Return what a crash left half received; asked before this receiver receives anything.

        Parameters
        ----------
        receivers
            How many share the port now; with it, what others left that are no more is returned too.
        """
        folders = [self.incoming]
        if receivers is not None:
            there = {self.incoming.with_name(f"{self._receivers}-{number}") for number in range(receivers)}
            others = self.incoming.parent.glob(f"{self._receivers}*")  # earlier versions had no number
            folders += [folder for folder in others if folder not in there]
        return [path for folder in folders for path in folder.iterdir() if path.is_file()]

    def arriving(self) -> Arriving:
        """Return a new file for an object that begins to arrive."""
        return Arriving(self.incoming / f"{uuid.uuid4().hex}.dcm")

    def keep(self, received: Path, digest: str) -> Path:
        """Make a received file permanent: when this returns, it survives a loss of power.

        Parameters
        ----------
        received
            A file on the same file system, closed or flushed by its writer.
        digest
            What `digest` returned for it.

        Returns
        -------
        Path
            Its place. The same content under the same digest replaces itself.

        Raises
        ------
        OSError
            When it cannot be written, such as for lack of space.
        """
        place = self.path(digest)
        _fsync(received)
        received.replace(place)
        _fsync(place.parent)
        return place

    def path(self, digest: str) -> Path:
        """Return the place of an object."""
        return self.objects / digest[:2] / f"{digest}.dcm"

    def stored(self, first: str = "??") -> Iterator[str]:
        """Yield the digests of all files that are here, or of those that begin with two digits."""
        yield from (path.stem for path in sorted(self.objects.glob(f"{first}/*.dcm")))

    def age_seconds(self, digest: str) -> float | None:
        """Return how long ago an object was written, by this machine's clock; ``None`` if it is not here."""
        try:
            return time.time() - self.path(digest).stat().st_mtime
        except FileNotFoundError:
            return None

    def remove(self, digest: str) -> None:
        """Remove an object that nobody needs any more; one that is gone already is no error."""
        self.path(digest).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """Return the space left on its disk."""
        return shutil.disk_usage(self.root).free


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
        length = bytes(self._head[_GROUP_LENGTH_VALUE:_META])
        start = _META + int.from_bytes(length, "little")
        if len(self._head) >= start > _META:
            meta = read_dataset(BytesIO(self._head[_META:start]), False, True)
            self.begin(str(meta.TransferSyntaxUID), self._head[start:])

    def hex(self) -> str:
        return str(self._sha.hexdigest())


class Arriving:
    """A file that is being received, and digested meanwhile.

    It is written by a thread of pynetdicom, which an exception would end without an answer to the sender. So
    none is raised here: the first one waits in `error`, and nothing is written after it.

    Attributes
    ----------
    name, file
        As pynetdicom expects them of a temporary file.
    head
        The beginning of the data set, after `begin`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self.file = self
        self.error: OSError | None = None
        self.head = bytearray()
        self._is_begun = False
        self._sha = _Sha()
        self._opened: BinaryIO | None = None
        with self._error_kept():
            self._opened = os.fdopen(_private(self.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")

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

    def flush(self) -> None:
        """Hand over to the operating system what was written."""
        if self._opened is not None and self.error is None:
            with self._error_kept():
                self._opened.flush()

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
        # Preamble, DICM, then File Meta Information Group Length with the length of what follows it
        file.seek(_GROUP_LENGTH_VALUE)
        file.seek(int.from_bytes(file.read(4), "little"), os.SEEK_CUR)
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def _private(path: str, flags: int) -> int:
    """Open a file that only the user of the node can read: it holds patient data."""
    return os.open(path, flags, 0o600)


def _make_private(folder: Path) -> None:
    """Make a folder that only the user of the node can enter; one that is there becomes so, if it is ours."""
    folder.mkdir(mode=0o700, exist_ok=True)
    with suppress(PermissionError):
        folder.chmod(0o700)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
