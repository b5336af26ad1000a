"""The command `classifier evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from classifier import threads as processors
from classifier.arguments import (
    AgeRule,
    ClassesOption,
    DataArgument,
    ModelArgument,
    ThreadsOption,
    model_path,
)
from classifier.data.example import CLASSES
from classifier.data.examples import class_names
from classifier.reasons import Reason

if TYPE_CHECKING:
    from classifier.measuring.evaluate import Evaluation


def evaluate(
    model: ModelArgument,
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Folder for metrics.json, pictures and page.")],
    *,
    beside: Annotated[
        str, typer.Option(metavar="MODEL", help="A second model, compared on the same images.")
    ] = "",
    fragility: Annotated[
        bool,
        typer.Option("--fragility", help="Count decisions that little changes turn; takes 8 times as long."),
    ] = False,
    split: Annotated[str, typer.Option(help="Only this split of a manifest.")] = "",
    classes: ClassesOption = "",
    unknown_age: Annotated[
        AgeRule, typer.Option(help="What the node would do where neither tags nor manifest tell the age.")
    ] = AgeRule.UNDETERMINED,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: ThreadsOption = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out unreadable images.")] = False,
) -> None:
    """Measure a model on labelled images: as it scores, and as the node would answer."""
    from classifier.measuring.evaluate import evaluate as measure  # noqa: PLC0415
    from classifier.progress import counting  # noqa: PLC0415
    from classifier.scoring.predict import Predictor  # noqa: PLC0415

    processors.use(threads)
    out.mkdir(parents=True, exist_ok=True)
    names = class_names(classes) if classes else CLASSES
    predictor = Predictor.load(model_path(model), device, None, unknown_age=unknown_age.value)
    other = Predictor.load(model_path(beside), device, None) if beside else None
    with counting("Scoring") as progress:
        found = measure(
            *(predictor, data, out),
            classes=names,
            split=split,
            beside=other,
            changed=fragility,
            skip_bad=skip_bad,
            progress=progress,
        )
    sys.stdout.write((out / "report.txt").read_text(encoding="utf-8"))
    for line in _told(found):
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"Page: {out / 'index.html'}\n")


def _told(found: Evaluation) -> Iterator[str]:
    low, high = found.measures.auroc_ci95
    yield f"AUROC {found.measures.auroc:.4f}, 95 % interval {low:.4f} to {high:.4f}"
    node = found.further.as_node
    without = node["undetermined"] + node["not_scored"]
    reasons = ", ".join(f"{number} {reason}" for reason, number in node["reasons"].items())
    yield (
        f"The node would decide {node['decided']} of {node['n']} images and leave {without} open"
        f"{f' ({reasons})' if reasons else ''}."
    )
    if node["reasons"].get(Reason.UNKNOWN_AGE):
        yield (
            "Where neither tags nor manifest tell the age, the node does not decide. If all patients are of"
            " the model's ages, add --unknown-age decide."
        )
    if node["decided"]:
        shares = (
            f"{name} {node[name]:.4f} ({node[f'{name}_ci95'][0]:.2f} to {node[f'{name}_ci95'][1]:.2f})"
            for name in ("sensitivity", "specificity")
            if node[name] is not None
        )
        yield f"Of what it would decide: {', '.join(shares)}."
    for name, value in found.further.baselines.items():
        yield f"Without a lung, by {name} alone: AUROC {value['auroc']:.4f}"
    for name, value in found.further.fragility.items():
        yield f"If {name}: {value['flipped']} of {value['n']} decisions turn"
    for name, comparison in found.further.beside.items():
        yield f"Beside {name}: {comparison.text}"
