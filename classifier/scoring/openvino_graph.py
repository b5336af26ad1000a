"""The folded network as a graph for OpenVINO, made step by step from the weights in memory.

OpenVINO's own converters would do as well, but they trace the network for seconds and need further packages;
this takes a tenth of a second. And they are the part of OpenVINO that reports its use to its makers.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import openvino
from openvino import opset13 as op
from torch import Tensor, nn

from classifier.scoring.folded import Activation, Folded


def graph(network: Folded, side: int) -> openvino.Model:
    """Return the graph from images to features and activation maps.

    Parameters
    ----------
    network
        float32, on the CPU.
    side
        Of the image, in pixels.

    Returns
    -------
    openvino.Model
        From (B, planes, side, side) float32 to (B, 1024) and (B, side / 32, side / 32), for any B.
    """
    images = op.parameter([-1, network.stem.in_channels, side, side], np.float32)
    stem = op.relu(_convolved(images, network.stem))
    maps = op.max_pool(stem, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)  # 1: indices
    for number, block in enumerate(network.blocks):
        parts, layers = [maps], cast(Any, block).layers
        for layer in layers:
            active = _activated(_joined(parts), layer.activation)
            squeezed = op.relu(_convolved(active, layer.squeeze))
            parts.append(_convolved(squeezed, layer.expand))
        maps = _joined(parts)
        if number < len(network.transitions):
            transition = cast(Any, network.transitions[number])
            maps = _convolved(_halved(_activated(maps, transition.activation)), transition.halve)
    last = _activated(maps, network.last)
    features = op.reduce_mean(last, [2, 3])
    weighted = op.multiply(last, _constant(network.head.weight[0][:, None, None]))
    return openvino.Model([features, op.reduce_sum(weighted, [1])], [images], "densenet121")


def _convolved(maps: Any, convolution: nn.Conv2d) -> Any:
    stride, padding = list(convolution.stride), list(convolution.padding)
    found = op.convolution(maps, _constant(convolution.weight), stride, padding, padding, [1, 1])
    if convolution.bias is None:
        return found
    return op.add(found, _constant(convolution.bias[:, None, None]))


def _activated(maps: Any, activation: Activation) -> Any:
    scaled = op.multiply(maps, _constant(activation.scale))
    return op.relu(op.add(scaled, _constant(activation.shift)))


def _joined(parts: list[Any]) -> Any:
    return op.concat(parts, 1) if len(parts) > 1 else parts[0]


def _halved(maps: Any) -> Any:
    return op.avg_pool(maps, [2, 2], [0, 0], [0, 0], [2, 2], True)


def _constant(values: Tensor) -> Any:
    return op.constant(values.detach().contiguous().numpy())
