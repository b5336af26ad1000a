"""The command `pacs-node rescore`."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from classifier import terminal
from pacs_node.terminal.arguments import ConfigOption
from pacs_node.terminal.opening import configured, moments, opened

if TYPE_CHECKING:
    from db.rescores import Ordered
    from db.rows import StoredModel
    from db.session import Database

EXAMPLES = (
    "Examples:\n\npacs-node rescore --since 30d\n\npacs-node rescore --study 1.2.826.0.1.3680043.8.498.1\n\n"
    "pacs-node rescore --all\n\npacs-node scores --format csv > scores.csv    (what came of it)"
)


def rescore(
    *,
    study: Annotated[str | None, typer.Option(help="Only images of this study, by its UID.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only images received since; same format as for `results`.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All images whose files are still here.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Score nothing more of what was ordered.")] = False,
    config: ConfigOption = None,
) -> None:
    """Score images again with the configured model, for comparison: no report and no result changes.

    The running node does it when no new image waits. The view and the command `scores` show what came of it.
    """
    from pacs_node.errors import UserError  # noqa: PLC0415

    if [study is not None, since is not None, everything, cancel].count(True) != 1:
        raise UserError("Say which images: --study UID, --since DATE or --all; or --cancel.")
    settings = configured(config)
    database = opened(settings)
    console = terminal.console()
    if cancel:
        console.print(f"{_cancelled(database)} will not be scored again.", highlight=False)
        return
    sha256 = _digest(settings.classifier.model)
    since_, _ = moments(since, None)
    ordered = _order(database, study, since_, sha256)
    loaded = _loaded(database, sha256)
    model = f"{loaded.name} {loaded.version}" if loaded else f"the model {sha256[:16]}"
    said = f"{_images(ordered.images)} will be scored again by {model}."
    console.print(said, highlight=False, markup=False, soft_wrap=True)
    if ordered.already:
        console.print(f"{_images(ordered.already)} already have a score of this model.", highlight=False)
    if ordered.removed:
        console.print(f"{_images(ordered.removed)} have no file any more.", highlight=False)
    if ordered.images and loaded is None:
        said = "The node has not loaded this model yet: restart it, then the scores come."
        console.print(said, highlight=False, style="yellow", soft_wrap=True)


def _order(database: Database, study: str | None, since: datetime | None, sha256: str) -> Ordered:
    """Order the images in many short transactions; who is interrupted gives the order once more."""
    from rich.progress import track  # noqa: PLC0415

    from db import rescores, status  # noqa: PLC0415
    from pacs_node.errors import UserError  # noqa: PLC0415

    with database.read() as session:
        if study is not None and not status.study_exists(session, study):
            raise UserError(f"There is no study {study}; `pacs-node studies` lists studies.")
        batches = list(rescores.batches(session))
    total = rescores.Ordered()
    wanted = rescores.Wanted(study=study, since=since)
    console = terminal.console(stderr=True)
    for batch in track(batches, "Ordering", console=console, transient=True, disable=not console.is_terminal):
        with database.write() as session:
            total += rescores.order(session, wanted, sha256, batch)
    return total


def _cancelled(database: Database) -> str:
    from db import rescores  # noqa: PLC0415

    with database.write() as session:
        return _images(rescores.cancel(session))


def _images(number: int) -> str:
    return f"{number} {'image' if number == 1 else 'images'}"


def _digest(model: Path | None) -> str:
    """Return the SHA-256 of the configured checkpoint, by which the scoring process knows it too."""
    from classifier.config import SHIPPED_MODEL  # noqa: PLC0415
    from pacs_node.errors import UserError  # noqa: PLC0415

    path = model or SHIPPED_MODEL
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        said = (
            f"Cannot read the model {path}: {error.strerror}; give this command on the machine that scores."
        )
        raise UserError(said) from error


def _loaded(database: Database, sha256: str) -> StoredModel | None:
    """Return the model if it is the one that the node loaded last."""
    from db import queries  # noqa: PLC0415

    with database.read() as session:
        model = queries.newest_model(session)
    return model if model and model.sha256 == sha256 else None
