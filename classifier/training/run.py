"""A run: epochs of steps and validation. It keeps the best epoch, and after each one the state to resume
from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from classifier.errors import TrainingError
from classifier.measuring.metrics import auroc
from classifier.model.checkpoint import save
from classifier.model.network import Network
from classifier.training.batches import Batch, Batches
from classifier.training.card import Validation, card
from classifier.training.decoded_set import DecodedSet
from classifier.training.distributed import Group, share_statistics
from classifier.training.feed import Feed
from classifier.training.optim import averaged, freeze_statistics, network, optimizer, schedule
from classifier.training.options import Epoch, Options, Watcher
from classifier.training.recipes import Recipe
from classifier.training.run_folder import MODEL_FILE, Origin, read_state, write_history, write_state
from classifier.training.weights import image_weights

Numbers = NDArray[np.float64]

_NOT_FINITE = "The loss is not finite; lower --learning-rate or use --precision fp32."


class Run:
    """The state of a run.

    Parameters
    ----------
    recipe, options
        How to train.
    out
        Folder of the run; the first process of the group writes to it.
    images, group
        The images, and the processes that train on them.

    Attributes
    ----------
    history
        All epochs so far.

    Raises
    ------
    TrainingError
        If there are too few images, or the initial weights are not available.
    """

    def __init__(self, recipe: Recipe, options: Options, out: Path, images: DecodedSet, group: Group) -> None:
        torch.manual_seed(options.seed)
        self.history: list[Epoch] = []
        self._recipe, self._options, self._out, self._group = recipe, options, out, group
        self._device = group.device
        self._images, self._feed = images, Feed(recipe, group.device)
        self._labels, self._val_labels = images.labels
        self._set_weights()
        self._batches = Batches(recipe, images, self._image_weights, group, options.seed)
        self._model = network(recipe).to(self._device, memory_format=torch.channels_last)
        self._average = averaged(self._model, recipe.average) if recipe.average else None
        self._trained = group.wrapped(share_statistics(self._model, group))
        self._optimizer = optimizer(recipe, self._model)
        self._schedule = schedule(recipe, self._optimizer, self._batches.steps)
        self._best = math.inf

    def _set_weights(self) -> None:
        examples, number = self._images.examples, len(self._labels)
        self._image_weights = image_weights(examples[:number], self._options.balance)
        self._val_weights = image_weights(examples[number:], self._options.balance)
        self._are_weighted = any(bool((w != 1).any()) for w in (self._image_weights, self._val_weights))
        self._share = float((self._labels * self._image_weights).mean())  # of the sick

    @property
    def best_epoch(self) -> int:
        """Number of the epoch with the smallest validation loss."""
        return min(self.history, key=lambda epoch: epoch.val_loss).epoch

    def epochs(self, watcher: Watcher) -> Iterator[Epoch]:
        """Train epoch by epoch; yield each.

        Raises
        ------
        TrainingError
            If the loss is not finite, or the state cannot be written.
        """
        while len(self.history) < self._recipe.epochs and not self._is_exhausted():
            number = len(self.history) + 1
            started = time.monotonic()
            rate = self._optimizer.param_groups[0]["lr"]
            train_loss = self._train(number, watcher)
            trained = time.monotonic()
            logits = self._validate()
            if not np.isfinite(logits).all():
                raise TrainingError(_NOT_FINITE)
            labels = self._val_labels.numpy().astype(np.float64)
            val_loss = self._validation_loss(logits)
            epoch = Epoch(
                epoch=number,
                learning_rate=rate,
                train_loss=train_loss,
                val_loss=val_loss,
                val_auroc=auroc(labels, logits),
                val_accuracy=float(np.mean((logits >= 0) == labels)),
                images_per_second=len(self._labels) / (trained - started),
                seconds=time.monotonic() - started,
            )
            if isinstance(self._schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
                self._schedule.step(val_loss)
            self.history.append(epoch)
            is_best = val_loss < self._best
            if is_best:
                self._best = val_loss
            if self._group.is_first:
                if is_best:
                    self._save_model(Validation(logits))
                self._save_state()
            yield epoch

    def _is_exhausted(self) -> bool:
        patience = self._recipe.patience
        return bool(patience and self.history and len(self.history) - self.best_epoch >= patience)

    def _train(self, epoch: int, watcher: Watcher) -> float:
        """Train one epoch; return the mean loss."""
        self._trained.train()
        if self._recipe.frozen:
            freeze_statistics(self._model)
        total, started = 0.0, time.monotonic()
        done = 0
        for step, batch in enumerate(self._batches.epoch(epoch), 1):
            loss = self._step(batch)
            total += loss * len(batch.targets)
            done += batch.size
            watcher.stepped(epoch, step, self._batches.steps, loss, done / (time.monotonic() - started))
        return self._group.sum(total) / self._batches.images

    def _step(self, batch: Batch) -> float:
        """Take a step; return the mean loss of this process's part of the batch."""
        with self._autocast():
            logits = self._trained(self._feed(batch.images)).float().flatten()
        loss = binary_cross_entropy_with_logits(
            logits, batch.targets, weight=self._weights(batch.targets, batch.weights)
        )
        if not torch.isfinite(loss):
            raise TrainingError(_NOT_FINITE)
        self._optimizer.zero_grad(set_to_none=True)
        # Gradients are averaged over the processes, whose parts may differ in size
        torch.autograd.backward(loss * (len(batch.targets) * self._group.size / batch.size))
        nn.utils.clip_grad_norm_(self._model.parameters(), 5.0)
        self._optimizer.step()
        if isinstance(self._schedule, torch.optim.lr_scheduler.OneCycleLR):
            self._schedule.step()
        if self._average is not None:
            self._average.update_parameters(self._model)
        return float(loss.detach())

    def _weights(self, targets: Tensor, own: Tensor) -> Tensor | None:
        """Return the weights of images in the loss, their mean over the training set being 1.

        In a balanced recipe both classes count the same; `own` are the weights of the images themselves.
        """
        if not self._recipe.balanced:
            return own if self._are_weighted else None
        by_class = targets * (0.5 / self._share) + (1 - targets) * (0.5 / (1 - self._share))
        return by_class * own if self._are_weighted else by_class

    @torch.inference_mode()
    def _validate(self) -> Numbers:
        """Return the logits of the validation images, (N,), by the averaged weights if there are any."""
        network = self._evaluated.eval()
        found = [torch.empty(0)]
        for images in self._feed.pieces(self._images.val[self._group.part(len(self._images.val))]):
            with self._autocast():
                logits = network(self._feed(images))
            found.append(logits.float().flatten().cpu())
        return self._group.gather(torch.cat(found)).numpy().astype(np.float64)

    def _validation_loss(self, logits: Numbers) -> float:
        targets = self._val_labels
        weights = self._weights(targets, self._val_weights)
        found = torch.from_numpy(logits)
        return float(binary_cross_entropy_with_logits(found, targets.double(), weight=weights))

    @property
    def _evaluated(self) -> Network:
        """The network to keep: the averaged one if there is one."""
        averaged: Network = self._model if self._average is None else self._average.module  # type: ignore[assignment]
        return averaged

    def _autocast(self) -> torch.autocast:
        half = self._options.is_half(self._device)
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=half)

    @property
    def _origin(self) -> Origin:
        return Origin(self._recipe, self._options, self._images.examples)

    def _save_model(self, found: Validation) -> None:
        made = card(self._recipe, self._images.examples, found, self._options.wanted, self._options.about)
        save(self._out / MODEL_FILE, self._evaluated.state_dict(), made)

    def _save_state(self) -> None:
        parts = {
            "model": self._model.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "best": self._best,
        }
        write_state(self._out, self._origin, self.history, parts)

    def resume(self) -> None:
        """Continue after the last complete epoch.

        Raises
        ------
        TrainingError
            If there is none, or it does not belong to this run.
        """
        self.history, parts = read_state(self._out, self._origin)
        self._model.load_state_dict(parts["model"])
        if self._average is not None:
            self._average.load_state_dict(parts["average"])
        self._optimizer.load_state_dict(parts["optimizer"])
        self._schedule.load_state_dict(parts["schedule"])
        self._best = parts["best"]
        if self._group.is_first:  # the run may have ended before this was written
            write_history(self._out, self.history)
