"""Several models, each validated on other patients; and what other tools note down of a training."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from classifier.cli import main
from classifier.data import examples as data
from classifier.data.folds import fold
from classifier.errors import DataError, TrainingError
from classifier.training.logs import require
from classifier.training.pooled import pool
from tests.helpers.commands import in_this_process
from tests.helpers.datasets import folder

SHORT = ["--epochs", "1", "--image-size", "32", "--batch-size", "16", "--device", "cpu", "--workers", "1"]


def classifier(*arguments: object) -> str:
    run = in_this_process(main, "classifier", *map(str, arguments))
    assert run.returncode == 0, run.stderr
    return run.stderr


def test_each_patient_is_held_out_once(tmp_path: Path) -> None:
    examples = data.load(folder(tmp_path, patients=7))
    folds = fold(examples, 3, seed=1)
    held_out = Counter(e.path for some in folds for e in some if e.split == "val")
    assert held_out == {example.path: 1 for example in examples}
    for some in folds:
        sides = [{e.patient for e in some if e.split == name} for name in ("train", "val")]
        assert not sides[0] & sides[1]
        counts = Counter(e.label for e in some if e.split == "val")
        assert set(counts) == {0, 1}
        assert max(counts.values()) - min(counts.values()) <= 2
    assert fold(examples[::-1], 3, seed=1)[0][0].split == folds[0][-1].split
    for number in (1, 8):
        with pytest.raises(DataError):
            fold(examples, number, seed=1)


def test_figures_of_folds_are_pooled_with_thresholds_of_the_others(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    folders = [tmp_path / str(number) for number in range(3)]
    for number, place in enumerate(folders):
        place.mkdir()
        with (place / "validation.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "label", "patient", "logit", "probability"))
            for at in range(40):
                label = at % 2
                probability = round(float(np.clip(random.normal(0.35 + 0.3 * label, 0.1), 0, 1)), 4)
                writer.writerow((f"{at}.png", label, f"{number}/{at // 2}/{label}", 0, probability))
    found = pool(tmp_path, folders, 0.9)
    assert (found["n"], found["n_positive"], found["patients"]) == (120, 60, 120)
    assert found["auroc_ci95"][0] < found["auroc"] < found["auroc_ci95"][1]
    assert len(set(found["thresholds"])) > 1
    assert found["sensitivity_ci95"][0] < found["sensitivity"] < found["sensitivity_ci95"][1]
    assert json.loads((tmp_path / "pooled.json").read_text())["auroc"] == found["auroc"]
    assert "Measures" in (tmp_path / "index.html").read_text()


def test_folds_are_trained_one_after_the_other_and_go_on(tmp_path: Path) -> None:
    images, out = folder(tmp_path / "set", patients=8), tmp_path / "folds"
    said = classifier("train", images, "--out", out, *SHORT, "--folds", 2, "--version", "7")
    assert "2 folds, 32 images of 16 patients, each judged by a model" in said
    card = classifier_card(out / "fold-2" / "model.safetensors")
    assert card["version"] == "7-fold-2"
    (out / "fold-2" / "validation.csv").unlink()  # as if it had been ended before
    again = classifier("train", "--resume", out)
    assert "fold-2 of 2" in again
    assert "fold-1 of 2" not in again
    assert again.splitlines()[-5:] == said.splitlines()[-5:]


def classifier_card(model: Path) -> dict[str, object]:
    shown = in_this_process(main, "classifier", "show", str(model), "--format", "json")
    card: dict[str, object] = json.loads(shown.stdout)
    return card


def test_tools_that_are_not_there_are_named_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("classifier.training.logs.find_spec", lambda _: None)
    with pytest.raises(TrainingError, match=r"pip install 'pacs-node\[mlflow\]'"):
        require(["mlflow"])
    with pytest.raises(TrainingError, match="'wandb' is not known; write tensorboard or mlflow"):
        require(["wandb"])


@pytest.mark.filterwarnings("ignore")  # of these tools about their own packages
@pytest.mark.parametrize("tool", ["tensorboard", "mlflow"])
def test_epochs_are_noted_down_by_other_tools(tool: str, tmp_path: Path) -> None:
    pytest.importorskip(tool)
    images, out = folder(tmp_path / "set", patients=8), tmp_path / "run"
    classifier("train", images, "--out", out, *SHORT, "--val-share", 0.25, "--log", tool)
    if tool == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(out / "tensorboard")).Reload()
        assert [event.step for event in events.Scalars("val_auroc")] == [1]
        return
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{out / 'mlflow.db'}")
    run = mlflow.get_run((out / "mlflow_run.txt").read_text().strip())
    assert 0 <= run.data.metrics["val_auroc"] <= 1
    assert run.data.params["image_size"] == "32"
