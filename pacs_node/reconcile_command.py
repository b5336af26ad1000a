"""The command `pacs-node reconcile`."""

from __future__ import annotations

import sys
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from classifier import terminal
from pacs_node.network.peer import Peer
from pacs_node.terminal.arguments import ConfigOption, Fetching, OutputFormat, TlsOption
from pacs_node.terminal.opening import configured, moments, opened

if TYPE_CHECKING:
    from db.session import Database
    from pacs_node.config import Settings
    from pacs_node.network.dimse import Services
    from pacs_node.reconciling.findings import Reconciliation
    from pacs_node.storage.spool import Spool

EXAMPLES = (
    "Examples:\n\npacs-node reconcile --against PACS@10.0.0.5:104 --since 1d\n\n"
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
    tls: TlsOption = False,
    config: ConfigOption = None,
) -> None:
    """List chest radiographs of a PACS that were not received, scored or reported. Exit code 1 if there are
    any.
    """
    from pacs_node.reconciling.reconcile import period  # noqa: PLC0415
    from pacs_node.reconciling.reconcile import resend as send_again  # noqa: PLC0415

    settings = configured(config)
    days = period(*moments(since, until), datetime.now(UTC))
    console = terminal.console(stderr=True)
    ours = calling or settings.node.ae_title
    fetching, peer = by if fetch else None, Peer.parse(against, settings.tls if tls else None)
    names = _names_of(peer, settings) if resend else []
    found = _reconciled(settings, peer, ours, days, fetching=fetching, console=console)
    if resend:
        give_up_at = datetime.now(UTC) + timedelta(hours=settings.deliver.give_up_hours)
        found = send_again(found, opened(settings), names, give_up_at)
    _print_reconciliation(found, output, console)
    if found.failure is not None:
        raise found.failure
    sys.exit(0 if found.is_clean else 1)


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

    database, spool = opened(settings), Spool(settings.spool.path)
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
