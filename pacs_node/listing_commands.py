"""The commands `results`, `studies`, `scores` and `ledger`: rows of the views for people and programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from classifier import terminal
from pacs_node.terminal.arguments import (
    BomOption,
    ConfigOption,
    DecisionFilter,
    DeidentifyOption,
    DeliveryState,
    EverythingOption,
    KeyOption,
    LimitOption,
    OutOption,
    RowFormat,
    StudyDecision,
    study_dates,
)
from pacs_node.terminal.opening import configured, moments, opened

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from db.listings import Listing
    from db.results import Filter

SHOWN = 100
"""Rows of a table for people."""

MOST_COUNTED = 100_000
"""Rows that are counted to say how many there are."""

RESULTS_EXAMPLES = (
    "Examples:\n\npacs-node results --since 2d --decision positive\n\n"
    "pacs-node results --patient 'DOE^*' --format csv > doe.csv\n\n"
    "pacs-node results --since 30d --deidentify --key study.key --format parquet --out november.parquet"
)
STUDIES_EXAMPLES = (
    "Examples:\n\npacs-node studies --since 1d\n\n"
    "pacs-node studies --decision positive --format csv > positive.csv"
)
SCORES_EXAMPLES = (
    "Examples:\n\npacs-node scores --study 1.2.826.0.1.3680043.8.498.1\n\n"
    "pacs-node scores --format csv > scores.csv    (to compare models)"
)
LEDGER_EXAMPLES = (
    "Examples:\n\npacs-node ledger --study 1.2.826.0.1.3680043.8.498.1\n\n"
    "pacs-node ledger --since 7d --state failed\n\npacs-node ledger --format csv > ledger.csv"
)

_Row = dict[str, Any]
_PatientOption = Annotated[
    str | None, typer.Option(help="Patient ID or name in full, upper or lower case; * matches anything.")
]
_AccessionOption = Annotated[str | None, typer.Option(help="Accession number.")]
_StudyOption = Annotated[str | None, typer.Option(help="Study Instance UID.")]
_DateOption = Annotated[
    str | None, typer.Option(help="Study date (ISO 8601), or first and last date separated by /.")
]
_SinceOption = Annotated[
    str | None, typer.Option(help="Received since a date or time (ISO 8601), or an age: 30m, 2h, 7d.")
]
_UntilOption = Annotated[str | None, typer.Option(help="Received before; same format as --since.")]
_ProbabilityOption = Annotated[float | None, typer.Option(min=0, max=1, help="Lowest probability.")]
_FormatOption = Annotated[
    RowFormat, typer.Option("--format", help="For people, spreadsheets, scripts or data frames.")
]


def results(
    *,
    patient: _PatientOption = None,
    accession: _AccessionOption = None,
    study: _StudyOption = None,
    study_date: _DateOption = None,
    since: _SinceOption = None,
    until: _UntilOption = None,
    decision: Annotated[DecisionFilter | None, typer.Option(help="Only these.")] = None,
    min_probability: _ProbabilityOption = None,
    everything: EverythingOption = False,
    limit: LimitOption = None,
    output: _FormatOption = RowFormat.TABLE,
    out: OutOption = None,
    bom: BomOption = False,
    deidentify: DeidentifyOption = False,
    key: KeyOption = None,
    config: ConfigOption = None,
) -> None:
    """List results from the database, newest first. Any SQL tool can read them too, in the view `results`."""
    from db import listings  # noqa: PLC0415
    from db import results as asked  # noqa: PLC0415
    from pacs_node.terminal import tables  # noqa: PLC0415

    target = _Target(output, out, bom, deidentify, key)
    wanted = replace(
        _filter(patient, accession, study, since, until, study_date=study_date),
        decision=decision,
        min_probability=min_probability,
        with_results=everything,
        limit=limit,
    )
    view = _View(listings.RESULTS, asked.each_result, asked.how_many_results, tables.print_results, "images")
    _list(view, wanted, target, config)


def studies(
    *,
    patient: _PatientOption = None,
    accession: _AccessionOption = None,
    study: _StudyOption = None,
    study_date: _DateOption = None,
    since: Annotated[
        str | None, typer.Option(help="With an image received since; same format as for `results`.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Whose last image was received before.")] = None,
    decision: Annotated[
        StudyDecision | None, typer.Option(help="Only these; waiting: no report yet.")
    ] = None,
    min_probability: _ProbabilityOption = None,
    everything: EverythingOption = False,
    limit: LimitOption = None,
    output: _FormatOption = RowFormat.TABLE,
    out: OutOption = None,
    bom: BomOption = False,
    deidentify: DeidentifyOption = False,
    key: KeyOption = None,
    config: ConfigOption = None,
) -> None:
    """List studies with the answer that their newest report gives, newest first; the view `studies`."""
    from db import listings  # noqa: PLC0415
    from pacs_node.terminal import tables  # noqa: PLC0415

    target = _Target(output, out, bom, deidentify, key)
    wanted = replace(
        _filter(patient, accession, study, since, until, study_date=study_date),
        decision=decision,
        min_probability=min_probability,
        with_results=everything,
        limit=limit,
    )
    _list(_of(listings.STUDIES, tables.print_studies, "studies"), wanted, target, config)


def scores(
    *,
    patient: _PatientOption = None,
    accession: _AccessionOption = None,
    study: _StudyOption = None,
    since: _SinceOption = None,
    until: _UntilOption = None,
    decision: Annotated[DecisionFilter | None, typer.Option(help="Only these.")] = None,
    min_probability: _ProbabilityOption = None,
    everything: EverythingOption = False,
    limit: LimitOption = None,
    output: _FormatOption = RowFormat.TABLE,
    out: OutOption = None,
    bom: BomOption = False,
    deidentify: DeidentifyOption = False,
    key: KeyOption = None,
    config: ConfigOption = None,
) -> None:
    """List every score that any model gave, also those of `rescore`; the view `scores`."""
    from db import listings  # noqa: PLC0415
    from pacs_node.terminal import tables  # noqa: PLC0415

    target = _Target(output, out, bom, deidentify, key)
    wanted = replace(
        _filter(patient, accession, study, since, until),
        decision=decision,
        min_probability=min_probability,
        with_results=everything,
        limit=limit,
    )
    _list(_of(listings.SCORES, tables.print_scores, "scores"), wanted, target, config)


def ledger(
    *,
    study: _StudyOption = None,
    patient: _PatientOption = None,
    accession: _AccessionOption = None,
    since: _SinceOption = None,
    until: _UntilOption = None,
    state: Annotated[DeliveryState | None, typer.Option(help="Only deliveries in this state.")] = None,
    everything: EverythingOption = False,
    limit: LimitOption = None,
    output: _FormatOption = RowFormat.TABLE,
    out: OutOption = None,
    bom: BomOption = False,
    deidentify: DeidentifyOption = False,
    key: KeyOption = None,
    config: ConfigOption = None,
) -> None:
    """Account for each received image: its score, its report, and what each destination answered and when."""
    from db import listings  # noqa: PLC0415
    from db import results as asked  # noqa: PLC0415
    from pacs_node.terminal import tables  # noqa: PLC0415

    target = _Target(output, out, bom, deidentify, key)
    wanted = replace(
        _filter(patient, accession, study, since, until),
        state=state,
        with_results=everything,
        limit=limit,
    )
    view = _of(listings.LEDGER, tables.print_ledger, "rows")
    _list(replace(view, each=asked.each_of_ledger), wanted, target, config)


@dataclass(frozen=True)
class _Target:
    """Where rows go, and in which form.

    Raises
    ------
    UserError
        If the options do not fit together.
    """

    format: RowFormat
    out: Path | None
    bom: bool
    is_deidentified: bool
    key: Path | None

    def __post_init__(self) -> None:
        from pacs_node.errors import UserError  # noqa: PLC0415

        if self.format is RowFormat.PARQUET and self.out is None:
            raise UserError("Parquet is no text: say where it goes, with --out FILE.")
        if self.format is RowFormat.TABLE and self.out is not None:
            raise UserError("Say in which form --out is written: --format csv, json or parquet.")
        if self.key is not None and not self.is_deidentified:
            raise UserError("A --key is used with --deidentify alone.")

    def write(self, rows: Iterable[_Row], columns: Sequence[str]) -> None:
        """Write CSV, JSON or Parquet."""
        from pacs_node.terminal.files import parquet_writer, written_whole  # noqa: PLC0415

        if self.out is None:
            self._write_text(rows, columns, sys.stdout)
            return
        parquet = parquet_writer() if self.format is RowFormat.PARQUET else None
        with written_whole(self.out) as path:
            if parquet is not None:
                parquet(rows, columns, path)
                return
            with path.open("w", encoding="utf-8", newline="") as file:
                self._write_text(rows, columns, file)

    def _write_text(self, rows: Iterable[_Row], columns: Sequence[str], file: Any) -> None:
        from pacs_node.terminal import tables  # noqa: PLC0415

        if self.format is RowFormat.CSV:
            tables.write_csv(rows, columns, file, bom=self.bom)
        else:
            tables.write_json_rows(rows, file)

    def without_identity(self) -> Callable[[Iterable[_Row]], Iterable[_Row]]:
        """Return what replaces identifiers, if that is wanted."""
        from pacs_node.terminal.deidentify import Deidentifier, fresh_key, key_of  # noqa: PLC0415

        if not self.is_deidentified:
            return lambda rows: rows
        if self.key is None:
            said = "The pseudonyms are those of this output alone; --key FILE keeps them from run to run."
            terminal.console(stderr=True).print(said, highlight=False)
        return Deidentifier(fresh_key() if self.key is None else key_of(self.key)).rows


@dataclass(frozen=True)
class _View:
    """One view, how its rows are read and counted, and how people see them."""

    listing: Listing
    each: Callable[[Session, Filter], Iterator[_Row]]
    how_many: Callable[[Session, Filter, int], int]
    show: Callable[[Sequence[_Row], Any], None]
    what: str


def _of(listing: Listing, show: Callable[[Sequence[_Row], Any], None], what: str) -> _View:
    from db import listings  # noqa: PLC0415

    return _View(
        listing,
        lambda session, wanted: listings.rows(session, listing, wanted),
        lambda session, wanted, most: listings.how_many(session, listing, wanted, most),
        show,
        what,
    )


def _list(view: _View, wanted: Filter, target: _Target, config: Path | None) -> None:
    with opened(configured(config)).read() as session:
        hide = target.without_identity()
        if target.format is not RowFormat.TABLE:
            target.write(hide(_rows(session, view, wanted, target)), view.listing.columns)
            return
        most = wanted.limit or SHOWN
        rows = list(hide(_rows(session, view, replace(wanted, limit=most), target)))
        total = len(rows) if len(rows) < most else view.how_many(session, wanted, MOST_COUNTED)
    view.show(rows, terminal.console())
    if total > len(rows):
        more = "or more " if total == MOST_COUNTED else ""
        said = f"{len(rows)} of {total} {more}{view.what}; --limit shows more, --format csv or json has all."
        terminal.console(stderr=True).print(said, highlight=False)


def _rows(session: Session, view: _View, wanted: Filter, target: _Target) -> Iterator[_Row]:
    """Return rows, the newest first; where they shall tell nothing of whose they are, in no order."""
    from db import listings  # noqa: PLC0415

    if target.is_deidentified:
        return listings.rows(session, view.listing, wanted, is_shuffled=True)
    return view.each(session, wanted)


def _filter(
    patient: str | None,
    accession: str | None,
    study: str | None,
    since: str | None,
    until: str | None,
    *,
    study_date: str | None = None,
) -> Filter:
    from db.results import Filter  # noqa: PLC0415

    since_, until_ = moments(since, until)
    return Filter(
        patient=patient,
        accession=accession,
        study=study,
        study_dates=None if study_date is None else study_dates(study_date),
        since=since_,
        until=until_,
    )
