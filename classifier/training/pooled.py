"""What the models of several folds say together: each image is judged by the model that has not seen it."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from classifier.measuring import page
from classifier.measuring.metrics import auroc, calibration_error, interval, share_interval
from classifier.training.calibrate import choose_threshold
from classifier.training.run_folder import VALIDATION_FILE

Numbers = NDArray[np.float64]
POOLED_FILE = "pooled.json"


class _Fold(NamedTuple):
    """The validation images of one fold, (N,) each."""

    labels: Numbers
    probability: Numbers
    patients: list[str]


def pool(out: Path, folders: Sequence[Path], sensitivity: float) -> dict[str, Any]:
    """Measure the folds together; write pooled.json and a page into `out`.

    Parameters
    ----------
    sensitivity
        Wanted; the threshold of each fold is chosen on the images of the others, so that it is measured on
        patients that it does not know.
    """
    folds = [_read(folder / VALIDATION_FILE) for folder in folders]
    labels = np.concatenate([fold.labels for fold in folds])
    probability = np.concatenate([fold.probability for fold in folds])
    patients = [patient for fold in folds for patient in fold.patients]
    thresholds = [_threshold_of_others(folds, number, sensitivity) for number in range(len(folds))]
    positive = np.concatenate([f.probability >= t for f, t in zip(folds, thresholds, strict=True)])
    each = [auroc(fold.labels, fold.probability) for fold in folds]
    found = {
        "folds": len(folds),
        "n": len(labels),
        "n_positive": int(labels.sum()),
        "patients": len(set(patients)),
        "auroc": auroc(labels, probability),
        "auroc_ci95": interval(labels, probability, patients, auroc),
        "auroc_of_each": each,
        "auroc_deviation": float(np.std(each, ddof=1)),
        "ece": calibration_error(labels, probability),
        "thresholds": thresholds,
        **_shares(labels, positive, patients),
    }
    (out / POOLED_FILE).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    _write_page(out, found)
    return found


def told(found: dict[str, Any]) -> list[str]:
    """Return the figures in lines."""
    low, high = found["auroc_ci95"]
    lines = [
        f"{found['folds']} folds, {found['n']} images of {found['patients']} patients, each judged by a model"
        " that has not seen the patient:",
        f"  AUROC {found['auroc']:.4f} (95 % interval {low:.4f} to {high:.4f}),"
        f" of each fold {', '.join(f'{value:.4f}' for value in found['auroc_of_each'])}",
    ]
    for name in ("sensitivity", "specificity"):
        low, high = found[f"{name}_ci95"]
        lines.append(f"  {name} {found[name]:.4f} (95 % interval {low:.4f} to {high:.4f})")
    return lines


def _threshold_of_others(folds: Sequence[_Fold], number: int, sensitivity: float) -> float:
    others = [fold for at, fold in enumerate(folds) if at != number]
    return choose_threshold(
        np.concatenate([fold.probability for fold in others]),
        np.concatenate([fold.labels for fold in others]),
        sensitivity,
    )


def _shares(labels: Numbers, positive: NDArray[np.bool_], patients: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for label, name in ((1, "sensitivity"), (0, "specificity")):
        share = float((positive[labels == label] == label).mean())
        people = {patient for patient, true in zip(patients, labels.tolist(), strict=True) if true == label}
        found |= {name: share, f"{name}_ci95": share_interval(share, len(people))}
    return found


def _read(path: Path) -> _Fold:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return _Fold(
        np.array([float(row["label"]) for row in rows]),
        np.array([float(row["probability"]) for row in rows]),
        [row["patient"] for row in rows],
    )


def _write_page(out: Path, found: dict[str, Any]) -> None:
    rows = {name: str(value) for name, value in found.items()}
    note = "Each image is judged by the model that has not seen its patient. Research use only."
    page.write(out / "index.html", f"{found['folds']} folds", note, [page.Section("Measures", rows=rows)])
