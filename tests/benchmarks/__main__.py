"""`python -m tests.benchmarks`: run everything side by side, print one table, and keep the raw figures."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from tests.benchmarks.parts import Part, measure


def bench(
    parts: Annotated[
        list[Part] | None, typer.Argument(help="What to measure; everything but endurance by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for table, pictures and raw figures.")] = Path("bench"),
    rounds: Annotated[int, typer.Option(help="How often each is measured.", min=1)] = 3,
    rows: Annotated[int, typer.Option(help="Results in the database that has grown.", min=1000)] = 1_000_000,
) -> None:
    """Measure the node beside its peers, on this machine, in one run."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    out.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": _machine()}
    tables = []
    server = get_context("forkserver")
    server.set_forkserver_preload(["tests.benchmarks.parts"])  # ten seconds, once
    for part in parts or [part for part in Part if part is not Part.ENDURANCE]:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            # In a process of its own: one part's threads must not be in the way of another's
            alone = ProcessPoolExecutor(1, server)
            with alone, console.status(f"Measuring {part.value}"):
                table, raw = alone.submit(measure, part, Path(scratch), out, rounds, rows).result()
        content[part.value] = raw
        console.print(table)
        console.print(f"{part.value}: {time.monotonic() - started:.0f} s\n", style="dim")
        tables.append(table)
    with (out / "bench.txt").open("w", encoding="utf-8") as file:
        text = Console(width=140, file=file)
        for table in tables:
            text.print(table)
    (out / "bench.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    console.print(f"{content['machine']}. Table, pictures and raw figures: {out}", soft_wrap=True)


def _machine() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    model = next(
        (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")),
        platform.processor(),
    )
    programs = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores {model}, {gpu}, {programs}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


if __name__ == "__main__":
    typer.run(bench)
