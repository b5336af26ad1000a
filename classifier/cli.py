"""The command `classifier`: score files, look at a model, make one.

Imports of torch stand inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from classifier import terminal, threads
from classifier.arguments import DataArgument, ModelArgument, model_path
from classifier.calibrate_command import calibrate
from classifier.errors import ClassifierError
from classifier.evaluate_command import evaluate
from classifier.gate_command import gate
from classifier.predict_command import predict
from classifier.train_command import train
from classifier.untrusted import print_json

if TYPE_CHECKING:
    from classifier.model.card import ModelCard

app = typer.Typer(
    help="Pneumonia classifier for frontal chest radiographs. Research use only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _program(
    *,
    _version: Annotated[bool, terminal.version_option("classifier")] = False,
) -> None:
    pass


class ShowFormat(StrEnum):
    """How a card is printed."""

    TABLE = "table"
    JSON = "json"


class Exchange(StrEnum):
    """Formats of other programs."""

    ONNX = "onnx"
    BUNDLE = "monai-bundle"


FormatOption = Annotated[ShowFormat, typer.Option("--format", help="A table to read or JSON to process.")]


app.command(
    epilog="Examples:\n\nclassifier predict default chest.dcm\n\n"
    "classifier predict default study/ --format csv\n\n"
    "classifier predict default study/ --heatmap maps/\n\n"
    "classifier predict my.safetensors *.dcm --device cpu"
)(predict)


@app.command(epilog="Example:\n\nclassifier show default")
def show(model: ModelArgument, output: FormatOption = ShowFormat.TABLE) -> None:
    """Print the card of a model: preprocessing, threshold, data, measurements, limits of use."""
    from classifier.model.checkpoint import load  # noqa: PLC0415

    card = load(model_path(model)).card
    if output is ShowFormat.JSON:
        print_json(card.model_dump(mode="json"))
    else:
        terminal.console().print(_card_table(card))


@app.command(
    epilog="Example:\n\nclassifier pack weights.safetensors --card card.json --out model.safetensors"
)
def pack(
    weights: Annotated[Path, typer.Argument(help="safetensors file with the state dict.")],
    card: Annotated[Path, typer.Option(help="The card as JSON, as `show --format json` prints it.")],
    out: Annotated[Path, typer.Option(help="Where to write the checkpoint.")],
) -> None:
    """Make a checkpoint from bare weights and a card."""
    from classifier.model.card import parse_card  # noqa: PLC0415
    from classifier.model.checkpoint import load_weights, save  # noqa: PLC0415
    from classifier.model.transforms import tail  # noqa: PLC0415

    parsed = parse_card(_read_text(card))
    tail(parsed.preprocessing)
    state, novelty, gate = load_weights(weights)
    saved = save(out, state, parsed, novelty, gate)
    terminal.console(stderr=True).print(f"Wrote {out}, SHA-256 {saved.sha256}", soft_wrap=True, markup=False)


@app.command(epilog="Example:\n\nclassifier explore radiographs/ --out look/")
def explore(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Folder for page, pictures and findings.json.")],
) -> None:
    """Examine labelled images: counts, sizes, duplicates, and what a network could learn instead of lungs."""
    from classifier.measuring.explore import explore as look  # noqa: PLC0415
    from classifier.progress import counting  # noqa: PLC0415

    with counting("Looking") as progress:
        findings = look(data, out, progress)
    console = terminal.console(highlight=False)
    for name, number in sorted(findings.classes.items()):
        console.print(f"{name:<10} {number:>6} images, {findings.shares[name]:.1%}")
    console.print(
        f"{findings.patients} patients; {len(findings.unreadable)} unreadable,"
        f" {len(findings.exact_duplicates)} exact and {len(findings.near_duplicates)} near duplicates."
    )
    console.print(f"Patients are told apart {findings.patients_told_apart}.", markup=False, soft_wrap=True)
    console.print(f"Page: {out / 'index.html'}", soft_wrap=True)


app.command(
    epilog="Examples:\n\nclassifier train radiographs/ --out run/ --ages 1-5\n\n"
    "classifier train --resume run/\n\n"
    "classifier train --data ours.csv --data theirs/ --data-weights 1,0.5 --balance machine --out run/\n\n"
    "classifier train radiographs/ --out folds/ --folds 5\n\n"
    "classifier train clinic/ --classes healthy,sick --out run/ --log tensorboard\n\n"
    "classifier train set.csv --out run/ --recipe published --weights imagenet\n\n"
    "torchrun --nproc-per-node=2 -m classifier train radiographs/ --out run/"
)(train)


app.command(
    epilog="Example:\n\nclassifier gate run/model.safetensors radiographs/ --strangers adult=adults.csv"
    " --leave-out machine --out model.safetensors"
)(gate)


app.command(
    epilog="Examples:\n\nclassifier evaluate run/model.safetensors test/ --out result/\n\n"
    "classifier evaluate run/model.safetensors set.csv --split test --beside default --out result/"
)(evaluate)


app.command(
    epilog="Examples:\n\nclassifier calibrate run/model.safetensors ours.csv --out ours.safetensors\n\n"
    "classifier calibrate default ours.csv --cost-ratio 5 --prevalence 0.2 --out ours.safetensors"
)(calibrate)


@app.command(
    epilog="Examples:\n\nclassifier export default --format onnx --out model.onnx\n\n"
    "classifier export run/model.safetensors --format monai-bundle --out bundle/"
)
def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="File, or folder of the bundle.")],
    output: Annotated[Exchange, typer.Option("--format", help="What to make.")] = Exchange.ONNX,
) -> None:
    """Write a model, with all steps after decoding, for ONNX Runtime or as a MONAI bundle."""
    from classifier.export import to_bundle, to_onnx  # noqa: PLC0415
    from classifier.model.checkpoint import load  # noqa: PLC0415

    write = to_onnx if output is Exchange.ONNX else to_bundle
    write(load(model_path(model)), out)
    terminal.console(stderr=True).print(f"Wrote {out}", soft_wrap=True, markup=False)


def main() -> None:
    """Run the command; a user error ends in one sentence and exit code 2."""
    threads.share_processors()
    try:
        app()
    except (ClassifierError, OSError) as error:
        told = f"classifier: {_sentence(error)}"
        terminal.console(stderr=True, soft_wrap=True).print(told, style="red", markup=False, emoji=False)
        sys.exit(2)


def _sentence(error: ClassifierError | OSError) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "The disk is full; make space, then run it again."
    if isinstance(error, OSError) and error.filename:
        return f"Cannot use {error.filename}: {error.strerror}; check the path."
    return str(error)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ClassifierError(f"{path} is not UTF-8 text; save it as UTF-8.") from error


def _card_table(card: ModelCard) -> Table:
    table = Table("", Column(overflow="fold"), show_header=False)
    for row in _card_rows(card):
        table.add_row(*map(Text, row))
    return table


def _card_rows(card: ModelCard) -> Iterator[tuple[str, str]]:
    yield "Model", f"{card.name} {card.version}"
    yield "Architecture", card.architecture
    yield "SHA-256", card.sha256
    yield "Preprocessing", card.preprocessing_text
    yield "Threshold", f"{card.threshold} ({card.threshold_source})"
    if card.band:
        yield "Band", f"undetermined nearer than {card.band:g} to the threshold"
    calibration = f"(logit {card.offset:+g}) / {card.temperature:g}"
    yield "Calibration", f"sigmoid of {calibration} ({card.temperature_source})"
    if card.gate is not None:
        yield "Gate", f"{', '.join(card.gate.kinds)}; limit {card.gate.limit} ({card.gate.source})"
    yield "Novelty limit", f"{card.novelty_limit} ({card.novelty_source})" if card.novelty_limit else "none"
    yield "Ages", f"{card.ages[0]} to {card.ages[1]} years" if card.ages else "not stated"
    if card.recipe:
        yield "Recipe", card.recipe
    yield "Data", card.data
    yield "Population", card.population
    yield "Licence", card.licence
    for metric in card.metrics:
        patients = f", {metric.patients} patients" if metric.patients else ""
        interval = f", 95 % interval {metric.low} to {metric.high}" if metric.low is not None else ""
        where = f"{metric.images} images{patients}, {metric.data}; {metric.measured_by}"
        yield metric.name, f"{metric.value}{interval} ({where})"
    for limit in card.limits:
        yield "Limit", limit
