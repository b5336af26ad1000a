"""Pictures for people: curves, matrices, grids of images; each returns a figure that the caller saves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from classifier.measuring.metrics import BINS, Measures, bins

mpl.use("Agg")

Numbers = NDArray[np.float64]
_FEW_EPOCHS = 10
_BLUE, _RED, _GREY = "#2166ac", "#b2182b", "#888888"


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; the same figure gives the same bytes."""
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})


def roc(labels: Numbers, probability: Numbers, measures: Measures) -> Figure:
    """Draw sensitivity against 1 - specificity, with the operating point."""
    figure, axes = _axes("1 - specificity", "Sensitivity")
    false_positive, true_positive, _ = roc_curve(labels, probability)
    low, high = measures.auroc_ci95
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
    label = f"AUROC {measures.auroc:.4f}\n95 % interval {low:.4f} to {high:.4f}"
    axes.plot(false_positive, true_positive, color=_BLUE, label=label)
    if measures.specificity is not None and measures.sensitivity is not None:
        point = (1 - measures.specificity, measures.sensitivity)
        axes.plot(*point, "o", color=_RED, label=f"Threshold {measures.threshold:g}")
    axes.legend(loc="lower right")
    return figure


def precision_recall(labels: Numbers, probability: Numbers, measures: Measures) -> Figure:
    """Draw precision against sensitivity."""
    figure, axes = _axes("Sensitivity (recall)", "Precision")
    precision, recall, _ = precision_recall_curve(labels, probability)
    axes.axhline(labels.mean(), color=_GREY, linewidth=0.8, linestyle=":")
    axes.plot(recall, precision, color=_BLUE, label=f"Average precision {measures.average_precision:.4f}")
    axes.legend(loc="lower left")
    return figure


def calibration(labels: Numbers, probability: Numbers, measures: Measures) -> Figure:
    """Draw the share of positives against the stated probability, in ten bins, with their sizes."""
    figure, axes = _axes("Stated probability", "Share with pneumonia")
    filled = [inside for inside in bins(probability) if len(inside)]
    stated = [float(probability[inside].mean()) for inside in filled]
    true = [float(labels[inside].mean()) for inside in filled]
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
    axes.plot(stated, true, "o-", color=_BLUE, label=f"Expected calibration error {measures.ece:.4f}")
    for x, y, inside in zip(stated, true, filled, strict=True):
        axes.annotate(str(len(inside)), (x, y), textcoords="offset points", xytext=(5, -11), fontsize=7)
    axes.legend(loc="lower right", title=f"{BINS} bins, number of images beside each")
    return figure


def confusion(measures: Measures) -> Figure:
    """Draw the confusion matrix."""
    figure, axes = _axes("Answer", "Truth")
    matrix = np.array(measures.confusion_matrix)
    axes.imshow(matrix / np.maximum(matrix.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for row in range(2):
        for column in range(2):
            share = matrix[row, column] / max(1, matrix[row].sum())
            colour = "white" if share > 0.5 else "black"
            text = f"{matrix[row, column]}\n{share:.1%}"
            axes.text(column, row, text, ha="center", va="center", color=colour)
    axes.set(xlim=(-0.5, 1.5), ylim=(1.5, -0.5), xticks=[0, 1], yticks=[0, 1])
    axes.set_xticklabels(["negative", "positive"])
    axes.set_yticklabels(["normal", "pneumonia"])
    axes.grid(visible=False)
    return figure


def grid(images: Sequence[Numbers], titles: Sequence[str], columns: int = 4) -> Figure:
    """Draw grey images (rows, columns) in 0..1 with a title each."""
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(2.6 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for place in axes:
        place.axis("off")
    for place, image, title in zip(figure.axes, images, titles, strict=False):
        place.imshow(image, cmap="gray", vmin=0, vmax=1)
        place.set_title(title, fontsize=8, parse_math=False)  # file names may hold dollar signs
    return figure


def curves(history: Sequence[Any], best: int) -> Figure:
    """Draw losses and AUROC over epochs; `history` holds `classifier.training.options.Epoch`."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [epoch.epoch for epoch in history]
    mark = "o" if len(history) < _FEW_EPOCHS else None  # a line through one point is invisible
    for axes, name, colour, label in (
        (left, "train_loss", _GREY, "training, augmented"),
        (left, "val_loss", _BLUE, "validation"),
        (right, "val_auroc", _BLUE, "AUROC, validation"),
        (right, "val_accuracy", _GREY, "accuracy at 0.5"),
    ):
        values = [getattr(epoch, name) for epoch in history]
        axes.plot(epochs, values, marker=mark, color=colour, label=label)
    left.set(xlabel="Epoch", ylabel="Cross-entropy")
    right.set(xlabel="Epoch")
    for axes in (left, right):
        axes.axvline(best, color=_RED, linewidth=0.8, linestyle=":", label=f"kept: epoch {best}")
        axes.legend()
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def bars(counts: dict[str, int], title: str) -> Figure:
    """Draw named counts."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    drawn = axes.bar(list(counts), list(counts.values()), color=_BLUE)
    axes.bar_label(drawn)
    axes.margins(y=0.1)
    axes.set_title(title)
    return figure


def histogram(values: dict[str, Numbers], title: str, xlabel: str) -> Figure:
    """Draw the distributions of a value, one line for each name."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for (name, numbers), colour in zip(values.items(), (_BLUE, _RED), strict=False):
        axes.hist(numbers, bins=40, density=True, histtype="step", color=colour, label=name)
    axes.set(title=title, xlabel=xlabel, yticks=[])
    axes.legend()
    return figure


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    return figure, axes
