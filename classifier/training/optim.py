"""From a recipe to the parts of training: network, optimiser, schedule, averaged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from classifier.errors import TrainingError
from classifier.model.checkpoint import load_weights
from classifier.model.network import Network, build
from classifier.training.recipes import Recipe

ARCHITECTURE = "densenet121"
Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]
_FEWEST_STEPS = 10  # with 5, the learning rate would have no time to rise
_TRAINED_WHEN_FROZEN = (
    "features.denseblock3",
    "features.transition3",
    "features.denseblock4",
    "features.norm5",
    "classifier",
)


def network(recipe: Recipe) -> Network:
    """Make the network with the weights that the recipe starts from.

    Raises
    ------
    TrainingError
        If the weights are not available, or frozen layers would be untrained.
    """
    model = build(ARCHITECTURE)
    if recipe.weights == "imagenet":
        _load_imagenet(model)
    elif recipe.weights == "none":
        if recipe.frozen:
            raise TrainingError("Frozen layers need trained weights; use --weights imagenet or a model file.")
    else:
        _load_file(model, Path(recipe.weights))
    if recipe.frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith(_TRAINED_WHEN_FROZEN)
    return model


def _load_file(model: nn.Module, path: Path) -> None:
    try:
        model.load_state_dict(load_weights(path)[0])
    except RuntimeError as error:
        raise TrainingError(f"The weights in {path} do not fit {ARCHITECTURE}; take another file.") from error


def _load_imagenet(model: nn.Module) -> None:
    """Load torchvision's weights for everything but the head."""
    from torchvision.models import DenseNet121_Weights, densenet121  # noqa: PLC0415

    wanted = DenseNet121_Weights.IMAGENET1K_V1
    try:
        trained = densenet121(weights=wanted)
    except (OSError, RuntimeError) as error:
        name = wanted.url.rsplit("/", 1)[-1]
        place = Path(torch.hub.get_dir()) / "checkpoints"
        raise TrainingError(
            f"The ImageNet weights cannot be downloaded; put {name} from pytorch.org into {place}."
        ) from error
    model.features.load_state_dict(trained.features.state_dict())  # type: ignore[union-attr]


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return the exponential moving average of a network's weights and statistics.

    It forgets faster at first; otherwise, with few images, it would keep the untrained weights for many
    epochs.
    """

    def average(averages: Tensors, currents: Tensors, number: Tensor | int) -> None:
        now = min(decay, (1 + int(number)) / (10 + int(number)))
        get_ema_multi_avg_fn(now)(averages, currents, number)  # type: ignore[no-untyped-call]

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def freeze_statistics(model: nn.Module) -> None:
    """Keep the running statistics of layers whose weights are not trained."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not module.weight.requires_grad:
            module.eval()


def optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Return Adam, or AdamW with weight decay, for the trained parameters."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not recipe.weight_decay:
        return torch.optim.Adam(trained, lr=recipe.learning_rate, fused=True)
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},  # biases and normalisation
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)


def schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """Return the schedule of the learning rate; `steps` is the number of batches in an epoch."""
    if recipe.schedule == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=2)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.learning_rate,
        total_steps=max(_FEWEST_STEPS, recipe.epochs * steps + 1),
        pct_start=0.2,
        div_factor=20,
        final_div_factor=500,
    )
