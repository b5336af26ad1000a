"""Output of results, status and missing images: tables for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import itertools
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.markup import escape as without_markup
from rich.table import Column, Table

from classifier.untrusted import cell, json_text, printable
from db.tokens import ListedToken
from db.users import ListedUser
from pacs_node.reconciling.findings import IMAGE_LEVEL, Finding, Missing, Reconciliation
from pacs_node.running.status import Snapshot
from pacs_node.storage.stock import Stock

_STYLES = {"positive": "bold red", "negative": "green", "undetermined": "yellow", "waiting": "dim"}
_DELIVERY_STYLES = {
    "pending": "yellow",
    "delivered": "green",
    "committed": "green",
    "failed": "bold red",
    "abandoned": "dim",
}
_STATES = ("ready", "done", "failed")
_WORK = {
    "score": "Scoring",
    "rescore": "Scoring again",
    "report": "Reporting",
    "page": "Drawing pages",
    "heatmap": "Drawing heat maps",
    "deliver": "Delivering",
    "commit": "Asking to commit",
    "confirm": "Committing",
}
_WIDE = 160  # columns of a terminal that has room for whole UIDs beside the rest
_COUNTED = ("scored", "not_scored", "waiting")
_ALWAYS = {"score", "report", "deliver"}

Row = Mapping[str, Any]


def escape(text: str) -> str:
    """Return foreign text as rich markup that shows exactly that text, with control characters escaped."""
    return without_markup(printable(text))


def print_results(rows: Sequence[Row], console: Console) -> None:
    """Print rows of the view `results`, with the columns that fit a terminal."""
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


def print_studies(rows: Sequence[Row], console: Console) -> None:
    """Print rows of the view `studies`, with the columns that fit a terminal."""
    table = Table(
        Column("Last image", no_wrap=True),
        Column("Patient", overflow="fold"),
        Column("Accession", overflow="fold"),
        Column("Images", no_wrap=True),
        Column("Answer", overflow="fold"),
        Column("Report", overflow="fold"),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for row in rows:
        table.add_row(*_study_cells(row))
    console.print(table if rows else "No study matches.")


def _study_cells(row: Row) -> Iterator[str]:
    yield f"{row['last_received_at'].astimezone():%Y-%m-%d %H:%M}"
    yield escape(" ".join(filter(None, (row["patient_id"], row["patient_name"]))))
    yield escape(row["accession_number"] or "")
    scored, images = row["images_scored"], sum(row[f"images_{what}"] for what in _COUNTED)
    yield f"{scored} of {images} scored" if images else "none"
    highest = "" if row["highest_probability"] is None else f"{row['highest_probability']:.4f} "
    reasons = f" [dim]{row['reasons']}[/]" if row["reasons"] else ""
    yield f"{highest}{decision(row['decision'] or 'waiting')}{reasons}"
    yield _report(row)


def print_scores(rows: Sequence[Row], console: Console) -> None:
    """Print rows of the view `scores`, with the columns that fit a terminal."""
    table = Table(
        Column("Scored", no_wrap=True),
        Column("Patient", overflow="fold"),
        Column("Image", overflow="fold"),
        Column("Answer", overflow="fold"),
        Column("Model", overflow="fold"),
        Column("", no_wrap=True),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for row in rows:
        table.add_row(
            f"{row['scored_at'].astimezone():%Y-%m-%d %H:%M}",
            escape(" ".join(filter(None, (row["patient_id"], row["patient_name"])))),
            escape(row["sop_instance_uid"]),
            answer(row),
            escape(f"{row['model_name']} {row['model_version']} {row['model_sha256'][:8]}"),
            "again" if row["is_rescore"] else "",
        )
    console.print(table if rows else "No score matches.")


def _cells(row: Row) -> Iterator[str]:
    yield f"{row['received_at'].astimezone():%Y-%m-%d %H:%M}"
    yield escape(" ".join(filter(None, (row["patient_id"], row["patient_name"]))))
    yield escape(row["accession_number"])
    yield escape(" ".join(filter(None, (row["modality"], row["view"]))))
    yield answer(row)
    yield _report(row)


def _report(row: Row) -> str:
    problem = f"[bold red]{row['study_problem']}[/] " if row["study_problem"] else ""
    return problem + escape(row["deliveries"] or ("no destination" if row["report_uid"] else ""))


def answer(row: Row) -> str:
    """Return probability and decision, with the reason if there is no decision, as rich markup."""
    reason = f"[dim]{row['reason']}[/]" if row["reason"] else ""
    if row["probability"] is None:
        return reason or decision(row["decision"])
    return f"{row['probability']:.4f} {decision(row['decision'])} {reason}".rstrip()


def decision(value: str) -> str:
    """Return a decision in its colour, as rich markup."""
    style = _STYLES.get(value)
    text = value.replace("_", " ")
    return f"[{style}]{text}[/]" if style else text


def print_ledger(rows: Sequence[Row], console: Console) -> None:
    """Print rows of the view `ledger`: each image, and below it the answer of each destination."""
    for _, same in itertools.groupby(rows, lambda row: (row["sop_instance_uid"], row["received_at"])):
        destinations = list(same)
        console.print(*_image_lines(destinations[0]), sep="\n", highlight=False, soft_wrap=True)
        for row in destinations:
            console.print(_destination_line(row), highlight=False, soft_wrap=True)
    if not rows:
        console.print("No image matches.")


def _image_lines(row: Row) -> Iterator[str]:
    yield f"[bold]{escape(row['sop_instance_uid'])}[/]"
    yield f"  study {escape(row['study_instance_uid'])} {escape(row['accession_number'])}".rstrip()
    named = " ".join(filter(None, (row["patient_id"], row["patient_name"])))
    if named:
        yield f"  patient {escape(named)}"
    sender = f" from {row['calling_ae_title']}" if row["calling_ae_title"] else ""
    said = [f"received {_moment(row['received_at'])}{escape(sender)}", answer(row)]
    if row["report_uid"] is not None:
        said.append(f"report revision {row['report_revision']} of {_moment(row['reported_at'])}")
    if row["is_replaced"]:
        said.append("replaced by a newer copy")
    if row["study_problem"]:
        said.append(f"[bold red]{row['study_problem']}[/]")
    if row["removed_at"] is not None:
        said.append(f"file removed {_moment(row['removed_at'])}")
    yield "  " + ", ".join(said)
    if row["detail"]:
        yield f"  [dim]{escape(row['detail'])}[/]"


def _destination_line(row: Row) -> str:
    if row["destination"] is None:
        return "  [dim]no destination[/]" if row["report_uid"] else "  [dim]no report yet[/]"
    status = "" if row["status"] is None else f" 0x{row['status']:04X}"
    what = "" if row["result"] == "report" else f" {row['result']}"
    said = [
        f"{escape(row['destination'])}{what}: [{_DELIVERY_STYLES[row['state']]}]{row['state']}[/]{status}"
    ]
    said += [
        f"{name} {_moment(row[f'{name}_at'])}" for name in ("delivered", "committed") if row[f"{name}_at"]
    ]
    if row["tries"]:
        said.append(f"{row['tries']} tries in vain")
    if row["error"]:
        said.append(escape(row["error"]))
    return "  " + ", ".join(said)


def _moment(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def write_csv(rows: Iterable[Row], columns: Sequence[str], file: TextIO, *, bom: bool = False) -> None:
    """Write all columns, with a header line; times are ISO 8601, and no text is a formula.

    Parameters
    ----------
    bom
        Whether to begin with the mark by which Excel knows UTF-8.
    """
    if bom:
        file.write("\ufeff")
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(_plain(value)) for name, value in row.items()} for row in rows)


def write_json(value: Any, file: TextIO) -> None:
    """Write JSON; times are ISO 8601."""
    file.write(_json(value) + "\n")


def write_json_rows(rows: Iterable[Row], file: TextIO) -> None:
    """Write a JSON list, row by row."""
    before = "["
    for row in rows:
        file.write(before + "\n" + textwrap.indent(_json(row), "  "))
        before = ","
    file.write("[]\n" if before == "[" else "\n]\n")


def _json(value: Any) -> str:
    return json_text(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def print_reconciliation(found: Reconciliation, console: Console) -> None:
    """Print what is missing: one line for all images of a study with the same finding."""
    table = Table(
        Column("Study", no_wrap=True),
        Column("Patient", overflow="fold"),
        Column("Accession", overflow="fold"),
        Column("Missing", no_wrap=True),
        Column("Images", justify="right"),
        Column("Why", overflow="fold"),
        Column("Study Instance UID", no_wrap=True),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    alike = itertools.groupby(sorted(found.findings, key=_likeness), _likeness)
    cells = [list(_missing(list(same))) for _, same in alike]
    for row in cells:
        table.add_row(*row)
    if console.width < _WIDE:
        for row in cells:
            console.print(*_missing_lines(row), sep="\n", highlight=False, soft_wrap=True)
    elif cells:
        console.print(table)
    console.print(found.summary, highlight=False, soft_wrap=True)


def _likeness(finding: Finding) -> tuple[str, ...]:
    detail = "" if finding.missing is Missing.FILE_MISSING else finding.detail  # each file has its own path
    return finding.study_date, finding.study_instance_uid, finding.missing, str(finding.is_fetched), detail


def _missing(same: Sequence[Finding]) -> Iterator[str]:
    first = same[0]
    yield escape(first.study_date)
    yield escape(" ".join(filter(None, (first.patient_id, first.patient_name))))
    yield escape(first.accession_number)
    what = first.missing.replace("_", " ")
    what += ", sent again" if first.is_sent_again else ""
    yield f"[green]{what}, fetched[/]" if first.is_fetched else f"[red]{what}[/]"
    yield str(len(same)) if first.missing in IMAGE_LEVEL else ""
    yield escape(first.detail if len(same) == 1 or first.missing is not Missing.FILE_MISSING else "")
    yield escape(first.study_instance_uid)


def _missing_lines(cells: Sequence[str]) -> Iterator[str]:
    """Return the cells as lines, for a terminal on which a UID would fill a column of eight lines."""
    date, patient, accession, missing, number, why, uid = cells
    images = f" {number} {'image' if number == '1' else 'images'}" if number else ""
    yield f"{missing}{images}, {' '.join(filter(None, (date, patient, accession)))}"
    yield f"  study {uid}"
    if why:
        yield f"  {why}"


def write_findings_csv(found: Reconciliation, file: TextIO) -> None:
    """Write what is missing, with a header line."""
    write_csv([vars(finding) for finding in found.findings], [field.name for field in fields(Finding)], file)


def reconciliation_values(found: Reconciliation) -> dict[str, Any]:
    """Return the result of a comparison as plain values."""
    return {
        "studies": found.studies,
        "images": found.images,
        **{missing.value: found.count(missing) for missing in Missing},
        "fetched": found.fetched,
        "sent_again": sum(finding.is_sent_again for finding in found.findings),
        "all_answers_read": found.is_complete,
        "findings": [vars(finding) for finding in found.findings],
    }


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
        "is_estimate": counts.is_estimate,
        "jobs": _nested(counts.jobs),
        "deliveries": _nested(counts.deliveries),
        "oldest_waiting": None if waiting is None else vars(waiting),
        "undelivered": [vars(late) for late in found.undelivered],
        "processes": [vars(beat) for beat in found.heartbeats],
        "free_bytes": found.free_bytes,
        "model": None if model is None else vars(model),
        "failures": [vars(failure) for failure in found.failures],
        "spool": None if found.stock is None else _stock_values(found.stock),
        "problems": found.problems,
    }


def _stock_values(stock: Stock) -> dict[str, Any]:
    return {
        "orphans": stock.orphans,
        "missing": [{"digest": m.digest, "sop_instance_uid": m.sop_instance_uid} for m in stock.missing],
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
        study = f", study {failure.study_instance_uid}" if failure.study_instance_uid else ""
        what = f"Failed: {failure.kind}{lane}{study}: {failure.error}"
        console.print(printable(what), markup=False, highlight=False)
    for problem in found.problems:
        console.print(printable(problem), style="red", highlight=False, markup=False)
    if not found.problems:
        console.print("All is well.", style="green")


def _work_table(found: Snapshot) -> Table:
    table = Table("Work", *(Column(name, justify="right") for name in ("waiting", "done", "failed")))
    jobs = found.counts.jobs
    for kind, name in _WORK.items():
        if kind not in _ALWAYS and not any((kind, state) in jobs for state in _STATES):
            continue
        table.add_row(name, *(str(jobs.get((kind, state), 0)) for state in _STATES))
    counted = found.counts.deliveries
    for destination in dict.fromkeys(name for name, _ in counted):
        waiting, failed = (str(counted.get((destination, state), 0)) for state in ("pending", "failed"))
        table.add_row(escape(f"  to {destination}"), waiting, "", failed)
    return table


def _facts_table(found: Snapshot) -> Table:
    table = Table(show_header=False)
    counts, model = found.counts, found.model
    about = "about " if counts.is_estimate else ""
    table.add_row("Stored", f"{about}{counts.studies} studies, {counts.instances} objects")
    table.add_row("Answered", f"{about}{counts.scores} scores, {counts.reports} reports")
    table.add_row("Oldest image without a score", _waiting(found))
    for late in found.undelivered:
        since = f"{late.since.astimezone():%Y-%m-%d %H:%M}"
        who = escape(f"Waits for {late.destination}")
        table.add_row(who, f"{late.reports} reports, the oldest since {since}")
    for beat in found.heartbeats:
        table.add_row(f"Process {beat.role}", f"on {beat.host}, last heartbeat {beat.age_seconds:.0f} s ago")
    known = "none yet" if model is None else f"{model.name} {model.version}, {model.sha256[:16]}"
    table.add_row("Model", escape(known))
    table.add_row("Free for the spool", "no spool" if found.free_bytes is None else _size(found.free_bytes))
    return table


def _waiting(found: Snapshot) -> str:
    if found.waiting is None:
        return "nothing"
    age = timedelta(seconds=round((found.at - found.waiting.received_at).total_seconds()))
    return f"{age} (study {found.waiting.study_instance_uid})"


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"


def print_users(found: Sequence[ListedUser], console: Console) -> None:
    """Print the users of the reading list."""
    table = Table("Name", "Role", "Signs in", "Last sign-in", "Sessions", box=box.SIMPLE_HEAD)
    for one in found:
        way = "no more" if one.is_disabled else "at the provider" if one.is_of_provider else "by password"
        last = f"{one.signed_in_at.astimezone():%Y-%m-%d %H:%M}" if one.signed_in_at else "never"
        table.add_row(escape(one.name), one.role, way, last, str(one.sessions))
    console.print(table if found else "There are no users: the page answers this machine alone.")


def print_tokens(found: Sequence[ListedToken], console: Console) -> None:
    """Print the tokens of programs."""
    table = Table("Name", "Made", "Revoked", box=box.SIMPLE_HEAD)
    for one in found:
        revoked = f"{one.revoked_at.astimezone():%Y-%m-%d %H:%M}" if one.revoked_at else ""
        table.add_row(escape(one.name), f"{one.created_at.astimezone():%Y-%m-%d %H:%M}", revoked)
    console.print(table if found else "There are no tokens.")
