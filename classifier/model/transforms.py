"""The conversion from a file to the tensor that the network sees, as one MONAI chain.

The checkpoint stores the chain as a list such as::

    [{"name": "Resize", "size": 160},
     {"name": "Normalise", "mean": 0.485, "std": 0.229},
     {"name": "RepeatChannel", "count": 3}]

and training, evaluation and serving all build it from there. Training puts its random transforms between
`DecodeRadiograph` and the tail.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from classifier.config import Eligibility
from classifier.decoding.decode import Source, decode
from classifier.errors import CheckpointError, NotScorable
from classifier.light_imports import light_imports

with light_imports():
    from monai.data import MetaTensor
    from monai.transforms import Compose, Transform

Image = NDArray[np.float32] | torch.Tensor
Spec = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class DecodeRadiograph(Transform):  # type: ignore[misc]  # monai publishes no types
    """Decode a file or data set to (1, rows, columns) float32 in 0..1; see `classifier.decoding.decode`.

    Attributes
    ----------
    rules
        Which DICOM objects are wanted; ``None`` accepts any.
    size
        Side of the square to resize to, in pixels; ``None`` leaves the size to `Resize`.
    """

    rules: Eligibility | None = None
    size: int | None = None

    def __call__(self, source: Source | str) -> NDArray[np.float32]:
        return decode(Path(source) if isinstance(source, str) else source, self.rules, self.size)


@dataclass(frozen=True)
class Resize(Transform):  # type: ignore[misc]
    """Resize to a square, bilinear with antialiasing, as Pillow does; the aspect ratio is not kept.

    MONAI's own `Resize` smooths with a Gaussian before it samples, which gives another image.
    """

    size: int

    def __post_init__(self) -> None:
        fits = type(self.size) is int and 32 <= self.size <= 4096  # DenseNet121 halves five times
        _require(fits, "size must be a whole number of pixels from 32 to 4096")

    def __call__(self, image: Image) -> torch.Tensor:
        planes = _plain(image)[None]  # (1, C, H, W)
        size = (self.size, self.size)
        if planes.shape[2:] == size:
            return planes[0]
        return interpolate(planes, size, mode="bilinear", antialias=True)[0]  # (C, S, S)


@dataclass(frozen=True)
class Normalise(Transform):  # type: ignore[misc]
    """Subtract `mean` and divide by `std`, both in units of the 0..1 grey scale.

    Each is one number, or one for each channel.
    """

    mean: float | Sequence[float]
    std: float | Sequence[float]

    def __post_init__(self) -> None:
        means, stds = _numbers(self.mean), _numbers(self.std)
        finite = all(type(n) in (int, float) and math.isfinite(n) for n in (*means, *stds))
        _require(finite and min(stds) > 0, "mean and std must be finite numbers and std positive")
        _require(len({len(means), len(stds)} - {1}) < 2, "mean and std must be of the same channels")

    def __call__(self, image: Image) -> torch.Tensor:
        mean, std = (
            torch.tensor(_numbers(n))[:, None, None] for n in (self.mean, self.std)
        )  # (1 or C, 1, 1)
        plain = _plain(image)
        return (plain - mean.to(plain.device)) / std.to(plain.device)  # (C, S, S)


@dataclass(frozen=True)
class StretchContrast(Transform):  # type: ignore[misc]
    """Map two percentiles of the image to 0 and 1, and clip: exposure and window matter less.

    The percentiles are those of a grid of about 64 x 64 pixels, which are as good and much faster to find.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        fits = all(type(p) in (int, float) and 0 <= p <= 100 for p in (self.low, self.high))
        _require(fits and self.low < self.high, "low and high must be percentiles in this order")

    def __call__(self, image: Image) -> torch.Tensor:
        plain = _plain(image)  # (C, S, S)
        step = max(1, plain.shape[-1] // 64)
        ranked = plain[..., ::step, ::step].flatten().sort().values
        low, high = (ranked[round(p / 100 * (len(ranked) - 1))] for p in (self.low, self.high))
        return ((plain - low) / (high - low).clamp_min(1e-3)).clamp(0, 1)


@dataclass(frozen=True)
class RepeatChannel(Transform):  # type: ignore[misc]
    """Repeat the grey plane, for networks made for colour."""

    count: int

    def __post_init__(self) -> None:
        _require(type(self.count) is int and 1 <= self.count <= 16, "count must be a small whole number")

    def __call__(self, image: Image) -> torch.Tensor:
        return _plain(image).repeat(self.count, 1, 1)  # (1, S, S) -> (count, S, S)


_ALLOWED = {kind.__name__: kind for kind in (Resize, StretchContrast, Normalise, RepeatChannel)}


class Chain(Compose):  # type: ignore[misc]
    """MONAI's Compose, readable when printed, which passes on `NotScorable` unchanged."""

    def __call__(
        self,
        input_: Any,
        start: int = 0,
        end: int | None = None,
        threading: bool = False,
        lazy: bool | None = None,
    ) -> Any:
        try:
            return super().__call__(input_, start=start, end=end, threading=threading, lazy=lazy)
        except RuntimeError as error:
            refused = refusal(error)
            if refused is None:
                raise
        raise refused

    def __repr__(self) -> str:
        return "\n".join(["Chain(", *(f"    {step}," for step in self.transforms), ")"])


def tail(spec: Spec) -> Chain:
    """Build the transforms that follow decoding and augmentation.

    Parameters
    ----------
    spec
        One mapping per transform: its ``name`` and its arguments. Only the transforms of this module can be
        named, so a checkpoint cannot make the program call anything else.

    Returns
    -------
    Chain
        From (1, rows, columns) in 0..1 to a plain float32 tensor of the shape that the network takes.

    Raises
    ------
    CheckpointError
        If a transform or an argument is unknown, or a value is invalid.
    """
    return Chain([_step(entry) for entry in spec])


def chain(spec: Spec, rules: Eligibility | None = None) -> Chain:
    """Build the whole serving chain: `DecodeRadiograph`, then the `tail` of `spec`.

    If the tail begins with a size, decoding resizes to it: that is much faster, and `Resize` has nothing left
    to do.
    """
    steps = tail(spec).transforms
    size = steps[0].size if steps and isinstance(steps[0], Resize) else None
    return Chain([DecodeRadiograph(rules, size), *steps])


def refusal(error: BaseException) -> NotScorable | None:
    """Find the refusal under the RuntimeErrors that MONAI's data sets and transforms wrap around it."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, NotScorable):
        inner = inner.__cause__
    return inner


def _step(entry: Mapping[str, Any]) -> Any:
    arguments = dict(entry)
    name = arguments.pop("name", None)
    if not isinstance(name, str) or name not in _ALLOWED:
        raise CheckpointError(
            f"The preprocessing step {name!r} is not known to this version; update the program."
        )
    try:
        return _ALLOWED[name](**arguments)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The preprocessing step {name} is not understood: {error}.") from error


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _numbers(value: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, list | tuple) and value else (value,)  # type: ignore[return-value]


def _plain(image: Image) -> torch.Tensor:
    """Return a float32 tensor without MONAI's metadata."""
    tensor = image.as_tensor() if isinstance(image, MetaTensor) else torch.as_tensor(image)
    return tensor.to(torch.float32)
