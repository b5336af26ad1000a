"""`pacs-node demo`: the whole product at work on one machine, checked against the known truth of the images.

Everything but the patients is real: a node as `serve` starts it, associations over TCP, the shipped model,
and a storage SCP in the place of the PACS.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table

from classifier import terminal
from db.errors import DatabaseError
from db.results import Filter, results
from db.session import Database
from db.status import counts
from pacs_node.demo.peers import DemoPacs, NodeProcess, ReturnedReport, free_port
from pacs_node.demo.samples import Sample, read_images, write_samples
from pacs_node.errors import UserError
from pacs_node.network import scu
from pacs_node.network.peer import Peer
from pacs_node.terminal import tables

_QUIET_SECONDS = 2
_PATIENCE_SECONDS = 180  # without any progress
_CALLING = "DEMO_XRAY"
_ROLES = "receive,score,deliver,web"

_CONFIG = """\
# The settings of this demonstration run; every other key has its default.
[node]
host = "127.0.0.1"
port = {node_port}

[receive]
min_free_mebibytes = 64
processes = 1

[study]
quiet_seconds = {quiet}

[deliver]
retry_seconds = 1

[classifier]
unknown_age = "{unknown_age}"

[log]
format = "json"

[web]
port = {web_port}

[[destinations]]
name = "PACS"
ae_title = "DEMO_PACS"
host = "127.0.0.1"
port = {pacs_port}
"""


@dataclass(frozen=True)
class Check:
    """One statement about the run, and whether it is true; ``None`` if it cannot fail."""

    text: str
    holds: bool | None


@dataclass(frozen=True)
class _Outcome:
    """All results at the end of the run."""

    samples: Sequence[Sample]
    answers: dict[str, scu.SendResult]  # by path
    rows: dict[str, dict[str, Any]]  # of the view `results`, by SOP Instance UID
    reports: Sequence[ReturnedReport]
    last_sent: dict[str, float]  # by Study Instance UID, monotonic seconds

    def seconds(self, study: str) -> float | None:
        """Return the time from the answer to the study's last image to its report."""
        arrived = [report.arrived for report in self.reports if report.study_instance_uid == study]
        return arrived[0] - self.last_sent[study] if arrived else None


def run(images: Path | None, into: Path, *, keeps_page: bool = False) -> int:
    """Run the demonstration.

    Parameters
    ----------
    images
        A folder with DICOM, JPEG or PNG files; ``None`` draws the studies.
    into
        Where to create the folder of this run; existing files are left alone.
    keeps_page
        Whether the reading list stays open on the results, until Ctrl-C.

    Returns
    -------
    int
        Exit code: 0 if every check passes, else 1.

    Raises
    ------
    UserError
        If there are no images, or the node does not start.
    """
    console = terminal.console(highlight=False)
    folder = _new_folder(into)
    samples = _samples(images, folder, console)
    node_port, pacs_port, web_port = free_port(), free_port(), free_port()
    config = folder / "config.toml"
    config.write_text(
        _CONFIG.format(
            node_port=node_port,
            pacs_port=pacs_port,
            web_port=web_port,
            quiet=_QUIET_SECONDS,
            unknown_age="undetermined" if images is None else "decide",
        )
    )
    peer = Peer("PACS_NODE", "127.0.0.1", node_port)
    _introduce(console, samples, peer, pacs_port, drawn=images is None)
    address = f"http://127.0.0.1:{web_port}/"
    with (
        DemoPacs(folder / "pacs", pacs_port) as pacs,
        NodeProcess(config, folder / "node.log", roles=_ROLES) as node,
    ):
        with _progress(console) as progress:
            task = progress.add_task("Starting the node, loading the model", total=None)
            node.wait_until_ready()
            progress.remove_task(task)
            outcome = _play(
                samples, peer, Database(f"sqlite:///{folder / 'pacs_node.sqlite'}"), pacs, progress
            )
        checks = _checks(outcome, drawn=images is None, refused=pacs.refused)
        _tell(console, outcome, checks, folder, address)
        if keeps_page:
            _keep(console, node, address)
    return 1 if any(check.holds is False for check in checks) else 0


def _keep(console: Console, node: NodeProcess, address: str) -> None:
    """Wait until a person has seen enough."""
    console.print(f"\n  Open      {address}   Ctrl-C ends it.", soft_wrap=True)
    with suppress(KeyboardInterrupt):
        while node.exit_code is None:
            time.sleep(0.2)


def _new_folder(into: Path) -> Path:
    folder = into.absolute() / f"{datetime.now().astimezone():%Y-%m-%d_%H%M%S}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder {folder}: {error.strerror}; use --into.") from error
    return folder


def _samples(images: Path | None, folder: Path, console: Console) -> Sequence[Sample]:
    if images is None:
        with console.status("Drawing radiographs"):
            return write_samples(folder / "images")
    found = read_images(images, folder / "images")
    for path, why in found.skipped:
        console.print(f"Left out {path}: {why}", style="yellow", markup=False, soft_wrap=True)
    if not found.samples:
        raise UserError(f"There is no DICOM, JPEG or PNG image in {images}; name another folder.")
    return found.samples


def _introduce(
    console: Console, samples: Sequence[Sample], peer: Peer, pacs_port: int, *, drawn: bool
) -> None:
    studies = len({sample.study_instance_uid for sample in samples})
    what = "drawn radiographs of made-up patients" if drawn else "images of yours"
    console.print("[bold]PACS Node[/] at work: real associations, the real model. Research use only.")
    console.print(f"  Modality  {_CALLING} sends {len(samples)} {what}, {studies} studies")
    console.print(f"  Node      {peer} keeps, scores and reports them")
    console.print(f"  PACS      DEMO_PACS@127.0.0.1:{pacs_port} gets the reports; it refuses the")
    console.print("            first one once, on purpose, with 0xA700 (out of resources)")
    if not drawn:
        console.print(
            '  Ages      Images that tell no age are answered too: unknown_age = "decide" in its config'
        )


def _progress(console: Console) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console, transient=True)


def _play(
    samples: Sequence[Sample], peer: Peer, database: Database, pacs: DemoPacs, progress: Progress
) -> _Outcome:
    task = progress.add_task("Sending by C-STORE", total=len(samples))
    study_of = {str(sample.path): sample.study_instance_uid for sample in samples}
    answers: dict[str, scu.SendResult] = {}
    last_sent: dict[str, float] = {}
    for answer in scu.send([sample.path for sample in samples], peer, _CALLING):
        answers[str(answer.path)] = answer
        last_sent[study_of[str(answer.path)]] = time.monotonic()
        progress.advance(task)
    _wait(database, progress)
    with database.read() as session:
        rows = {row["sop_instance_uid"]: row for row in results(session, Filter())}
    return _Outcome(samples, answers, rows, tuple(pacs.reports), last_sent)


def _wait(database: Database, progress: Progress) -> None:
    """Wait until no job is left to do."""
    task = progress.add_task("Scoring, reporting, delivering", total=None)
    before, changed_at = None, time.monotonic()
    while time.monotonic() < changed_at + _PATIENCE_SECONDS:
        try:
            with database.read() as session:
                jobs = counts(session).jobs
        except DatabaseError:
            jobs = {}
        if jobs != before:
            before, changed_at = jobs, time.monotonic()
        left = sum(number for (_, state), number in jobs.items() if state == "ready")
        progress.update(task, total=sum(jobs.values()), completed=sum(jobs.values()) - left)
        if jobs and not left:
            return
        time.sleep(0.1)


def _checks(outcome: _Outcome, *, drawn: bool, refused: int) -> list[Check]:
    """Compare results with inputs; for images of the user, a wrong answer is not a failure."""
    stored = [sample for sample in outcome.samples if outcome.answers[str(sample.path)].is_stored]
    uids = {sample.sop_instance_uid for sample in stored}
    answered = [uid for uid in uids if outcome.rows.get(uid, {}).get("decision", "waiting") != "waiting"]
    reported = [report.sop_instance_uid for report in outcome.reports]
    expected = {row["report_uid"] for row in outcome.rows.values() if row["report_uid"]}
    checks = [
        Check(f"{len(stored)} of {len(outcome.samples)} images were answered with Success", bool(stored)),
        Check(f"{len(answered)} of {len(uids)} have a score or a named reason", len(answered) == len(uids)),
        Check(
            f"{len(set(reported))} of {len(expected)} reports are in the PACS, none twice",
            set(reported) == expected and len(reported) == len(expected),
        ),
        Check("Read back, each report has its patient, study and scores", _agree(outcome)),
        Check(f"The report refused on purpose ({refused} time) was sent again", refused == 1),
    ]
    known = [sample for sample in stored if sample.expected is not None]
    right = [
        sample for sample in known if _came_out(outcome.rows.get(sample.sop_instance_uid)) == sample.expected
    ]
    if known:
        text = f"{len(right)} of {len(known)} answers agree with the truth"
        checks.append(Check(text, len(right) == len(known) if drawn else None))
    return checks


def _agree(outcome: _Outcome) -> bool:
    """Tell whether reports and database agree, image by image."""
    stated: dict[str, str] = {}
    for report in outcome.reports:
        rows = [row for row in outcome.rows.values() if row["report_uid"] == report.sop_instance_uid]
        if {(row["patient_id"], row["study_instance_uid"]) for row in rows} != {
            (report.patient_id, report.study_instance_uid)
        }:
            return False
        stated |= report.percent
    recorded = {
        uid: f"{row['probability'] * 100:.2f}"
        for uid, row in outcome.rows.items()
        if row["probability"] is not None and row["report_uid"]
    }
    return stated == recorded


def _came_out(row: dict[str, Any] | None) -> str | None:
    if row is None:
        return None
    return str(row["reason"] or row["decision"])


def _tell(console: Console, outcome: _Outcome, checks: Sequence[Check], folder: Path, address: str) -> None:
    console.print(_table(outcome))
    for check in checks:
        mark = "    " if check.holds is None else "[green]ok  [/]" if check.holds else "[bold red]FAIL[/]"
        console.print(f"  {mark} {check.text}")
    log, database = folder / "node.log", folder / "pacs_node.sqlite"
    console.print(f"\n  Database  {database}", soft_wrap=True)
    console.print(f"  Reports   {folder / 'pacs'}", soft_wrap=True)
    console.print(f"  Node log  {log}", soft_wrap=True)
    program = Path(sys.argv[0]) if Path(sys.argv[0]).name == "pacs-node" else Path("pacs-node")
    config = folder / "config.toml"
    console.print(f"  Next      {program} results --config {config}", soft_wrap=True)
    console.print(f"  Pages     {program} serve --roles web --config {config}", soft_wrap=True)
    console.print(f"            and then {address}", soft_wrap=True)


def _table(outcome: _Outcome) -> Table:
    table = Table(
        Column("Patient", overflow="fold"),
        Column("Study", overflow="fold"),
        Column("Image, in truth", overflow="fold"),
        Column("Answer", overflow="fold"),
        Column("", no_wrap=True),
        Column("Seconds", justify="right", no_wrap=True),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption=f"Seconds from a study's last image to its report; {_QUIET_SECONDS} wait for late images.",
        caption_justify="left",
    )
    numbers = {
        uid: n for n, uid in enumerate(dict.fromkeys(s.study_instance_uid for s in outcome.samples), 1)
    }
    for sample in outcome.samples:
        row = outcome.rows.get(sample.sop_instance_uid)
        seconds = outcome.seconds(sample.study_instance_uid)
        table.add_row(
            escape(sample.patient),
            (row or {}).get("accession_number") or str(numbers[sample.study_instance_uid]),
            escape(sample.truth or sample.path.name),
            tables.answer(row) if row else _refused(outcome.answers[str(sample.path)]),
            _verdict(sample, row),
            "no report" if seconds is None else f"{seconds:.1f}",
        )
    return table


def _refused(answer: scu.SendResult) -> str:
    status = "not sent" if answer.status is None else f"0x{answer.status:04X}"
    return escape(f"{status}: {answer.comment}")


def _verdict(sample: Sample, row: dict[str, Any] | None) -> str:
    if sample.expected is None:
        return ""
    return "[green]✓[/]" if _came_out(row) == sample.expected else "[bold red]✗[/]"
