"""Logits of a network, for those who choose a threshold or change images; answers come from `predict`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from classifier.model.card import ModelCard
from classifier.model.network import Network

_BATCH = 32
_FURTHEST = 60.0  # beyond which the exponential would overflow


@torch.inference_mode()
def logits(network: Network, tensors: Iterable[torch.Tensor], device: str) -> NDArray[np.float64]:
    """Return the logits (N,), in float32, of prepared images (3, S, S) each.

    Parameters
    ----------
    network
        In evaluation mode, on `device`.
    """
    rest, found = iter(tensors), []
    while batch := list(islice(rest, _BATCH)):
        stacked = torch.stack(batch).to(device, memory_format=torch.channels_last)
        found.append(network.classifier(network.embed(stacked)).flatten().double().cpu())
    return torch.cat(found).numpy() if found else np.empty(0)


def calibrated(card: ModelCard, found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities (N,) that a model states for its logits (N,)."""
    scaled = np.clip((found + card.offset) / card.temperature, -_FURTHEST, _FURTHEST)
    probabilities: NDArray[np.float64] = 1 / (1 + np.exp(-scaled))
    return probabilities
