"""Loaded by Python before anything else in the processes of a node that is to suffer.

``SABOTAGE`` says what: ``POINT:NUMBER`` kills the process with SIGKILL when it comes to that point for that
time, once (the file ``SABOTAGE_DONE`` is made first, so that the next life of the process goes on unharmed).
With ``SABOTAGE_PAUSE`` it stands still for so many seconds instead, with ``SABOTAGE_HOLD`` for an hour and
with the interpreter's lock held; ``SABOTAGE_SIGNAL`` is another signal.
``SABOTAGE_ARM`` names a file that says the same as ``SABOTAGE``, and may be written while the process runs.
``SABOTAGE_POWER`` takes from the spool, before the process dies, what a loss of power would: all that was not
flushed.
``SABOTAGE_EIO`` names a file; as long as it is there, the operations on the spool that its lines name fail
with EIO, and what they did is counted in lines of the file of that name with ``.done`` after it.
``DEADLY_IMAGES`` lets images do to the process that decodes them what stands in them; see `DEADLY`.
``LIGHT_MODEL`` puts a stand-in without torch in the place of the network, so that a process is up soon.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.abc
import importlib.machinery
import os
import select
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

POINT = os.environ.get("SABOTAGE", "")
_ARM = os.environ.get("SABOTAGE_ARM", "")
_DONE = Path(os.environ.get("SABOTAGE_DONE", "/nonexistent/done"))
_PAUSE = float(os.environ.get("SABOTAGE_PAUSE", "0"))
_EIO = Path(os.environ.get("SABOTAGE_EIO", "/nonexistent/eio"))
_SIGNAL = signal.Signals[os.environ.get("SABOTAGE_SIGNAL", "SIGKILL")]
_seen: Counter[str] = Counter()
_lock = threading.Lock()


def reach(point: str) -> None:
    """Die here, if it is here and now."""
    wanted = _wanted()
    name, _, number = wanted.rpartition(":")
    if point != name:
        return
    with _lock:
        _seen[wanted] += 1
        if _seen[wanted] < int(number or 1) or _DONE.exists():
            return
        _DONE.touch()
    if _PAUSE:
        time.sleep(_PAUSE)
        return
    if os.environ.get("SABOTAGE_HOLD"):
        ctypes.PyDLL(None).sleep(3600)
    if os.environ.get("SABOTAGE_POWER"):
        volatile.lose()
    os.kill(os.getpid(), _SIGNAL)


def _wanted() -> str:
    try:
        return Path(_ARM).read_text() if _ARM else POINT
    except FileNotFoundError:
        return ""


class _Volatile:
    """What is in the memory of the operating system alone, as far as the program cared for it."""

    def __init__(self) -> None:
        self.contents: set[str] = set()
        self.names: dict[str, str] = {}

    def wrote(self, path: Path) -> None:
        """Take note of content that is not flushed."""
        self.contents.add(str(path))

    def renamed(self, old: Path, new: Path) -> None:
        """Take note of a name that is not flushed, and of content that moved."""
        self.names[str(new)] = str(old)
        if str(old) in self.contents:
            self.contents.remove(str(old))
            self.contents.add(str(new))

    def flushed(self, path: Path) -> None:
        """Take note of an fsync, of a file or of a folder."""
        self.contents.discard(str(path))
        for name in [name for name in [*self.names] if os.path.dirname(name) == str(path)]:  # noqa: PTH120
            self.names.pop(name, None)

    def lose(self) -> None:
        """Be without it all."""
        for path in [*self.contents]:
            with suppress(FileNotFoundError):
                os.truncate(path, 0)
        for new, old in [*self.names.items()]:
            with suppress(FileNotFoundError):
                os.rename(new, old)  # noqa: PTH104 - Path.replace is patched


volatile = _Volatile()


def disturb(operation: str) -> None:
    """Fail as a broken disk does, as long as it is broken."""
    try:
        broken = _EIO.read_text().splitlines()
    except FileNotFoundError:
        return
    if operation in broken:
        with Path(f"{_EIO}.done").open("a") as done:
            done.write(f"{operation}\n")
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def around(owner: Any, name: str, before: str, after: str = "") -> None:
    """Make a function a place to die, before or after it does its work."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        reach(before)
        result = original(*args, **kwargs)
        reach(after)
        return result

    setattr(owner, name, wrapped)


def _spool(module: ModuleType) -> None:
    write, replace = module.Arriving.write, Path.replace

    def noted_write(self: Any, content: bytes) -> None:
        volatile.wrote(self.path)
        write(self, content)

    def noted_replace(self: Path, target: Any) -> Path:
        new = replace(self, target)
        if self.suffix == ".dcm":
            volatile.renamed(self, new)
            reach("receive: renamed")
        return new

    module.Arriving.write, Path.replace = noted_write, noted_replace  # type: ignore[method-assign,assignment]
    around(module.Arriving, "write", "receive: before a write", "receive: after a write")
    around(module.Spool, "remove", "retain: before a removal", "retain: removed a file")
    fsync = module._fsync

    def wrapped(path: Path) -> None:
        what = "folder" if path.is_dir() else "file"
        reach(f"receive: before fsync of the {what}")
        disturb(f"fsync {what}")
        fsync(path)
        volatile.flushed(path)
        reach(f"receive: after fsync of the {what}")

    module._fsync = wrapped  # type: ignore[attr-defined]
    if "SABOTAGE_EIO" in os.environ:
        _break_disk(module)


class _Broken:
    """A file on a disk that may break."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, content: bytes) -> int:
        disturb("write")
        return int(self._file.write(content))

    def flush(self) -> None:
        disturb("flush")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
        disturb("flush")  # of what was not yet handed over
        disturb("close")


def _break_disk(module: ModuleType) -> None:
    opened, renamed, looked = Path.open, Path.replace, module.Spool.free_bytes
    arriving: Any = sys.modules[module.Arriving.__module__]
    created = arriving._create

    def create(path: Path) -> Any:
        disturb("open")
        return _Broken(created(path))

    def open_(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode.startswith("r") and "objects" in self.parts:
            disturb("read")
        return opened(self, mode, *args, **kwargs)

    def replace(self: Path, target: Any) -> Any:
        disturb("rename")
        return renamed(self, target)

    def free_bytes(self: Any) -> int:
        disturb("statvfs")
        return int(looked(self))

    arriving._create = create
    Path.open, Path.replace = open_, replace  # type: ignore[method-assign]
    module.Spool.free_bytes = free_bytes


def _queries(module: ModuleType) -> None:
    around(module, "add_instance", "receive: before the rows", "receive: rows written")
    around(module, "add_score", "score: before the row", "score: row written, before commit")
    around(module, "add_report", "report: before the row", "report: row written, before commit")


def _deliveries(module: ModuleType) -> None:
    around(
        module, "record_delivered", "deliver: answered, before the row", "deliver: row written, before commit"
    )


def _intake(module: ModuleType) -> None:
    record = module.record

    def wrapped(*args: Any) -> Any:
        *others, kept = args if len(args) == 5 else (*args, lambda: None)

        def reported() -> None:
            kept()
            reach("receive: rows and file written, before commit")

        return record(*others, reported)

    module.record = wrapped  # type: ignore[attr-defined]


def _receive(module: ModuleType) -> None:
    around(
        module.Receiver, "_store", "receive: whole, before anything", "receive: committed, before the answer"
    )


def _worker(module: ModuleType) -> None:
    around(module.Worker, "_work", "worker: claimed, before work", "worker: all settled")
    around(module.Worker, "_write", "worker: worked, before settling", "worker: settled")


def _reporting(module: ModuleType) -> None:
    around(module, "build", "report: before building", "report: built")


def _scoring(module: ModuleType) -> None:
    around(module.ScoreStage, "_predict", "score: before the network", "score: after the network")


def _deliver(module: ModuleType) -> None:
    around(module.Link, "_store", "deliver: before the send", "deliver: answered")


def _dul(module: ModuleType) -> None:
    send = module.AssociationSocket.send

    def wrapped(self: Any, content: bytes) -> None:
        send(self, content)
        if content[:1] == b"\x04":  # P-DATA-TF
            reach("deliver: during the send")
            reach("receive: answered")

    module.AssociationSocket.send = wrapped


def _rescores(module: ModuleType) -> None:
    around(module, "add", "rescore: before the row", "rescore: row written, before commit")


def _commitments(module: ModuleType) -> None:
    around(module, "add_asked", "commit: before the row of the request", "commit: row of the request written")
    around(
        module, "add_wanted", "confirm: before the row of the request", "confirm: row of the request written"
    )
    around(module, "record_answered", "confirm: before the row", "confirm: row written, before commit")
    around(
        module, "record_committed", "commit: answered, before the row", "commit: row written, before commit"
    )


def _commitment_stages(module: ModuleType) -> None:
    around(module, "ask", "commit: before N-ACTION", "commit: asked")
    around(module, "tell", "confirm: before N-EVENT-REPORT", "confirm: told, before the row")


def _stock(module: ModuleType) -> None:
    around(module, "release", "retain: before the rows", "retain: rows written, before commit")
    around(module, "lock_released", "retain: released, before removal")


_PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "pacs_node.storage.spool": _spool,
    "db.queries": _queries,
    "db.commitments": _commitments,
    "db.deliveries": _deliveries,
    "db.rescores": _rescores,
    "db.stock": _stock,
    "pacs_node.commitment.stages": _commitment_stages,
    "pacs_node.storage.intake": _intake,
    "pacs_node.receiving.receiver": _receive,
    "pacs_node.worker": _worker,
    "pacs_node.scoring.stage": _scoring,
    "pacs_node.reporting.stage": _reporting,
    "pacs_node.delivering.link": _deliver,
    "pynetdicom.transport": _dul,
}


def _light(module: ModuleType) -> None:
    """Give the module of the network's stand-in what `roles` takes from the real one."""
    from types import SimpleNamespace

    from classifier.decoding.decoders import Decoders, Request
    from classifier.errors import NotScorable
    from classifier.outcome import Decision, Prediction, StillDecoding

    card = SimpleNamespace(
        sha256="1" * 64,
        name="light",
        version="1",
        threshold=0.5,
        preprocessing_text="none",
        model_dump_json=lambda: "{}",
    )

    class Predictor:
        device, engine = "cpu", "none"

        def __init__(self, rules: Any, limits: Any) -> None:
            self.card = card
            self._rules, self._limits = rules, limits
            self._decoders = Decoders(2)

        @classmethod
        def load(cls, _model: Any, _device: str, rules: Any, *, limits: Any, **_: Any) -> Any:
            return cls(rules, limits)

        def start(self) -> None:
            self._decoders.start()

        def fingerprints(self, sources: Sequence[Path]) -> list[Any]:
            requests = [Request(path, self._rules, None, self._limits, is_copy=True) for path in sources]
            found = self._decoders.decode(requests, 2)
            return [StillDecoding() if one is None else one for one in found]

        def attempt(self, sources: Sequence[Path]) -> list[Any]:
            for path in sources:
                with suppress(OSError):
                    if b"POISON" in path.read_bytes():
                        os.kill(os.getpid(), signal.SIGKILL)
            reach("score: before decoding")
            requests = [Request(path, self._rules, 64, self._limits) for path in sources]
            found = self._decoders.decode(requests, 2)
            reach("score: decoded")
            return [self._one(image) for image in found]

        def _one(self, image: Any) -> Any:
            if image is None:
                return StillDecoding()
            if isinstance(image, OSError):
                return image
            if isinstance(image, NotScorable):
                return Prediction(None, Decision.NOT_SCORED, image.reason, image.detail, None)
            probability = round(float(image.pixels.mean()), 4)
            decision = Decision.POSITIVE if probability >= card.threshold else Decision.NEGATIVE
            return Prediction(probability, decision, None, "", image.view)

    module.Predictor = Predictor  # type: ignore[attr-defined]


def _hog() -> None:
    import numpy as np

    held = []
    while True:
        held.append(np.zeros(2**24, np.uint8))  # not touched: soon done, however busy the machine is


DEADLY: dict[bytes, Callable[[], Any]] = {
    b"DEADLY: hang": lambda: ctypes.PyDLL(None).sleep(3600),  # with the interpreter's lock held
    b"DEADLY: crash": lambda: ctypes.string_at(0),
    b"DEADLY: abort": os.abort,
    b"DEADLY: memory": _hog,
    b"DEADLY: error": lambda: 2.0**10_000,
    b"DEADLY: slow": lambda: time.sleep(5),
}


def _deadly(module: ModuleType) -> None:
    read = module.read

    def wrapped(source: Any, *arguments: Any) -> Any:
        content = source.read()
        source.seek(0)
        for mark, act in DEADLY.items():
            if mark in content:
                act()
        return read(source, *arguments)

    module.read = wrapped  # type: ignore[attr-defined]


class _Loader(importlib.abc.Loader):
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:  # noqa: ARG002
        return None

    def exec_module(self, module: ModuleType) -> None:
        _light(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Patches modules as they are imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:  # noqa: ARG002
        if name == "classifier.scoring.predict" and os.environ.get("LIGHT_MODEL"):
            return importlib.machinery.ModuleSpec(name, _Loader())
        patch = _PATCHES.get(name) if POINT or _ARM or "SABOTAGE_EIO" in os.environ else None
        if name == "classifier.decoding.decode" and os.environ.get("DEADLY_IMAGES"):
            patch = _deadly
        if patch is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            patch(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _sleep(seconds: float) -> None:
    """Sleep without clock_nanosleep, of which libfaketime makes an error where it gets a monotonic time."""
    select.select([], [], [], seconds)


if "FAKETIME_TIMESTAMP_FILE" in os.environ:
    time.sleep = _sleep  # type: ignore[assignment]
sys.meta_path.insert(0, _Finder())
