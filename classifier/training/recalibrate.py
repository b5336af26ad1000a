"""A trained model for another place: temperature, offset and threshold chosen anew on other images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from classifier.data import examples as data
from classifier.data.examples import CLASSES, Classes, Example
from classifier.data.images import require_none
from classifier.device import choose_device
from classifier.errors import DataError, NotScorable, TrainingError
from classifier.measuring.metrics import auroc, interval, share_interval
from classifier.model.card import Metric, ModelCard
from classifier.model.checkpoint import Checkpoint, load, save
from classifier.model.transforms import chain
from classifier.scoring.logits import logits
from classifier.scoring.prepare import Preparation, Ready
from classifier.training.calibrate import choose_threshold, fit, probabilities
from classifier.training.card import FEW_PATIENTS, Operating
from classifier.training.naming import default_version

Numbers = NDArray[np.float64]

MEASURED_BY = "classifier calibrate"
_OF_THE_OLD_THRESHOLD = {"sensitivity", "specificity", "accuracy", "expected calibration error"}
_DATED = re.compile(r"-\d{8}\.\d{4}$")  # what an earlier calibration added to the version
_BATCH = 32
_DECIMALS = 4
_SENSITIVITY = 0.99


@dataclass(frozen=True)
class Target:
    """How to choose the threshold: by one of the first three.

    Attributes
    ----------
    sensitivity
        To be reached; 0.99 if nothing is named.
    threshold
        Itself, a probability after the new calibration.
    cost_ratio
        What a miss costs, in false alarms; the threshold is then ``1 / (1 + cost_ratio)`` (Elkan 2001).
    prevalence
        Share of the sick where the model will be used; probabilities and costs are right for it.
    band
        Probabilities nearer than this to the threshold are undetermined; ``None`` leaves it as it was.
    """

    sensitivity: float | None = None
    threshold: float | None = None
    cost_ratio: float | None = None
    prevalence: float = 0.5
    band: float | None = None


class Recalibrated(NamedTuple):
    """The card before and after."""

    before: ModelCard
    after: ModelCard


def recalibrate(
    model: Path,
    source: Path,
    out: Path,
    target: Target,
    *,
    classes: Classes = CLASSES,
    split: str = "",
    version: str = "",
    device: str = "auto",
    skip_bad: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Recalibrated:
    """Calibrate a model on labelled images that it was not trained on, and write it with a new card.

    Parameters
    ----------
    model, out
        Checkpoints; the weights stay as they are.
    source, classes, split
        The images; see `classifier.data.examples.load`.
    version
        Of the new model; by default that of the old one with the date.
    progress
        Called with the number of images scored and of all.

    Raises
    ------
    DataError
        If a class is missing, an image cannot be decoded, or images of a split ``train`` would be used.
    TrainingError
        If the new model would replace the old one.
    """
    if out.exists() and model.exists() and out.samefile(model):
        raise TrainingError(f"{out} is the model itself, which stays as it is; choose another --out.")
    checkpoint = load(model)
    examples, found = _scored(checkpoint, _wanted(source, classes, split), device, skip_bad, progress)
    card = _card(checkpoint.card, examples, found, target, source.name)
    dated = f"{_DATED.sub('', card.version)}-{default_version()}"
    card = card.model_copy(update={"version": version or dated})
    saved = save(out, checkpoint.model.state_dict(), card, checkpoint.novelty, checkpoint.gate)
    return Recalibrated(checkpoint.card, saved)


def _wanted(source: Path, classes: Classes, split: str) -> list[Example]:
    listed = [e for e in data.load(source, classes) if not split or e.split == split]
    if not split and any(example.split == "train" for example in listed):
        raise DataError(
            f"{source} has images of the split train, on which a model is too certain; name others with"
            " --split val."
        )
    _require_both(listed, f"The split {split!r} of {source}" if split else str(source))
    return listed


def _require_both(examples: Sequence[Example], what: str) -> None:
    if len({example.label for example in examples}) < 2:
        raise DataError(f"{what} lacks a class; calibration needs both.")


def _scored(
    checkpoint: Checkpoint,
    examples: Sequence[Example],
    device: str,
    skip_bad: bool,
    progress: Callable[[int, int], None],
) -> tuple[list[Example], Numbers]:
    """Return the images that can be decoded, and their logits (N,)."""
    chosen = choose_device(device)
    network = checkpoint.model.requires_grad_(False).to(chosen)
    prepare = Preparation(chain(checkpoint.card.preprocessing), None)
    kept: list[Example] = []
    bad: dict[Path, str] = {}
    found = []
    for at in range(0, len(examples), _BATCH):
        batch = examples[at : at + _BATCH]
        ready = []
        for example, image in zip(batch, prepare([e.path for e in batch]), strict=True):
            if isinstance(image, Ready):
                ready.append(image.tensor)
                kept.append(example)
            else:
                bad[example.path] = image.detail if isinstance(image, NotScorable) else str(image)
        found.append(logits(network, ready, str(chosen)))
        progress(at + len(batch), len(examples))
    if not skip_bad:
        require_none(bad)
    _require_both(kept, "What can be decoded")
    return kept, np.concatenate(found)


def _card(
    card: ModelCard, examples: Sequence[Example], found: Numbers, target: Target, source: str
) -> ModelCard:
    labels = np.array([example.label for example in examples], np.float64)
    calibration = fit(found, _softened(labels, examples), _weights(labels, target.prevalence))
    probability = probabilities(found, calibration)
    threshold, how = _threshold(probability, labels, target)
    people = len({example.patient for example in examples})
    where = f"{len(examples)} images of {people} patients in {source}"
    operating = Operating.of(found, calibration, examples, threshold)
    warning = [operating.warning] if operating.warning else []
    kept = [m for m in card.metrics if m.measured_by != MEASURED_BY and m.name not in _OF_THE_OLD_THRESHOLD]
    figures = _measured(examples, labels, probability, operating, f"{where}, on which it was calibrated")
    return card.model_copy(
        update={
            "threshold": threshold,
            "threshold_source": f"{how}, on {where}. There: {operating.shares}.",
            "temperature": calibration.temperature,
            "offset": calibration.offset,
            "temperature_source": f"Smallest log loss where {target.prevalence:g} of the patients are sick,"
            f" on {where}.",
            "band": card.band if target.band is None else target.band,
            "metrics": (*figures, *kept),
            "limits": (*(text for text in card.limits if not text.startswith(FEW_PATIENTS)), *warning),
        }
    )


def _softened(labels: Numbers, examples: Sequence[Example]) -> Numbers:
    """Return targets a little inside 0 and 1, the more so the fewer patients there are (Platt 1999).

    Otherwise images that are told apart without a mistake would make every answer certain.
    """
    sick, well = (len({e.patient for e in examples if e.label == label}) for label in (1, 0))
    softened: Numbers = np.where(labels == 1, (sick + 1) / (sick + 2), 1 / (well + 2))
    return softened


def _weights(labels: Numbers, prevalence: float) -> Numbers:
    share = labels.mean()
    weights: Numbers = np.where(labels == 1, prevalence / share, (1 - prevalence) / (1 - share))
    return weights


def _threshold(probability: Numbers, labels: Numbers, target: Target) -> tuple[float, str]:
    if target.threshold is not None:
        return target.threshold, f"Chosen as {target.threshold:g}"
    if target.cost_ratio is not None:
        found = float(np.clip(1 / (1 + target.cost_ratio), 10.0**-_DECIMALS, 1 - 10.0**-_DECIMALS))
        return round(found, _DECIMALS), f"For a miss that costs as much as {target.cost_ratio:g} false alarms"
    wanted = _SENSITIVITY if target.sensitivity is None else target.sensitivity
    return choose_threshold(probability, labels, wanted), f"The largest with sensitivity {wanted:g}"


def _measured(
    examples: Sequence[Example], labels: Numbers, probability: Numbers, operating: Operating, where: str
) -> Iterator[Metric]:
    patients = [example.patient for example in examples]
    values = {
        "AUROC": (auroc(labels, probability), interval(labels, probability, patients, auroc)),
        "sensitivity": (
            operating.sensitivity,
            share_interval(operating.sensitivity, operating.patients[1]),
        ),
        "specificity": (
            operating.specificity,
            share_interval(operating.specificity, operating.patients[0]),
        ),
    }
    for name, (value, (low, high)) in values.items():
        yield Metric(
            name=name,
            value=round(value, _DECIMALS),
            low=round(low, _DECIMALS),
            high=round(high, _DECIMALS),
            images=len(examples),
            patients=len(set(patients)),
            data=where,
            measured_by=MEASURED_BY,
        )
