"""The command `classifier predict`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import track
from rich.table import Column, Table
from rich.text import Text

from classifier import terminal
from classifier import threads as processors
from classifier.arguments import AgeRule, ModelArgument, ThreadsOption, model_path
from classifier.config import Eligibility, Unknown
from classifier.data.files import candidates, printable
from classifier.data.patients import known_of
from classifier.errors import ClassifierError
from classifier.outcome import Decision, Prediction
from classifier.reasons import Reason
from classifier.untrusted import cell, print_json
from classifier.untrusted import printable as readable

if TYPE_CHECKING:
    from classifier.scoring.predict import Predictor

_BATCH = 16
_COLOURS = {Decision.POSITIVE: "red", Decision.NEGATIVE: "green", Decision.UNDETERMINED: "yellow"}
_CSV_COLUMNS = ("file", "patient", "age", "view", "probability", "novelty", "decision", "reason", "detail")

Results = Sequence[tuple[Path, Prediction]]


class PredictionFormat(StrEnum):
    """How predictions are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class Rule(StrEnum):
    """What to do if the tags do not answer a question."""

    REFUSE = "refuse"
    SCORE = "score"


class Doubt(StrEnum):
    """What to do with an image unlike the training images."""

    UNDETERMINED = "undetermined"
    DECIDE = "decide"


def predict(
    model: ModelArgument,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="DICOM, JPEG or PNG files; folders are searched with their subfolders."
        ),
    ],
    *,
    output: Annotated[
        PredictionFormat, typer.Option("--format", help="A table to read, JSON or CSV to process.")
    ] = PredictionFormat.TABLE,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: ThreadsOption = 0,
    unknown_body_part: Annotated[
        Rule, typer.Option(help="Images whose tags state no body part.")
    ] = Rule.REFUSE,
    unknown_view: Annotated[Rule, typer.Option(help="Images whose tags state no view.")] = Rule.REFUSE,
    unlike_training: Annotated[
        Doubt, typer.Option(help="Images unlike the training images, or of patients of another age.")
    ] = Doubt.UNDETERMINED,
    unknown_age: Annotated[
        AgeRule,
        typer.Option(help="Pictures, and images whose tags tell no age, if the model is for some ages."),
    ] = AgeRule.UNDETERMINED,
    heatmap: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a picture of each positive or undetermined image under its activation map."
        ),
    ] = None,
) -> None:
    """Score images for pneumonia."""
    found = list(_find(files))
    from classifier.scoring.predict import Predictor  # noqa: PLC0415 - a wrong path is told before torch is loaded

    processors.use(threads)
    rules = Eligibility(_unknown(unknown_body_part), _unknown(unknown_view))
    cautious = unlike_training is Doubt.UNDETERMINED
    predictor = Predictor.load(
        model_path(model), device, rules, cautious=cautious, unknown_age=unknown_age.value
    )
    results = list(zip(found, _predict_in_batches(predictor, found), strict=True))
    _PRINTERS[output](results)
    _tell_of_ages(predictor, [prediction for _, prediction in results])
    if heatmap is not None:
        from classifier.measuring.heat_map import write_heat_maps  # noqa: PLC0415

        number = write_heat_maps(results, heatmap)
        terminal.console(stderr=True).print(f"{number} heat maps in {heatmap}", soft_wrap=True, markup=False)


def _unknown(rule: Rule) -> Unknown:
    return "score" if rule is Rule.SCORE else "refuse"


def _find(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield files, and possible images in folders, in a stable order."""
    for path in paths:
        if path.is_dir():
            yield from _find_in(path)
        elif path.is_file():
            yield path
        else:
            raise ClassifierError(f"There is no file {path}; check the path.")


def _find_in(folder: Path) -> Iterator[Path]:
    found = candidates(folder)
    if not found:
        raise ClassifierError(f"There is no DICOM, JPEG or PNG file in {folder}; name another folder.")
    yield from found


def _predict_in_batches(predictor: Predictor, files: Sequence[Path]) -> Iterator[Prediction]:
    batches = [files[i : i + _BATCH] for i in range(0, len(files), _BATCH)]
    is_quiet = len(batches) < 2
    for batch in track(
        batches, "Scoring", console=terminal.console(stderr=True), transient=True, disable=is_quiet
    ):
        yield from predictor.predict(batch)


def _tell_of_ages(predictor: Predictor, predictions: Sequence[Prediction]) -> None:
    """Say what to do if images have no decision because their age is unknown."""
    number = sum(prediction.reason is Reason.UNKNOWN_AGE for prediction in predictions)
    if number and predictor.card.ages is not None:
        youngest, oldest = predictor.card.ages
        what = "Of 1 image the age is" if number == 1 else f"Of {number} images the age is"
        terminal.console(stderr=True, highlight=False).print(
            f"{what} not known, and the model is for {youngest} to {oldest} years. If all patients are of"
            " these ages, add --unknown-age decide."
        )


def _print_json(results: Results) -> None:
    print_json([{"file": str(file), **_plain(prediction)} for file, prediction in results])


def _plain(prediction: Prediction) -> dict[str, Any]:
    values = asdict(prediction)
    del values["heat_map"]
    return values


def _print_csv(results: Results) -> None:
    """Write a line for each image; the patient is the one that the file itself tells."""
    writer = csv.DictWriter(sys.stdout, _CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_csv_row, results))


def _csv_row(result: tuple[Path, Prediction]) -> Mapping[str, Any]:
    file, prediction = result
    known = known_of(file)
    patient = known.patient if known.rule in ("DICOM", "known name") else ""
    row = {"file": printable(file), "patient": patient, **_plain(prediction)}
    return {name: cell(value) for name, value in row.items()}


def _print_table(results: Results) -> None:
    terminal.console().print(_results_table(results))


_PRINTERS = {
    PredictionFormat.TABLE: _print_table,
    PredictionFormat.JSON: _print_json,
    PredictionFormat.CSV: _print_csv,
}


def _results_table(results: Results) -> Table:
    table = Table(Column("File", overflow="fold"), "View", "Probability", "Novelty", "Decision", "Reason")
    for file, prediction in results:
        cells = map(
            Text, (readable(printable(file)), *_cells(prediction))
        )  # Text: brackets are no markup here
        table.add_row(*cells, style=_COLOURS.get(prediction.decision, "dim"))
    return table


def _cells(prediction: Prediction) -> tuple[str, ...]:
    probability = "" if prediction.probability is None else f"{prediction.probability:.4f}"
    novelty = "" if prediction.novelty is None else f"{prediction.novelty:.2f}"
    reason = f"{prediction.reason.meaning}. {prediction.detail}" if prediction.reason else prediction.detail
    decision = prediction.decision.replace("_", " ")
    return prediction.view or "", probability, novelty, decision, readable(reason)
