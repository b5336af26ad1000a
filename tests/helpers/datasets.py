"""Small data sets of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, grey: int = 100, seed: int = 0) -> Path:
    """Write a small noisy PNG and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 60, (48, 40))
    Image.fromarray((noise + grey).astype(np.uint8)).save(path)
    return path


def folder(root: Path, patients: int = 20, images: int = 2) -> Path:
    """Make a set of two classes; the sick are brighter."""
    for number in range(patients):
        for image in range(images):
            seed = number * images + image
            picture(root / "NORMAL" / f"IM-{number:04}-{image:04}.png", 60, seed)
            picture(root / "PNEUMONIA" / f"person{number}_virus_{image}.png", 140, seed)
    return root
