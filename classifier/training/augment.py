"""Random changes of training images, drawn for a whole batch and computed on the device of the network.

They stand between decoding and the tail of the transform chain. They change only what must not matter:
geometry, exposure and processing, sharpness, noise, the border of the image, and markers on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, affine_grid, conv2d, grid_sample, interpolate, pad
from torchvision.transforms import v2

_BLUR_RADIUS = 4  # pixels
_CURVE_POINTS = 6
_COARSE = (6, 6)  # cells of the large-scale shading of an image


@dataclass(frozen=True)
class Strength:
    """How far each change goes; symmetric ranges around "no change".

    Attributes
    ----------
    rotation, shear
        Degrees.
    zoom, stretch, gamma, contrast
        Largest factor; its inverse is the smallest.
    shift
        Share of the image's side.
    brightness, noise, curve
        In units of the grey scale 0..1.
    blur, sharpen
        Largest standard deviation of a Gaussian in pixels, and largest weight of what it removes.
    detail
        Largest factor for structures smaller than a lung, as multiscale processing changes them.
    shading
        Largest share by which the exposure of one part of the image differs from its mean.
    border, patch
        Largest share of the side that is covered at each edge, or by a patch.
    """

    rotation: float = 15
    shear: float = 6
    zoom: float = 1.3
    stretch: float = 1.2
    shift: float = 0.08
    flip: bool = True
    gamma: float = 1.7
    contrast: float = 1.5
    brightness: float = 0.15
    curve: float = 0.12
    blur: float = 1.6
    sharpen: float = 1.5
    detail: float = 2.2
    shading: float = 0.3
    noise: float = 0.05
    border: float = 0.08
    patch: float = 0.25
    patches: int = 3


class Augmentation(Protocol):
    """Changes images (B, 1, H, W) float32 in 0..1 at random and gives them their final size."""

    def __call__(self, images: Tensor, generator: torch.Generator, total: int, part: slice) -> Tensor:
        """Change the images `part` of a batch of `total`."""
        ...


class Published:
    """The augmentation of the published pipeline by torchvision's own transforms, image by image.

    Its open parameters are chosen here: crops of 80 to 100 % of the area, brightness and contrast by a factor
    of up to 1.2; saturation and hue of a grey image cannot change.
    """

    def __init__(self, size: int) -> None:
        self._change = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(0.8, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomRotation(20),
                v2.ColorJitter(brightness=0.2, contrast=0.2),
            ]
        )

    def __call__(self, images: Tensor, generator: torch.Generator, total: int, part: slice) -> Tensor:  # noqa: ARG002
        """Change images; see `Augmentation`. torchvision draws from PyTorch's global generator."""
        return torch.stack([self._change(image) for image in images])


class Augment:
    """Change a batch at random.

    Parameters
    ----------
    size
        Side of the result in pixels.
    strength
        How far each change may go.
    """

    def __init__(self, size: int, strength: Strength) -> None:
        self._size = size
        self._strength = strength

    def __call__(self, images: Tensor, generator: torch.Generator, total: int, part: slice) -> Tensor:
        """Change images.

        Parameters
        ----------
        images
            (B, 1, H, W) float32 in 0..1.
        generator
            Generator on the CPU; the same state gives the same changes on every device.
        total, part
            Size of the whole batch, and the part of it that `images` are. Each image is changed in the same
            way, however many processes share a batch.

        Returns
        -------
        Tensor
            (B, 1, size, size) float32 in 0..1.
        """
        draw = _Draw(total, part, generator, images.device)
        changed = self._geometry(images, draw)
        for step in (
            *(self._sharpness, self._detail, self._shading, self._exposure, self._curve),
            *(self._noise, self._border, self._patches),
        ):
            changed = step(changed, draw)
        return changed.clamp(0, 1)

    def _geometry(self, images: Tensor, draw: _Draw) -> Tensor:
        s = self._strength
        turn, shear = (draw.symmetric(math.radians(limit)) for limit in (s.rotation, s.shear))
        zoom, stretch = draw.factor(s.zoom), draw.factor(s.stretch).sqrt()
        mirror = draw.sign() if s.flip else torch.ones_like(turn)
        cos, sin = turn.cos(), turn.sin()
        across, down = zoom * stretch * mirror, zoom / stretch
        x = torch.stack([cos * across, (cos * shear.tan() - sin) * down, draw.symmetric(2 * s.shift)], 1)
        y = torch.stack([sin * across, (sin * shear.tan() + cos) * down, draw.symmetric(2 * s.shift)], 1)
        grid = affine_grid(
            torch.stack([x, y], 1), [len(images), 1, self._size, self._size], align_corners=False
        )
        return grid_sample(images, grid, padding_mode="border", align_corners=False)

    def _sharpness(self, images: Tensor, draw: _Draw) -> Tensor:
        """Blur a third of the images, sharpen a third: neither resolution nor processing tells the class."""
        s = self._strength
        smooth = _blurred(images, 0.3 + draw.uniform() * s.blur)
        kind, weight = draw.uniform(), draw.uniform()
        amount = torch.where(kind < 1 / 3, 1.0, torch.where(kind < 2 / 3, -weight * s.sharpen, 0.0))
        return images + _planes(amount) * (smooth - images)

    def _detail(self, images: Tensor, draw: _Draw) -> Tensor:
        """Weigh local contrast against large shades in half the images, as each vendor does differently."""
        wide = adaptive_avg_pool2d(images, _COARSE)
        wide = interpolate(wide, images.shape[2:], mode="bicubic", align_corners=False)
        weight = torch.where(draw.uniform() < 0.5, draw.factor(self._strength.detail) - 1, 0.0)
        return images + _planes(weight) * (images - wide)

    def _shading(self, images: Tensor, draw: _Draw) -> Tensor:
        """Brighten and darken parts of half the images smoothly: another machine's scatter, grid and heel."""
        coarse = draw.normal(torch.Size([len(images), 1, 3, 3])).clamp(-2, 2) / 2
        field = interpolate(coarse, images.shape[2:], mode="bicubic", align_corners=False)
        weight = draw.uniform() * self._strength.shading * (draw.uniform() < 0.5)
        return images * (1 + _planes(weight) * field)

    def _exposure(self, images: Tensor, draw: _Draw) -> Tensor:
        s = self._strength
        images = images.clamp(1e-4, 1) ** _planes(draw.factor(s.gamma))
        centre = images.mean((1, 2, 3), keepdim=True)
        return (
            (images - centre) * _planes(draw.factor(s.contrast))
            + centre
            + _planes(draw.symmetric(s.brightness))
        )

    def _curve(self, images: Tensor, draw: _Draw) -> Tensor:
        """Apply a smooth random tone curve, as the processing of another vendor does."""
        change = torch.zeros_like(images)
        scaled = images.clamp(0, 1) * math.pi
        for frequency in range(1, _CURVE_POINTS):
            change += _planes(draw.symmetric(self._strength.curve / frequency)) * torch.sin(
                frequency * scaled
            )
        return images + change / 2

    def _noise(self, images: Tensor, draw: _Draw) -> Tensor:
        return images + _planes(draw.uniform() ** 2 * self._strength.noise) * draw.normal(images.shape)

    def _border(self, images: Tensor, draw: _Draw) -> Tensor:
        """Cover the edges of half the images with one grey value, like collimation."""
        along = torch.linspace(0, 1, self._size, device=images.device)
        limit = self._strength.border * (draw.uniform() < 0.5)
        left, top, right, bottom = (_planes(draw.uniform() * limit) for _ in range(4))
        x, y = along[None, None, None, :], along[None, None, :, None]
        inside = (x >= left) & (x <= 1 - right) & (y >= top) & (y <= 1 - bottom)
        return torch.where(inside, images, _planes(draw.uniform() ** 3))

    def _patches(self, images: Tensor, draw: _Draw) -> Tensor:
        """Cover some rectangles, so that no single place or marker decides (Zhong et al. 2020)."""
        along = torch.linspace(0, 1, self._size, device=images.device)
        x, y = along[None, None, None, :], along[None, None, :, None]
        for _ in range(self._strength.patches):
            is_on = _planes((draw.uniform() < 0.35).float())
            wide, high = (_planes(draw.uniform() * self._strength.patch / 2) * is_on for _ in range(2))
            covered = ((x - _planes(draw.uniform())).abs() < wide) & (
                (y - _planes(draw.uniform())).abs() < high
            )
            images = torch.where(covered, _planes(draw.uniform()), images)
        return images


class _Draw:
    """Random numbers, one for each image of this process's part of a batch, (B,) float32."""

    def __init__(self, total: int, part: slice, generator: torch.Generator, device: torch.device) -> None:
        self._total = total
        self._part = part
        self._generator = generator
        self._device = device

    def uniform(self) -> Tensor:
        return torch.rand(self._total, generator=self._generator)[self._part].to(self._device)

    def symmetric(self, limit: float) -> Tensor:
        return (self.uniform() * 2 - 1) * limit

    def factor(self, largest: float) -> Tensor:
        return torch.exp(self.symmetric(math.log(largest)))

    def sign(self) -> Tensor:
        return (self.uniform() < 0.5).float() * 2 - 1

    def normal(self, shape: torch.Size) -> Tensor:
        whole = torch.randn((self._total, *shape[1:]), generator=self._generator)
        return whole[self._part].to(self._device)


def _planes(values: Tensor) -> Tensor:
    return values[:, None, None, None]  # (B, 1, 1, 1)


def _blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with its own standard deviation (B,), in pixels."""
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * sigma[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True))[:, None, None, :]  # (B, 1, 1, K)
    planes = pad(images.transpose(0, 1), [_BLUR_RADIUS] * 4, mode="replicate")  # (1, B, H, W)
    planes = conv2d(planes, kernel, groups=len(images))
    return conv2d(planes, kernel.transpose(2, 3), groups=len(images)).transpose(0, 1)
