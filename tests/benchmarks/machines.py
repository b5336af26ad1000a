"""Several machines on one PostgreSQL, each with one core of this one: two receivers, two workers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import update

from db.models import Job
from db.queue import later
from db.session import Database
from pacs_node.demo.peers import NodeProcess, free_port
from tests.benchmarks.ingest import Receiver, send
from tests.benchmarks.objects import radiographs
from tests.benchmarks.pair import Pair
from tests.faults.world import wait_for
from tests.helpers.postgres import OwnServer, own_folder

_SIDE = 1024  # pixels: 2 MB
_STUDIES = 64
_SECONDS = 180.0


@dataclass(frozen=True)
class _Site:
    """What the machines share, but for the processors."""

    folder: Path
    database_url: str


def machines(scratch: Path, rounds: int) -> Iterator[Pair]:
    """Yield rates of two machines with one core each, against one such machine."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        return
    files = radiographs(scratch / "studies", _STUDIES, _SIDE, drawn=8)
    received: dict[int, list[float]] = {1: [], 2: []}
    scored: dict[int, list[float]] = {1: [], 2: []}
    with own_folder() as folder, OwnServer(folder) as server:
        for turn in range(rounds):
            for number in (1, 2):
                site = _Site(scratch / f"{number}-{turn}", server.create())
                received[number].append(_receiving(site, files, cores[:number]))
                scored[number].append(_scoring(site, cores[:number]))
    for what, unit, rates in (
        ("Receiving 2 MB on PostgreSQL: two machines with one core each", "objects/s", received),
        ("Decoding and scoring on PostgreSQL: two machines with one core each", "images/s", scored),
    ):
        yield Pair(what=what, other="one such machine", unit=unit, ours=rates[2], theirs=rates[1])


def _receiving(site: _Site, files: Sequence[Path], cores: Sequence[int]) -> float:
    """Send to a receiver on each core at once; return objects per second."""
    with ExitStack() as stack:
        receivers = [one.receiver for one in _started(stack, site, cores, "receive")]
        shares = [files[at :: len(receivers)] for at in range(len(receivers))]
        with ThreadPoolExecutor(len(receivers)) as pool:
            rates = pool.map(send, shares, receivers, [2] * len(receivers))
            slowest = max(len(share) / rate for share, rate in zip(shares, rates, strict=True))
    return len(files) / slowest


def _scoring(site: _Site, cores: Sequence[int]) -> float:
    """Let a worker on each core score what has come; return images per second."""
    _put_off(site, _SECONDS)
    with ExitStack() as stack:
        started = _started(stack, site, cores, "score")
        since = time.time()
        _put_off(site, 0)
        wait_for(lambda: sum(len(_scored(one.log)) for one in started) >= _STUDIES, "all scores", _SECONDS)
        until = max(moment for one in started for moment in _scored(one.log))
    return _STUDIES / (until - since)


def _put_off(site: _Site, seconds: float) -> None:
    """Let all work wait so long: what is loaded first would begin first."""
    database = Database(site.database_url)
    with database.write() as session:
        session.execute(update(Job).values(visible_at=later(session, seconds)))
    database.close()


@dataclass(frozen=True)
class _Machine:
    """A node whose processes have one core."""

    process: NodeProcess
    receiver: Receiver
    log: Path


def _started(stack: ExitStack, site: _Site, cores: Sequence[int], roles: str) -> list[_Machine]:
    found = [stack.enter_context(_machine(site, core, roles)) for core in cores]
    for one in found:
        one.process.wait_until_ready()
    return found


@contextmanager
def _machine(site: _Site, core: int, roles: str) -> Iterator[_Machine]:
    site.folder.mkdir(parents=True, exist_ok=True)
    config, log = site.folder / f"{roles}-{core}.toml", site.folder / f"{roles}-{core}.log"
    port = free_port()
    config.write_text(
        f'[node]\nhost = "127.0.0.1"\nport = {port}\n[log]\nformat = "json"\n'
        f'[database]\nurl = "{site.database_url}"\n[spool]\npath = "{site.folder / "spool"}"\n'
        "[receive]\nprocesses = 1\nmin_free_mebibytes = 0\n"
    )
    with NodeProcess(config, log, roles) as process:
        os.sched_setaffinity(process.pid, {core})  # before it starts any other
        yield _Machine(process, Receiver("PACS_NODE", port), log)


def _scored(log: Path) -> list[float]:
    """Return when a worker scored each image."""
    events = (json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}"))
    return sorted(
        datetime.fromisoformat(event["timestamp"]).replace(tzinfo=UTC).timestamp()
        for event in events
        if event["event"] == "instance scored"
    )
