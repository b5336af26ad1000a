"""Random changes of training images: seeded, within the range, and each of the kind that it is named for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from classifier.training.augment import Augment, Published, Strength

_NOTHING = Strength(
    **dict.fromkeys(("zoom", "stretch", "gamma", "contrast", "detail"), 1),  # factors
    **dict.fromkeys(("rotation", "shear", "shift", "brightness", "noise", "curve"), 0),
    **dict.fromkeys(("blur", "sharpen", "shading", "border", "patch", "patches"), 0),
    flip=False,
)
_SIDE = 56


def smooth_images() -> Tensor:
    """Return 32 images with shades of all sizes."""
    generator = torch.Generator().manual_seed(0)
    parts = [
        interpolate(torch.rand(32, 1, side, side, generator=generator), (_SIDE, _SIDE), mode="bilinear")
        for side in (4, 14, _SIDE)
    ]
    return torch.stack(parts).mean(0)


def augmented(images: Tensor, **strength: Any) -> Tensor:
    """Return images after the changes of this strength, and no others."""
    augment = Augment(_SIDE, replace(_NOTHING, **strength))
    return augment(images, torch.Generator().manual_seed(1), len(images), slice(None))


def test_augmentation_changes_every_image_and_keeps_its_range() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 1, 56, 56, generator=generator)
    first = Augment(48, Strength())(images, torch.Generator().manual_seed(1), 8, slice(0, 8))
    again = Augment(48, Strength())(images, torch.Generator().manual_seed(1), 8, slice(0, 8))
    assert first.shape == (8, 1, 48, 48)
    assert torch.equal(first, again)
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    assert not torch.isnan(first).any()
    assert len({float(image.mean()) for image in first}) == 8


def test_the_published_augmentation_is_seeded_and_keeps_shape_and_range() -> None:
    images = torch.rand(4, 1, 56, 56, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    first = Published(48)(images, torch.Generator(), 4, slice(0, 4))
    torch.manual_seed(5)
    assert torch.equal(first, Published(48)(images, torch.Generator(), 4, slice(0, 4)))
    assert first.shape == (4, 1, 48, 48)
    assert 0 <= float(first.min()) < float(first.max()) <= 1


def test_no_strength_leaves_images_as_they_are() -> None:
    images = smooth_images()
    torch.testing.assert_close(augmented(images), images, atol=0.01, rtol=0)  # a blur of 0.3 pixels is left


@pytest.mark.parametrize(
    "strength",
    [
        *({"rotation": 15}, {"shear": 6}, {"zoom": 1.3}, {"stretch": 1.2}, {"shift": 0.08}, {"flip": True}),
        *({"blur": 1.6}, {"sharpen": 1.5, "blur": 1.6}, {"detail": 2.2}, {"shading": 0.3}, {"gamma": 1.7}),
        *({"contrast": 1.5}, {"brightness": 0.15}, {"curve": 0.12}, {"noise": 0.05}, {"border": 0.08}),
        {"patch": 0.25, "patches": 3},
    ],
    ids=lambda strength: next(iter(strength)),
)
def test_each_change_alone_changes_images(strength: dict[str, Any]) -> None:
    images = smooth_images()
    away = (augmented(images, **strength) - images).abs().mean((1, 2, 3))
    assert (away > 0.005).sum() >= 8
    assert away.max() < 0.25


def test_detail_changes_local_contrast_and_shading_large_shades() -> None:
    images = smooth_images()

    def change(**strength: float) -> tuple[float, float]:
        """Return how much large shades and local contrast change."""
        found = augmented(images, **strength) - images
        large = adaptive_avg_pool2d(found, 6)
        local = found - interpolate(large, (_SIDE, _SIDE), mode="bicubic")
        return float(large.std()), float(local.std())

    large, local = change(detail=2.2)
    assert local > 2 * large
    large, local = change(shading=0.3)
    assert large > 2 * local
