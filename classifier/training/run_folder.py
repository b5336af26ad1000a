"""The folder of a run: its settings, its state after the last whole epoch, its history.

A state is replaced in one step, so that a killed run still has the previous one.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from classifier.data import examples as data
from classifier.data.examples import Example
from classifier.errors import TrainingError
from classifier.training.options import Epoch, Options
from classifier.training.recipes import Recipe
from classifier.untrusted import cell

MODEL_FILE, LAST_FILE, HISTORY_FILE = "model.safetensors", "last.pt", "history.csv"
SKIPPED_FILE = "skipped.csv"


def write_settings(
    out: Path, recipe: Recipe, options: Options, examples: Sequence[Example], skipped: Mapping[Path, str]
) -> None:
    """Write the inputs of the run: split.csv, config.json, environment.json, and what was left out."""
    data.write_manifest(out / "split.csv", examples)
    if skipped:
        with (out / SKIPPED_FILE).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [("path", "reason"), *((cell(str(path)), cell(why)) for path, why in skipped.items())]
            )
    _write_json(out / "config.json", {"recipe": asdict(recipe), "options": asdict(options)})
    environment = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    _write_json(out / "environment.json", environment)


def write_state(
    out: Path,
    recipe: Recipe,
    examples: Sequence[Example],
    history: Sequence[Epoch],
    parts: dict[str, Any],
) -> None:
    """Write the state after an epoch, and the history.

    Parameters
    ----------
    out
        Folder of the run.
    recipe, examples
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
    state = {**parts, **_origin(recipe, examples), "history": [asdict(epoch) for epoch in history]}
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


def read_state(out: Path, recipe: Recipe, examples: Sequence[Example]) -> tuple[list[Epoch], dict[str, Any]]:
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
    origin = _origin(recipe, examples)
    if {key: state.get(key) for key in origin} != origin:
        raise TrainingError(f"The run in {out} has other data or settings; choose another --out.")
    return [Epoch(**epoch) for epoch in state["history"]], state


def _origin(recipe: Recipe, examples: Sequence[Example]) -> dict[str, str]:
    return {"data": data.digest(examples), "recipe": json.dumps(asdict(recipe))}


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
