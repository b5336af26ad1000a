"""The command `classifier train`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from classifier.arguments import ClassesOption, ThreadsOption
from classifier.config import TrainSettings
from classifier.errors import ClassifierError

_CARD = ("name", "version", "description", "population", "licence")


def train(
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA",
            help="Folder of the classes NORMAL and PNEUMONIA, or CSV manifest; with --resume alone, the run.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    *,
    more: Annotated[
        list[Path], typer.Option("--data", metavar="DATA", help="A set to train on, also several times.")
    ] = [],  # noqa: B006 - typer copies it
    data_weights: Annotated[
        str, typer.Option(help="How much an image of each set counts, such as 1,0.5.")
    ] = "",
    classes: ClassesOption = "",
    balance: Annotated[
        str | None,
        typer.Option(help="Columns that shall not tell the class, such as machine,view."),
    ] = None,
    folds: Annotated[
        int, typer.Option(min=0, help="Train as many models, each validated on another part; 0 = one model.")
    ] = 0,
    recipe: Annotated[str | None, typer.Option(help="default or published.")] = None,
    weights: Annotated[str | None, typer.Option(help="imagenet, none or a model file.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Largest number of epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Largest learning rate.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Epochs without progress before it stops; 0 = no limit.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side in pixels.")] = None,
    val_share: Annotated[float | None, typer.Option(help="Share kept for validation, by patient.")] = None,
    sensitivity: Annotated[
        float | None, typer.Option(help="Sensitivity that the threshold must reach.")
    ] = None,
    band: Annotated[
        float | None, typer.Option(help="Probabilities nearer than this to the threshold are undetermined.")
    ] = None,
    unlike_share: Annotated[
        float | None, typer.Option(help="Share of the validation images beyond the novelty limit.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of split, weights and augmentation.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Decoding processes; 0 = one for each processor.")
    ] = None,
    threads: ThreadsOption = 0,
    precision: Annotated[str | None, typer.Option(help="auto, bf16 or fp32.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue after the last complete epoch.")] = False,
    skip_bad: Annotated[bool | None, typer.Option("--skip-bad", help="Leave out unreadable images.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; default: after the data.")] = None,
    version: Annotated[str | None, typer.Option(help="Version of the model; default: date and time.")] = None,
    description: Annotated[str | None, typer.Option(help="Description of the data, for the card.")] = None,
    population: Annotated[str | None, typer.Option(help="Population of the data, for the card.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the data, for the card.")] = None,
    ages: Annotated[
        str | None,
        typer.Option(
            help="Ages of the population in years, such as 1-5, or any; others are undetermined. Default: as"
            " tags or manifest tell."
        ),
    ] = None,
    log: Annotated[
        list[str], typer.Option(metavar="TOOL", help="tensorboard or mlflow, which are extras.")
    ] = [],  # noqa: B006
    config: Annotated[Path | None, typer.Option(help="File with the section classifier.train.")] = None,
) -> None:
    """Train a model for the node. You can stop it at any time; --resume continues."""
    given = {key: value for key, value in locals().items() if key in TrainSettings.model_fields}
    card = {key: value for key, value in locals().items() if key in _CARD and value is not None}
    _require_stated(card)
    limits = _ages(ages)
    sources = [*([data] if data else []), *more]
    if resume and out is None and len(sources) == 1:
        out, sources = sources[0], []
    if out is None:
        raise ClassifierError("Name a folder for the run with --out.")
    if not sources and not resume:
        raise ClassifierError("Name a folder of classes or a manifest to train on.")
    from classifier.commands import Request, run_training  # noqa: PLC0415 - loads torch

    run_training(
        Request(
            *(sources, out, config, {k: v for k, v in given.items() if v is not None}, card, limits),
            data_weights=_numbers("--data-weights", data_weights),
            classes=classes,
            balance=None if balance is None else _names(balance),
            folds=folds,
            threads=threads,
            resume=resume,
            skip_bad=skip_bad,
            log=tuple(log),
        )
    )


def _require_stated(card: dict[str, str]) -> None:
    """Refuse an empty text for the card before the training starts."""
    for option, text in card.items():
        if option != "description" and not text.strip():
            raise ClassifierError(f"--{option} is empty; give a text, or leave it out.")


def _ages(text: str | None) -> tuple[int, int] | str | None:
    if text is None or text == "any":
        return text
    found = re.fullmatch(r"(\d{1,3})-(\d{1,3})", text)
    if found is None or int(found[1]) > int(found[2]):
        raise ClassifierError(f"The ages {text!r} are not valid; write youngest and oldest, such as 1-5.")
    return int(found[1]), int(found[2])


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.strip().lower()))


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise ClassifierError(f"{option} {text!r} is not understood; write numbers such as 1,0.5.") from error
    if not all(0 < number < float("inf") for number in found):
        raise ClassifierError(f"{option} {text!r} is not understood; each number is above 0.")
    return found
