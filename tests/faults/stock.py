"""kill -9 where files have no row yet, and where they are let go of."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sqlalchemy import func, select

from db.models import Instance
from pacs_node.errors import PeerError
from pacs_node.network import scu
from pacs_node.network.peer import Peer
from tests.faults.judge import image_of, judge, settled
from tests.faults.kills import Point
from tests.faults.pacs import Pacs
from tests.faults.scenario import Outcome, Scenario
from tests.faults.senders import Modality, studies
from tests.faults.world import World, wait_for

ORPHANING = (
    Point("receive", "receive: after fsync of the folder"),
    Point("receive", "receive: rows and file written, before commit"),
)
RETAINING = (
    Point("deliver", "retain: before the rows"),
    Point("deliver", "retain: rows written, before commit"),
    Point("deliver", "retain: released, before removal"),
    Point("deliver", "retain: before a removal", 2),
    Point("deliver", "retain: removed a file", 2),
)
_YOUNG = "[spool]\norphan_minutes = 0.02"
_AGE = 1.3  # seconds, somewhat more than that
_KEPT = "[retention]\ndays = 0.00001"


def orphan_at(points: Sequence[Point], folder: Path, url: str) -> Outcome:
    """Kill the receiver after the file is safe; nobody sends it again, and yet it is worked on."""
    with Pacs() as pacs, World(folder, url, {"PACS": pacs.port}, _YOUNG, is_armed=True) as world:
        world.start("score")
        peer = Peer("PACS_NODE", "127.0.0.1", world.port)
        files = [study[0] for study in studies(folder / "sent", len(points))]
        for path, point in zip(files, points, strict=True):
            world.start("receive")
            victim = world.roles["receive"]
            victim.arm(str(point))
            with suppress(PeerError):
                assert not any(answer.is_stored for answer in scu.send([path], peer, "MODALITY"))
            wait_for(lambda: victim.popen.poll() is not None, str(point))  # noqa: B023
            assert victim.has_died
        time.sleep(_AGE)
        with world.database.read() as session:
            assert session.execute(select(func.count()).select_from(Instance)).scalar_one() == 0
        started = time.monotonic()
        world.start("deliver")
        wait_for(lambda: _held(world) == len(points), "orphans to be taken in")
        verdict = judge(world, map(image_of, files), pacs.reports, files=files)
        recovery = time.monotonic() - started
    return Outcome(len(points), verdict, recovery)


def _held(world: World) -> int:
    """Return of how many objects the database says that their files are here."""
    with world.database.read() as session:
        statement = select(func.count()).select_from(Instance).where(Instance.removed_at.is_(None))
        return session.execute(statement).scalar_one()


def retain_at(points: Sequence[Point], folder: Path, url: str) -> Outcome:
    """Kill whoever lets files go; what is let go is gone in the end, and what comes again is kept again."""
    recovery = 0.0
    with Pacs() as pacs, World(folder, url, {"PACS": pacs.port}) as world:
        world.start("receive", "score")
        modality, files = Modality(world.port), []
        for number, point in enumerate(points):
            sent = studies(folder / "sent", 2, prefix=f"{number}-")
            files += [path for study in sent for path in study]
            modality.send_all(sent, 1)
            wait_for(lambda: not _left(world, "score"), "scores")
            _keep(world, "")  # its first look at the spool may take longer than the reports do
            world.start("deliver")
            settled(world, 60)
            world.kill("deliver")
            time.sleep(_AGE)
            _keep(world, _KEPT)
            world.start("deliver", point=str(point))
            victim = world.roles["deliver"]
            wait_for(lambda: victim.popen.poll() is not None, str(point))  # noqa: B023 - called at once
            assert victim.has_died
            started = time.monotonic()
            world.start("deliver")
            wait_for(lambda: not _held(world) and not _stored(world), f"files to go after: {point}")
            recovery = max(recovery, time.monotonic() - started)
            world.kill("deliver")
        # The same again: neither a second row nor a second report, but the files
        again = Modality(world.port)
        again.send_all([[path] for path in files], 1)
        assert _stored(world) == _held(world) == len(files)
        world.start("deliver")
        verdict = judge(world, modality.acknowledged & again.acknowledged, pacs.reports)
    if verdict.studies != len(files):
        verdict.lost.append(f"{len(files) - verdict.studies} studies were not taken again")
    return Outcome(len(points), verdict, recovery)


def _keep(world: World, sections: str) -> None:
    """Set for how long files are kept by the processes that start from now on."""
    world.sections = sections
    world.configure()


def _left(world: World, kind: str) -> list[str]:
    return [job for job in settled(world, 0) if job.startswith(kind)]


def _stored(world: World) -> int:
    return sum(1 for _ in (world.spool / "objects").glob("??/*.dcm"))


def _orphans(folder: Path, url: str) -> Outcome:
    return orphan_at(ORPHANING, folder, url)


def _retention(folder: Path, url: str) -> Outcome:
    return retain_at(RETAINING, folder, url)


SCENARIOS = [
    Scenario("kill -9 between file and rows, and nobody sends again", _orphans),
    Scenario("kill -9 while files are let go", _retention),
]
