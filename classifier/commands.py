"""The part of `classifier train` between the command line and the run: settings, data, progress."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from classifier import terminal, threads
from classifier.config import TrainSettings
from classifier.data.example import CLASSES, Example
from classifier.data.examples import class_names, load_all
from classifier.data.folds import fold
from classifier.errors import ClassifierError, TrainingError
from classifier.progress import TrainingProgress, bars
from classifier.training import logs
from classifier.training.ages import told_ages
from classifier.training.card import About, OperatingTarget
from classifier.training.distributed import rank
from classifier.training.logs import logged
from classifier.training.naming import default_name, default_version
from classifier.training.options import Options
from classifier.training.pooled import pool, told
from classifier.training.recipes import RECIPES, Recipe, changed
from classifier.training.run_folder import (
    CURVES_FILE,
    LAST_FILE,
    SPLIT_FILE,
    VALIDATION_FILE,
    read_settings,
    write_settings,
)
from classifier.training.run_page import figures_of, write_page
from classifier.training.train import train
from classifier.training.weights import one_sided

_FOLDS_FILE = "folds.txt"
_FIELDS_OF_RECIPE = {"weights", "epochs", "batch_size", "learning_rate", "patience", "image_size"}
_OF_TARGET = {"sensitivity": "sensitivity", "band": "band", "unlike_share": "unlike_share"}
_OF_OPTIONS = ("seed", "val_share", "device", "precision", "workers")


@dataclass(frozen=True)
class Request:
    """What the command line asks for; what it leaves open is ``None`` or missing.

    Attributes
    ----------
    sources, data_weights, classes
        The sets of images; with `resume` none for those of the run.
    config
        The file with ``[classifier.train]``, if one is named.
    given
        Settings by name, as `TrainSettings` has them.
    card
        Texts for the card: name, version, description, population, licence.
    ages
        Youngest and oldest, or ``"any"``.
    """

    sources: Sequence[Path]
    out: Path
    config: Path | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    ages: tuple[int, int] | str | None = None
    data_weights: tuple[float, ...] = ()
    classes: str = ""
    balance: tuple[str, ...] | None = None
    folds: int = 0
    threads: int = 0
    resume: bool = False
    skip_bad: bool | None = None
    log: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A run that is about to start."""

    examples: Sequence[Example]
    recipe: Recipe
    options: Options
    folds: int = 0

    @property
    def name(self) -> str:
        """Name and version of the model."""
        return f"{self.options.about.name} {self.options.about.version}"


def run_training(request: Request) -> None:
    """Train with a progress bar, draw the curves after each epoch, and end with the figures."""
    threads.use(request.threads)
    logs.require(request.log)
    console = terminal.console(stderr=True, highlight=False, quiet=rank() != 0)
    plan = _resumed(request) if request.resume else _new(request)
    for warning in _warnings(plan):
        console.print(warning, style="yellow", markup=False, soft_wrap=True)
    end = _train_folds if plan.folds else _train_one
    for line in end(plan, request, console):
        console.print(line, markup=False, soft_wrap=True)


def _train_one(plan: Plan, request: Request, console: Console) -> Iterator[str]:
    """Train one model; yield its figures in lines."""
    out = request.out
    _train(plan, out, request.log, console)
    if rank() == 0:
        page = write_page(out)
        yield from figures_of(out)
        yield f"Page: {page}"


def _train_folds(plan: Plan, request: Request, console: Console) -> Iterator[str]:
    """Train a model for each fold; yield what they say together."""
    out = request.out
    if rank() == 0:
        write_settings(out, plan.recipe, plan.options, plan.examples, {})
        (out / _FOLDS_FILE).write_text(f"{plan.folds}\n", encoding="ascii")
    folders = [out / f"fold-{number}" for number in range(1, plan.folds + 1)]
    for folder, examples in zip(folders, fold(plan.examples, plan.folds, plan.options.seed), strict=True):
        if (folder / VALIDATION_FILE).is_file():
            continue
        console.print(f"{folder.name} of {plan.folds}", markup=False)
        about = plan.options.about
        options = replace(
            plan.options,
            resume=(folder / LAST_FILE).is_file(),
            about=replace(about, version=f"{about.version}-{folder.name}"),
        )
        _train(Plan(examples, plan.recipe, options), folder, request.log, console, stopped=out)
        if rank() == 0:
            write_page(folder)
    if rank() == 0:
        yield from told(pool(out, folders, plan.options.wanted.sensitivity))
        yield f"Page: {out / 'index.html'}"


def _train(
    plan: Plan, out: Path, tools: Sequence[str], console: Console, stopped: Path | None = None
) -> None:
    is_first = rank() == 0
    curves = out / CURVES_FILE if is_first else None
    with bars(console) as progress, logged(tools if is_first else (), out, plan.recipe, plan.name) as log:
        shown = TrainingProgress(progress, console, plan.recipe.epochs, curves, log)
        try:
            train(plan.examples, out, plan.recipe, plan.options, shown.watcher())
        except KeyboardInterrupt:
            has_state = (out / LAST_FILE).is_file()
            go_on = f"Stopped. Continue with: classifier train --resume {stopped or out}"
            console.print(go_on if has_state else "Stopped in the first epoch.", soft_wrap=True, markup=False)
            sys.exit(130)


def _new(request: Request) -> Plan:
    """Return the plan of a new run."""
    request.out.mkdir(parents=True, exist_ok=True)
    chosen = _settings(request.config, request.given)
    examples = _examples(request)
    target = OperatingTarget(chosen.sensitivity, chosen.band, chosen.unlike_share)
    options = Options(
        **{name: getattr(chosen, name) for name in _OF_OPTIONS},
        skip_bad=bool(request.skip_bad),
        balance=request.balance or (),
        wanted=target,
        about=_about(request, examples),
    )
    given = {name: getattr(chosen, name) for name in _FIELDS_OF_RECIPE}
    return Plan(examples, changed(RECIPES[chosen.recipe], **given), options, request.folds)


def _resumed(request: Request) -> Plan:
    """Return the plan of a run that goes on: all as it was, but for what is given now.

    config.toml counts only where it is named: it may have changed since.
    """
    recipe, options = read_settings(request.out)
    _settings(None, request.given, is_read=False)  # refuses values that are none
    named = {} if request.config is None else _section(request.config)
    given = {**named, **request.given}
    start = RECIPES[given["recipe"]] if given.get("recipe", recipe.name) != recipe.name else recipe
    recipe = changed(start, **{k: v for k, v in given.items() if k in _FIELDS_OF_RECIPE})
    wanted = replace(options.wanted, **{k: given[k] for k in _OF_TARGET if k in given})
    about = replace(options.about, **request.card)
    if request.ages is not None:
        about = replace(about, ages=_limits(request.ages), ages_source="")
    changes: dict[str, Any] = {name: given[name] for name in _OF_OPTIONS if name in given}
    if request.balance is not None:
        changes["balance"] = request.balance
    if request.skip_bad is not None:
        changes["skip_bad"] = request.skip_bad
    options = replace(options, **changes, resume=True, wanted=wanted, about=about)
    return Plan(_examples(request), recipe, options, _folds_of(request.out))


def _folds_of(out: Path) -> int:
    known = out / _FOLDS_FILE
    return int(known.read_text(encoding="ascii")) if known.is_file() else 0


def _examples(request: Request) -> list[Example]:
    classes = class_names(request.classes) if request.classes else CLASSES
    if request.sources:
        return load_all(request.sources, request.data_weights, classes)
    split = request.out / SPLIT_FILE
    if not split.is_file():
        raise TrainingError(f"There is no run to resume in {request.out}; leave out --resume.")
    return load_all([split])


def _about(request: Request, examples: Sequence[Example]) -> About:
    unnamed = About(name=default_name(request.sources), version=default_version())
    stated = replace(unnamed, **request.card)
    if request.ages is not None:
        return replace(stated, ages=_limits(request.ages))
    told = told_ages(examples)
    return stated if told is None else replace(stated, ages=told.ages, ages_source=told.source)


def _limits(ages: tuple[int, int] | str) -> tuple[int, int] | None:
    return None if isinstance(ages, str) else ages


def _warnings(plan: Plan) -> list[str]:
    about, found = plan.options.about, []
    if about.ages is None:
        found.append(
            "The ages of the patients are not known: the model will answer for patients of every age. Name"
            " them with --ages, or in a column age of a manifest."
        )
    elif about.ages_source:
        found.append(f"For patients of {about.ages[0]} to {about.ages[1]} years. {about.ages_source}")
    if plan.options.balance:
        for group in one_sided(plan.examples, plan.options.balance)[:5]:
            found.append(f"All images of the group {group} are of one class; weights cannot balance it.")
    return found


def _settings(config: Path | None, given: Mapping[str, Any], *, is_read: bool = True) -> TrainSettings:
    """Read ``[classifier.train]`` of config.toml; options of the command line override it."""
    path = config or Path("config.toml")
    content: dict[str, object] = {}
    if is_read and path.is_file():
        content = _read_section(path)
    elif config is not None:
        raise ClassifierError(f"There is no file {config}; check --config.")
    return _validated({**content, **given})


def _section(config: Path) -> dict[str, Any]:
    """Return what a named file says, validated."""
    _settings(config, {})
    return _read_section(config)


def _validated(content: Mapping[str, object]) -> TrainSettings:
    try:
        return TrainSettings.model_validate(content)
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
