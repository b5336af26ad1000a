"""Which engine scores: the fastest at hand that gives what the plain network gives.

On a processor that is OpenVINO where it is installed, in bfloat16 where the processor computes in it; else
PyTorch. On CUDA it is PyTorch in float16. Before an engine is used, it scores a few images beside the plain
network in float32; one that fails, or differs, is told and passed over. A rough one comes with an exact one,
for those images for which the difference could count.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from classifier.errors import DeviceError
from classifier.model.network import Network
from classifier.scoring.backends import Eager, Engine, OpenVino, Plain, Recorded

_log = logging.getLogger(__name__)

EngineName = Literal["auto", "torch", "openvino"]
Make = Callable[[], Engine]
Measure = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]

_OF_MAPS = 10  # times the error of a probability, whose steepest slope is a quarter of the logit's
# What packages raise that are damaged, of another version, or short of memory
_FAILURES = (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError)


class Engines(NamedTuple):
    """The one in use, and one in float32, which may be the same."""

    fast: Engine
    exact: Engine


def choose(network: Network, planes: int, probe: Tensor, measure: Measure, wanted: EngineName) -> Engines:
    """Return the fastest engines that give what the network gives.

    Parameters
    ----------
    network
        In evaluation mode, float32, on its device.
    planes
        1 if the three planes of all images are the same, else 3.
    probe
        (B, 3, S, S) float32, on the same device: images to try engines on.
    measure
        From features and logits to probabilities and, of a model with the measure, novelties; (B,) each.
    wanted
        ``"openvino"`` insists on its being installed, ``"torch"`` does without, ``"auto"`` takes it if it is.

    Raises
    ------
    DeviceError
        When OpenVINO is wanted and not installed, or the device is no processor.
    """
    plain = Plain(network)
    with_openvino = _with_openvino(wanted, probe.device)
    exact, rough = _candidates(network, planes, probe, with_openvino=with_openvino)
    agrees = partial(_agrees, plain=plain, probe=probe, measure=measure)
    chosen = _first(exact, agrees) or plain
    return Engines(_first(rough, agrees) or chosen, chosen)


def _candidates(
    network: Network, planes: int, probe: Tensor, *, with_openvino: bool
) -> tuple[list[Make], list[Make]]:
    """Return how to make the exact and the rough engines for the device, the fastest first."""
    side = probe.shape[-1]
    if probe.device.type == "cuda":
        return [], [partial(Recorded, network, planes, side), partial(Plain, network, half=True)]
    eager = partial(Eager, network, planes)
    if not with_openvino:
        return [eager], []
    openvino = partial(OpenVino, network, planes, side)
    rough: list[Make] = [partial(openvino, "bf16")] if _has_bfloat16() else []
    return [partial(openvino, "f32"), eager], rough


def _has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16; where it is emulated, it is far slower than float32."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _with_openvino(wanted: EngineName, device: torch.device) -> bool:
    is_installed = find_spec("openvino") is not None
    if wanted == "openvino" and device.type != "cpu":
        raise DeviceError('OpenVINO computes on the processor; set device to "cpu", or engine to "auto".')
    if wanted == "openvino" and not is_installed:
        raise DeviceError("The package openvino is missing; pip install 'pacs-node[openvino]'.")
    return is_installed and wanted != "torch"


def _first(candidates: Iterable[Make], agrees: Callable[[Engine], bool]) -> Engine | None:
    for make in candidates:
        try:
            engine = make()
            if agrees(engine):
                return engine
            _log.warning("%s gives other scores than the plain network, and is not used", engine.name)
        except _FAILURES as error:
            _log.warning("an engine cannot be used: %s: %s", type(error).__name__, error)
    return None


def _agrees(engine: Engine, plain: Engine, probe: Tensor, measure: Measure) -> bool:
    """Whether an engine gives what the plain network gives, of a batch and of a single image."""
    wanted = plain(probe)
    expected, known = measure(*wanted[:2])
    scale = float(wanted.maps.abs().amax().clamp(min=1))
    for count in (len(probe), 1):
        found = engine(probe[:count])
        probabilities, novelties = measure(*found[:2])
        if not bool(((probabilities - expected[:count]).abs() <= engine.error).all()):
            return False
        if novelties is not None and known is not None:
            ratios = novelties / known[:count]
            if not bool(((ratios - 1).abs() <= engine.error).all()):
                return False
        if not bool(((found.maps - wanted.maps[:count]).abs() <= _OF_MAPS * engine.error * scale).all()):
            return False
    return True
