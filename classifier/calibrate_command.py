"""The command `classifier calibrate`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from classifier import terminal
from classifier import threads as processors
from classifier.arguments import ClassesOption, DataArgument, ModelArgument, ThreadsOption, model_path
from classifier.data.example import CLASSES
from classifier.data.examples import class_names
from classifier.errors import ClassifierError

if TYPE_CHECKING:
    from classifier.training.recalibrate import Recalibrated


def calibrate(
    model: ModelArgument,
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Where to write the new model.")],
    *,
    sensitivity: Annotated[
        float | None,
        typer.Option(help="Sensitivity that the threshold must reach; 0.99 if nothing is named."),
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="The threshold itself, a probability.")] = None,
    cost_ratio: Annotated[
        float | None, typer.Option(help="How many false alarms cost as much as one miss.")
    ] = None,
    prevalence: Annotated[
        float, typer.Option(help="Share of the sick where it will be used; probabilities are right for it.")
    ] = 0.5,
    band: Annotated[
        float | None, typer.Option(help="Probabilities nearer than this to the threshold are undetermined.")
    ] = None,
    split: Annotated[str, typer.Option(help="Only this split of a manifest.")] = "",
    classes: ClassesOption = "",
    version: Annotated[
        str, typer.Option(help="Of the new model; default: the old one's with the date.")
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: ThreadsOption = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out unreadable images.")] = False,
) -> None:
    """Choose threshold and calibration anew, on images of the place where a model will be used."""
    given = {"--sensitivity": sensitivity, "--threshold": threshold, "--cost-ratio": cost_ratio}
    named = [option for option, value in given.items() if value is not None]
    if len(named) > 1:
        raise ClassifierError(f"{' and '.join(named)} contradict each other; name one of them.")
    _require_share("--threshold", threshold)
    _require_share("--prevalence", prevalence)
    if sensitivity is not None and not 0 < sensitivity <= 1:
        raise ClassifierError("--sensitivity is above 0 and at most 1.")
    if cost_ratio is not None and not 0 < cost_ratio < float("inf"):
        raise ClassifierError("--cost-ratio is a number above 0, such as 5.")
    if band is not None and not 0 <= band < 1:
        raise ClassifierError("--band is at least 0 and below 1.")
    from classifier.progress import counting  # noqa: PLC0415 - loads torch
    from classifier.training.recalibrate import Target, recalibrate  # noqa: PLC0415

    processors.use(threads)
    with counting("Scoring") as progress:
        found = recalibrate(
            *(model_path(model), data, out, Target(sensitivity, threshold, cost_ratio, prevalence, band)),
            classes=class_names(classes) if classes else CLASSES,
            split=split,
            version=version,
            device=device,
            skip_bad=skip_bad,
            progress=progress,
        )
    for line in _told(found):
        sys.stdout.write(f"{line}\n")
    terminal.console(stderr=True).print(
        f"Wrote {out}, SHA-256 {found.after.sha256}", soft_wrap=True, markup=False
    )


def _require_share(option: str, value: float | None) -> None:
    if value is not None and not 0 < value < 1:
        raise ClassifierError(f"{option} is above 0 and below 1.")


def _told(found: Recalibrated) -> Iterator[str]:
    before, after = found
    yield f"Model {after.name} {after.version}"
    for name in ("threshold", "temperature", "offset"):
        yield f"  {name} {getattr(before, name):g} before, {getattr(after, name):g} now"
    yield after.threshold_source
    yield from (text for text in after.limits if text not in before.limits)
