"""What `classifier explore`, `train` and `evaluate` do between the command line and the modules that work."""

from __future__ import annotations

import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from classifier.config import TrainSettings
from classifier.data.examples import Example
from classifier.errors import ClassifierError
from classifier.measuring import plots
from classifier.training.distributed import rank
from classifier.training.options import Epoch, Options, Watcher
from classifier.training.recipes import RECIPES, Recipe, changed
from classifier.training.run_folder import HISTORY_FILE, LAST_FILE, MODEL_FILE, SKIPPED_FILE
from classifier.training.train import train

_FIELDS_OF_RECIPE = {"weights", "epochs", "batch_size", "learning_rate", "patience", "image_size"}
_LOG_SECONDS = 30.0  # between lines where there is no terminal
_MOST_NAMED = 10


def settings(config: Path | None, given: dict[str, object]) -> TrainSettings:
    """Read ``[classifier.train]`` of config.toml, and override it with what the command line gave."""
    path = config or Path("config.toml")
    content: dict[str, object] = {}
    if path.is_file():
        try:
            whole = tomllib.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ClassifierError(f"{path} is no valid TOML: {error}.") from error
        content = _table(_table(whole, "classifier", path), "train", path)
    elif config is not None:
        raise ClassifierError(f"There is no file {config}; check --config.")
    try:
        return TrainSettings.model_validate(content | {k: v for k, v in given.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise ClassifierError(f"Correct {'.'.join(map(str, first['loc']))}: {first['msg']}.") from error


def _table(content: dict[str, object], name: str, path: Path) -> dict[str, object]:
    found = content.get(name, {})
    if not isinstance(found, dict):
        raise ClassifierError(f"In {path}, {name} is no table; write its settings below its heading.")
    return found


def run_training(source: Path, out: Path, chosen: TrainSettings, options: Options) -> None:
    """Train with a progress bar, and draw the curves after each epoch."""
    recipe = _recipe(chosen)
    console = Console(stderr=True, highlight=False, quiet=rank() != 0)
    started = time.monotonic()
    with _progress(console) as progress:
        decoding = progress.add_task("Decoding")
        steps = progress.add_task("Training", visible=False)
        last_line = time.monotonic()

        def on_step(epoch: int, step: int, number: int, loss: float, rate: float) -> None:
            nonlocal last_line
            done, total = (epoch - 1) * number + step, recipe.epochs * number
            what = f"Epoch {epoch} of {recipe.epochs}, loss {loss:.3f}, {rate:.1f} images/s"
            progress.update(steps, description=what, completed=done, total=total, visible=True)
            if not console.is_terminal and time.monotonic() - last_line > _LOG_SECONDS:
                last_line = time.monotonic()
                console.print(f"{what}, step {step} of {number}")

        def on_epoch(history: Sequence[Epoch], best: int) -> None:
            epoch = history[-1]
            kept = ", kept" if epoch.epoch == best else ""
            console.print(
                f"Epoch {epoch.epoch}: loss {epoch.train_loss:.4f}, validation {epoch.val_loss:.4f},"
                f" AUROC {epoch.val_auroc:.4f}, accuracy {epoch.val_accuracy:.4f},"
                f" {epoch.images_per_second:.1f} images/s{kept}"
            )
            if rank() == 0:
                plots.save(plots.curves(history, best), out / "curves.png")

        def on_split(examples: Sequence[Example], skipped: Mapping[Path, str]) -> None:
            console.print("\n".join(_told(examples, skipped)), markup=False, soft_wrap=True)

        def on_decoded(done: int, total: int) -> None:
            progress.update(decoding, completed=done, total=total, visible=done < total)

        def on_embedded(done: int, total: int) -> None:
            progress.update(steps, description="Measuring", completed=done, total=total, visible=True)

        try:
            watcher = Watcher(on_decoded, on_split, on_embedded, on_step, on_epoch)
            train(source, out, recipe, options, watcher)
        except KeyboardInterrupt:
            has_state = (out / LAST_FILE).is_file()
            console.print("Stopped. Go on with --resume." if has_state else "Stopped in the first epoch.")
            sys.exit(130)
    minutes = (time.monotonic() - started) / 60
    console.print(
        f"Done in {minutes:.1f} min. Model: {out / MODEL_FILE}. History: {out / HISTORY_FILE}.",
        soft_wrap=True,
    )


def _told(examples: Sequence[Example], skipped: Mapping[Path, str]) -> Iterator[str]:
    """Say what is trained on, and what one should know of it."""
    for name, what in (("train", "training"), ("val", "validation")):
        images = [example for example in examples if example.split == name]
        yield f"{len(images)} images of {len({e.patient for e in images})} patients for {what}"
    if len({example.patient for example in examples}) == len(examples):
        yield "Each image counts as another patient's; if not so, name patients by folders or in a manifest."
    for path, why in list(skipped.items())[:_MOST_NAMED]:
        yield f"Left out: {path} ({why})"
    if len(skipped) > _MOST_NAMED:
        yield f"{len(skipped) - _MOST_NAMED} more were left out; {SKIPPED_FILE} names them."


def _recipe(chosen: TrainSettings) -> Recipe:
    given = {name: getattr(chosen, name) for name in _FIELDS_OF_RECIPE}
    return changed(RECIPES[chosen.recipe], **given)


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Return a function that shows how many of all are done."""
    with _progress(Console(stderr=True)) as progress:
        task = progress.add_task(what)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _progress(console: Console) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    is_log = not console.is_terminal  # where even a bar that is gone would leave an empty line
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=is_log)
