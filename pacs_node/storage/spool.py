"""The folder of received objects. A file here is whole, fsynced, named by its content and never changed.

::

    spool/.pacs-node           says that this is a spool, and not the folder where one should be mounted
    spool/incoming/HOST-PORT-N/  being received; whatever a crash leaves here was never answered with Success
    spool/objects/ab/abcd….dcm received; named by the SHA-256 of transfer syntax UID and encoded data set
"""

from __future__ import annotations

import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pacs_node.errors import SpoolUnusable
from pacs_node.storage.arriving import Arriving, private


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
                f"{self.root} is not a spool, but the database knows objects in one; is its disk mounted?"
            )
        probe = self.incoming / f".probe-{os.getpid()}"
        try:
            self.incoming.mkdir(parents=True, exist_ok=True)
            for folder in (self.root, self.incoming.parent, self.incoming, self.objects):
                _make_private(folder)
            for number in range(256):  # made and flushed now, so that `keep` has no race to make them
                _make_private(self.objects / f"{number:02x}")
            with open(probe, "wb", opener=private) as file:
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
