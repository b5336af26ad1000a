"""A hand, which the node must refuse."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from PIL import ImageDraw

from pacs_node.demo.phantom.curves import Points, band, borders, oval, smooth
from pacs_node.demo.phantom.plate import FloatImage, Plate, Strokes, corticated, expose

HAND_SIZE = 1024  # rows and columns


# The joints of each finger from the wrist out, thumb first; carpal bones (centre, radii); radius and ulna.
_RAYS = tuple(
    np.array(joints) * (0.82, 1) + (0.09, 0.0)
    for joints in (
        [(0.37, 0.7), (0.25, 0.585), (0.165, 0.475), (0.115, 0.39)],
        [(0.435, 0.665), (0.385, 0.465), (0.345, 0.31), (0.325, 0.215), (0.312, 0.145)],
        [(0.495, 0.655), (0.495, 0.445), (0.49, 0.27), (0.487, 0.155), (0.485, 0.08)],
        [(0.55, 0.665), (0.595, 0.475), (0.63, 0.315), (0.65, 0.21), (0.662, 0.14)],
        [(0.605, 0.685), (0.685, 0.53), (0.75, 0.41), (0.783, 0.33), (0.807, 0.265)],
    )
)
_WRIST = (
    ((0.425, 0.715), (0.022, 0.02)),
    ((0.47, 0.7), (0.019, 0.021)),
    ((0.508, 0.705), (0.026, 0.03)),
    ((0.56, 0.71), (0.023, 0.026)),
    ((0.445, 0.765), (0.026, 0.02)),
    ((0.503, 0.765), (0.025, 0.019)),
    ((0.555, 0.76), (0.021, 0.02)),
    ((0.452, 0.808), (0.045, 0.009)),
    ((0.552, 0.822), (0.022, 0.008)),
)
_FOREARM = (((0.452, 0.83), (0.445, 1.35)), ((0.552, 0.842), (0.55, 1.35)))


def hand(seed: int) -> FloatImage:
    """Draw the radiograph of a child's right hand, (1024, 1024) float32 within 0..1, fingers up."""
    plate = Plate(HAND_SIZE, HAND_SIZE, np.random.default_rng([seed, 3]))
    rays = [ray + plate.rng.normal(0, 0.003, ray.shape) for ray in _RAYS]
    flesh = plate.draw(_flesh(plate, rays), 9)
    bones = [bone for ray in rays for bone in _ray_bones(ray)]
    bones += [smooth(oval(centre, radii)) for centre, radii in _WRIST]
    bones += [_long_bone(np.array(ends), 0.042) for ends in _FOREARM]
    marrow = plate.fill(*bones, soft=1.3)
    rims = plate.draw(corticated(plate, bones, 0), 1.3)
    tissue = flesh * (0.42 + 0.02 * plate.clouds(6, 5))
    spongy = marrow * (0.42 + 0.035 * plate.clouds(60, 3))
    return expose(plate, np.asarray(tissue + spongy + 0.3 * rims, np.float32), "R", (0.86, 0.08))


def _flesh(plate: Plate, rays: Sequence[Points]) -> Strokes:
    """Draw the soft tissue of a hand: fingers, palm, thumb's web and forearm."""
    palm = np.array([rays[0][1], rays[1][1], rays[2][1], rays[3][1], rays[4][1], (0.63, 0.78), (0.6, 0.86)])
    palm = np.concatenate([palm, [(0.62, 1.05), (0.37, 1.05), (0.39, 0.87), (0.35, 0.76)]])

    def strokes(pen: ImageDraw.ImageDraw) -> None:
        pen.polygon(plate.pixels(smooth(palm)), fill=255)
        for ray in rays:
            curve = smooth(ray, closed=False)
            for (x, y), half in zip(curve, np.linspace(0.046, 0.031, len(curve)), strict=True):
                pen.ellipse(plate.pixels([(x - half, y - half), (x + half, y + half)]), fill=255)

    return strokes


def _ray_bones(ray: Points) -> list[Points]:
    """Return the outlines of one finger's bones: metacarpal, phalanges and their epiphyses."""
    bones = []
    for number, (near, far) in enumerate(itertools.pairwise(ray)):
        half = 0.021 - 0.0028 * number
        step = (far - near) / np.linalg.norm(far - near)
        if number:
            growing = near + step * 0.0105
            bones.append(band(np.array([growing - step * 0.005, growing + step * 0.005]), half, half))
        bones.append(_long_bone(np.array([near + step * 0.022, far - step * 0.006]), half))
    return bones


def _long_bone(ends: Points, half: float) -> Points:
    """Return the outline of a bone with a slender shaft and heads of half width `half`."""
    t = np.linspace(0, 1, 24)
    line = ends[0] + t[:, None] * (ends[1] - ends[0])
    waist = 0.58 + 0.42 * np.abs(2 * t - 1) ** 2.5
    rounded = np.sqrt(np.clip(np.minimum(t, 1 - t) / 0.06, 0.25, 1))
    upper, lower = borders(line, half * waist * rounded)
    return np.concatenate([upper, lower[::-1]])
