"""The part of `classifier train` between the command line and the run: settings, options, progress."""

from __future__ import annotations

import sys
import time
import tomllib
from pathlib import Path

from pydantic import ValidationError

from classifier import terminal
from classifier.config import TrainSettings
from classifier.errors import ClassifierError
from classifier.progress import TrainingProgress, bars
from classifier.training.card import About, OperatingTarget
from classifier.training.distributed import rank
from classifier.training.options import Options
from classifier.training.recipes import RECIPES, changed
from classifier.training.run_folder import HISTORY_FILE, LAST_FILE, MODEL_FILE
from classifier.training.train import train

_FIELDS_OF_RECIPE = {"weights", "epochs", "batch_size", "learning_rate", "patience", "image_size"}


def settings(config: Path | None, given: dict[str, object]) -> TrainSettings:
    """Read ``[classifier.train]`` of config.toml; options of the command line override it."""
    path = config or Path("config.toml")
    content: dict[str, object] = {}
    if path.is_file():
        content = _read_section(path)
    elif config is not None:
        raise ClassifierError(f"There is no file {config}; check --config.")
    try:
        return TrainSettings.model_validate(content | {k: v for k, v in given.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise ClassifierError(f"Correct {'.'.join(map(str, first['loc']))}: {first['msg']}.") from error


def _read_section(path: Path) -> dict[str, object]:
    try:
        whole = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ClassifierError(f"{path} is no valid TOML: {error}.") from error
    return _table(_table(whole, "classifier", path), "train", path)


def _table(content: dict[str, object], name: str, path: Path) -> dict[str, object]:
    found = content.get(name, {})
    if not isinstance(found, dict):
        raise ClassifierError(f"In {path}, {name} is not a table; write its settings below its heading.")
    return found


def options(chosen: TrainSettings, about: About, *, resume: bool, skip_bad: bool) -> Options:
    """Return what a run needs in addition to its recipe."""
    return Options(
        seed=chosen.seed,
        val_share=chosen.val_share,
        device=chosen.device,
        precision=chosen.precision,
        workers=chosen.workers,
        resume=resume,
        skip_bad=skip_bad,
        wanted=OperatingTarget(chosen.sensitivity, chosen.band, chosen.unlike_share),
        about=about,
    )


def run_training(source: Path, out: Path, chosen: TrainSettings, options: Options) -> None:
    """Train with a progress bar, and draw the curves after each epoch."""
    given = {name: getattr(chosen, name) for name in _FIELDS_OF_RECIPE}
    recipe = changed(RECIPES[chosen.recipe], **given)
    is_first = rank() == 0
    console = terminal.console(stderr=True, highlight=False, quiet=not is_first)
    started = time.monotonic()
    with bars(console) as progress:
        shown = TrainingProgress(progress, console, recipe.epochs, out / "curves.png" if is_first else None)
        try:
            train(source, out, recipe, options, shown.watcher())
        except KeyboardInterrupt:
            has_state = (out / LAST_FILE).is_file()
            console.print("Stopped. Continue with --resume." if has_state else "Stopped in the first epoch.")
            sys.exit(130)
    minutes = (time.monotonic() - started) / 60
    done = f"Done in {minutes:.1f} min. Model: {out / MODEL_FILE}. History: {out / HISTORY_FILE}."
    console.print(done, soft_wrap=True)
