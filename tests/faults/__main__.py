"""`python -m tests.faults`: inject every fault, print one table, and fail on any loss, double or stall."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table

from tests import faults
from tests.faults.scenario import Outcome, Scenario, Skipped
from tests.helpers.postgres import OwnServer, own_folder

_NUMBERS = ("injected", "studies", "lost", "doubled", "stuck")
_HEADINGS = ("Fault", "Database", "Injected", "Studies", "Lost", "Doubled", "Stuck", "Recovery, s", "")


@dataclass
class Row:
    """One line of the table.

    Attributes
    ----------
    verdict
        ``ok``, ``failed``, ``error`` where the scenario could not be carried out, or ``skipped``.
    details
        What was lost, doubled or stuck, or why nothing can be said.
    """

    fault: str
    database: str
    verdict: str
    injected: int = 0
    studies: int = 0
    lost: int = 0
    doubled: int = 0
    stuck: int = 0
    recovery_seconds: float = 0.0
    seconds: float = 0.0
    details: list[str] = field(default_factory=list)

    @property
    def cells(self) -> list[str]:
        """What stands in the table."""
        if self.verdict in ("skipped", "error"):
            return [self.fault, self.database, *[""] * 6, self.verdict]
        numbers = [str(getattr(self, name)) for name in _NUMBERS]
        return [self.fault, self.database, *numbers, f"{self.recovery_seconds:.1f}", self.verdict]


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="Parts of names of faults; all by default.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The shorter form of those that have one.")] = False,
    database: Annotated[str, typer.Option(help="One database only: sqlite or postgresql.")] = "",
    out: Annotated[Path, typer.Option(help="Folder for the table.")] = Path("faults"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep logs, spools and SQLite files there.")] = False,
) -> None:
    """Inject faults into a real node and see what becomes of the studies."""
    console = Console(stderr=True, highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    wanted = [
        (scenario, engine)
        for scenario in scenarios()
        for engine in scenario.databases
        if engine.startswith(database) and (not names or any(name in scenario.name for name in names))
    ]
    if not wanted:
        console.print("No fault has such a name.")
        raise typer.Exit(2)
    rows = []
    with Databases() as databases:
        for number, (scenario, engine) in enumerate(wanted, 1):
            with console.status(f"{number} of {len(wanted)}: {scenario.name}, {engine}"):
                row = inject(scenario, engine, databases, quick, out / "kept" if keep else None)
            rows.append(row)
            console.print(f"{row.verdict:8}{row.seconds:5.0f} s  {row.fault}, {row.database}", soft_wrap=True)
            for line in row.details[-20:]:
                console.print(f"    {line}", soft_wrap=True, markup=False)
    tell(rows, out, is_whole=not (names or quick or database))
    if any(row.verdict in ("failed", "error") for row in rows):
        raise typer.Exit(1)


def scenarios() -> Iterator[Scenario]:
    """Yield the faults of all modules here."""
    for module in sorted(pkgutil.iter_modules(faults.__path__), key=lambda one: one.name):
        if not module.name.startswith(("test_", "__")):
            found = importlib.import_module(f"{faults.__name__}.{module.name}")
            yield from getattr(found, "SCENARIOS", [])


class Databases(ExitStack):
    """Empty databases, of a server of PostgreSQL that is started with the first of its own."""

    server: OwnServer | None = None

    def url(self, engine: str, folder: Path) -> str:
        """Return the URL of a new one."""
        if engine == "sqlite":
            return f"sqlite:///{folder / 'results.sqlite'}"
        if self.server is None:
            self.server = self.enter_context(OwnServer(self.enter_context(own_folder())))
        return self.server.create()


def inject(scenario: Scenario, engine: str, databases: Databases, quick: bool, kept: Path | None) -> Row:
    """Run one scenario on one database, in a folder of its own."""
    run = scenario.quick if quick and scenario.quick else scenario.run
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir="/tmp"))
    started = time.monotonic()
    try:
        row = _row(scenario, engine, run(folder / "node", databases.url(engine, folder)))
    except (Skipped, pytest.skip.Exception) as why:
        row = Row(scenario.name, engine, "skipped", details=[str(why)])
    except Exception:  # noqa: BLE001 - the others are to be injected all the same
        row = Row(scenario.name, engine, "error", details=traceback.format_exc().splitlines())
    row.seconds = time.monotonic() - started
    if kept is not None:
        shutil.copytree(folder, kept / f"{scenario.name}, {engine}", dirs_exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    return row


def _row(scenario: Scenario, engine: str, outcome: Outcome) -> Row:
    verdict = outcome.verdict
    return Row(
        scenario.name,
        engine,
        "ok" if verdict.is_good and outcome.injected else "failed",
        outcome.injected,
        verdict.studies,
        len(verdict.lost),
        len(verdict.doubled),
        len(verdict.stuck),
        outcome.recovery_seconds,
        details=[f"{name}: {what}" for name in _NUMBERS[2:] for what in getattr(verdict, name)],
    )


def tell(rows: list[Row], out: Path, *, is_whole: bool) -> None:
    """Print the table, and write it as Markdown and JSON."""
    when, machine = datetime.now(UTC).isoformat(timespec="seconds"), _machine()
    right = [
        Column(name, justify="right" if name in _HEADINGS[2:8] else "left", no_wrap=name != "Fault")
        for name in _HEADINGS
    ]
    table = Table(*right, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    total = ["All" if is_whole else "All of these", ""]
    total += [str(sum(getattr(row, name) for row in rows)) for name in _NUMBERS]
    total += [f"{max(row.recovery_seconds for row in rows):.1f}", ""]
    for row in rows:
        table.add_row(*row.cells)
    table.add_section()
    table.add_row(*total)
    Console(highlight=False, width=None if sys.stdout.isatty() else 140).print(table)
    minutes = sum(row.seconds for row in rows) / 60
    said = f"{when}, {machine}; {minutes:.0f} minutes in all."
    print(said)  # noqa: T201 - with the table
    content: dict[str, Any] = {"when": when, "machine": machine, "rows": [vars(row) for row in rows]}
    (out / "faults.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    heads = [(*_HEADINGS[:-1], "Verdict"), ("---", "---", *["---:"] * 6, "---")]
    lines = [f"| {' | '.join(cells)} |" for cells in [*heads, *(row.cells for row in rows), total]]
    (out / "faults.md").write_text("\n".join([said, "", *lines, ""]), encoding="utf-8")


def _machine() -> str:
    model = next(
        (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")),
        platform.processor(),
    )
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores {model}, {system}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


if __name__ == "__main__":
    typer.run(main)
