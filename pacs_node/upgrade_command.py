"""The command `pacs-node upgrade`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from classifier import terminal
from pacs_node.terminal.arguments import ConfigOption
from pacs_node.terminal.opening import configured

if TYPE_CHECKING:
    from db.session import Database
    from pacs_node.storage.spool import Spool

EXAMPLES = "Example:\n\npacs-node upgrade --config /etc/pacs-node/config.toml"


def upgrade(config: ConfigOption = None) -> None:
    """Bring the database to this version, and read from stored files what earlier versions did not record.

    `serve` does both too, the second little by little. Interrupted, the command goes on where it was.
    """
    from db.session import Database  # noqa: PLC0415
    from pacs_node.reporting.earlier_decisions import DecisionReader  # noqa: PLC0415
    from pacs_node.storage.spool import Spool  # noqa: PLC0415

    settings = configured(config)
    database = Database(settings.database.url)
    database.upgrade()
    decisions = DecisionReader(database).read_all()
    said = f"The database is of this version. {decisions} decisions were read from reports"
    read, left = _reread(database, Spool(settings.spool.path))
    said += f", {read} {'object' if read == 1 else 'objects'} from their files."
    console = terminal.console()
    console.print(said, highlight=False, soft_wrap=True)
    if left:
        said = f"{left} could not be read; `pacs-node status` says which files are missing."
        console.print(said, highlight=False, soft_wrap=True)


def _reread(database: Database, spool: Spool) -> tuple[int, int]:
    from rich.progress import Progress  # noqa: PLC0415

    from db import stock  # noqa: PLC0415
    from pacs_node.storage.rereading import reread  # noqa: PLC0415

    with database.read() as session:
        total = stock.how_many_unread(session)
    console = terminal.console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("Reading files", total=total)
        read = reread(database, spool, step=lambda number: bar.advance(task, number))
    return read, total - read
