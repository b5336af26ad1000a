"""A process that stands still longer than its lease lasts, and then goes on as if nothing had been."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from threading import Thread

from db.session import sqlite
from tests.faults.judge import judge, settled
from tests.faults.kills import Point
from tests.faults.pacs import Pacs
from tests.faults.scenario import Outcome, Scenario
from tests.faults.senders import Modality, studies
from tests.faults.world import ROLES, World, wait_for

# Where a worker has its outcome, or all but has it, and has not written it
HOLDING = (
    Point("score", "score: before the network"),
    Point("score", "score: after the network"),
    Point("score", "worker: worked, before settling"),
    Point("deliver", "report: built"),
    Point("deliver", "deliver: before the send"),
    Point("deliver", "deliver: answered"),
)


# With rows locked, until the server of PostgreSQL has had enough; of SQLite's lock no process can be rid
LOCKING = (Point("score", "score: row written, before commit"),)
_TRIES = 8
_SLOW = "[work]\nlease_seconds = 2\npoll_seconds = 0.5"  # seldom in a transaction for nothing


def freeze_at(points: Sequence[Point], folder: Path, url: str) -> Outcome:
    """Stop a worker at a point, let another do its jobs, and let the first go on: it must write nothing."""
    recovery = 0.0
    with Pacs() as pacs, World(folder, url, {"PACS": pacs.port}, _SLOW, is_armed=True) as world:
        world.start(SABOTAGE_SIGNAL="SIGSTOP")
        modality, files = Modality(world.port), []
        for number, point in enumerate(points):
            frozen = world.roles[point.role]
            for attempt in range(_TRIES):
                sent = studies(folder / "sent", 2, prefix=f"{number}-{attempt}-")
                files += [path for study in sent for path in study]
                if _is_frozen_at(point, world, modality, sent):
                    break
            else:
                raise AssertionError(f"never frozen without the lock of SQLite at {point}")
            since = time.monotonic()
            world.start(point.role, SABOTAGE_SIGNAL="SIGSTOP")
            left = settled(world, 60)
            assert not left, f"nobody took over from the one that stands still: {left}"
            recovery = max(recovery, time.monotonic() - since)
            before = frozen.count("job taken over")
            frozen.send_signal(signal.SIGCONT)
            # Had it written, it would not say this
            wait_for(lambda: frozen.count("job taken over") > before, str(point))  # noqa: B023 - called at once
            frozen.stop()
        verdict = judge(world, modality.acknowledged, pacs.reports, files=files)
    return Outcome(len(points), verdict, recovery)


def _is_frozen_at(point: Point, world: World, modality: Modality, sent: Sequence[Sequence[Path]]) -> bool:
    """Freeze a role at a point, unless another of its threads held the one lock of SQLite just then."""
    frozen = world.roles[point.role]
    frozen.arm(str(point))
    sender = Thread(target=modality.send_all, args=(sent, 1))
    sender.start()
    wait_for(lambda: frozen.has_died, str(point))
    is_free = world.database.file is None or _can_write(world.database.file)
    if not is_free:
        frozen.send_signal(signal.SIGCONT)
    sender.join()
    if not is_free:
        settled(world, 60)
        frozen.disarm()
    return is_free


def _can_write(file: Path) -> bool:
    with closing(sqlite.connect(file, timeout=1, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite.OperationalError:
            return False
    return True


def freeze_at_random(folder: Path, url: str) -> Outcome:
    """Let all roles stand still now and then, longer than a lease, while studies come in."""
    chance, times = random.Random(2), 8
    with Pacs() as pacs, World(folder, url, {"PACS": pacs.port}) as world:
        world.start()
        modality, sent = Modality(world.port), studies(folder / "sent", 120)
        sender = Thread(target=modality.send_all, args=(sent, 2))
        sender.start()
        for _ in range(times):
            frozen = world.roles[chance.choice(ROLES)]
            time.sleep(chance.uniform(0.2, 1))
            frozen.send_signal(signal.SIGSTOP)
            time.sleep(world.lease_seconds + 1)
            frozen.send_signal(signal.SIGCONT)
        last = time.monotonic()
        sender.join()
        files = [path for study in sent for path in study]
        verdict = judge(world, modality.acknowledged, pacs.reports, files=files)
        recovery = time.monotonic() - last
    return Outcome(times, verdict, recovery)


def _freeze_at_each(folder: Path, url: str) -> Outcome:
    return freeze_at(HOLDING if url.startswith("sqlite") else (*HOLDING, *LOCKING), folder, url)


SCENARIOS = [
    Scenario("SIGSTOP of a worker past its lease, then SIGCONT", _freeze_at_each),
    Scenario("SIGSTOP of any role for longer than a lease, under load", freeze_at_random),
]
