"""After the last epoch: measure the best model again as it will be used, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from classifier.data.images import decode_all
from classifier.model.checkpoint import load, save
from classifier.model.network import Network
from classifier.model.novelty import fit
from classifier.training.augment import Augment
from classifier.training.calibrate import Calibration, probabilities
from classifier.training.card import Validation, card
from classifier.training.decoded_set import DecodedSet, with_margin
from classifier.training.feed import Feed
from classifier.training.options import Options, Watcher, counted
from classifier.training.recipes import Recipe
from classifier.training.run_folder import MODEL_FILE, write_validation

Numbers = NDArray[np.float64]

_DRAWS = 8  # random changes of each validation image, on which the model is calibrated
_DECODED_AT_ONCE = 4096  # of the training images, when their features are taken


def measure(
    out: Path, recipe: Recipe, options: Options, images: DecodedSet, *, device: torch.device, watcher: Watcher
) -> None:
    """Fit the novelty measure to the best model of a run, measure the model, and write all of it."""
    best = load(out / MODEL_FILE).model.to(device, memory_format=torch.channels_last)
    total = len(images.train) + len(images.val) * (1 + _DRAWS)
    count = counted(watcher.embedded, total)
    measuring = _Measuring(best, recipe, options, images, device=device, count=count)
    novelty = fit(torch.cat([measuring.embed(some) for some in measuring.training_images()]))
    features = measuring.embed(images.val)
    logits, changed = measuring.head(features), measuring.changed()
    found = Validation(logits, changed, novelty(features).double().numpy())
    made = card(recipe, images.examples, found, options.wanted, options.about)
    save(out / MODEL_FILE, best.state_dict(), made, novelty)
    stated = probabilities(logits, Calibration(made.temperature, made.offset))
    held_out = [example for example in images.examples if example.split == "val"]
    write_validation(out, held_out, logits.tolist(), stated.tolist())


class _Measuring:
    """A network, and the images of its training run."""

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        options: Options,
        images: DecodedSet,
        *,
        device: torch.device,
        count: Callable[[int], None],
    ) -> None:
        self._network, self._recipe, self._options = network, recipe, options
        self._device, self._count = device, count
        self._feed = Feed(recipe, device)
        self._train, self._val = (
            [example for example in images.examples if example.split == name] for name in ("train", "val")
        )

    def training_images(self) -> Iterator[Tensor]:
        """Yield the training images as the network sees them, (N, 1, S, S) uint8, in groups."""
        for at in range(0, len(self._train), _DECODED_AT_ONCE):
            some = self._train[at : at + _DECODED_AT_ONCE]
            yield decode_all(some, self._recipe.image_size, workers=self._options.workers)[1]

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Tensor:
        """Return the features (N, F) of images (N, 1, S, S) uint8."""
        found = []
        for piece in self._feed.pieces(images):
            found.append(self._network.embed(self._feed(piece)).cpu())
            self._count(len(piece))
        return torch.cat(found)

    @torch.inference_mode()
    def head(self, features: Tensor) -> Numbers:
        """Return the logits (N,) of features (N, F)."""
        logits: Numbers = self._network.classifier(features.to(self._device)).flatten().double().cpu().numpy()
        return logits

    def changed(self) -> Numbers | None:
        """Return logits of the validation images changed as in training, (draws, N), if the recipe changes
        images.
        """
        if self._recipe.augment is None:
            return None
        side = self._recipe.image_size
        images = decode_all(self._val, with_margin(side), workers=self._options.workers)[1]
        augment = Augment(side, self._recipe.augment)
        generator = torch.Generator().manual_seed(self._options.seed)
        draws = []
        for _ in range(_DRAWS):
            changed = torch.cat(
                [
                    augment(piece, generator, len(piece), slice(None)).cpu()
                    for piece in self._feed.pieces(images)
                ]
            )
            draws.append(self.head(self.embed((changed * 255).to(torch.uint8))))
        return np.stack(draws)
