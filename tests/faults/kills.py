"""kill -9 at every step of every stage, and at random times under load."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Protocol

from sqlalchemy import select

from db.models import Delivery, Process
from tests.faults.judge import judge, settled
from tests.faults.pacs import Pacs
from tests.faults.scenario import Outcome, Scenario
from tests.faults.senders import Dcmtk, Modality, studies
from tests.faults.world import ROLES, Role, World, wait_for
from tests.helpers.peers import Orthanc, orthanc

_STUDIES_AT_A_POINT = 3
_SETTLE_SECONDS = 90.0


@dataclass(frozen=True)
class Point:
    """Where the process of a role dies: at the n-th time that it comes there."""

    role: str
    name: str
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.name}:{self.nth}"


# Write, fsync, rename, commit, answer: between each and the next; rows are written while the file is flushed
RECEIVING = (
    Point("receive", "receive: before a write"),
    Point("receive", "receive: after a write", 2),
    Point("receive", "receive: whole, before anything"),
    Point("receive", "receive: before fsync of the file"),
    Point("receive", "receive: after fsync of the file", 2),
    Point("receive", "receive: renamed"),
    Point("receive", "receive: before fsync of the folder", 2),
    Point("receive", "receive: after fsync of the folder"),
    Point("receive", "receive: before the rows", 2),
    Point("receive", "receive: rows written"),
    Point("receive", "receive: rows and file written, before commit"),
    Point("receive", "receive: committed, before the answer", 2),
    Point("receive", "receive: answered", 2),
)
SCORING = (
    Point("score", "worker: claimed, before work"),
    Point("score", "score: before the network"),
    Point("score", "score: before decoding"),
    Point("score", "score: decoded"),
    Point("score", "score: after the network"),
    Point("score", "worker: worked, before settling"),
    Point("score", "score: before the row"),
    Point("score", "score: row written, before commit"),
    Point("score", "worker: settled"),
    Point("score", "worker: all settled"),
)
REPORTING = (
    Point("deliver", "report: before building"),
    Point("deliver", "report: built"),
    Point("deliver", "report: before the row"),
    Point("deliver", "report: row written, before commit"),
    Point("deliver", "worker: settled"),
)
DELIVERING = (
    Point("deliver", "deliver: before the send"),
    Point("deliver", "deliver: during the send"),  # the command is there, the report is not
    Point("deliver", "deliver: during the send", 2),  # the report is there, the answer is on its way
    Point("deliver", "deliver: answered"),
    Point("deliver", "deliver: answered, before the row"),
    Point("deliver", "deliver: row written, before commit"),
)
COMMITTING = (
    Point("deliver", "commit: before the row of the request"),
    Point("deliver", "commit: row of the request written"),
    Point("deliver", "commit: before N-ACTION"),
    Point("deliver", "commit: asked"),
    Point("receive", "commit: answered, before the row"),
    Point("receive", "commit: row written, before commit"),
)


class Destination(Protocol):
    """A PACS with a port, which tells what it holds."""

    name: str
    port: int

    def reports(self) -> list[bytes]:
        """Return the reports that it took."""
        ...


class OrthancPacs:
    """Orthanc as such a PACS."""

    name = Orthanc.ae_title

    def __init__(self, running: Orthanc) -> None:
        self.port = running.port
        self.reports = running.files


@contextmanager
def node(
    folder: Path, url: str, *, with_orthanc: bool = False, is_light: bool = True, sections: str = ""
) -> Iterator[tuple[World, Destination]]:
    """Return a context with a node whose processes are at work, and the PACS behind it."""
    world = World(folder, url, {}, sections, is_light=is_light, is_armed=True)
    with ExitStack() as stack:
        stack.enter_context(world)
        pacs: Destination
        if with_orthanc:
            running = stack.enter_context(orthanc(folder / "orthanc", {"PACS_NODE": world.port}))
            pacs = OrthancPacs(running)
        else:
            pacs = stack.enter_context(Pacs())
        world.destinations = {pacs.name: pacs.port}
        world.configure()
        world.start(SABOTAGE_POWER="1")
        yield world, pacs


def kill_at(
    points: Sequence[Point], folder: Path, url: str, *, with_orthanc: bool = False, is_light: bool = True
) -> Outcome:
    """Kill the process of a role when it comes to a point, start it again, and let everything be done.

    The receiver loses the power too: what it did not flush is gone.
    """
    recovery = 0.0
    with node(folder, url, with_orthanc=with_orthanc, is_light=is_light) as (world, pacs):
        modality, files = Modality(world.port), []
        for number, point in enumerate(points):
            sent = studies(folder / "sent", _STUDIES_AT_A_POINT, prefix=f"{number}-")
            files += [path for study in sent for path in study]
            recovery = max(recovery, _kill_at(world, modality, sent, point))
        if with_orthanc:
            _require_commitment(world)
        verdict = judge(world, modality.acknowledged, pacs.reports, seconds=_SETTLE_SECONDS, files=files)
    return Outcome(len(points), verdict, recovery)


def _kill_at(world: World, modality: Modality, sent: list[list[Path]], point: Point) -> float:
    """Return how long it took until nothing was left to do."""
    victim = world.roles[point.role]
    victim.arm(str(point))
    sender = Thread(target=modality.send_all, args=(sent, 1))
    sender.start()
    wait_for(lambda: victim.popen.poll() is not None, str(point))
    assert victim.has_died, f"{point.role} ended by itself: {victim.text()[-2000:]}"
    died = time.monotonic()
    world.start(point.role, SABOTAGE_POWER="1")
    sender.join()
    settled(world, _SETTLE_SECONDS)  # what is left then, the judge will find
    return time.monotonic() - died


def _require_commitment(world: World) -> None:
    """See to it that what was to be tried was there to be tried."""
    with world.database.read() as session:
        states = set(session.scalars(select(Delivery.state)))
    assert "committed" in states, f"Orthanc committed to nothing: {states}"


class Progress:
    """How many kills were done, for senders that are to last as long."""

    def __init__(self, kills: int) -> None:
        self.kills = kills
        self.done = 0

    def wait(self, share: float) -> None:
        """Wait until that share of the kills is done."""
        while self.done < share * self.kills:
            time.sleep(0.02)


def kill_at_random(
    folder: Path, url: str, *, kills: int, number: int, with_orthanc: bool, seed: int = 1
) -> Outcome:
    """Kill all three roles again and again while studies come in, half of them from DCMTK."""
    with node(folder, url, with_orthanc=with_orthanc) as (world, pacs):
        port = world.port
        senders = [Modality(port), Modality(port), Dcmtk(port), Dcmtk(port, with_dcmsend=True)]
        progress = Progress(kills)
        failures: list[BaseException] = []
        sent = studies(folder / "sent", number)
        shares = [sent[at :: len(senders)] for at in range(len(senders))]
        threads = [
            Thread(target=_send, args=(sender, share, progress, failures))
            for sender, share in zip(senders, shares, strict=True)
        ]
        for thread in threads:
            thread.start()
        _kill_often(world, progress, random.Random(seed))
        last = time.monotonic()
        for thread in threads:
            thread.join()
        assert not failures, failures
        acknowledged = {image for sender in senders for image in sender.acknowledged}
        assert senders[2].acknowledged
        assert senders[3].acknowledged
        files = [path for study in sent for path in study]
        verdict = judge(world, acknowledged, pacs.reports, seconds=300, files=files)
        recovery = time.monotonic() - last
    return Outcome(kills, verdict, recovery)


def _send(
    sender: Modality, share: Sequence[Sequence[Path]], progress: Progress, failures: list[BaseException]
) -> None:
    try:
        for at, files in enumerate(share):
            progress.wait(at / len(share))
            sender.send(files, seconds=300)
    except BaseException as error:  # noqa: BLE001 - told by the one who waits
        failures.append(error)


def _kill_often(world: World, progress: Progress, chance: random.Random) -> None:
    """Kill one after the other, each some time after it came to work; one time in ten all at once."""
    since = dict.fromkeys(ROLES, 0.0)
    while progress.done < progress.kills:
        names = list(ROLES) if chance.random() < 0.1 else [chance.choice(ROLES)]
        for name in names:
            wait_for(partial(_is_at_work, world, name, since[name]), f"{name} to be at work", 120)
        time.sleep(chance.uniform(0, 1))
        for name in names[: progress.kills - progress.done]:
            world.kill(name)
            since[name] = time.time()
            world.roles[name] = Role(world, name, SABOTAGE_POWER="1")
            progress.done += 1


def _is_at_work(world: World, name: str, since: float) -> bool:
    """Tell whether a role had a heartbeat since then."""
    with world.database.read() as session:
        begun = session.scalars(select(Process.started_at).where(Process.role == name)).first()
    return begun is not None and begun.timestamp() >= since


def _random(folder: Path, url: str) -> Outcome:
    """Let Orthanc take the reports of one database, and commit to them; a stand-in those of the other."""
    return kill_at_random(folder, url, kills=100, number=1000, with_orthanc=url.startswith("postgresql"))


def _few(folder: Path, url: str) -> Outcome:
    return kill_at_random(folder, url, kills=6, number=40, with_orthanc=url.startswith("postgresql"))


SCENARIOS = [
    Scenario("kill -9 of the receiver at each step, and loss of power", partial(kill_at, RECEIVING)),
    Scenario("kill -9 of the scorer at each step", partial(kill_at, SCORING)),
    Scenario("kill -9 of the reporter at each step", partial(kill_at, REPORTING)),
    Scenario("kill -9 before, during and after a send", partial(kill_at, DELIVERING)),
    Scenario("kill -9 while Orthanc commits", partial(kill_at, COMMITTING, with_orthanc=True)),
    Scenario("kill -9 of the scorer with the real network", partial(kill_at, SCORING[-3:], is_light=False)),
    Scenario("kill -9 of all roles under load", _random, quick=_few),
]
