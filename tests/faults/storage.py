"""A disk that is full or broken, under the spool or under the database."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Thread

import psycopg

from tests.faults.judge import Image, Verdict, judge, judge_files
from tests.faults.pacs import Pacs
from tests.faults.scenario import Outcome, Scenario, Skipped
from tests.faults.senders import Modality, flat, studies
from tests.faults.world import World, wait_for
from tests.helpers.postgres import OwnServer, own_folder

_OUT_OF_RESOURCES = 0xA700
_MIB = 2**20


class Disk:
    """A small disk of its own, in memory, that can be filled up.

    Parameters
    ----------
    folder
        Where it is mounted.
    files
        How many files and folders fit; ``0`` is as many as one likes.
    """

    def __init__(self, folder: Path, mebibytes: int, files: int = 0) -> None:
        self.folder = folder
        self._options = f"size={mebibytes}m" + (f",nr_inodes={files}" if files else "")
        self._filler = folder / "filler"

    def __enter__(self) -> Disk:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", self._options, "tmpfs", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Skipped(f"No tmpfs can be mounted here: {done.stderr.strip()}")
        return self

    def __exit__(self, *_exception: object) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=False)

    @property
    def free(self) -> int:
        """The bytes that are left."""
        return shutil.disk_usage(self.folder).free

    def fill(self, left: int = 0) -> None:
        """Leave only so many bytes."""
        with self._filler.open("ab") as file:
            while (more := self.free - left) > 0:
                try:
                    file.write(bytes(min(more, 65536)))
                    file.flush()
                except OSError:
                    return

    def fill_files(self) -> None:
        """Leave no room for another file."""
        folder = self.folder / "fillers"
        folder.mkdir()
        with suppress(OSError):
            for number in range(100_000):
                (folder / str(number)).touch()

    def empty(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "fillers", ignore_errors=True)


def _require_root() -> None:
    if os.geteuid() != 0:
        raise Skipped("Only root can mount a small disk.")


def _only_refusals(modality: Modality) -> int:
    """Require that what was not stored was refused with 0xA700; return how much that was."""
    others = set(modality.statuses) - {0, _OUT_OF_RESOURCES}
    assert not others, f"answered with {others}"
    return modality.statuses[_OUT_OF_RESOURCES]


def _refused(world: World, files: Sequence[Path], comment: str) -> int:
    """Send what must be refused; return how many files that was."""
    modality = Modality(world.port, name="UNLUCKY")
    left = modality.send_once(files)
    assert len(left) == len(files), f"{len(files) - len(left)} of {len(files)} answered with Success"
    assert modality.statuses == {_OUT_OF_RESOURCES: len(files)}, dict(modality.statuses)
    said = [str(one["comment"]) for one in world.roles["receive"].events() if "comment" in one]
    assert comment in said[-1], said[-1]
    return len(files)


def _leftovers(world: World) -> list[str]:
    names = [path.name for path in (world.spool / "incoming").glob("*/*") if path.is_file()]
    return [f"half received: {name}" for name in names if not name.startswith(".probe")]


# Under the spool


_NO_FILE = -1
_LEFT = (0, 4096, 40_000, 100_000, 131_072, _NO_FILE)
"""The bytes that are left on the disk, of which an image needs 132,000, or no room for one more file."""


def _spool_full(folder: Path, url: str, lefts: Sequence[int] = _LEFT) -> Outcome:
    """The disk is full to the byte, or a part of an object fits, or there is no room for one more file."""
    _require_root()
    with (
        Disk(folder / "spool", 24, files=700) as disk,
        Pacs() as pacs,
        World(folder, url, {"PACS": pacs.port}) as world,
    ):
        world.start()
        files = studies(folder / "sent", 4 * len(lefts), 2)
        modality = Modality(world.port)
        injected = 0
        for number, left in enumerate(lefts):
            mine = files[4 * number : 4 * number + 4]
            modality.send_all(mine[:2], 2)
            before = flat(files[: 4 * number + 2])
            if left == _NO_FILE:
                disk.fill_files()
            else:
                disk.fill(left)
            injected += _refused(world, flat(mine[2:3]), "No space left on device")
            _require_whole(world, modality, before)
            disk.empty()
            freed = time.monotonic()
            modality.send_all(mine[2:], 2)
        _only_refusals(modality)
        verdict = judge(world, modality.acknowledged, pacs.reports, files=flat(files))
        verdict.stuck += _leftovers(world)
        return Outcome(injected, verdict, time.monotonic() - freed)


def _require_whole(world: World, modality: Modality, files: Sequence[Path]) -> None:
    """Require that while the fault lasts, everything accepted before is whole."""
    verdict = Verdict()
    judge_files(world, modality.acknowledged, files, verdict)
    assert verdict.is_good, str(verdict)


def _spool_floor(folder: Path, url: str) -> Outcome:
    """Below the floor of free space images are refused, and the disk is never filled."""
    _require_root()
    floor = 3
    with (
        Disk(folder / "spool", 8) as disk,
        Pacs() as pacs,
        World(folder, url, {"PACS": pacs.port}, f"[receive]\nmin_free_mebibytes = {floor}") as world,
    ):
        world.start()
        files = studies(folder / "sent", 50)
        modality = Modality(world.port)
        for one in files:
            modality.send_once(one)
        injected = _only_refusals(modality)
        stored = len(modality.acknowledged)
        image = files[0][0].stat().st_size
        # An image counts while it is on its way
        assert abs(disk.free - floor * _MIB) < 2 * image, f"{disk.free} bytes are free"
        assert injected == 50 - stored > 5, f"{injected} refused, {stored} stored"
        _refused(world, files[-1], "Spool almost full")
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk.folder)], check=True)
        grown = time.monotonic()
        modality.send_all(files, 2)
        verdict = judge(world, modality.acknowledged, pacs.reports, files=flat(files))
        return Outcome(injected + 1, verdict, time.monotonic() - grown)


_OPERATIONS = ("open", "write", "flush", "close", "fsync file", "rename", "fsync folder", "statvfs")


def _spool_broken(folder: Path, url: str, *, is_quick: bool = False) -> Outcome:
    """Each operation on the spool fails with EIO for some time, and so does reading for a score."""
    folder.mkdir(parents=True, exist_ok=True)
    broken, done = folder / "broken", folder / "broken.done"
    with Pacs() as pacs, World(folder, url, {"PACS": pacs.port}) as world:
        world.start("receive", SABOTAGE_EIO=str(broken))
        world.start("score", SABOTAGE_EIO=str(broken))
        world.start("deliver")
        files = studies(folder / "sent", len(_OPERATIONS) + 1)
        modality = Modality(world.port)
        for operation, mine in zip(_OPERATIONS, files, strict=False):
            broken.write_text(operation)
            _refused(world, mine, "Input/output error")
            broken.unlink()
            modality.send(mine)
        mended = time.monotonic()
        if not is_quick:  # the next try is half a minute later
            broken.write_text("read")
            modality.send(files[-1])
            wait_for(lambda: "read" in done.read_text(), "a file that cannot be read")
            broken.unlink()
            mended = time.monotonic()
        found = done.read_text().splitlines()
        missing = {*_OPERATIONS, *([] if is_quick else ["read"])} - set(found)
        assert not missing, f"never failed: {missing}"
        _only_refusals(modality)
        verdict = judge(world, modality.acknowledged, pacs.reports, files=flat(files))
        verdict.stuck += _leftovers(world)
        return Outcome(len(found), verdict, time.monotonic() - mended)


# Under the database


@dataclass
class _Rounds:
    """Fills a disk again and again while the node is at work."""

    disk: Disk
    injected: int = 0
    freed: float = 0.0
    also: set[Image] = field(default_factory=set)  # what was stored on the way

    def play(self, world: World, files: Sequence[Sequence[Path]], comment: str) -> Modality:
        """Send studies; after each few the disk is full, for images, scores and reports alike."""
        modality = Modality(world.port)
        for number in range(0, len(files), 4):
            mine = files[number : number + 4]
            modality.send_all(mine[:3], 2)
            # At another moment of their way each time: score, report, delivery
            time.sleep(0.25 * (number // 4))
            self.disk.fill()
            self.injected += self._refusals(world, mine[3], comment)
            time.sleep(1)
            self.disk.empty()
            self.freed = time.monotonic()
            modality.send_all(mine[3:], 1)
        for role in world.roles.values():
            self.injected += sum(_is_full(one) for one in role.events())
        return modality

    def _refusals(self, world: World, files: Sequence[Path], comment: str) -> int:
        """Send until the database has no page left that it could reuse."""
        modality = Modality(world.port, name="UNLUCKY")
        for _ in range(50):
            modality.send_once(files)
            if modality.statuses[_OUT_OF_RESOURCES]:
                break
            more = studies(world.folder / "more", 1, 1, prefix=f"{time.monotonic_ns()}-")
            files = more[0]
        else:
            raise AssertionError("the disk is full, and everything is answered with Success")
        said = [str(one["comment"]) for one in world.roles["receive"].events() if "comment" in one]
        assert said[-1] == comment, said[-1]
        self.also |= modality.acknowledged
        return _only_refusals(modality)


def _is_full(event: dict[str, object]) -> bool:
    cause = str(event.get("cause", ""))
    return event.get("event") == "database failed" and ("full" in cause or "space" in cause)


def _sqlite_full(folder: Path, url: str) -> Outcome:
    """The disk of the SQLite file is full, again and again, while images, scores and reports are written."""
    _require_root()
    with Disk(folder / "database", 4) as disk, Pacs() as pacs:
        own = f"sqlite:///{disk.folder / 'results.sqlite'}"
        with World(folder, own, {"PACS": pacs.port}) as world:
            return _fill_database(world, pacs, disk, 12)


def _fill_database(world: World, pacs: Pacs, disk: Disk, number: int) -> Outcome:
    world.start()
    rounds = _Rounds(disk)
    files = studies(world.folder / "sent", number)
    modality = rounds.play(world, files, "The database is not available")
    verdict = judge(world, modality.acknowledged | rounds.also, pacs.reports, files=flat(files))
    assert rounds.injected >= number / 2, f"only {rounds.injected} writes failed"
    return Outcome(rounds.injected, verdict, time.monotonic() - rounds.freed)


def _postgresql_full(folder: Path, url: str) -> Outcome:
    """The disk of a tablespace of PostgreSQL is full, while there is room for its log."""
    _require_root()
    with own_folder() as place, Disk(place / "small", 12) as disk, ExitStack() as stack:
        (place / "server").mkdir()
        server = stack.enter_context(OwnServer(place / "server"))
        room = disk.folder / "tablespace"
        room.mkdir()
        shutil.chown(room, "postgres", "postgres")
        with server.admin() as admin:
            admin.execute(f"CREATE TABLESPACE small LOCATION '{room}'".encode())
        own = server.create("TABLESPACE small")
        pacs = stack.enter_context(Pacs())
        world = stack.enter_context(World(folder, own, {"PACS": pacs.port}))
        return _fill_database(world, pacs, disk, 12)


def _wal_full(folder: Path, url: str) -> Outcome:
    """There is no room for PostgreSQL's log: it crashes, and is started again when there is."""
    _require_root()
    settings = {"max_wal_size": "4MB", "min_wal_size": "2MB", "wal_recycle": "off"}
    with own_folder() as place, Disk(place / "small", 16) as disk, ExitStack() as stack:
        wal = disk.folder / "wal"
        for path in (wal, place / "server"):
            path.mkdir()
            shutil.chown(path, "postgres", "postgres")
        options = ["--wal-segsize=1", f"--waldir={wal}"]
        server = stack.enter_context(OwnServer(place / "server", settings, options))
        pacs = stack.enter_context(Pacs())
        world = stack.enter_context(World(folder, server.create(), {"PACS": pacs.port}))
        world.start()
        files = studies(folder / "sent", 12)
        modality = Modality(world.port)
        modality.send_all(files[:4], 2)
        disk.fill()
        sender = Thread(target=modality.send_all, args=(files[4:], 2))
        sender.start()
        wait_for(lambda: _has_crashed(server), "PostgreSQL to run out of room")
        time.sleep(2)
        disk.empty()
        freed = time.monotonic()
        if server.has_ended:
            server.start()
        sender.join()
        refused = _only_refusals(modality)
        verdict = judge(world, modality.acknowledged, pacs.reports, files=flat(files))
        assert refused, "nothing was refused"
        return Outcome(refused, verdict, time.monotonic() - freed)


def _has_crashed(server: OwnServer) -> bool:
    """Let the server begin a file of its log, and another one."""
    with suppress(psycopg.Error), server.admin() as admin:
        admin.execute("SELECT pg_logical_emit_message(true, '', 'more')")
        admin.execute("SELECT pg_switch_wal()")
    return server.said("PANIC")


SCENARIOS = [
    Scenario(
        "storage: the spool is full",
        _spool_full,
        ("sqlite",),
        partial(_spool_full, lefts=(100_000, _NO_FILE)),
    ),
    Scenario("storage: the spool is almost full", _spool_floor, ("postgresql",)),
    Scenario(
        "storage: the spool answers EIO", _spool_broken, ("sqlite",), partial(_spool_broken, is_quick=True)
    ),
    Scenario("storage: the disk of SQLite is full", _sqlite_full, ("sqlite",)),
    Scenario("storage: a tablespace of PostgreSQL is full", _postgresql_full, ("postgresql",)),
    Scenario("storage: no room for PostgreSQL's log", _wal_full, ("postgresql",)),
]
