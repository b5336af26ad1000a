"""How results and status look: tables for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from db.results import RESULT_COLUMNS
from pacs_node.health import Snapshot

_STYLES = {"positive": "bold red", "negative": "green", "undetermined": "yellow", "waiting": "dim"}
_STATES = ("ready", "done", "failed")
_WORK = {"score": "Scoring", "report": "Reporting", "deliver": "Delivering"}

Row = Mapping[str, Any]


def print_results(rows: Sequence[Row], console: Console) -> None:
    """Print rows of the view `results`, the columns that fit a terminal."""
    table = Table(
        Column("Received", no_wrap=True),
        Column("Patient", overflow="fold"),
        Column("Accession", overflow="fold"),
        Column("View", no_wrap=True),
        Column("Answer", overflow="fold"),
        Column("Report", overflow="fold"),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table if rows else "No image matches.")


def _cells(row: Row) -> Iterator[str]:
    yield f"{row['received_at'].astimezone():%Y-%m-%d %H:%M}"
    yield escape(" ".join(filter(None, (row["patient_id"], row["patient_name"]))))
    yield escape(row["accession_number"])
    yield escape(" ".join(filter(None, (row["modality"], row["view"]))))
    yield answer(row)
    yield escape(row["deliveries"] or ("no destination" if row["report_uid"] else ""))


def answer(row: Row) -> str:
    """Return probability and decision, and the reason where there is no decision, as rich's markup."""
    reason = f"[dim]{row['reason']}[/]" if row["reason"] else ""
    if row["probability"] is None:
        return reason or decision(row["decision"])
    return f"{row['probability']:.4f} {decision(row['decision'])} {reason}".rstrip()


def decision(value: str) -> str:
    """Return a decision in its colour, as rich's markup."""
    style = _STYLES.get(value)
    text = value.replace("_", " ")
    return f"[{style}]{text}[/]" if style else text


def write_csv(rows: Sequence[Row], file: TextIO) -> None:
    """Write all columns, with a header line; times are ISO 8601."""
    writer = csv.DictWriter(file, RESULT_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)


def write_json(value: Any, file: TextIO) -> None:
    """Write JSON; times are ISO 8601."""
    json.dump(value, file, indent=2, ensure_ascii=False, default=_plain)
    file.write("\n")


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def status_values(found: Snapshot) -> dict[str, Any]:
    """Return a snapshot as plain values."""
    counts, model, waiting = found.counts, found.model, found.waiting
    return {
        "at": found.at,
        "studies": counts.studies,
        "instances": counts.instances,
        "scores": counts.scores,
        "reports": counts.reports,
        "jobs": _nested(counts.jobs),
        "deliveries": _nested(counts.deliveries),
        "oldest_waiting": None if waiting is None else vars(waiting),
        "undelivered": [vars(late) for late in found.undelivered],
        "processes": [vars(sign) for sign in found.signs],
        "free_bytes": found.free_bytes,
        "model": None if model is None else vars(model),
        "failures": [vars(failure) for failure in found.failures],
        "problems": found.problems,
    }


def _nested(counted: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    nested: dict[str, dict[str, int]] = {}
    for (first, second), number in counted.items():
        nested.setdefault(first, {})[second] = number
    return nested


def print_status(found: Snapshot, console: Console) -> None:
    """Print a snapshot."""
    console.print(_work_table(found))
    console.print(_facts_table(found))
    for failure in found.failures:
        lane = f" to {failure.lane}" if failure.lane else ""
        what = f"Failed: {failure.kind}{lane}, study {failure.study_instance_uid}: {failure.error}"
        console.print(what, markup=False, highlight=False)
    for problem in found.problems:
        console.print(problem, style="red", highlight=False, markup=False)
    if not found.problems:
        console.print("All is well.", style="green")


def _work_table(found: Snapshot) -> Table:
    table = Table("Work", *(Column(name, justify="right") for name in ("waiting", "done", "failed")))
    jobs = found.counts.jobs
    for kind, name in _WORK.items():
        table.add_row(name, *(str(jobs.get((kind, state), 0)) for state in _STATES))
    counted = found.counts.deliveries
    for destination in dict.fromkeys(name for name, _ in counted):
        states = ("pending", "delivered", "failed")
        table.add_row(f"  to {destination}", *(str(counted.get((destination, s), 0)) for s in states))
    return table


def _facts_table(found: Snapshot) -> Table:
    table = Table(show_header=False)
    counts, model = found.counts, found.model
    table.add_row("Stored", f"{counts.studies} studies, {counts.instances} objects")
    table.add_row("Answered", f"{counts.scores} scores, {counts.reports} reports")
    table.add_row("Oldest image without score", _waiting(found))
    for late in found.undelivered:
        since = f"{late.since.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(f"Waits for {late.destination}", f"{late.reports} reports, the oldest since {since}")
    for sign in found.signs:
        table.add_row(f"Process {sign.role}", f"on {sign.host}, last sign {sign.age_seconds:.0f} s ago")
    table.add_row("Model", f"{model.name} {model.version}, {model.sha256[:16]}" if model else "none yet")
    table.add_row("Free for the spool", "no spool" if found.free_bytes is None else _size(found.free_bytes))
    return table


def _waiting(found: Snapshot) -> str:
    if found.waiting is None:
        return "nothing"
    age = timedelta(seconds=round((found.at - found.waiting.received_at).total_seconds()))
    return f"{age} (study {found.waiting.study_instance_uid})"


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"
