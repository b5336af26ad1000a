"""Train a network: epochs over augmented images, validation on patients it has not seen, the best epoch kept.

The run is written to one folder and can be killed at any point: `last.pt` holds everything to go on from the
last whole epoch, `model.safetensors` the best model so far with its card, ready for the node. When the last
epoch is done, the novelty measure is fitted and all that the card states is measured anew, at full precision.
"""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from classifier import data
from classifier.augment import Augment, Augmentation, Published
from classifier.data import Example
from classifier.distributed import Group, joined, share_statistics
from classifier.errors import TrainingError
from classifier.finish import About, Validation, Wanted, card
from classifier.images import decode_all
from classifier.model import Network, load, save
from classifier.novelty import Novelty, fit
from classifier.optim import averaged, freeze_statistics, network, optimizer, schedule
from classifier.recipes import Recipe
from classifier.transforms import Chain, tail

MODEL_FILE, LAST_FILE, HISTORY_FILE = "model.safetensors", "last.pt", "history.csv"
Numbers = NDArray[np.float64]

_NOT_FINITE = "The loss is not finite; lower --learning-rate or use --precision fp32."
_CACHE_MARGIN = 7 / 6  # images are kept this much larger than the network sees them, for turns and zooms
_DRAWS = 8  # random changes of each validation image, on which the model is calibrated
_DECODED_AT_ONCE = 4096  # of the training images, when their features are taken


@dataclass(frozen=True)
class Options:
    """What a run needs beside its recipe.

    Attributes
    ----------
    val_share
        Share of the images whose patients are kept for validation.
    precision
        ``auto`` is bfloat16 autocast, on the CPU and on CUDA.
    wanted, about
        For the card.
    """

    seed: int = 0
    val_share: float = 0.1
    device: str = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    workers: int = 0
    resume: bool = False
    skip_bad: bool = False
    wanted: Wanted = field(default_factory=Wanted)
    about: About = field(default_factory=About)


@dataclass(frozen=True)
class Epoch:
    """One line of history.csv; losses are binary cross-entropies, the speed is that of training alone.

    Both losses weigh the classes as the recipe does: a balanced one is not judged by the share of the sick.
    """

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
    embedded: Callable[[int, int], None] = lambda _done, _total: None
    stepped: Callable[[int, int, int, float, float], None] = lambda *_: None
    finished: Callable[[Sequence[Epoch], int], None] = lambda *_: None  # all so far, number of the best


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
    with joined(options.device) as group:
        if group.is_first:
            out.mkdir(parents=True, exist_ok=True)
        if not options.resume and (out / LAST_FILE).exists():
            raise TrainingError(
                f"{out} holds a run already; add --resume to go on with it, or choose another --out."
            )
        images = _Images.decoded(source, recipe, options, watcher)
        run = _Run(recipe, options, out, images, group)
        if options.resume:
            run.resume()
        group.wait()  # until all have seen what the folder holds
        if group.is_first:
            _write_settings(out, recipe, options, images.examples)
        with _memory_of(recipe):
            for _ in run.epochs(watcher):
                watcher.finished(run.history, run.best_epoch)
    if group.is_first:  # when the others have left: this takes longer than they may wait
        with _memory_of(recipe):
            run.finish(watcher)
    return out / MODEL_FILE


@contextmanager
def _memory_of(recipe: Recipe) -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        less = max(2, recipe.batch_size // 2)
        raise TrainingError(f"The memory of the GPU does not suffice; try --batch-size {less}.") from error


@dataclass(frozen=True)
class _Images:
    """What is trained and validated on, decoded.

    Attributes
    ----------
    examples
        All, those of training first.
    train
        (N, 1, S, S) uint8, larger than the network sees them.
    val
        (M, 1, S, S) uint8, as the network sees them.
    """

    examples: Sequence[Example]
    train: Tensor
    val: Tensor

    @classmethod
    def decoded(cls, source: Path, recipe: Recipe, options: Options, watcher: Watcher) -> _Images:
        found = data.split(data.load(source), options.val_share, options.seed)
        examples = [example for example in found if example.split != "test"]
        decode = partial(
            decode_all,
            workers=options.workers,
            skip_bad=options.skip_bad,
            progress=_counted(watcher.decoded, len(examples)),
        )
        parts = [[e for e in examples if e.split == name] for name in ("train", "val")]
        train, larger = decode(parts[0], round(recipe.image_size * _CACHE_MARGIN))
        val, images = decode(parts[1], recipe.image_size)
        data.require_both_classes([*train, *val])  # --skip-bad may have left one out
        return cls([*train, *val], larger, images)


class _Run:
    """The state of a run."""

    def __init__(self, recipe: Recipe, options: Options, out: Path, images: _Images, group: Group) -> None:
        torch.manual_seed(options.seed)
        self.recipe, self.options, self.out, self.group = recipe, options, out, group
        self.device = group.device
        self.post = Chain(tail(recipe.preprocessing).transforms[1:])  # what follows Resize
        self.examples, self.images = images.examples, images
        labels = torch.tensor([float(e.label) for e in images.examples])
        self.labels, self.val_labels = labels[: len(images.train)], labels[len(images.train) :]
        self.steps = math.ceil(len(self.labels) / recipe.batch_size)
        smallest = len(self.labels) // self.steps
        if smallest < max(2, group.size):  # normalisation needs two images, each process one
            raise TrainingError(
                f"A batch of {smallest} images is too small; give more images or a larger --batch-size."
            )
        self.model = network(recipe).to(self.device, memory_format=torch.channels_last)
        self.average = averaged(self.model, recipe.average) if recipe.average else None
        self.trained = group.wrapped(share_statistics(self.model, group))
        self.optimizer = optimizer(recipe, self.model)
        self.schedule = schedule(recipe, self.optimizer, self.steps)
        self.history: list[Epoch] = []
        self.best = math.inf

    @property
    def best_epoch(self) -> int:
        return min(self.history, key=lambda epoch: epoch.val_loss).epoch

    def epochs(self, watcher: Watcher) -> Iterator[Epoch]:
        """Train epoch by epoch; yield each."""
        while len(self.history) < self.recipe.epochs and not self._is_exhausted():
            number = len(self.history) + 1
            started = time.monotonic()
            rate = self.optimizer.param_groups[0]["lr"]
            train_loss = self._train(number, watcher)
            trained = time.monotonic()
            logits = self._validate()
            if not np.isfinite(logits).all():
                raise TrainingError(_NOT_FINITE)
            labels = self.val_labels.numpy().astype(np.float64)
            val_loss = self._validation_loss(logits)
            epoch = Epoch(
                epoch=number,
                learning_rate=rate,
                train_loss=train_loss,
                val_loss=val_loss,
                val_auroc=float(roc_auc_score(labels, logits)),
                val_accuracy=float(np.mean((logits >= 0) == labels)),
                images_per_second=len(self.labels) / (trained - started),
                seconds=time.monotonic() - started,
            )
            if isinstance(self.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
                self.schedule.step(val_loss)
            self.history.append(epoch)
            is_best = val_loss < self.best
            if is_best:
                self.best = val_loss
            if self.group.is_first:
                if is_best:
                    self._save_model(self.evaluated, Validation(logits))
                self._save_state()
            yield epoch

    def _is_exhausted(self) -> bool:
        patience = self.recipe.patience
        return bool(patience and self.history and len(self.history) - self.best_epoch >= patience)

    def _train(self, epoch: int, watcher: Watcher) -> float:
        # Seeded anew for each epoch: a run that was resumed sees the same batches as one that was not
        seed = self.options.seed * 100_003 + epoch
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed * self.group.size + self.group.rank)  # dropout, torchvision's transforms
        order = torch.randperm(len(self.labels), generator=generator)
        size = self.recipe.size_at(epoch)
        augment = self._augmentation(size)
        self.trained.train()
        if self.recipe.frozen:
            freeze_statistics(self.model)
        total, started = 0.0, time.monotonic()
        done = 0
        for step, batch in enumerate(order.tensor_split(self.steps), 1):
            part = self.group.part(len(batch))
            mine = batch[part]
            images = _shrunk(
                self.images.train[mine].to(self.device).float() / 255, round(size * _CACHE_MARGIN)
            )
            images = augment(images, generator, len(batch), part)
            loss = self._step(images, self.labels[mine].to(self.device), len(batch), generator)
            total += loss * len(mine)
            done += len(batch)
            watcher.stepped(epoch, step, self.steps, loss, done / (time.monotonic() - started))
        return self.group.sum(total) / len(order)

    def _augmentation(self, size: int) -> Augmentation:
        strength = self.recipe.augment
        return Published(size) if strength is None else Augment(size, strength)

    def _step(self, images: Tensor, labels: Tensor, number: int, generator: torch.Generator) -> float:
        """Take a step on this process's part of a batch of `number` images; return the part's mean loss."""
        targets = labels * (1 - 2 * self.recipe.smoothing) + self.recipe.smoothing
        if self.recipe.mixup:
            images, targets = _mixed(images, targets, self.recipe.mixup, generator)
        with self._autocast():
            logits = self.trained(self._prepared(images)).float().flatten()
        loss = binary_cross_entropy_with_logits(logits, targets, weight=self._weights(targets))
        if not torch.isfinite(loss):
            raise TrainingError(_NOT_FINITE)
        self.optimizer.zero_grad(set_to_none=True)
        # Gradients are averaged over the processes, whose parts may differ in size
        torch.autograd.backward(loss * (len(labels) * self.group.size / number))
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
        share = float(self.labels.mean())
        return targets * (0.5 / share) + (1 - targets) * (0.5 / (1 - share))

    def _prepared(self, images: Tensor) -> Tensor:
        prepared: Tensor = torch.vmap(self.post)(images)  # (B, 1, S, S) -> (B, 3, S, S)
        return prepared.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def _validate(self) -> Numbers:
        """Return the logits of the validation images, (N,), by the averaged weights where there are some."""
        network = self.evaluated.eval()
        found = [torch.empty(0)]
        for images in self._pieces(self.images.val[self.group.part(len(self.images.val))]):
            with self._autocast():
                logits = network(self._prepared(images.to(self.device).float() / 255))
            found.append(logits.float().flatten().cpu())
        return self.group.gather(torch.cat(found)).numpy().astype(np.float64)

    def _validation_loss(self, logits: Numbers) -> float:
        targets = self.val_labels
        weights = self._weights(targets)
        found = torch.from_numpy(logits)
        return float(binary_cross_entropy_with_logits(found, targets.double(), weight=weights))

    @property
    def evaluated(self) -> Network:
        """The network that counts: the averaged one where there is one."""
        averaged: Network = self.model if self.average is None else self.average.module  # type: ignore[assignment]
        return averaged

    def finish(self, watcher: Watcher) -> None:
        """Fit the novelty measure to the best model, and measure it as it will be used: in float32."""
        best = load(self.out / MODEL_FILE).model.to(self.device, memory_format=torch.channels_last)
        counted = _counted(watcher.embedded, len(self.labels) + len(self.val_labels) * (1 + _DRAWS))
        measure = fit(torch.cat([self._embed(best, images, counted) for images in self._training_images()]))
        features = self._embed(best, self.images.val, counted)
        found = Validation(
            self._head(best, features), self._changed(best, counted), measure(features).double().numpy()
        )
        self._save_model(best, found, measure)

    def _save_model(self, model: Network, found: Validation, measure: Novelty | None = None) -> None:
        made = card(self.recipe, self.examples, found, self.options.wanted, self.options.about)
        save(self.out / MODEL_FILE, model.state_dict(), made, measure)

    @torch.inference_mode()
    def _head(self, network: Network, features: Tensor) -> Numbers:
        logits: Numbers = network.classifier(features.to(self.device)).flatten().double().cpu().numpy()
        return logits

    def _changed(self, network: Network, counted: Callable[[int], None]) -> Numbers | None:
        """Return the logits of the validation images changed as in training, (draws, N), where they are."""
        if self.recipe.augment is None:
            return None
        val = [example for example in self.examples if example.split == "val"]
        side = round(self.recipe.image_size * _CACHE_MARGIN)
        images = decode_all(val, side, workers=self.options.workers)[1]
        augment = Augment(self.recipe.image_size, self.recipe.augment)
        generator = torch.Generator().manual_seed(self.options.seed)
        draws = []
        for _ in range(_DRAWS):
            changed = torch.cat(
                [
                    augment(some.to(self.device).float() / 255, generator, len(some), slice(None)).cpu()
                    for some in self._pieces(images)
                ]
            )
            draws.append(self._head(network, self._embed(network, (changed * 255).to(torch.uint8), counted)))
        return np.stack(draws)

    def _training_images(self) -> Iterator[Tensor]:
        """Yield the training images as the network sees them, some at a time."""
        train = [example for example in self.examples if example.split == "train"]
        for at in range(0, len(train), _DECODED_AT_ONCE):
            some = train[at : at + _DECODED_AT_ONCE]
            yield decode_all(some, self.recipe.image_size, workers=self.options.workers)[1]

    def _pieces(self, images: Tensor) -> Iterator[Tensor]:
        size = 2 * self.recipe.batch_size  # without gradients, twice as many fit
        return (images[at : at + size] for at in range(0, len(images), size))

    @torch.inference_mode()
    def _embed(self, network: Network, images: Tensor, counted: Callable[[int], None]) -> Tensor:
        """Return the features (N, F) of images (N, 1, S, S) uint8."""
        found = []
        for batch in self._pieces(images):
            found.append(network.embed(self._prepared(batch.to(self.device).float() / 255)).cpu())
            counted(len(batch))
        return torch.cat(found)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._is_half())

    def _is_half(self) -> bool:
        """Whether to compute in bfloat16: not, unless told, on a GPU that only emulates it."""
        if self.options.precision == "auto" and self.device.type == "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return self.options.precision != "fp32"

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
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
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
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            raise TrainingError(f"{self.out / LAST_FILE} is damaged; start anew in another --out.") from error
        made_for = (state.get("data"), state.get("recipe"))
        if made_for != (data.digest(self.examples), json.dumps(asdict(self.recipe))):
            raise TrainingError(f"The run in {self.out} has other data or settings; choose another --out.")
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.best = state["best"]


def _shrunk(images: Tensor, side: int) -> Tensor:
    if images.shape[-1] == side:
        return images
    return nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)


def _mixed(
    images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Blend each image, and its target, with its neighbour in the shuffled batch (Zhang et al. 2018)."""
    # Beta(alpha, alpha) from two gamma variates, which take no generator: seeded by one that is drawn from it
    seed = int(torch.randint(2**31, (1,), generator=generator))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    # Pairs, so that no image needs one of another process
    other = (torch.arange(len(images)) ^ 1).clamp_max(len(images) - 1).to(images.device)
    return share * images + (1 - share) * images[other], share * targets + (1 - share) * targets[other]


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


def _counted(told: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    done = 0

    def count(number: int) -> None:
        nonlocal done
        done += number
        told(done, total)

    return count
