"""The command `pacs-node`: serve, try out, ask, retry.

Imports stand inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from classifier import terminal
from pacs_node.network.peer import Peer
from pacs_node.terminal.arguments import (
    CallingOption,
    ConfigOption,
    DecisionFilter,
    DeliveryState,
    Fetching,
    OutputFormat,
    StatusFormat,
    moment,
    study_dates,
)

if TYPE_CHECKING:
    from db.session import Database
    from pacs_node.config import Settings
    from pacs_node.network.dimse import Services
    from pacs_node.reconciling.findings import Reconciliation
    from pacs_node.storage.spool import Spool

USER_ERROR = 2

app = typer.Typer(
    help="Chest X-rays in by C-STORE, pneumonia scores in SQL, structured reports back. Research use only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(
    epilog="Examples:\n\npacs-node serve\n\npacs-node serve --config /etc/pacs-node/config.toml\n\n"
    "pacs-node serve --roles score    (on the machine with the GPU)"
)
def serve(
    config: ConfigOption = None,
    roles: Annotated[
        str, typer.Option(help="What this machine does: receive, score, deliver, web; separated by commas.")
    ] = "receive,score,deliver",
) -> None:
    """Run the node until SIGTERM or Ctrl-C; then it finishes its current work and stops."""
    from pacs_node.errors import UserError  # noqa: PLC0415
    from pacs_node.running.roles import ROLES  # noqa: PLC0415
    from pacs_node.running.supervisor import serve as run  # noqa: PLC0415

    wanted = [role.strip() for role in roles.split(",")]
    unknown = [role for role in wanted if role not in ROLES]
    if unknown:
        raise UserError(f"There is no role {unknown[0]!r}; use some of {', '.join(ROLES)}.")
    sys.exit(run(_configured(config), config, wanted))


@app.command(hidden=True)
def role(
    name: Annotated[str, typer.Argument(help="receive, score, deliver or web.")],
    config: ConfigOption = None,
    control: Annotated[int, typer.Option(help="File descriptor of the socket to the supervisor.")] = -1,
    number: Annotated[int, typer.Option(help="Number of this process among those of its role.")] = 0,
    listening: Annotated[int, typer.Option(help="File descriptor of the socket that receivers share.")] = -1,
) -> None:
    """Run as one process of `serve`."""
    from pacs_node.running.supervisor import run_role  # noqa: PLC0415

    control_socket, shared = (None if fd < 0 else socket.socket(fileno=fd) for fd in (control, listening))
    run_role(_configured(config), name, control_socket, number, shared)


@app.command(
    epilog="Examples:\n\npacs-node demo\n\npacs-node demo --images radiographs/   (DICOM, JPEG or PNG files)"
)
def demo(
    images: Annotated[
        Path | None, typer.Option(help="Folder with your own images instead of the drawn ones.")
    ] = None,
    into: Annotated[Path, typer.Option(help="Where to create the folder of this run.")] = Path("demo"),
) -> None:
    """Show the whole product at work on this machine in half a minute."""
    from pacs_node.demo.demo import run  # noqa: PLC0415

    sys.exit(run(images, into))


@app.command(epilog="Example:\n\npacs-node send study/ extra.dcm --to PACS_NODE@127.0.0.1:11112")
def send(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="DICOM files, or folders of DICOM files.")
    ],
    to: Annotated[str, typer.Option(metavar="AE@HOST:PORT", help="Where to send.")],
    *,
    calling: CallingOption = "PACS_NODE_SEND",
) -> None:
    """Send DICOM files unchanged by C-STORE. Exit code 1 if any file was not stored."""
    from rich.progress import track  # noqa: PLC0415

    from pacs_node.network import scu  # noqa: PLC0415

    files = scu.files_in(paths)
    peer = Peer.parse(to)
    console = terminal.console(stderr=True)
    answers = []
    for answer in track(
        scu.send(files, peer, calling), "Sending", len(files), console=console, transient=True
    ):
        answers.append(answer)
        if not answer.is_stored:
            status = "" if answer.status is None else f"0x{answer.status:04X} "
            console.print(f"{answer.path}: {status}{answer.comment}", markup=False, soft_wrap=True)
    stored = sum(answer.is_stored for answer in answers)
    console.print(f"{stored} of {len(answers)} files stored by {peer}.", highlight=False)
    sys.exit(0 if stored == len(answers) else 1)


@app.command(epilog="Example:\n\npacs-node echo PACS_NODE@127.0.0.1:11112")
def echo(
    peer: Annotated[str, typer.Argument(metavar="AE@HOST:PORT", help="Whom to ask.")],
    *,
    calling: CallingOption = "PACS_NODE_SEND",
) -> None:
    """Check by C-ECHO whether a DICOM peer answers."""
    from pacs_node.network import scu  # noqa: PLC0415

    scu.echo(Peer.parse(peer), calling)
    terminal.console().print(f"{peer} is there.", highlight=False)


@app.command(
    epilog="Examples:\n\npacs-node results --since 2d --decision positive\n\n"
    "pacs-node results --patient 'DOE^*' --format csv > doe.csv\n\n"
    "pacs-node results --accession A123 --format json"
)
def results(
    *,
    patient: Annotated[
        str | None, typer.Option(help="Patient ID or name in full, upper or lower case; * matches anything.")
    ] = None,
    accession: Annotated[str | None, typer.Option(help="Accession number.")] = None,
    study: Annotated[str | None, typer.Option(help="Study Instance UID.")] = None,
    study_date: Annotated[
        str | None, typer.Option(help="Study date (ISO 8601), or first and last date separated by /.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Received since a date or time (ISO 8601), or an age: 30m, 2h, 7d.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Received before; same format as --since.")] = None,
    decision: Annotated[DecisionFilter | None, typer.Option(help="Only these.")] = None,
    min_probability: Annotated[float | None, typer.Option(min=0, max=1, help="Lowest probability.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most rows.")] = 100,
    output: Annotated[OutputFormat, typer.Option("--format", help="For people, spreadsheets or scripts.")] = (
        OutputFormat.TABLE
    ),
    config: ConfigOption = None,
) -> None:
    """List results from the database, newest first. Any SQL tool can read them too, in the view `results`."""
    from db.results import RESULT_COLUMNS, Filter  # noqa: PLC0415
    from db.results import results as ask  # noqa: PLC0415
    from pacs_node.terminal import tables  # noqa: PLC0415

    since_, until_ = _moments(since, until)
    wanted = Filter(
        patient=patient,
        accession=accession,
        study=study,
        study_dates=None if study_date is None else study_dates(study_date),
        since=since_,
        until=until_,
        decision=decision,
        min_probability=min_probability,
        limit=limit,
    )
    with _database(_configured(config)).read() as session:
        rows = ask(session, wanted)
    _print_rows(rows, RESULT_COLUMNS, output, tables.print_results)


@app.command(
    epilog="Examples:\n\npacs-node ledger --study 1.2.826.0.1.3680043.8.498.1\n\n"
    "pacs-node ledger --since 7d --state failed\n\npacs-node ledger --format csv > ledger.csv"
)
def ledger(
    *,
    study: Annotated[str | None, typer.Option(help="Study Instance UID.")] = None,
    patient: Annotated[str | None, typer.Option(help="Patient ID or name, as for `results`.")] = None,
    accession: Annotated[str | None, typer.Option(help="Accession number.")] = None,
    since: Annotated[str | None, typer.Option(help="Received since; same format as for `results`.")] = None,
    until: Annotated[str | None, typer.Option(help="Received before; same format as --since.")] = None,
    state: Annotated[DeliveryState | None, typer.Option(help="Only deliveries in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most rows.")] = 100,
    output: Annotated[OutputFormat, typer.Option("--format", help="For people, spreadsheets or scripts.")] = (
        OutputFormat.TABLE
    ),
    config: ConfigOption = None,
) -> None:
    """Account for each received image: its score, its report, and what each destination answered and when."""
    from db.results import LEDGER_COLUMNS, Filter  # noqa: PLC0415
    from db.results import ledger as ask  # noqa: PLC0415
    from pacs_node.terminal import tables  # noqa: PLC0415

    since_, until_ = _moments(since, until)
    wanted = Filter(
        study=study,
        patient=patient,
        accession=accession,
        since=since_,
        until=until_,
        state=state,
        limit=limit,
    )
    with _database(_configured(config)).read() as session:
        rows = ask(session, wanted)
    _print_rows(rows, LEDGER_COLUMNS, output, tables.print_ledger)


@app.command(epilog="Example:\n\npacs-node status --format json")
def status(
    output: Annotated[StatusFormat, typer.Option("--format", help="For people or scripts.")] = (
        StatusFormat.TABLE
    ),
    files: Annotated[bool, typer.Option(help="Check that files and database match.")] = (True),
    config: ConfigOption = None,
) -> None:
    """Show counts by state, the oldest waiting image, space, and model. Exit code 1 if a person should
    look.
    """
    from pacs_node.running.status import snapshot  # noqa: PLC0415
    from pacs_node.terminal import tables  # noqa: PLC0415

    settings = _configured(config)
    found = snapshot(settings, _database(settings), datetime.now(UTC), with_files=files)
    if output is StatusFormat.JSON:
        tables.write_json(tables.status_values(found), sys.stdout)
    else:
        tables.print_status(found, terminal.console())
    sys.exit(1 if found.problems else 0)


@app.command(
    epilog="Examples:\n\npacs-node retry --failed\n\npacs-node retry 1.2.826.0.1.3680043.8.498.1\n\n"
    "pacs-node retry --resend 1.2.826.0.1.3680043.8.498.1    (its report was deleted in the PACS)"
)
def retry(
    study_uid: Annotated[
        str | None, typer.Argument(metavar="STUDY_UID", help="Only failed work of this study.")
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Everything that failed.")] = False,
    resend: Annotated[
        bool, typer.Option("--resend", help="Send the newest report of the study again, unchanged.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Retry work that was given up: scoring, reports and deliveries."""
    from db import status as asked  # noqa: PLC0415
    from pacs_node.errors import UserError  # noqa: PLC0415

    if failed == (study_uid is not None) or (resend and failed):
        raise UserError("Say what to retry: --failed for everything, or one STUDY_UID.")
    settings = _configured(config)
    give_up_at = datetime.now(UTC) + timedelta(hours=settings.deliver.give_up_hours)
    with _database(settings).write() as session:
        if study_uid is not None and not asked.study_exists(session, study_uid):
            raise UserError(f"There is no study {study_uid}; `pacs-node results --format csv` lists studies.")
        number = asked.retry(session, study_uid, give_up_at)
        if resend and study_uid is not None:
            names = [one.name for one in settings.destinations]
            number += asked.resend(session, study_uid, give_up_at, datetime.now(UTC), names)
    terminal.console().print(
        f"{number} {'job' if number == 1 else 'jobs'} will be tried again.", highlight=False
    )


@app.command(
    epilog="Examples:\n\npacs-node reconcile --against PACS@10.0.0.5:104 --since 1d\n\n"
    "pacs-node reconcile --against PACS@10.0.0.5:104 --since 2025-06-01 --until 2025-06-08 --fetch --by get"
    "\n\npacs-node reconcile --against PACS@10.0.0.5:104 --resend    (reports were deleted there)"
)
def reconcile(
    *,
    against: Annotated[str, typer.Option(metavar="AE@HOST:PORT", help="The PACS to ask by C-FIND.")],
    since: Annotated[
        str | None,
        typer.Option(help="First study date (ISO 8601), or an age such as 2d; default 7d."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Study date before; same format as --since.")] = None,
    calling: Annotated[
        str | None, typer.Option("--from", metavar="AE", help="Own AE title; default: that of the node.")
    ] = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch images that the node does not have.")] = False,
    by: Annotated[
        Fetching,
        typer.Option(help="C-MOVE: the PACS sends to the running node; or C-GET: it sends to this command."),
    ] = Fetching.MOVE,
    resend: Annotated[
        bool, typer.Option("--resend", help="Send reports again, unchanged, that the PACS does not have.")
    ] = False,
    output: Annotated[OutputFormat, typer.Option("--format", help="For people, spreadsheets or scripts.")] = (
        OutputFormat.TABLE
    ),
    config: ConfigOption = None,
) -> None:
    """List chest radiographs of a PACS that were not received, scored or reported. Exit code 1 if there are
    any.
    """
    from pacs_node.reconciling.reconcile import period  # noqa: PLC0415
    from pacs_node.reconciling.reconcile import resend as send_again  # noqa: PLC0415

    settings = _configured(config)
    days = period(*_moments(since, until), datetime.now(UTC))
    console = terminal.console(stderr=True)
    ours = calling or settings.node.ae_title
    fetching, peer = by if fetch else None, Peer.parse(against)
    names = _names_of(peer, settings) if resend else []
    found = _reconciled(settings, peer, ours, days, fetching=fetching, console=console)
    if resend:
        give_up_at = datetime.now(UTC) + timedelta(hours=settings.deliver.give_up_hours)
        found = send_again(found, _database(settings), names, give_up_at)
    _print_reconciliation(found, output, console)
    if found.failure is not None:
        raise found.failure
    sys.exit(0 if found.is_clean else 1)


@app.command(epilog="Example:\n\npacs-node abandon OLD_PACS")
def abandon(
    destination: Annotated[str, typer.Argument(help="Its name, no longer in [[destinations]].")],
    config: ConfigOption = None,
) -> None:
    """Give up reports that wait for a destination that no longer exists. `retry` cannot bring them back."""
    from db import status as asked  # noqa: PLC0415
    from pacs_node.errors import UserError  # noqa: PLC0415

    settings = _configured(config)
    if destination in {one.name for one in settings.destinations}:
        raise UserError(f"{destination} is still in [[destinations]]; remove it and restart the node.")
    with _database(settings).write() as session:
        number = asked.abandon(session, destination, datetime.now(UTC))
    terminal.console().print(f"{number} {'report' if number == 1 else 'reports'} abandoned.", highlight=False)


@app.command(epilog="Example:\n\npacs-node dismiss 1.2.826.0.1.3680043.8.498.1")
def dismiss(
    study_uid: Annotated[str, typer.Argument(metavar="STUDY_UID", help="A study that `status` names.")],
    config: ConfigOption = None,
) -> None:
    """Let a study be without report whose images name different patients, until another image of it comes."""
    from db import status as asked  # noqa: PLC0415
    from pacs_node.errors import UserError  # noqa: PLC0415

    with _database(_configured(config)).write() as session:
        if not asked.dismiss(session, study_uid, datetime.now(UTC)):
            raise UserError(f"Nothing prevents a report of study {study_uid}; see `pacs-node status`.")
    terminal.console().print("The study stays without report.", highlight=False)


@app.command()
def version() -> None:
    """Print the version."""
    from pacs_node import __version__  # noqa: PLC0415

    terminal.console().print(f"pacs-node {__version__}", highlight=False)


def main() -> None:
    """Run the command; an error that the user can fix ends in one sentence and exit code 2."""
    from db.errors import DatabaseError  # noqa: PLC0415
    from pacs_node.errors import UserError  # noqa: PLC0415

    try:
        app()
    except (UserError, DatabaseError) as error:
        terminal.console(stderr=True, soft_wrap=True).print(f"pacs-node: {error}", style="red", markup=False)
        sys.exit(USER_ERROR)


def _configured(config: Path | None) -> Settings:
    from pacs_node import log  # noqa: PLC0415
    from pacs_node.config import load  # noqa: PLC0415

    settings = load(config)
    log.configure(settings.log)
    return settings


def _database(settings: Settings) -> Database:
    from db.session import Database  # noqa: PLC0415

    database = Database(settings.database.url)
    database.require_current()
    return database


def _moments(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """Return begin and end of a period, both relative to the same moment."""
    now = datetime.now(UTC)
    first, last = (None if text is None else moment(text, now) for text in (since, until))
    return first, last


def _names_of(peer: Peer, settings: Settings) -> list[str]:
    """Return the names of the destinations that have the AE title of a peer."""
    from pacs_node.errors import UserError  # noqa: PLC0415

    names = [one.name for one in settings.destinations if one.ae_title == peer.ae_title]
    if not names:
        raise UserError(f"No destination has the AE title {peer.ae_title}; add it to [[destinations]].")
    return names


def _reconciled(
    settings: Settings,
    peer: Peer,
    ours: str,
    days: tuple[date, date],
    *,
    fetching: Fetching | None,
    console: Console,
) -> Reconciliation:
    """Compare a PACS with the database, and fetch missing images if requested."""
    from rich.progress import track  # noqa: PLC0415

    from pacs_node.reconciling import query  # noqa: PLC0415
    from pacs_node.reconciling import reconcile as task  # noqa: PLC0415
    from pacs_node.reconciling.findings import FETCHABLE  # noqa: PLC0415
    from pacs_node.storage.spool import Spool  # noqa: PLC0415

    database, spool = _database(settings), Spool(settings.spool.path)
    bar = partial(track, console=console, transient=True)
    with query.open_finder(peer, ours) as finder:
        found = task.compare(finder, database, spool, days, bar)
    if fetching is None or not any(finding.missing in FETCHABLE for finding in found.findings):
        return found
    if fetching is Fetching.GET:
        retrieve = partial(query.get, peer, ours, _keeping(settings, database, spool))
    else:
        retrieve = partial(query.move, peer, ours, settings.node.ae_title)
    return task.fetch(found, retrieve, database, spool, bar)


def _keeping(settings: Settings, database: Database, spool: Spool) -> Services:
    """Return services that keep objects arriving by C-GET, in the same way as objects sent to the node."""
    from pacs_node.receiving.receiver import Receiver  # noqa: PLC0415
    from pacs_node.reconciling.reconcile import prepare  # noqa: PLC0415

    prepare(spool, database)
    return Receiver(settings, database, spool).storage_services()


def _print_rows(
    rows: Sequence[dict[str, Any]],
    columns: Sequence[str],
    output: OutputFormat,
    print_table: Callable[[Sequence[dict[str, Any]], Console], None],
) -> None:
    from pacs_node.terminal import tables  # noqa: PLC0415

    if output is OutputFormat.TABLE:
        print_table(rows, terminal.console())
    elif output is OutputFormat.CSV:
        tables.write_csv(rows, columns, sys.stdout)
    else:
        tables.write_json(rows, sys.stdout)


def _print_reconciliation(found: Reconciliation, output: OutputFormat, console: Console) -> None:
    """Print what is missing to standard output, and the rest to `console`."""
    from pacs_node.terminal import tables  # noqa: PLC0415

    if output is OutputFormat.TABLE:
        tables.print_reconciliation(found, terminal.console())
    elif output is OutputFormat.CSV:
        tables.write_findings_csv(found, sys.stdout)
    else:
        tables.write_json(tables.reconciliation_values(found), sys.stdout)
    notes = [] if output is OutputFormat.TABLE else [found.summary]
    notes += found.troubles
    if not found.is_complete:
        notes.append("Some answers of the PACS could not be read. More may be missing; see its log.")
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
