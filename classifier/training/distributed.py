"""Training over several processes, started by torchrun: their numbers, and what they exchange.

Each process augments and differentiates its slice of every batch. Gradients are averaged by
DistributedDataParallel and the batch statistics shared, so that two processes take the same steps as one
process on the same batch, except for what each draws by itself: dropout, torchvision's transforms, and the
mixup partner of an image if a part begins at an odd index. Only the first process writes files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from classifier.device import choose_device

_PATIENCE = timedelta(hours=2)  # one machine may decode its images much faster than another


@dataclass(frozen=True)
class Group:
    """The processes of a run.

    Attributes
    ----------
    rank, size
        Number of this process, from 0, and how many there are.
    device
        Where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def part(self, number: int) -> slice:
        """Return the part of a batch of `number` images for this process; sizes differ by at most one."""
        smallest, larger = divmod(number, self.size)
        start = self.rank * smallest + min(self.rank, larger)
        return slice(start, start + smallest + (self.rank < larger))

    def wrapped(self, model: nn.Module) -> nn.Module:
        """Return the module to call in training; it shares the weights of `model`."""
        if self.size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def sum(self, value: float) -> float:
        """Return the sum over all processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return float(total)

    def gather(self, value: Tensor) -> Tensor:
        """Return the tensors of all processes one after another along the first dimension, on the CPU."""
        if self.size == 1:
            return value.cpu()
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value.cpu())
        return torch.cat(found)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            distributed.barrier()


def rank() -> int:
    """Return the number of this process in a run that torchrun started, else 0."""
    return int(os.environ["RANK"]) if _is_launched() else 0


def _is_launched() -> bool:
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


@contextmanager
def joined(device: str) -> Iterator[Group]:
    """Join the other processes if torchrun started this one; otherwise work alone.

    Parameters
    ----------
    device
        Argument of `classifier.device.choose_device`; on CUDA each process of a machine uses its own device.

    Raises
    ------
    DeviceError
        If there is no such device.
    """
    size = int(os.environ["WORLD_SIZE"]) if _is_launched() else 1
    local = os.environ.get("LOCAL_RANK", "0")
    chosen = choose_device(device)
    if size == 1:
        yield Group(0, 1, chosen)
        return
    if chosen.type == "cuda":
        chosen = choose_device(f"cuda:{local}")
        torch.cuda.set_device(chosen)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Group(rank(), size, chosen)
    finally:
        distributed.destroy_process_group()


def share_statistics(model: nn.Module, group: Group) -> nn.Module:
    """Let batch normalisation see the batch of all processes; PyTorch's own can do so only on CUDA."""
    if group.size == 1:
        return model
    if group.device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = _SharedBatchNorm
    return model


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_context: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


class _SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batch of all processes, on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.float()
        count = torch.full((1,), wide.numel() / wide.shape[1])
        # In one exchange, because each costs a round trip: sum, sum of squares, number
        own = torch.cat([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3)), count])
        total: Tensor = _Sum.apply(own)
        number = total[-1]
        mean, square = (total[:-1] / number).chunk(2)
        variance = (square - mean.square()).clamp_min(0)
        self._remember(mean.detach(), (variance * number / (number - 1)).detach())
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        normalised: Tensor = (wide * scale[:, None, None] + shift[:, None, None]).to(x.dtype)
        return normalised

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            return
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
