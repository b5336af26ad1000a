"""Train a network: epochs over augmented images, validation on patients it has not seen, the best epoch kept.

The run is written to one folder and can be killed at any point: `last.pt` holds everything to go on from the
last whole epoch, `model.safetensors` the best model so far with its card, ready for the node.
"""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from classifier import data
from classifier.augment import Augment
from classifier.calibrate import choose_threshold, fit_temperature, probabilities
from classifier.data import Example
from classifier.errors import TrainingError
from classifier.images import decode_all
from classifier.model import Metric, ModelCard, save
from classifier.optim import ARCHITECTURE, averaged, freeze_statistics, network, optimizer, schedule
from classifier.predict import choose_device
from classifier.recipes import Recipe
from classifier.transforms import Chain, tail

MODEL_FILE, LAST_FILE, HISTORY_FILE = "model.safetensors", "last.pt", "history.csv"
Numbers = NDArray[np.float64]

LIMITS = (
    "Research use only: not a medical device, not for diagnosis.",
    "Known from its training population only; other sites, scanners and ages are untested.",
)

_CACHE_MARGIN = 7 / 6  # images are kept this much larger than the network sees them, for turns and zooms
_VALIDATION_BATCH = 64


@dataclass(frozen=True)
class Options:
    """What a run needs beside its recipe.

    Attributes
    ----------
    val_share
        Share of the images whose patients are kept for validation.
    sensitivity
        What the operating threshold must reach on them.
    precision
        ``auto`` is bfloat16 autocast, on the CPU and on CUDA.
    """

    seed: int = 0
    val_share: float = 0.1
    sensitivity: float = 0.99
    device: str = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    workers: int = 0
    resume: bool = False
    skip_bad: bool = False
    name: str = "densenet121"
    version: str = "1"
    population: str = "Not stated."
    licence: str = "Not stated."
    description: str = ""


@dataclass(frozen=True)
class Epoch:
    """One line of history.csv; losses are binary cross-entropies, the speed is that of training alone."""

    epoch: int
    learning_rate: float
    train_loss: float
    val_loss: float
    val_auroc: float
    val_accuracy: float
    images_per_second: float
    seconds: float


@dataclass(frozen=True)
class Watcher:
    """Who is told how it goes."""

    decoded: Callable[[int, int], None] = lambda _done, _total: None
    stepped: Callable[[int, int, int, float, float], None] = lambda *_: None
    finished: Callable[[Epoch, bool], None] = lambda *_: None


_NOBODY = Watcher()


def train(source: Path, out: Path, recipe: Recipe, options: Options, watcher: Watcher = _NOBODY) -> Path:
    """Train a model.

    Parameters
    ----------
    source
        Folder of classes or manifest; see `classifier.data.load`.
    out
        Folder of the run.
    recipe, options
        How.
    watcher
        Who is told.

    Returns
    -------
    Path
        The best model.

    Raises
    ------
    DataError, TrainingError, CheckpointError, DeviceError
    """
    examples = data.split(
        [e for e in data.load(source) if e.split != "test"], options.val_share, options.seed
    )
    out.mkdir(parents=True, exist_ok=True)
    if not options.resume and (out / LAST_FILE).exists():
        raise TrainingError(
            f"{out} holds a run already; add --resume to go on with it, or choose another --out."
        )
    examples, images = decode_all(
        examples,
        round(recipe.image_size * _CACHE_MARGIN),
        workers=options.workers,
        skip_bad=options.skip_bad,
        progress=_counted(watcher, len(examples)),
    )
    _write_settings(out, recipe, options, examples)
    run = _Run(recipe, options, out, examples, images)
    if options.resume:
        run.resume()
    for epoch in run.epochs(watcher):
        watcher.finished(*epoch)
    return out / MODEL_FILE


class _Run:
    """The state of a run."""

    def __init__(
        self, recipe: Recipe, options: Options, out: Path, examples: Sequence[Example], images: Tensor
    ) -> None:
        torch.manual_seed(options.seed)
        self.recipe, self.options, self.out, self.examples = recipe, options, out, examples
        self.device = choose_device(options.device)
        self.post = Chain(tail(recipe.preprocessing).transforms[1:])  # what follows Resize
        self.parts = {
            name: [i for i, e in enumerate(examples) if e.split == name] for name in ("train", "val")
        }
        self.images = images
        self.labels = torch.tensor([float(e.label) for e in examples])
        self.model = network(recipe).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = averaged(self.model, recipe.average) if recipe.average else None
        self.steps = math.ceil(len(self.parts["train"]) / recipe.batch_size)
        self.optimizer = optimizer(recipe, self.model)
        self.schedule = schedule(recipe, self.optimizer, self.steps)
        self.history: list[Epoch] = []
        self.best = math.inf

    @property
    def best_epoch(self) -> int:
        return min(self.history, key=lambda epoch: epoch.val_loss).epoch

    def epochs(self, watcher: Watcher) -> Iterator[tuple[Epoch, bool]]:
        """Train epoch by epoch; yield each, and whether it is the best so far."""
        while len(self.history) < self.recipe.epochs and not self._is_exhausted():
            number = len(self.history) + 1
            started = time.monotonic()
            rate = self.optimizer.param_groups[0]["lr"]
            train_loss = self._train(number, watcher)
            trained = time.monotonic()
            logits = self._validate()
            labels = self.labels[self.parts["val"]].numpy().astype(np.float64)
            val_loss = float(np.mean(np.logaddexp(0, logits) - labels * logits))
            epoch = Epoch(
                epoch=number,
                learning_rate=rate,
                train_loss=train_loss,
                val_loss=val_loss,
                val_auroc=float(roc_auc_score(labels, logits)),
                val_accuracy=float(np.mean((logits >= 0) == labels)),
                images_per_second=len(self.parts["train"]) / (trained - started),
                seconds=time.monotonic() - started,
            )
            if isinstance(self.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
                self.schedule.step(val_loss)
            self.history.append(epoch)
            is_best = val_loss < self.best
            if is_best:
                self.best = val_loss
                self._save_model(logits, labels)
            self._save_state()
            yield epoch, is_best

    def _is_exhausted(self) -> bool:
        patience = self.recipe.patience
        return bool(patience and self.history and len(self.history) - self.best_epoch >= patience)

    def _train(self, epoch: int, watcher: Watcher) -> float:
        # Seeded anew for each epoch: a run that was resumed sees the same batches as one that was not
        seed = self.options.seed * 100_003 + epoch
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # for dropout
        order = torch.tensor(self.parts["train"])[
            torch.randperm(len(self.parts["train"]), generator=generator)
        ]
        augment = Augment(self.recipe.image_size, self.recipe.augment)
        self.model.train()
        if self.recipe.frozen:
            freeze_statistics(self.model)
        total, started = 0.0, time.monotonic()
        for step, batch in enumerate(_batches(order, self.recipe.batch_size), 1):
            images = augment(self.images[batch].to(self.device).float() / 255, generator)
            loss = self._step(images, self.labels[batch].to(self.device), generator)
            total += loss * len(batch)
            done = step * self.recipe.batch_size
            watcher.stepped(epoch, step, self.steps, loss, done / (time.monotonic() - started))
        return total / len(order)

    def _step(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> float:
        targets = labels * (1 - 2 * self.recipe.smoothing) + self.recipe.smoothing
        if self.recipe.mixup:
            images, targets = _mixed(images, targets, self.recipe.mixup, generator)
        try:
            with self._autocast():
                logits = self.model(self._prepared(images)).float().flatten()
            loss = binary_cross_entropy_with_logits(logits, targets, weight=self._weights(targets))
            if not torch.isfinite(loss):
                raise TrainingError("The loss is not finite; lower --learning-rate or use --precision fp32.")
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
        except torch.cuda.OutOfMemoryError as error:
            less = max(1, self.recipe.batch_size // 2)
            raise TrainingError(
                f"The memory of the GPU does not suffice; try --batch-size {less}."
            ) from error
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        if isinstance(self.schedule, torch.optim.lr_scheduler.OneCycleLR):
            self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return float(loss.detach())

    def _weights(self, targets: Tensor) -> Tensor | None:
        """Return weights with which both classes count the same; their mean over the training set is 1."""
        if not self.recipe.balanced:
            return None
        share = float(self.labels[self.parts["train"]].mean())
        return targets * (0.5 / share) + (1 - targets) * (0.5 / (1 - share))

    def _prepared(self, images: Tensor) -> Tensor:
        prepared: Tensor = torch.vmap(self.post)(images)  # (B, 1, S, S) -> (B, 3, S, S)
        return prepared.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def _validate(self) -> Numbers:
        """Return the logits of the validation images, (N,), by the averaged weights where there are some."""
        network = self.evaluated.eval()
        size = (self.recipe.image_size, self.recipe.image_size)
        found = []
        for batch in _batches(torch.tensor(self.parts["val"]), _VALIDATION_BATCH):
            images = self.images[batch].to(self.device).float() / 255
            images = nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
            with self._autocast():
                found.append(network(self._prepared(images)).float().flatten().cpu())
        return torch.cat(found).numpy().astype(np.float64)

    @property
    def evaluated(self) -> nn.Module:
        """The network that counts: the averaged one where there is one."""
        return self.model if self.average is None else self.average.module

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.options.precision != "fp32"
        )

    def _save_model(self, logits: Numbers, labels: Numbers) -> None:
        temperature = fit_temperature(logits, labels)
        probability = probabilities(logits, temperature)
        threshold = choose_threshold(probability, labels, self.options.sensitivity)
        save(
            self.out / MODEL_FILE,
            self.evaluated.state_dict(),
            self._card(probability, labels, threshold, temperature),
        )

    def _card(self, probability: Numbers, labels: Numbers, threshold: float, temperature: float) -> ModelCard:
        options, examples = self.options, self.examples
        held_out = [example for example in examples if example.split == "val"]
        patients = len({example.patient for example in held_out})
        where = f"{len(held_out)} validation images of {patients} patients"
        trained = len(examples) - len(held_out)
        seen = f"{trained} training images; digest of data and split {data.digest(examples)[:16]}."
        return ModelCard(
            name=options.name,
            version=options.version,
            architecture=ARCHITECTURE,
            preprocessing=tuple(self.recipe.preprocessing),
            recipe=self.recipe.text,
            threshold=threshold,
            threshold_source=f"The largest with sensitivity {options.sensitivity:g} on {where}.",
            temperature=temperature,
            temperature_source=f"Smallest log loss on {where}.",
            data=f"{options.description} {seen}".strip(),
            population=options.population,
            licence=options.licence,
            metrics=tuple(
                Metric(
                    name=name,
                    value=round(value, 4),
                    images=len(held_out),
                    patients=patients,
                    data="validation: patients held out, on whom threshold and temperature were fitted",
                    measured_by="classifier train",
                )
                for name, value in _measured(probability, labels, threshold).items()
            ),
            limits=LIMITS,
        )

    def _save_state(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": [asdict(epoch) for epoch in self.history],
            "best": self.best,
            "data": data.digest(self.examples),
            "recipe": json.dumps(asdict(self.recipe)),
        }
        temporary = self.out / f".{LAST_FILE}.tmp"
        try:
            torch.save(state, temporary)
            temporary.replace(self.out / LAST_FILE)
            _write_history(self.out / HISTORY_FILE, self.history)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            raise TrainingError(f"Cannot write to {self.out}: {error}; make space, then --resume.") from error

    def resume(self) -> None:
        """Go on from the last whole epoch."""
        try:
            state = torch.load(self.out / LAST_FILE, map_location=self.device, weights_only=True)
        except FileNotFoundError as error:
            raise TrainingError(f"There is no run to resume in {self.out}; leave out --resume.") from error
        if state["data"] != data.digest(self.examples) or state["recipe"] != json.dumps(asdict(self.recipe)):
            raise TrainingError(f"The run in {self.out} has other data or settings; choose another --out.")
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.best = state["best"]


def _batches(order: Tensor, size: int) -> Iterator[Tensor]:
    return (order[start : start + size] for start in range(0, len(order), size))


def _mixed(
    images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Blend each image, and its target, with another one of the batch (Zhang et al. 2018)."""
    # Beta(alpha, alpha) from two gamma variates, which take no generator: seeded by one that is drawn from it
    seed = int(torch.randint(2**31, (1,), generator=generator))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    other = torch.randperm(len(images), generator=generator).to(images.device)
    return share * images + (1 - share) * images[other], share * targets + (1 - share) * targets[other]


def _measured(probability: Numbers, labels: Numbers, threshold: float) -> dict[str, float]:
    positive = probability >= threshold
    return {
        "AUROC": float(roc_auc_score(labels, probability)),
        "sensitivity": float(positive[labels == 1].mean()),
        "specificity": float(1 - positive[labels == 0].mean()),
        "accuracy": float((positive == labels).mean()),
    }


def _write_settings(out: Path, recipe: Recipe, options: Options, examples: Sequence[Example]) -> None:
    data.write_manifest(out / "split.csv", examples)
    _write_json(out / "config.json", {"recipe": asdict(recipe), "options": asdict(options)})
    environment = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    _write_json(out / "environment.json", environment)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_history(path: Path, history: Sequence[Epoch]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(history[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _short(value) for key, value in asdict(epoch).items()} for epoch in history)
    temporary.replace(path)


def _short(value: float) -> str:
    return f"{value:.6g}"


def _counted(watcher: Watcher, total: int) -> Callable[[int], None]:
    done = 0

    def count(number: int) -> None:
        nonlocal done
        done += number
        watcher.decoded(done, total)

    return count
