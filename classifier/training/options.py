"""What a run needs in addition to its recipe, and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from classifier.data.examples import Example
from classifier.training.card import About, OperatingTarget

Source: TypeAlias = Path | Sequence[Example]
"""A folder of classes, a manifest, or the images themselves; see `classifier.data.examples.load`."""


@dataclass(frozen=True)
class Options:
    """What a run needs in addition to its recipe.

    Attributes
    ----------
    val_share
        Share of the images whose patients are kept for validation.
    precision
        ``auto`` is bfloat16 autocast on a device that computes in bfloat16, and float32 on any other.
    balance
        Columns of the images that shall not tell the class; see `classifier.training.weights`.
    wanted, about
        For the card.
    """

    seed: int = 0
    val_share: float = 0.1
    device: str = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    workers: int = 0
    resume: bool = False
    skip_bad: bool = False
    balance: tuple[str, ...] = ()
    wanted: OperatingTarget = field(default_factory=OperatingTarget)
    about: About = field(default_factory=About)

    def is_half(self, device: torch.device) -> bool:
        """Whether to compute in bfloat16; by default not where it is emulated, which is far slower."""
        if self.precision != "auto":
            return self.precision == "bf16"
        if device.type == "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@dataclass(frozen=True)
class Epoch:
    """One line of history.csv; losses are binary cross-entropies; the speed is that of training alone.

    Both losses weight the classes as the recipe does, so that the share of the sick does not matter to a
    balanced one.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    val_loss: float
    val_auroc: float
    val_accuracy: float
    images_per_second: float
    seconds: float


@dataclass(frozen=True)
class Watcher:
    """Callbacks that report the progress of a run."""

    decoded: Callable[[int, int], None] = lambda _done, _total: None
    split: Callable[[Sequence[Example], Mapping[Path, str]], None] = lambda *_: None  # and those left out
    embedded: Callable[[int, int], None] = lambda _done, _total: None
    stepped: Callable[[int, int, int, float, float], None] = lambda *_: None
    # all epochs so far, number of the best
    finished: Callable[[Sequence[Epoch], int], None] = lambda *_: None


def counted(told: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    """Return a function that takes the number just done, and tells `told` the sum and `total`."""
    done = 0

    def count(number: int) -> None:
        nonlocal done
        done += number
        told(done, total)

    return count
