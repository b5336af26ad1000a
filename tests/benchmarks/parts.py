"""The parts of the benchmark: what each measures, and the table that shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from tests.benchmarks.decoding import decoding
from tests.benchmarks.endtoend import EndToEnd, end_to_end, picture
from tests.benchmarks.endurance import endurance
from tests.benchmarks.endurance import picture as memory_picture
from tests.benchmarks.growth import growth
from tests.benchmarks.ingest import ingest, memory
from tests.benchmarks.learning import prediction, training
from tests.benchmarks.machines import machines
from tests.benchmarks.pair import Pair
from tests.benchmarks.scoring import scoring

_MOST_RECEIVER_MEBIBYTES, _MOST_WORKER_MEBIBYTES = 200, 1500
_MANY_STUDIES, _MOST_GROWTH_MEBIBYTES = 10_000, 20
_SOON_SECONDS, _WANTED_SHARE = 0.5, 0.8


class Part(StrEnum):
    """What can be measured alone; `ENDURANCE` takes a quarter of an hour, and only where it is asked for."""

    INGEST = "ingest"
    DECODING = "decoding"
    SCORING = "scoring"
    TRAINING = "training"
    GROWTH = "growth"
    MACHINES = "machines"
    END_TO_END = "end-to-end"
    ENDURANCE = "endurance"


def measure(part: Part, scratch: Path, out: Path, rounds: int, rows: int) -> tuple[Table, Any]:
    """Measure one part; return its table and the raw figures.

    Parameters
    ----------
    scratch, out
        Folders for what is only needed meanwhile, and for pictures.
    rounds
        How often each is measured.
    rows
        Results in the database that has grown.
    """
    return _MEASURED[part](scratch, out, rounds, rows)


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
    pairs = [*training(pictures, 32, rounds), *prediction(pictures, 32, rounds)]
    return _of_pairs("Training and predicting", pairs), _raw(pairs)


def _growth(scratch: Path, _out: Path, rounds: int, rows: int) -> tuple[Table, Any]:
    grown = list(growth(scratch, rounds, rows))
    table = Table("What", *_right("Empty", f"{rows:,} results", "Ratio"), "Wanted", title="Growth")
    for one in grown:
        table.add_row(*one.cells)
    return table, [asdict(one) for one in grown]


def _machines(scratch: Path, _out: Path, _rounds: int, _rows: int) -> tuple[Table, Any]:
    pairs = list(machines(scratch / "machines", 1))  # each round starts six nodes
    return _of_pairs("Machines", pairs), _raw(pairs)


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


def _endurance(scratch: Path, out: Path, _rounds: int, _rows: int) -> tuple[Table, Any]:
    found = endurance(scratch / "endurance", _MANY_STUDIES)
    memory_picture(found, out / "endurance.png")
    first, last = found.studies[len(found.studies) // 10], found.studies[-1]
    columns = _right(f"MiB after {first:,}", f"after {last:,}", "Growth")
    table = Table("Resident set", *columns, "Wanted", title="Endurance")
    for role, sizes in found.mebibytes.items():
        grown = found.growth(role)
        wanted = f"{_MOST_GROWTH_MEBIBYTES} {_verdict(grown <= _MOST_GROWTH_MEBIBYTES)}"
        table.add_row(role, f"{sizes[-1] - grown:.0f}", f"{sizes[-1]:.0f}", f"{grown:.0f}", wanted)
    return table, asdict(found)


_MEASURED: dict[Part, Callable[[Path, Path, int, int], tuple[Table, Any]]] = {
    Part.INGEST: _ingest,
    Part.DECODING: _decoding,
    Part.SCORING: _scoring,
    Part.TRAINING: _training,
    Part.GROWTH: _growth,
    Part.MACHINES: _machines,
    Part.END_TO_END: _end_to_end,
    Part.ENDURANCE: _endurance,
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
