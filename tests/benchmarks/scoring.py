"""Scoring alone: from the input of the network to features and logit, beside others that run it."""

from __future__ import annotations

import logging
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from classifier.config import SHIPPED_MODEL
from classifier.model.checkpoint import load
from classifier.model.network import Network
from classifier.scoring.folded import Folded
from classifier.scoring.predict import Predictor
from tests.benchmarks.pair import Pair, rate

Scorer = Callable[[Tensor], Any]

_ON_CUDA = torch.cuda.is_available()
_DEVICE = "cuda" if _ON_CUDA else "cpu"
_CELLS = ((160, (1, 8, 32, 64)), (224, (1, 16)))  # side of the image, batches
_SECONDS = 0.3  # of one measurement, at least
_EAGER = "eager PyTorch, float32, contiguous"
_WANTED = 3 if _ON_CUDA else 5
_NOT_BEHIND = 0.95
_SQUARE = 8192 if _ON_CUDA else 2048  # rows and columns of the matrices


class _Eager(nn.Module):
    """The network as a tutorial runs it."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.embed(images)
        return features, self.network.classifier(features)


def scoring(rounds: int) -> Iterator[Pair]:
    """Yield images per second for sizes of image and batch, and what share of the matrix rate that is."""
    eager = _Eager(load(SHIPPED_MODEL).model)
    others: dict[str, Scorer] = {} if _ON_CUDA else _peers(eager)
    others[_EAGER] = eager.to(_DEVICE)
    for side, batches in _CELLS:
        engine = _predictor(side).engines.fast
        for batch in batches:
            images = torch.rand(batch, 1, side, side).expand(-1, 3, -1, -1).contiguous().to(_DEVICE)
            found = _measured({"": engine, **others}, images, rounds)
            ours = found.pop("")
            what = f"Scoring, {side} pixels, batch {batch}: {engine.name}"
            for other, theirs in found.items():
                wanted = _WANTED if other == _EAGER else _NOT_BEHIND
                yield Pair(what=what, other=other, unit="images/s", ours=ours, theirs=theirs, wanted=wanted)
        yield _share(side, batches[-1], ours, rounds)


def _peers(eager: nn.Module) -> dict[str, Scorer]:
    """Return those that are installed, each given the same ONNX graph, with what it sets by itself."""
    found: dict[str, Scorer] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        if find_spec("onnx") and find_spec("onnxscript"):
            _export(eager, path)
        if path.exists() and find_spec("openvino"):
            import openvino

            compiled = openvino.Core().compile_model(openvino.Core().read_model(path), "CPU")
            found["OpenVINO"] = lambda images: compiled(images.numpy())
        if path.exists() and find_spec("onnxruntime"):
            import onnxruntime

            session = onnxruntime.InferenceSession(path)
            found["ONNX Runtime"] = lambda images: session.run(None, {"images": images.numpy()})
    return found


def _export(eager: nn.Module, path: Path) -> None:
    logging.getLogger("onnxscript").setLevel(logging.WARNING)
    dynamic = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's exporter about its own modules
        torch.onnx.export(
            eager,
            (torch.zeros(2, 3, 160, 160),),
            path,
            dynamo=True,
            verbose=False,
            input_names=["images"],
            dynamic_shapes={"images": {0: dynamic, 2: dynamic, 3: dynamic}},
        )


def _predictor(side: int) -> Predictor:
    """Return the node's own, with the model that ships at this size."""
    checkpoint = load(SHIPPED_MODEL)
    resize, *rest = checkpoint.card.preprocessing
    card = checkpoint.card.model_copy(update={"preprocessing": (resize | {"size": side}, *rest)})
    return Predictor(checkpoint._replace(card=card), torch.device(_DEVICE), None)


@torch.inference_mode()
def _measured(scorers: dict[str, Scorer], images: Tensor, rounds: int) -> dict[str, list[float]]:
    """Return images per second of each, measured in turns."""
    found: dict[str, list[float]] = {name: [] for name in scorers}
    repeats = {name: _repeats(scorer, images) for name, scorer in scorers.items()}
    for _ in range(rounds):
        for name, scorer in scorers.items():
            time.sleep(0.05)  # threads of the one before may still be waiting for work
            found[name].append(rate(lambda: _run(scorer, images, repeats[name]), len(images) * repeats[name]))
    return found


def _repeats(scorer: Scorer, images: Tensor) -> int:
    """Run it once, for what it does at first only, and return how often fills a measurement."""
    _run(scorer, images, 1)
    if len(images) >= 32 and not _ON_CUDA:
        return 1
    return max(1, math.ceil(_SECONDS * rate(lambda: _run(scorer, images, 1), 1)))


def _run(work: Callable[[Tensor], Any], images: Tensor, times: int) -> None:
    for _ in range(times):
        work(images)
    if _ON_CUDA:
        torch.cuda.synchronize()


@torch.inference_mode()
def _share(side: int, batch: int, ours: list[float], rounds: int) -> Pair:
    """Return how many operations the network got of the device, beside a product of matrices: the limit."""
    with FlopCounterMode(display=False) as counter:
        Folded(load(SHIPPED_MODEL).model, 1)(torch.zeros(1, 1, side, side))
    each = counter.get_total_flops() / 1e9
    matrix = torch.rand(_SQUARE, _SQUARE, device=_DEVICE, dtype=torch.float16 if _ON_CUDA else torch.float32)
    operations = 2 * _SQUARE**3 / 1e9
    (theirs,) = _measured({"": lambda _: matrix @ matrix}, torch.empty(1), rounds).values()
    return Pair(
        what=f"Scoring, {side} pixels, batch {batch}: arithmetic",
        other=f"product of two matrices, {_SQUARE} x {_SQUARE}, {str(matrix.dtype).removeprefix('torch.')}",
        unit="10⁹/s",
        ours=[images * each for images in ours],
        theirs=[products * operations for products in theirs],
    )


if __name__ == "__main__":
    for pair in scoring(3):
        print(f"{pair.what:62} {pair.other:45} {pair.ours_text:24} {pair.theirs_text:24} {pair.ratio:.2f}")  # noqa: T201
