"""What a fault is to the runner: a name, a run on one database, and what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.judge import Verdict


class Skipped(Exception):
    """The machine lacks what a scenario needs; the text says what."""


@dataclass(frozen=True)
class Outcome:
    """What a scenario did and what came of it."""

    injected: int  # how many times the fault was
    verdict: Verdict
    recovery_seconds: float  # from the last fault, or its end, until nothing was left to do


@dataclass(frozen=True)
class Scenario:
    """One fault; `run` gets an empty folder and the URL of an empty database.

    Raises `Skipped` where the machine lacks what it needs, AssertionError where the world was not as it
    should be for the fault to be one. `quick` is a shorter form, where there is one.
    """

    name: str
    run: Callable[[Path, str], Outcome]
    databases: tuple[str, ...] = ("sqlite", "postgresql")
    quick: Callable[[Path, str], Outcome] | None = None
