"""A model calibrated for another place: what changes, what stays, what is refused."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from classifier.cli import main
from classifier.config import SHIPPED_MODEL
from classifier.data import examples as data
from classifier.data.example import Example
from classifier.errors import DataError, TrainingError
from classifier.model.checkpoint import load
from classifier.scoring.predict import Predictor
from classifier.training.recalibrate import MEASURED_BY, Target, recalibrate
from tests.helpers.commands import in_this_process
from tests.helpers.datasets import folder, picture

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("set"), patients=6)


def calibrated(images: Path, out: Path, target: Target) -> tuple[np.ndarray, np.ndarray, float]:
    """Return labels, probabilities and threshold of the new model."""
    recalibrate(SHIPPED_MODEL, images, out, target, device="cpu")
    predictor = Predictor.load(out, "cpu", cautious=False, engine="torch")
    examples = data.load(images)
    found = predictor.predict([example.path for example in examples])
    labels = np.array([example.label for example in examples])
    return labels, np.array([p.probability for p in found], np.float64), predictor.card.threshold


def test_only_the_card_changes(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.safetensors"
    before, after = recalibrate(SHIPPED_MODEL, images, out, Target(), device="cpu")
    old, new = load(SHIPPED_MODEL), load(out)
    for one, other in zip(old.model.parameters(), new.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert new.card == after
    assert (before.sha256, before.name) != (after.sha256, "")
    assert re.fullmatch(re.escape(before.version) + r"-\d{8}\.\d{4}", after.version)
    same = ("name", "ages", "novelty_limit", "gate", "preprocessing", "band", "population")
    assert all(getattr(before, name) == getattr(after, name) for name in same)
    assert "24 images of 12 patients" in after.threshold_source
    own = [metric for metric in after.metrics if metric.measured_by == MEASURED_BY]
    assert {metric.name for metric in own} == {"AUROC", "sensitivity", "specificity"}
    others = {metric.name for metric in after.metrics if metric not in own}
    assert "AUROC" in others  # it needs no threshold
    assert not others & {"sensitivity", "specificity", "accuracy", "expected calibration error"}
    assert after.limits[-1].startswith("The threshold was chosen on few patients")
    _, again = recalibrate(out, images, tmp_path / "again.safetensors", Target(threshold=0.4), device="cpu")
    assert re.fullmatch(re.escape(before.version) + r"-\d{8}\.\d{4}", again.version)  # one date, not two
    assert len(again.metrics) == len(after.metrics)
    assert sum("on few patients" in text for text in again.limits) == 1


@pytest.mark.parametrize("sensitivity", [0.5, 1.0])
def test_the_threshold_has_the_sensitivity_wanted(sensitivity: float, images: Path, tmp_path: Path) -> None:
    labels, probability, threshold = calibrated(images, tmp_path / "a", Target(sensitivity=sensitivity))
    found = (probability[labels == 1] >= threshold).mean()
    assert found >= sensitivity
    higher = np.nextafter(threshold, 1)
    assert (probability[labels == 1] >= higher).mean() < sensitivity or sensitivity == 0.5
    assert ((probability > 0) & (probability < 1)).all()  # few images make no answer certain


def test_costs_and_prevalence_count(images: Path, tmp_path: Path) -> None:
    _, even, threshold = calibrated(images, tmp_path / "a", Target(cost_ratio=4))
    assert threshold == 0.2
    _, rare, _ = calibrated(images, tmp_path / "b", Target(threshold=0.3, band=0.05, prevalence=0.05))
    assert rare.mean() < even.mean()
    card = load(tmp_path / "b").card
    assert (card.threshold, card.band) == (0.3, 0.05)


def test_images_that_a_model_was_trained_on_are_refused(images: Path, tmp_path: Path) -> None:
    examples = data.split(data.load(images), 0.3, 0)
    manifest = tmp_path / "split.csv"
    data.write_manifest(manifest, examples)
    with pytest.raises(DataError, match="name others with --split val"):
        recalibrate(SHIPPED_MODEL, manifest, tmp_path / "a", Target(), device="cpu")
    _, card = recalibrate(SHIPPED_MODEL, manifest, tmp_path / "a", Target(), split="val", device="cpu")
    held_out = sum(example.split == "val" for example in examples)
    assert f"{held_out} images" in card.threshold_source
    one_class = [replace(e, split="test" if e.label else "val") for e in data.load(images)]
    data.write_manifest(manifest, one_class)
    with pytest.raises(DataError, match=r"The split 'val' of .* lacks a class; calibration needs both"):
        recalibrate(SHIPPED_MODEL, manifest, tmp_path / "a", Target(), split="val", device="cpu")


def test_bad_images_are_named_or_left_out_and_the_model_itself_stays(images: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    good = picture(tmp_path / "good.png")
    manifest = tmp_path / "set.csv"
    listed = [*data.load(images), Example(bad, 1, "X"), Example(good, 0, "Y")]
    data.write_manifest(manifest, listed)
    with pytest.raises(DataError, match=r"bad\.png .* cannot be decoded"):
        recalibrate(SHIPPED_MODEL, manifest, tmp_path / "a", Target(), device="cpu")
    told: list[tuple[int, int]] = []
    _, card = recalibrate(
        *(SHIPPED_MODEL, manifest, tmp_path / "a", Target()),
        device="cpu",
        skip_bad=True,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(26, 26)]
    assert "25 images of 13 patients" in card.threshold_source
    with pytest.raises(TrainingError, match="is the model itself"):
        recalibrate(tmp_path / "a", images, tmp_path / "a", Target(), device="cpu")


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return in_this_process(main, "classifier", "calibrate", *map(str, arguments))


def test_the_command_says_what_changed(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.safetensors"
    done = command("default", images, "--out", out, "--cost-ratio", 4, "--version", "7", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    old = load(SHIPPED_MODEL).card
    assert f"threshold {old.threshold:g} before, 0.2 now" in done.stdout
    assert "For a miss that costs as much as 4 false alarms" in done.stdout
    assert "The threshold was chosen on few patients" in done.stdout
    shown = json.loads(in_this_process(main, "classifier", "show", str(out), "--format", "json").stdout)
    assert (shown["version"], shown["threshold"]) == ("7", 0.2)


@pytest.mark.parametrize(("options", "said"), [
    (("--sensitivity", 0.9, "--threshold", 0.5), "--sensitivity and --threshold contradict each other;"),
    (("--sensitivity", 0), "--sensitivity is above 0 and at most 1."),
    (("--threshold", 1), "--threshold is above 0 and below 1."),
    (("--prevalence", 0), "--prevalence is above 0 and below 1."),
    (("--cost-ratio", "inf"), "--cost-ratio is a number above 0"),
    (("--band", 1), "--band is at least 0 and below 1."),
])  # fmt: skip
def test_options_that_make_no_sense_are_refused(
    options: tuple[object, ...], said: str, tmp_path: Path
) -> None:
    done = command("default", tmp_path, "--out", tmp_path / "a", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
