"""Processes that neither die nor work: each is ended for want of a heartbeat, and started again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.faults.judge import judge
from tests.faults.pacs import Pacs
from tests.faults.scenario import Outcome, Scenario
from tests.faults.senders import Modality, studies
from tests.faults.world import ROLES, SUPERVISOR, World, wait_for

_SILENT = "[work]\nlease_seconds = 2\nsilent_seconds = 5"
_NOTICED_SECONDS = 60.0
_POINTS = {
    "receive": "receive: whole, before anything:1",
    "score": "score: before the network:1",
    "deliver": "report: before building:1",
}


def hold(folder: Path, url: str, roles: Sequence[str] = ROLES) -> Outcome:
    """Let processes stand still with the interpreter's lock held, in the middle of their work."""
    return _hang(folder, url, roles, lambda world, role: world.roles[SUPERVISOR].arm(_POINTS[role]))


def freeze(folder: Path, url: str, roles: Sequence[str] = ROLES) -> Outcome:
    """Stop processes with SIGSTOP, for good."""
    return _hang(folder, url, roles, lambda world, role: os.kill(process_of(world, role), signal.SIGSTOP))


def _hang(folder: Path, url: str, roles: Sequence[str], do: Callable[[World, str], None]) -> Outcome:
    sections = f"{_SILENT}\n[receive]\nmin_free_mebibytes = 0\nprocesses = 1"
    with Pacs() as pacs, World(folder, url, {"PACS": pacs.port}, sections, is_armed=True) as world:
        world.start(SUPERVISOR, SABOTAGE_HOLD="1")
        supervisor, modality, sent = world.roles[SUPERVISOR], Modality(world.port), []
        for number, role in enumerate(roles):
            before = process_of(world, role)
            do(world, role)
            sent += studies(folder / "sent", 4, prefix=f"{number}-")
            modality.send_all(sent[-4:], 2)  # while a receiver hangs, the sender tries again
            wait_for(lambda: supervisor.count("process hangs") > number, role, _NOTICED_SECONDS)  # noqa: B023
            wait_for(lambda: process_of(world, role) not in (0, before), role, _NOTICED_SECONDS)  # noqa: B023
            supervisor.disarm()
        last = time.monotonic()
        files = [path for study in sent for path in study]
        verdict = judge(world, modality.acknowledged, pacs.reports, files=files)
        seconds = time.monotonic() - last
    return Outcome(len(roles), verdict, seconds)


def process_of(world: World, role: str) -> int:
    """Return the process of a supervisor that has a role, 0 if there is none."""
    parent = world.roles[SUPERVISOR].popen.pid
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        if role.encode() in command:
            return int(child)
    return 0


def _hold_one(folder: Path, url: str) -> Outcome:
    return hold(folder, url, ["score"])


def _freeze_one(folder: Path, url: str) -> Outcome:
    return freeze(folder, url, ["deliver"])


SCENARIOS = [
    Scenario("a process that hangs with the interpreter's lock held", hold, quick=_hold_one),
    Scenario("SIGSTOP of a process under its supervisor, for good", freeze, quick=_freeze_one),
]
