"""The command `pacs-node`: serve, try out, ask, retry.

Imports stand inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from classifier import terminal
from pacs_node.listing_commands import (
    LEDGER_EXAMPLES,
    RESULTS_EXAMPLES,
    SCORES_EXAMPLES,
    STUDIES_EXAMPLES,
    ledger,
    results,
    scores,
    studies,
)
from pacs_node.network.peer import Peer
from pacs_node.open_command import EXAMPLES as OPEN_EXAMPLES
from pacs_node.open_command import open_page
from pacs_node.reconcile_command import EXAMPLES as RECONCILE_EXAMPLES
from pacs_node.reconcile_command import reconcile
from pacs_node.rescore_command import EXAMPLES as RESCORE_EXAMPLES
from pacs_node.rescore_command import rescore
from pacs_node.terminal.arguments import CallingOption, ConfigOption, StatusFormat, TlsOption
from pacs_node.terminal.opening import configured, opened
from pacs_node.token_command import tokens
from pacs_node.upgrade_command import EXAMPLES as UPGRADE_EXAMPLES
from pacs_node.upgrade_command import upgrade
from pacs_node.user_command import users
from pacs_node.verdict_command import EXAMPLES as VERDICT_EXAMPLES
from pacs_node.verdict_command import verdict

if TYPE_CHECKING:
    pass

USER_ERROR = 2
app = typer.Typer(
    help="Chest X-rays in by C-STORE, pneumonia scores in SQL, structured reports back. Research use only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _program(
    *,
    _version: Annotated[bool, terminal.version_option("pacs-node")] = False,
) -> None:
    pass


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
    sys.exit(run(configured(config), config, wanted))


@app.command(hidden=True)
def role(
    name: Annotated[str, typer.Argument(help="receive, score, deliver or web.")],
    *,
    config: ConfigOption = None,
    control: Annotated[int, typer.Option(help="File descriptor of the socket to the supervisor.")] = -1,
    number: Annotated[int, typer.Option(help="Number of this process among those of its role.")] = 0,
    listening: Annotated[int, typer.Option(help="File descriptor of the socket that receivers share.")] = -1,
    listening_tls: Annotated[int, typer.Option(help="The same, of the socket for TLS.")] = -1,
) -> None:
    """Run as one process of `serve`."""
    from pacs_node.network.server import Listening  # noqa: PLC0415
    from pacs_node.running.supervisor import run_role  # noqa: PLC0415

    numbers = (control, listening, listening_tls)
    control_socket, *shared = (None if fd < 0 else socket.socket(fileno=fd) for fd in numbers)
    run_role(configured(config), name, control_socket, number, Listening(*shared) if any(shared) else None)


@app.command(
    epilog="Examples:\n\npacs-node demo\n\npacs-node demo --images radiographs/   (DICOM, JPEG or PNG files)"
)
def demo(
    images: Annotated[
        Path | None, typer.Option(help="Folder with your own images instead of the drawn ones.")
    ] = None,
    into: Annotated[Path, typer.Option(help="Where to create the folder of this run.")] = Path("demo"),
    web: Annotated[bool, typer.Option("--web", help="Keep the reading list open, until Ctrl-C.")] = False,
) -> None:
    """Show the whole product at work on this machine in half a minute."""
    from pacs_node.demo.demo import run  # noqa: PLC0415

    sys.exit(run(images, into, keeps_page=web))


@app.command(epilog="Example:\n\npacs-node send study/ extra.dcm --to PACS_NODE@127.0.0.1:11112")
def send(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="DICOM files, or folders of DICOM files.")
    ],
    to: Annotated[str, typer.Option(metavar="AE@HOST:PORT", help="Where to send.")],
    *,
    calling: CallingOption = "PACS_NODE_SEND",
    tls: TlsOption = False,
    config: ConfigOption = None,
) -> None:
    """Send DICOM files unchanged by C-STORE. Exit code 1 if any file was not stored."""
    from rich.progress import track  # noqa: PLC0415

    from pacs_node.network import scu  # noqa: PLC0415

    files = scu.files_in(paths)
    peer = Peer.parse(to, configured(config).tls if tls else None)
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
    tls: TlsOption = False,
    config: ConfigOption = None,
) -> None:
    """Check by C-ECHO whether a DICOM peer answers."""
    from pacs_node.network import scu  # noqa: PLC0415

    scu.echo(Peer.parse(peer, configured(config).tls if tls else None), calling)
    terminal.console().print(f"{peer} is there.", highlight=False)


app.command(epilog=RESULTS_EXAMPLES)(results)
app.command(epilog=STUDIES_EXAMPLES)(studies)
app.command(epilog=SCORES_EXAMPLES)(scores)
app.command(epilog=LEDGER_EXAMPLES)(ledger)
app.command(epilog=RESCORE_EXAMPLES)(rescore)
app.command(epilog=UPGRADE_EXAMPLES)(upgrade)


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

    settings = configured(config)
    found = snapshot(settings, opened(settings), datetime.now(UTC), with_files=files)
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
    from pacs_node import orders  # noqa: PLC0415
    from pacs_node.errors import UserError  # noqa: PLC0415

    if failed == (study_uid is not None) or (resend and failed):
        raise UserError("Say what to retry: --failed for everything, or one STUDY_UID.")
    settings = configured(config)
    number = orders.retry(settings, opened(settings), study_uid, resend=resend)
    terminal.console().print(
        f"{number} {'job' if number == 1 else 'jobs'} will be tried again.", highlight=False
    )


app.command(epilog=RECONCILE_EXAMPLES)(reconcile)
app.command(epilog=VERDICT_EXAMPLES)(verdict)
app.command("open", epilog=OPEN_EXAMPLES)(open_page)
app.add_typer(users, name="user")
app.add_typer(tokens, name="token")


@app.command(epilog="Example:\n\npacs-node abandon OLD_PACS")
def abandon(
    destination: Annotated[str, typer.Argument(help=r"Its name, no longer in \[\[destinations]].")],
    config: ConfigOption = None,
) -> None:
    """Give up reports that wait for a destination that no longer exists. `retry` cannot bring them back."""
    from pacs_node import orders  # noqa: PLC0415

    settings = configured(config)
    number = orders.abandon(settings, opened(settings), destination)
    terminal.console().print(f"{number} {'report' if number == 1 else 'reports'} abandoned.", highlight=False)


@app.command(epilog="Example:\n\npacs-node dismiss 1.2.826.0.1.3680043.8.498.1")
def dismiss(
    study_uid: Annotated[str, typer.Argument(metavar="STUDY_UID", help="A study that `status` names.")],
    config: ConfigOption = None,
) -> None:
    """Let a study be without report whose images name different patients, until another image of it comes."""
    from pacs_node import orders  # noqa: PLC0415

    orders.dismiss(opened(configured(config)), study_uid)
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
