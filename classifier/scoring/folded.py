"""DenseNet121 for inference: the same function of the image in fewer and cheaper steps.

Batch normalisation after a convolution becomes part of it; that before one, a scale and a shift. The
transitions average before they convolve: a convolution of 1 x 1 commutes with the average, and costs a
quarter after it. An image whose planes are one grey plane repeated is convolved once, with the sum of the
weights of its planes. Each block writes its maps into one tensor, instead of joining all before each layer.
"""

from __future__ import annotations

from copy import copy, deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

from classifier.model.network import Network, activation

_GROWTH = 32  # maps that a layer adds


class Activation(nn.Module):
    """Scale and shift each channel, then cut off below 0: batch normalisation and ReLU.

    Attributes
    ----------
    scale, shift
        (C, 1, 1).
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        scale, shift = _scale_and_shift(norm)
        self.scale, self.shift = (nn.Parameter(values[:, None, None]) for values in (scale, shift))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return torch.addcmul(self.shift, maps, self.scale).relu_()


class Layer(nn.Module):
    """One layer of a block: (B, C, H, W) to (B, 32, H, W)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.activation = Activation(layer.norm1)  # type: ignore[arg-type]  # torchvision has no types
        self.squeeze = _folded(layer.conv1, layer.norm2)  # type: ignore[arg-type]
        self.expand = _copied(layer.conv2)  # type: ignore[arg-type]

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps that the layer adds."""
        added: Tensor = self.expand(self.squeeze(self.activation(maps)).relu_())
        return added


class Block(nn.Module):
    """Layers, each of which sees the maps of all before: (B, C, H, W) to (B, C + 32 for each, H, W)."""

    def __init__(self, block: nn.ModuleDict) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(Layer, block.values()))

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps that came, and behind them those that were added."""
        count, channels, rows, columns = maps.shape
        joined = torch.empty(
            (count, channels + _GROWTH * len(self.layers), rows, columns),
            dtype=maps.dtype,
            device=maps.device,
            memory_format=torch.channels_last,
        )
        joined[:, :channels] = maps
        for layer in self.layers:
            joined[:, channels : channels + _GROWTH] = layer(joined[:, :channels])
            channels += _GROWTH
        return joined


class Transition(nn.Module):
    """Between two blocks: (B, C, H, W) to (B, C / 2, H / 2, W / 2)."""

    def __init__(self, transition: nn.Module) -> None:
        super().__init__()
        self.activation = Activation(transition.norm)  # type: ignore[arg-type]
        self.halve = _copied(transition.conv)  # type: ignore[arg-type]

    def forward(self, maps: Tensor) -> Tensor:
        """Return half of the maps, at half of the size."""
        halved: Tensor = self.halve(avg_pool2d(self.activation(maps), 2))
        return halved


class Folded(nn.Module):
    """The network, folded.

    Parameters
    ----------
    network
        In evaluation mode; it keeps its weights.
    planes
        1 for images whose three planes are the same, of which only the first is given; else 3.
    """

    def __init__(self, network: Network, planes: int) -> None:
        super().__init__()
        features = network.features
        self.stem = _folded(features.conv0, features.norm0)
        if planes == 1:
            self.stem.in_channels = 1
            self.stem.weight = nn.Parameter(self.stem.weight.sum(1, keepdim=True))
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for number in range(1, 5):
            block = getattr(features, f"denseblock{number}")
            self.blocks.append(Block(block))
            if number < 4:
                self.transitions.append(Transition(getattr(features, f"transition{number}")))
        self.last = Activation(features.norm5)
        self.head = deepcopy(network.head)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, 1024) and activation map (B, H / 32, W / 32) of (B, planes, H, W); float32."""
        maps = max_pool2d(self.stem(images).relu_(), 3, 2, 1)
        for block, transition in zip(self.blocks, [*self.transitions, None], strict=True):
            maps = block(maps)
            if transition is not None:
                maps = transition(maps)
        last = self.last(maps.float())
        return last.mean((2, 3)), activation(last, self.head)


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = norm.weight / torch.sqrt(variance + norm.eps)
    return scale, norm.bias - mean * scale


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return one convolution that does what both do, one after the other."""
    scale, shift = _scale_and_shift(norm)
    made = _copied(convolution)
    made.weight = nn.Parameter(made.weight * scale[:, None, None, None])
    made.bias = nn.Parameter(shift)
    return made


def _copied(convolution: nn.Conv2d) -> nn.Conv2d:
    """Return a convolution without bias that can change its type while the other keeps its own."""
    made = copy(convolution)
    made._parameters = {"weight": nn.Parameter(convolution.weight), "bias": None}
    return made
