"""The command `pacs-node verdict`."""

from __future__ import annotations

import csv
import getpass
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from classifier import terminal
from pacs_node.terminal.arguments import ConfigOption
from pacs_node.terminal.opening import configured, opened

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

EXAMPLES = (
    "Examples:\n\npacs-node verdict 1.2.826.0.1.3680043.8.498.1 --label pneumonia\n\n"
    "pacs-node verdict 1.2.826.0.1.3680043.8.498.1 --image 1.2.826.0.1.3680043.8.498.2 --label unreadable\n\n"
    "pacs-node verdict --csv verdicts.csv    (columns: study_instance_uid, sop_instance_uid, label, comment, "
    "person, score_was_visible)"
)
_COLUMNS = ("study_instance_uid", "sop_instance_uid", "label", "comment", "person", "score_was_visible")
_YES, _NO = ("1", "true", "yes", "t"), ("0", "false", "no", "f")


@dataclass(frozen=True)
class _Said:
    """One verdict as a person wrote it; `where` is its place in a file."""

    study: str
    image: str
    label: str
    comment: str
    person: str
    visible: bool
    where: str = ""


def verdict(
    study_uid: Annotated[
        str | None, typer.Argument(metavar="STUDY_UID", help="The study, if there is no --csv.")
    ] = None,
    *,
    image: Annotated[
        str | None,
        typer.Option(metavar="UID", help="SOP Instance UID; needed if the study has several images."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="agree, pneumonia, no_pneumonia or unreadable.")] = None,
    comment: Annotated[str, typer.Option(help="Anything, at most 4000 characters.")] = "",
    blind: Annotated[bool, typer.Option("--blind", help="The person had not seen the score.")] = False,
    person: Annotated[
        str | None, typer.Option(help="Who says so; by default the user of this command.")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="A file with one verdict a line: all of them, or none.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Record what a person says of an image. The last verdict of an image counts; all stay."""
    from pacs_node.errors import UserError  # noqa: PLC0415

    who = person or getpass.getuser()
    if csv_file is not None and study_uid is None and label is None:
        said = [*_read(csv_file, who, visible=not blind)]
    elif csv_file is None and study_uid is not None and label is not None:
        said = [_Said(study_uid, image or "", label, comment, who, not blind)]
    else:
        raise UserError("Say what is meant: STUDY_UID with --label, or --csv FILE.")
    database = opened(configured(config))
    with database.write() as session:
        for one in said:
            _give(session, one)
    number = len(said)
    terminal.console().print(
        f"{number} {'verdict' if number == 1 else 'verdicts'} recorded.", highlight=False
    )


def _give(session: Session, said: _Said) -> None:
    from db import audit, reading_list, verdicts  # noqa: PLC0415
    from pacs_node.errors import UserError  # noqa: PLC0415

    study = reading_list.study(session, said.study)
    if study is None:
        raise UserError(f"{said.where}There is no study {said.study}.")
    images = [one for one in study.images if said.image in ("", one.sop_instance_uid)]
    if not images:
        raise UserError(f"{said.where}Study {said.study} has no image {said.image}.")
    if len(images) > 1:
        several = ", ".join(one.sop_instance_uid for one in images[:5])
        raise UserError(
            f"{said.where}Study {said.study} has several images; choose one by --image: {several}."
        )
    if not verdicts.fits(said.label, images[0].decision):
        raise UserError(
            f"{said.where}{said.label!r} is no verdict on this image; use "
            f"{', '.join(verdicts.LABELS)}, and agree only where the answer is positive or negative."
        )
    now = datetime.now(UTC)
    verdicts.give(
        session,
        images[0].id,
        said.label,
        said.comment,
        person=said.person,
        at=now,
        score_was_visible=said.visible,
    )
    audit.record(
        session,
        "verdict given",
        person=said.person,
        address="console",
        at=now,
        study_id=study.id,
        detail=said.label,
    )


def _read(file: Path, person: str, *, visible: bool) -> Iterator[_Said]:
    """Yield the verdicts of a CSV file; UTF-8, with or without byte order mark."""
    from pacs_node.errors import UserError  # noqa: PLC0415

    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {file}: {error}; write it as CSV in UTF-8.") from error
    rows = csv.DictReader(lines)
    names = rows.fieldnames or []
    if unknown := sorted(set(names) - set(_COLUMNS)):
        raise UserError(f"{file} has a column {unknown[0]!r}; use {', '.join(_COLUMNS)}.")
    _require(file, names)
    for row in rows:
        where = f"{file}, line {rows.line_num}: "
        yield _line(row, where, person, visible=visible)


def _require(file: Path, names: Sequence[str]) -> None:
    from pacs_node.errors import UserError  # noqa: PLC0415

    for name in ("study_instance_uid", "label"):
        if name not in names:
            raise UserError(f"{file} has no column {name}; its first line names the columns.")


def _line(row: Mapping[str | None, str | None], where: str, person: str, *, visible: bool) -> _Said:
    from pacs_node.errors import UserError  # noqa: PLC0415

    found = {name: (row.get(name) or "").strip() for name in _COLUMNS}
    seen = found["score_was_visible"].lower()
    if None in row or seen not in ("", *_YES, *_NO):
        raise UserError(f"{where}it has too many columns, or score_was_visible is not 1 or 0.")
    return _Said(
        study=found["study_instance_uid"],
        image=found["sop_instance_uid"],
        label=found["label"],
        comment=found["comment"][:4000],
        person=(found["person"] or person)[:64],
        visible=visible if not seen else seen in _YES,
        where=where,
    )
