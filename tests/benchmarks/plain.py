"""The plain loop of the published pipeline: float32, contiguous, torchvision's transforms, a data loader."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import densenet121

Batches = Iterable[tuple[Tensor, Tensor]]

_NORMALISE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_FINE_TUNED = tuple(f"features.{part}" for part in ("denseblock3", "transition3", "denseblock4", "norm5"))
_FINE_TUNED += ("classifier",)


class _Files(Dataset[tuple[Tensor, float]]):
    def __init__(self, files: Sequence[Path], change: Any) -> None:
        self._files = files
        self._change = change

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, float]:
        path = self._files[index]
        with Image.open(path) as image:
            return self._change(image.convert("RGB")), float("PNEUMONIA" in path.parts)


class PlainLoop:
    """Trains and predicts as a tutorial does.

    Parameters
    ----------
    side
        Of the image, in pixels.
    frozen
        Whether all before denseblock3 is frozen, as in the published pipeline.
    """

    def __init__(self, device: str, batch_size: int, side: int, *, frozen: bool) -> None:
        self._device = device
        self._batch_size = batch_size
        self._train = transforms.Compose(
            [
                transforms.RandomResizedCrop(side, scale=(0.8, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.RandomRotation(20),
                transforms.ColorJitter(brightness=0.2, contrast=0.2),
                transforms.ToTensor(),
                _NORMALISE,
            ]
        )
        self._test = transforms.Compose([transforms.Resize((side, side)), transforms.ToTensor(), _NORMALISE])
        self._model: nn.Module = densenet121(weights=None)
        self._model.classifier = nn.Sequential(nn.Dropout(0.3), nn.Linear(1024, 1))
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad = not frozen or name.startswith(_FINE_TUNED)
        self._model.to(device)
        self._optimizer = torch.optim.Adam([p for p in self._model.parameters() if p.requires_grad], lr=1e-4)

    def batches(self, files: Sequence[Path], workers: int, *, to_train: bool) -> Batches:
        """Return the batches of an epoch, anew whenever they are iterated over."""
        change = self._train if to_train else self._test
        batches: Batches = loader(_Files(files, change), self._batch_size, workers, shuffle=to_train)
        return batches

    def train(self, batches: Batches) -> float:
        """Take a step for each batch; return images per second."""
        return _paced(batches, self._train_on)

    def predict(self, batches: Batches) -> float:
        """Find the probability of each image; return images per second."""
        return _paced(batches, self._predict)

    def _train_on(self, batches: Batches) -> None:
        self._model.train()
        loss_of = nn.BCEWithLogitsLoss()
        for images, labels in batches:
            self._optimizer.zero_grad()
            logits = self._model(images.to(self._device)).flatten()
            loss = loss_of(logits, labels.float().to(self._device))
            loss.backward()
            self._optimizer.step()

    @torch.no_grad()
    def _predict(self, batches: Batches) -> None:
        self._model.eval()
        for images, _ in batches:
            torch.sigmoid(self._model(images.to(self._device)).flatten()).tolist()


def loader(dataset: Dataset[Any], batch_size: int, workers: int, *, shuffle: bool = False) -> Any:
    """Return a data loader whose processes are there already.

    An epoch of thousands of images does not notice that they have to start; a few dozen would.
    """
    made: Any = DataLoader(
        dataset,
        batch_size,
        shuffle=shuffle,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        persistent_workers=workers > 0,
    )
    if workers:
        list(made)
    return made


def _paced(batches: Batches, work: Callable[[Batches], None]) -> float:
    """Return images per second from the moment at which the first batch has come, as amid a long epoch."""
    coming = iter(batches)
    first = next(coming)
    number = 0

    def counted() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal number
        for batch in chain([first], coming):
            number += len(batch[0])
            yield batch

    started = time.perf_counter()
    work(counted())
    return number / (time.perf_counter() - started)
