"""The command `classifier gate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from classifier import terminal
from classifier.arguments import DataArgument, ModelArgument, model_path
from classifier.errors import ClassifierError

if TYPE_CHECKING:
    from classifier.model.card import Kind


def gate(
    model: ModelArgument,
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Where to write the model with its gate.")],
    *,
    strangers: Annotated[
        list[str], typer.Option(metavar="KIND=PATH", help="Folder or manifest; the kind is adult or other.")
    ] = [],  # noqa: B006 - typer copies it
    too: Annotated[Path | None, typer.Option(help="Folder of pictures that shall pass as known.")] = None,
    leave_out: Annotated[
        list[str],
        typer.Option(help="Column of the adults' manifest, to measure what was not trained on."),
    ] = [],  # noqa: B006
    share: Annotated[
        float, typer.Option(help="Share of the validation images that may be held back.")
    ] = 0.01,
    steps: Annotated[int, typer.Option(help="Of training.")] = 600,
    val_share: Annotated[float, typer.Option(help="As in the training of the model.")] = 0.1,
    seed: Annotated[int, typer.Option(help="As in the training of the model.")] = 0,
    workers: Annotated[int, typer.Option(help="Decoding processes; 0 = one a processor.")] = 0,
    version: Annotated[str, typer.Option(help="Of the new model, for its card.")] = "",
) -> None:
    """Teach a model which images it does not know: adults, turned and inverted ones, other things."""
    from classifier.progress import counting  # noqa: PLC0415
    from classifier.training.gate import GateRecipe  # noqa: PLC0415
    from classifier.training.gated import MEASURED_BY, GateOptions, add_gate  # noqa: PLC0415

    chosen = GateOptions(
        *(_strangers(strangers), too, tuple(leave_out), share, val_share, seed, workers, version)
    )
    with counting("Training") as progress:
        card = add_gate(
            *(model_path(model), data, out, GateRecipe(steps=steps, seed=seed), chosen), told=progress
        )
    for metric in card.metrics:
        if metric.measured_by == MEASURED_BY:
            sys.stdout.write(f"{metric.value:.1%} held back: {metric.images} images, {metric.data}\n")
    terminal.console(stderr=True).print(f"Wrote {out}, SHA-256 {card.sha256}", soft_wrap=True, markup=False)


def _strangers(given: Sequence[str]) -> dict[Kind, Path]:
    found: dict[Kind, Path] = {}
    for text in given:
        kind, _, path = text.partition("=")
        if kind not in ("adult", "other") or not path:
            raise ClassifierError(f"--strangers {text!r} is not understood; write adult=PATH or other=PATH.")
        found["adult" if kind == "adult" else "other"] = Path(path)
    return found
