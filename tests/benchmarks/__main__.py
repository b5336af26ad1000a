"""`python -m tests.benchmarks`: run everything side by side, print one table, and keep the raw figures."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Column, Table

from tests.benchmarks.learning import prediction, training
from tests.benchmarks.pair import Pair


def bench(
    out: Annotated[Path, typer.Option(help="Folder for the table and the raw figures.")] = Path("bench"),
    rounds: Annotated[int, typer.Option(help="How often each is measured.", min=1)] = 3,
    images: Annotated[int, typer.Option(help="Images in a round.", min=32)] = 96,
) -> None:
    """Measure training and prediction against the plain loop of PyTorch."""
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as scratch, console.status("Measuring"):
        pairs = [*training(Path(scratch), images, rounds), *prediction(Path(scratch), images, rounds)]
    console.print(_table(pairs))
    out.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": _machine()}
    content |= {"pairs": [asdict(pair) | {"ratio": pair.ratio} for pair in pairs]}
    (out / "bench.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    console.print(f"{content['machine']}. Raw figures: {out / 'bench.json'}", soft_wrap=True)


def _table(pairs: list[Pair]) -> Table:
    numbers = (Column(name, justify="right") for name in ("Ours", "Other", "Ratio"))
    table = Table("What", "Unit", *numbers, "Wanted")
    for pair in pairs:
        wanted = "" if pair.wanted is None else f"{pair.wanted:g} {'ok' if pair.is_met else 'missed'}"
        what = f"{pair.what}\n[dim]against {pair.other}[/]"
        table.add_row(what, pair.unit, pair.ours_text, pair.theirs_text, f"{pair.ratio:.2f}", wanted)
    return table


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
