"""Modalities: they send studies, and remember what they were told."""

from __future__ import annotations

import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pacs_node.errors import PeerError
from pacs_node.network import scu
from pacs_node.network.peer import Peer
from tests.conftest import radiograph, save
from tests.faults.judge import Image, image_of
from tests.helpers.peers import program


def studies(folder: Path, number: int, images: int = 1, prefix: str = "") -> list[list[Path]]:
    """Write studies of small radiographs; return the files of each."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for study in range(number):
        files = []
        for image in range(1, images + 1):
            name = f"{prefix}{study}"
            ds = radiograph("DX", study=f"{folder.name}-{name}", number=image)
            files.append(save(ds, folder / f"{name}-{image}.dcm"))
        made.append(files)
    return made


def flat(studies: Iterable[Iterable[Path]]) -> list[Path]:
    """Return the files of all studies."""
    return [path for files in studies for path in files]


class Modality:
    """Sends files until each was answered with Success, over as many associations as asked.

    Attributes
    ----------
    acknowledged
        The images that were.
    statuses
        What was answered how many times; ``None`` where no answer came.
    last
        When the last Success came, in monotonic seconds.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", name: str = "MODALITY") -> None:
        self.acknowledged: set[Image] = set()
        self.failures = 0
        self.statuses: Counter[int | None] = Counter()
        self.last = 0.0
        self._peer = Peer("PACS_NODE", host, port)
        self._name = name
        self._lock = threading.Lock()

    def send_once(self, files: Iterable[Path]) -> list[Path]:
        """Send over one association; return what was not stored."""
        left = list(files)
        try:
            for answer in scu.send(list(left), self._peer, self._name):
                with self._lock:
                    self.statuses[answer.status] += 1
                if answer.is_stored:
                    with self._lock:
                        self.acknowledged.add(image_of(answer.path))
                        self.last = time.monotonic()
                    left.remove(answer.path)
        except PeerError:
            with self._lock:
                self.statuses[None] += 1
        return left

    def send(self, files: Iterable[Path], *, seconds: float = 120.0, pause: float = 0.2) -> None:
        """Send again and again until everything is stored."""
        left, deadline = list(files), time.monotonic() + seconds
        while left := self.send_once(left):
            self.failures += 1
            assert time.monotonic() < deadline, f"{len(left)} files were not stored in {seconds} s"
            time.sleep(pause)

    def send_all(
        self, studies: Sequence[Sequence[Path]], associations: int = 4, seconds: float = 600
    ) -> None:
        """Send each study over an association of its own, several at once."""
        with ThreadPoolExecutor(associations) as pool:
            for done in [pool.submit(self.send, files, seconds=seconds) for files in studies]:
                done.result()


class Dcmtk(Modality):
    """The same with DCMTK: several files with storescu, or one by one with dcmsend.

    Parameters
    ----------
    with_dcmsend
        It does not say which file was stored, and is given one at a time.
    """

    def __init__(self, port: int, *, with_dcmsend: bool = False, host: str = "127.0.0.1") -> None:
        super().__init__(port, host, "DCMTK")
        self._with_dcmsend = with_dcmsend
        self._where = ("-aet", "DCMTK", "-aec", "PACS_NODE", host, str(port))

    def send_once(self, files: Iterable[Path]) -> list[Path]:
        """Send over one association, or one for each file; return what was not stored."""
        left = list(files)
        calls = [[path] for path in left] if self._with_dcmsend else [left]
        stored = {path for call in calls for path in self._stored(call)}
        with self._lock:
            self.acknowledged |= {image_of(path) for path in stored}
            self.last = time.monotonic() if stored else self.last
        return [path for path in left if path not in stored]

    def _stored(self, files: Sequence[Path]) -> Iterator[Path]:
        """Send, and yield the files that were answered with Success."""
        options = ["-v"] if self._with_dcmsend else ["-v", "-nh"]
        command = [program("dcmsend" if self._with_dcmsend else "storescu"), *options, *self._where]
        done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False)
        current = files[0] if self._with_dcmsend else None
        for line in (done.stdout + done.stderr).splitlines():
            if "Sending file: " in line:
                current = Path(line.partition("Sending file: ")[2])
            elif "Response (Success)" in line and current is not None:
                yield current
                current = None
