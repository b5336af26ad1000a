"""The folder of a run: its settings, its state after the last whole epoch, its history.

A state is replaced in one step, so that a killed run still has the previous one.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile

import torch
from pydantic import TypeAdapter

from classifier.data import examples as data
from classifier.data.examples import Example
from classifier.errors import TrainingError
from classifier.training.options import Epoch, Options
from classifier.training.recipes import Recipe
from classifier.untrusted import cell, unquoted

MODEL_FILE, LAST_FILE, HISTORY_FILE = "model.safetensors", "last.pt", "history.csv"
SPLIT_FILE, CONFIG_FILE, SKIPPED_FILE = "split.csv", "config.json", "skipped.csv"
CURVES_FILE, VALIDATION_FILE = "curves.png", "validation.csv"
_MOST_NAMED = 3
_RECIPE, _OPTIONS = TypeAdapter(Recipe), TypeAdapter(Options)


class Origin(NamedTuple):
    """What a run must have in common with an earlier one to continue it."""

    recipe: Recipe
    options: Options
    examples: Sequence[Example]

    def as_dict(self) -> dict[str, Any]:
        """Return what a state keeps of it."""
        return {
            "data": data.digest(self.examples),
            "recipe": json.dumps(asdict(self.recipe)),
            "seed": self.options.seed,
            "balance": ",".join(self.options.balance),
        }


def write_settings(
    out: Path, recipe: Recipe, options: Options, examples: Sequence[Example], skipped: Mapping[Path, str]
) -> None:
    """Write the inputs of the run: split.csv, config.json, environment.json, and what was left out."""
    data.write_manifest(out / SPLIT_FILE, examples)
    if skipped:
        with (out / SKIPPED_FILE).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [("path", "reason"), *((cell(str(path)), cell(why)) for path, why in skipped.items())]
            )
    _write_json(out / CONFIG_FILE, {"recipe": asdict(recipe), "options": asdict(options)})
    environment = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    _write_json(out / "environment.json", environment)


def read_settings(out: Path) -> tuple[Recipe, Options]:
    """Read the settings that `write_settings` wrote.

    Raises
    ------
    TrainingError
        If there are none, or they are of another version.
    """
    try:
        content = json.loads((out / CONFIG_FILE).read_text(encoding="utf-8"))
        return _RECIPE.validate_python(content["recipe"]), _OPTIONS.validate_python(content["options"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise TrainingError(f"There is no run to resume in {out}; leave out --resume.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{out / CONFIG_FILE} is not understood; start again in another --out."
        ) from error


def write_validation(
    out: Path, examples: Sequence[Example], logits: Sequence[float], probability: Sequence[float]
) -> None:
    """Write what the model says of each validation image: validation.csv, a line for each."""
    with (out / VALIDATION_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "label", "patient", "logit", "probability"))
        for e, logit, p in zip(examples, logits, probability, strict=True):
            writer.writerow((cell(str(e.path.absolute())), e.label, cell(e.patient), f"{logit:.5f}", p))


def write_state(out: Path, origin: Origin, history: Sequence[Epoch], parts: dict[str, Any]) -> None:
    """Write the state after an epoch, and the history.

    Parameters
    ----------
    out
        Folder of the run.
    origin
        What a run must have in common with this one to resume from the state.
    history
        All epochs so far.
    parts
        The rest of the state.

    Raises
    ------
    TrainingError
        If it cannot be written; the previous state is still there.
    """
    state = {**parts, **origin.as_dict(), "history": [asdict(epoch) for epoch in history]}
    temporary = out / f".{LAST_FILE}.tmp"
    try:
        torch.save(state, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(out / LAST_FILE)
        write_history(out, history)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise TrainingError(f"Cannot write to {out}: {error}; make space, then --resume.") from error


def read_state(out: Path, origin: Origin) -> tuple[list[Epoch], dict[str, Any]]:
    """Read the history and the other state that `write_state` wrote, with tensors on the CPU.

    Raises
    ------
    TrainingError
        If there is none, it is damaged, or it was made with other data or another recipe.
    """
    damaged = TrainingError(f"{out / LAST_FILE} is damaged; start again in another --out.")
    try:
        with ZipFile(out / LAST_FILE) as parts:
            if parts.testzip() is not None:
                raise damaged
        state = torch.load(out / LAST_FILE, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TrainingError(f"There is no run to resume in {out}; leave out --resume.") from error
    except (OSError, RuntimeError, ValueError, EOFError, BadZipFile, zlib.error, UnpicklingError) as error:
        raise damaged from error
    if not isinstance(state, dict):
        raise damaged
    found = [*_differences(out, origin, state)]
    if found:
        raise TrainingError(
            f"The run in {out} has other data or settings: {'; '.join(found)}. Leave them as they were, or"
            " choose another --out."
        )
    return [Epoch(**epoch) for epoch in state["history"]], state


def _differences(out: Path, origin: Origin, state: Mapping[str, Any]) -> Iterator[str]:
    """Name what differs between a run and the state of an earlier one, the earlier value first."""
    now = origin.as_dict()
    if state.get("data") != now["data"]:
        yield from _data_differences(out / SPLIT_FILE, origin.examples)
    yield from _value_differences(json.loads(state.get("recipe", "{}")), json.loads(now["recipe"]))
    for name in ("seed", "balance"):
        if state.get(name, now[name]) != now[name]:
            yield f"{name} was {state[name]}, now {now[name]}"


def _value_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _value_differences(before, after)
        elif before != after:
            yield f"{name} was {before}, now {after}"


def _data_differences(split: Path, examples: Sequence[Example]) -> Iterator[str]:
    try:
        with split.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        old = {row["path"]: (row["label"], unquoted(row["patient"]), row["split"]) for row in rows}
    except (OSError, KeyError, ValueError):
        old = {}
    new = {str(e.path.absolute()): (str(e.label), e.patient, e.split) for e in examples}
    if not old or not {*old} & {*new}:  # the folder has moved
        yield f"the images ({len(old)} before, {len(new)} now)"
        return
    yield from _named("are new", [path for path in new if path not in old])
    yield from _named("are gone", [path for path in old if path not in new])
    for number, what in enumerate(("label", "patient", "split")):
        changed = [path for path in new if path in old and old[path][number] != new[path][number]]
        yield from _named(f"have another {what}", changed)
    if old == new:
        yield "the weights of the images"


def _named(what: str, paths: Sequence[str]) -> Iterator[str]:
    if paths:
        names = ", ".join(Path(path).name for path in paths[:_MOST_NAMED])
        more = ", ..." if len(paths) > _MOST_NAMED else ""
        yield f"{len(paths)} images {what} ({names}{more})"


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_history(out: Path, history: Sequence[Epoch]) -> None:
    """Write history.csv of a run: one line for each epoch."""
    path = out / HISTORY_FILE
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(history[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _short(value) for key, value in asdict(epoch).items()} for epoch in history)
    temporary.replace(path)


def _short(value: float) -> str:
    return f"{value:.6g}"
