"""Measure a model on labelled images: numbers for scripts, pictures and one page for people."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import classification_report

from classifier.data import examples as data
from classifier.data.examples import CLASSES, Classes, Example
from classifier.data.images import require_none
from classifier.decoding.decode import decode
from classifier.errors import DataError
from classifier.measuring import page, plots
from classifier.measuring.as_node import Answer, answer, measure_answers
from classifier.measuring.baselines import baselines
from classifier.measuring.comparison import Comparison, compare
from classifier.measuring.fragility import fragility
from classifier.measuring.metrics import Measures, measure
from classifier.measuring.rows import as_node_rows, baseline_rows, fragility_rows, group_rows
from classifier.measuring.subgroups import subgroups
from classifier.model.card import ModelCard
from classifier.model.transforms import Resize
from classifier.outcome import Decision, Prediction
from classifier.scoring.predict import Predictor
from classifier.untrusted import cell

Numbers = NDArray[np.float64]

_BATCH = 32
_MOST_MISTAKES = 16
_THUMBNAIL = 256  # pixels
_AS_NODE = (
    "Undetermined images are no answers: this table counts them apart, the other measures of this page by"
    " their probability. Pictures have no tags; the age in a manifest counts as theirs."
)
_CHANGES = "Decisions that turn to the opposite when the image is changed a little; fewer than 1 % is good."
_BASELINES = (
    "AUROC of simple classifiers that see the border of the images alone, or the shares of their grey values,"
    " on patients held out. A model should be far better."
)


@dataclass(frozen=True)
class Evaluation:
    """The result; the arrays have one entry for each of `examples`."""

    examples: Sequence[Example]
    labels: Numbers
    probability: Numbers
    measures: Measures
    predictions: Sequence[Prediction]
    further: Further


@dataclass(frozen=True)
class Further:
    """What stands beside the measures.

    Attributes
    ----------
    answers, as_node
        What the node would answer for each image, and for all; see `measure_answers`.
    subgroups, baselines, fragility
        By column and group; of classifiers that see no lung; by change, if that was asked for.
    beside
        Comparison with a second model, by its name.
    """

    answers: Sequence[Answer]
    as_node: dict[str, Any]
    subgroups: dict[str, dict[str, dict[str, Any]]]
    baselines: dict[str, dict[str, Any]]
    fragility: dict[str, dict[str, Any]]
    beside: dict[str, Comparison]


def evaluate(
    predictor: Predictor,
    source: Path,
    out: Path,
    *,
    classes: Classes = CLASSES,
    split: str = "",
    beside: Predictor | None = None,
    changed: bool = False,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Evaluation:
    """Score labelled images and write metrics.json, plots, a report and a page into `out`.

    Parameters
    ----------
    predictor
        The model; one that is cautious answers as the node does.
    source
        Folder of classes or manifest; see `classifier.data.examples.load`.
    classes
        Names of the classes, in lower case.
    split
        Only the images of this split; empty for all.
    beside
        A second model, to be compared on the same images.
    changed
        Whether to measure how decisions change by what carries no meaning; takes eight times as long.
    skip_bad
        Leave out images that cannot be decoded; otherwise they are an error.
    progress
        Called with the number of images done and the total.

    Raises
    ------
    DataError
        If there is nothing to measure, or an image cannot be decoded.
    """
    out.mkdir(parents=True, exist_ok=True)
    listed = data.load(source, classes)
    examples = [example for example in listed if not split or example.split == split]
    _require_both(examples, f"The split {split!r} of {source}" if split else str(source))
    scored = list(_score(predictor, examples, progress))
    bad = {e.path: p.detail for e, p in scored if p.probability is None}
    if not skip_bad:
        require_none(bad)
    kept = [pair for pair in scored if pair[1].probability is not None]
    _require_both([example for example, _ in kept], f"Without the {len(bad)} that have no score, {source}")
    examples, predictions = [example for example, _ in kept], [prediction for _, prediction in kept]
    labels = np.array([example.label for example in examples], np.float64)
    probability = np.array([prediction.probability for prediction in predictions], np.float64)
    measures = measure(labels, probability, [e.patient for e in examples], predictor.card.threshold)
    further = _further(examples, predictions, probability, predictor.card)
    if beside is not None:
        further.beside[_named(beside.card)] = _compared(examples, labels, probability, beside)
    if changed:
        further.fragility.update(fragility(predictor, examples, progress))
    evaluation = Evaluation(examples, labels, probability, measures, predictions, further)
    _write(evaluation, predictor.card, source.name, out)
    return evaluation


def _further(
    examples: Sequence[Example], predictions: Sequence[Prediction], probability: Numbers, card: ModelCard
) -> Further:
    answers = [answer(e, p, card) for e, p in zip(examples, predictions, strict=True)]
    decided = [found.decision in (Decision.POSITIVE, Decision.NEGATIVE) for found in answers]
    return Further(
        answers,
        measure_answers(examples, answers),
        subgroups(examples, probability, decided, card.threshold),
        baselines(examples),
        {},
        {},
    )


def _compared(
    examples: Sequence[Example], labels: Numbers, probability: Numbers, other: Predictor
) -> Comparison:
    """Compare with another model on the images that it scores, too."""
    scored = list(_score(other, examples, lambda _done, _total: None))
    both = np.array([prediction.probability is not None for _, prediction in scored])
    others = np.array([p.probability for _, p in scored if p.probability is not None], np.float64)
    patients = [example.patient for example, is_there in zip(examples, both, strict=True) if is_there]
    return compare(labels[both], probability[both], others, patients)


def _named(card: ModelCard) -> str:
    return f"{card.name} {card.version}"


def _require_both(examples: Sequence[Example], what: str) -> None:
    if len({example.label for example in examples}) < 2:
        raise DataError(f"{what} lacks a class; evaluation needs both.")


def _score(
    predictor: Predictor, examples: Sequence[Example], progress: Callable[[int, int], None]
) -> Iterator[tuple[Example, Prediction]]:
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        yield from zip(batch, predictor.predict([example.path for example in batch]), strict=True)
        progress(start + len(batch), len(examples))


def _write_predictions(evaluation: Evaluation, path: Path) -> None:
    """Write a line for each image: what the model says, and what the node would answer."""
    columns = ("path", "label", "patient", "probability", "novelty", "decision", "reason")
    further = evaluation.further
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for e, p, found in zip(evaluation.examples, evaluation.predictions, further.answers, strict=True):
            values = (e.label, cell(e.patient), p.probability, p.novelty, found.decision, found.reason)
            writer.writerow((cell(str(e.path)), *values))


def _write(evaluation: Evaluation, card: ModelCard, source: str, out: Path) -> None:
    _write_metrics(evaluation, card, out / "metrics.json")
    _write_predictions(evaluation, out / "predictions.csv")
    report = _report(evaluation)
    (out / "report.txt").write_text(report, encoding="utf-8")
    labels, probability, measures = evaluation.labels, evaluation.probability, evaluation.measures
    further = evaluation.further
    figures = {
        "roc": plots.roc(labels, probability, measures),
        "precision_recall": plots.precision_recall(labels, probability, measures),
        "calibration": plots.calibration(labels, probability, measures),
        "confusion": plots.confusion(measures),
        "mistakes": _mistakes(evaluation),
    }
    if any(prediction.novelty is not None for prediction in evaluation.predictions):
        figures["novelty"] = _novelty(evaluation)
    for name, figure in figures.items():
        plots.save(figure, out / f"{name}.png")
    paths = [out / f"{name}.png" for name in figures]
    page.write(
        out / "index.html",
        f"{_named(card)} on {source}",
        f"{measures.n} images, SHA-256 of the model {card.sha256}. Research use only.",
        [
            page.Section("Measures", rows=_rows(measures), figures=paths[:4]),
            page.Section("As the node would answer", _AS_NODE, rows=as_node_rows(further.as_node)),
            page.Section("By class", preformatted=report),
            *(page.Section(f"By {name}", rows=group_rows(of)) for name, of in further.subgroups.items()),
            page.Section("Without a lung", _BASELINES, rows=baseline_rows(further.baselines)),
            *_changes(further),
            *(page.Section(f"Beside {name}", found.text) for name, found in further.beside.items()),
            page.Section("Known and unknown", rows=_doubts(evaluation, card), figures=paths[5:]),
            page.Section("Worst mistakes", "Wrong answers, the most certain first.", figures=paths[4:5]),
        ],
    )


def _changes(further: Further) -> list[page.Section]:
    rows = fragility_rows(further.fragility)
    return [page.Section("Changes without a meaning", _CHANGES, rows=rows)] if rows else []


def _write_metrics(evaluation: Evaluation, card: ModelCard, path: Path) -> None:
    content = evaluation.measures.as_dict()
    content["model"] = {"name": card.name, "version": card.version, "sha256": card.sha256}
    content |= {name: value for name, value in asdict(evaluation.further).items() if name != "answers"}
    content["per_file"] = [
        {"path": str(example.path), "label": example.label, "probability": probability}
        for example, probability in zip(evaluation.examples, evaluation.probability.tolist(), strict=True)
    ]
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _report(evaluation: Evaluation) -> str:
    positive = evaluation.probability >= evaluation.measures.threshold
    text: str = classification_report(
        evaluation.labels, positive, target_names=["normal", "pneumonia"], digits=4, zero_division=0
    )
    return text


def _rows(measures: Measures) -> dict[str, str]:
    low, high = measures.auroc_ci95
    rows = {
        "Images": f"{measures.n}, {measures.n_positive} with pneumonia",
        "AUROC": f"{measures.auroc:.4f} (95 % interval {low:.4f} to {high:.4f}, bootstrap of patients)",
        "Threshold": f"{measures.threshold:g}",
    }
    for name in ("sensitivity", "specificity", "precision", "npv", "f1", "accuracy", "balanced_accuracy"):
        value = getattr(measures, name)
        title = "NPV" if name == "npv" else name.replace("_", " ").capitalize()
        rows[title] = "undefined" if value is None else f"{value:.4f}"
    rows["Average precision"] = f"{measures.average_precision:.4f}"
    rows["Brier score"] = f"{measures.brier:.4f}"
    rows["Expected calibration error"] = f"{measures.ece:.4f}"
    return rows


def _doubts(evaluation: Evaluation, card: ModelCard) -> dict[str, str]:
    """Return how many images the node would answer with "undetermined"; the measures above count them all."""
    known = [p.novelty for p in evaluation.predictions if p.novelty is not None]
    ages = [p.age for p in evaluation.predictions if p.age is not None]
    rows = {"Ages known": f"{len(ages)} of {len(evaluation.predictions)}"}
    if card.ages is not None:
        youngest, oldest = card.ages
        others = sum(not youngest <= int(age) <= oldest for age in ages)
        rows[f"Not of the training population's {youngest} to {oldest} years"] = str(others)
    if card.band:
        close = (np.abs(evaluation.probability - card.threshold) < card.band).sum()
        rows[f"Nearer than {card.band:g} to the threshold"] = str(close)
    beyond = f"{sum(n > 1 for n in known)} of {len(known)}" if known else "the model has no measure for it"
    return rows | {"Unlike the training images": beyond}


def _novelty(evaluation: Evaluation) -> Figure:
    values = {
        name: np.array(
            [
                p.novelty
                for e, p in zip(evaluation.examples, evaluation.predictions, strict=True)
                if e.label == label and p.novelty is not None
            ],
            np.float64,
        )
        for label, name in enumerate(("normal", "pneumonia"))
    }
    return plots.histogram(values, "Distance from the training images", "1 is the limit of the model")


def _mistakes(evaluation: Evaluation) -> Figure:
    """Draw the wrongly answered images that are furthest from the threshold."""
    wrong = [
        (example, probability)
        for example, probability in zip(evaluation.examples, evaluation.probability.tolist(), strict=True)
        if (probability >= evaluation.measures.threshold) != (example.label == 1)
    ]
    wrong.sort(key=lambda pair: -abs(pair[1] - pair[0].label))
    shown = wrong[:_MOST_MISTAKES]
    images = [Resize(_THUMBNAIL)(decode(example.path))[0].numpy() for example, _ in shown]
    truth = ("normal", "pneumonia")
    titles = [f"{e.path.name[:28]}\n{truth[e.label]}, answer {p:.4f}" for e, p in shown]
    return plots.grid(images, titles)
