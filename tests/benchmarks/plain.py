"""The plain loop of the published pipeline: float32, contiguous, torchvision's transforms, a data loader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import densenet121

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

    def train(self, files: Sequence[Path], workers: int) -> None:
        """Train one epoch."""
        self.train_on(self._loader(files, workers))

    def decoded(self, files: Sequence[Path]) -> list[tuple[Tensor, Tensor]]:
        """Return the batches of one epoch."""
        return list(self._loader(files, 0))

    def _loader(self, files: Sequence[Path], workers: int) -> Iterable[tuple[Tensor, Tensor]]:
        return DataLoader(_Files(files, self._train), self._batch_size, shuffle=True, num_workers=workers)

    def train_on(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Take a step for each batch."""
        self._model.train()
        loss_of = nn.BCEWithLogitsLoss()
        for images, labels in batches:
            self._optimizer.zero_grad()
            logits = self._model(images.to(self._device)).flatten()
            loss = loss_of(logits, labels.float().to(self._device))
            loss.backward()
            self._optimizer.step()

    @torch.no_grad()
    def predict(self, files: Sequence[Path], workers: int) -> list[float]:
        """Return the probability of each file."""
        self._model.eval()
        found: list[float] = []
        for images, _ in DataLoader(_Files(files, self._test), self._batch_size, num_workers=workers):
            found += torch.sigmoid(self._model(images.to(self._device)).flatten()).tolist()
        return found
