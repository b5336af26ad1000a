"""`python -m tests.benchmarks`: run everything side by side, print one table, and keep the raw figures."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Column, Table

from tests.benchmarks.decoding import decoding
from tests.benchmarks.endtoend import EndToEnd, end_to_end, picture
from tests.benchmarks.growth import growth
from tests.benchmarks.ingest import ingest, memory
from tests.benchmarks.learning import prediction, training
from tests.benchmarks.pair import Pair
from tests.benchmarks.scoring import scoring

_MOST_RECEIVER_MEBIBYTES, _MOST_WORKER_MEBIBYTES = 200, 1500
_SOON_SECONDS, _WANTED_SHARE = 0.5, 0.8


class Part(StrEnum):
    """What can be measured alone."""

    INGEST = "ingest"
    DECODING = "decoding"
    SCORING = "scoring"
    TRAINING = "training"
    GROWTH = "growth"
    END_TO_END = "end-to-end"


def bench(
    parts: Annotated[
        list[Part] | None, typer.Argument(help="What to measure; everything by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for table, pictures and raw figures.")] = Path("bench"),
    rounds: Annotated[int, typer.Option(help="How often each is measured.", min=1)] = 3,
    rows: Annotated[int, typer.Option(help="Results in the database that has grown.", min=1000)] = 1_000_000,
) -> None:
    """Measure the node beside its peers, on this machine, in one run."""
    console = Console(highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": _machine()}
    tables = []
    with tempfile.TemporaryDirectory() as scratch:
        for part in parts or list(Part):
            started = time.monotonic()
            with console.status(f"Measuring {part.value}"):
                table, raw = _MEASURED[part](Path(scratch), out, rounds, rows)
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


def _ingest(scratch: Path, _out: Path, rounds: int, _rows: int) -> tuple[Table, Any]:
    pairs = list(ingest(scratch / "ingest", rounds))
    peaks = memory(scratch / "ingest")
    table = _of_pairs("Receiving", pairs)
    table.add_row(
        "Largest resident set of a receiver\n[dim]an object of 200 MB among others[/]",
        "MiB",
        ", ".join(map(str, peaks)),
        "",
        "",
        f"{_MOST_RECEIVER_MEBIBYTES} {_verdict(max(peaks) <= _MOST_RECEIVER_MEBIBYTES)}",
    )
    return table, {"pairs": _raw(pairs), "receiver_peak_mebibytes": peaks}


def _decoding(scratch: Path, _out: Path, rounds: int, _rows: int) -> tuple[Table, Any]:
    pairs = list(decoding(scratch / "decoding", rounds))
    return _of_pairs("Decoding and transforming", pairs), _raw(pairs)


def _scoring(_scratch: Path, _out: Path, rounds: int, _rows: int) -> tuple[Table, Any]:
    pairs = list(scoring(rounds))
    return _of_pairs("Scoring", pairs), _raw(pairs)


def _training(scratch: Path, _out: Path, rounds: int, _rows: int) -> tuple[Table, Any]:
    pictures = scratch / "training"
    pairs = [*training(pictures, 64, rounds), *prediction(pictures, 64, rounds)]
    return _of_pairs("Training and predicting", pairs), _raw(pairs)


def _growth(scratch: Path, _out: Path, rounds: int, rows: int) -> tuple[Table, Any]:
    grown = list(growth(scratch / "growth", rounds, rows))
    table = Table("What", *_right("Empty", f"{rows:,} results", "Ratio"), "Wanted", title="Growth")
    for one in grown:
        table.add_row(*one.cells)
    return table, [asdict(one) for one in grown]


def _end_to_end(scratch: Path, out: Path, _rounds: int, _rows: int) -> tuple[Table, Any]:
    found = end_to_end(scratch / "end-to-end", 40)
    picture(found, out / "end-to-end.png")
    table = Table("What", *_right("Found"), "Wanted", title="From the last byte to the report")
    for load in (found.idle, found.busy):
        soon = f"{_SOON_SECONDS:g} {_verdict(load.median <= _SOON_SECONDS)}" if load is found.idle else ""
        table.add_row(f"Beyond the quiet period, {load.name}: median", f"{load.median:.2f} s", soon)
        table.add_row(f"Beyond the quiet period, {load.name}: 99 of 100", f"{load.p99:.2f} s", "")
    for name, value in (
        ("Studies of 8 MB per minute, at saturation", found.saturation),
        ("The same, receiving alone", found.ingest_alone),
        ("The same, decoding and scoring alone", found.scoring_alone),
    ):
        table.add_row(name, f"{value:.0f}", "")
    share = f"{_WANTED_SHARE:.0%} {_verdict(found.share >= _WANTED_SHARE)}"
    table.add_row("Saturation by the slower of these", f"{found.share:.0%}", share)
    for role, seconds in found.cpu_seconds.items():
        table.add_row(f"Processor time for a study, {role}", f"{1000 * seconds:.0f} ms", "")
    for role, mebibytes in found.peak_mebibytes.items():
        most = _MOST_WORKER_MEBIBYTES if role == "score" else _MOST_RECEIVER_MEBIBYTES
        verdict = f"{most} {_verdict(mebibytes <= most)}" if role != "deliver" else ""
        table.add_row(f"Largest resident set, {role}", f"{mebibytes} MiB", verdict)
    return table, _raw_end(found)


_MEASURED: dict[Part, Callable[[Path, Path, int, int], tuple[Table, Any]]] = {
    Part.INGEST: _ingest,
    Part.DECODING: _decoding,
    Part.SCORING: _scoring,
    Part.TRAINING: _training,
    Part.GROWTH: _growth,
    Part.END_TO_END: _end_to_end,
}


def _of_pairs(title: str, pairs: Sequence[Pair]) -> Table:
    table = Table("What", "Unit", *_right("Ours", "Other", "Ratio"), "Wanted", title=title)
    for pair in pairs:
        wanted = "" if pair.wanted is None else f"{pair.wanted:g} {_verdict(pair.is_met)}"
        what = f"{pair.what}\n[dim]against {pair.other}[/]"
        table.add_row(what, pair.unit, pair.ours_text, pair.theirs_text, f"{pair.ratio:.2f}", wanted)
    return table


def _right(*names: str) -> list[Column]:
    return [Column(name, justify="right") for name in names]


def _verdict(is_met: bool) -> str:
    return "ok" if is_met else "missed"


def _raw(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    return [asdict(pair) | {"ratio": pair.ratio} for pair in pairs]


def _raw_end(found: EndToEnd) -> dict[str, Any]:
    return asdict(found) | {"share": found.share}


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
