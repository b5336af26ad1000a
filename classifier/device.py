"""The choice of the device that a network runs on."""

from __future__ import annotations

import torch

from classifier.errors import DeviceError


def choose_device(name: str) -> torch.device:
    """Return the device that `name` means.

    Raises
    ------
    DeviceError
        If it is not a device name, or the machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if name != "cpu" and not (kind == "cuda" and (number.isdecimal() or name == "cuda")):
        raise DeviceError(
            f'The device {name!r} is not known; set device to "auto", "cpu", "cuda" or "cuda:N".'
        )
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise DeviceError(f'This machine has no device {name!r}; set device to "cpu" or "auto".')
    return torch.device("cpu") if kind == "cpu" else torch.device(kind, int(number or 0))
