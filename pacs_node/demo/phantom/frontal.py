"""A frontal chest, with or without an opacity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import ImageDraw

from pacs_node.demo.phantom.curves import Points, band, borders, box, oval, smooth
from pacs_node.demo.phantom.plate import COLUMNS, ROWS, FloatImage, Plate, Strokes, corticated, expose
from pacs_node.demo.phantom.vessels import Twig, branch, tree

Zone: TypeAlias = Literal["right", "left", "both"]

RIBS = 10


# Bones of the patient's left shoulder, x counted from the spine.
_COLLAR_BONE = np.array([(0.035, 0.205), (0.09, 0.175), (0.15, 0.12), (0.2, 0.085), (0.26, 0.075)])
_UPPER_ARM = np.array([(0.318, 0.13), (0.335, 0.06), (0.36, -0.06)])
_HUMERAL_HEAD = np.array(
    [(0.295, 0.1), (0.36, 0.12), (0.352, 0.15), (0.33, 0.165), (0.3, 0.155), (0.285, 0.13)]
)
_SHOULDER_BLADE = np.array(
    [(0.27, 0.12), (0.3, 0.16), (0.295, 0.22), (0.265, 0.32), (0.225, 0.41), (0.235, 0.25)]
)
_BLADE_BORDER = np.array([(0.3, 0.17), (0.308, 0.175), (0.232, 0.415), (0.222, 0.405)])


def frontal_chest(seed: int, opacity: float | None = None, zone: Zone = "right") -> FloatImage:
    """Draw a frontal chest radiograph of a child, arms raised.

    Parameters
    ----------
    seed
        Chooses the child: proportions, vessels, noise. The same arguments give the same image; the same seed
        gives the same child with and without an opacity.
    opacity
        Part of the air that a patchy consolidation replaces at its centre, 0..1; `None` for clear lungs.
    zone
        The lower zone with the consolidation, by the patient's side.

    Returns
    -------
    (960, 1120) float32 within 0..1: air dark, bone bright (MONOCHROME2).
    """
    plate = Plate(ROWS, COLUMNS, np.random.default_rng(seed))
    chest = _Chest.of(plate)
    lungs = chest.lungs(plate)
    air = lungs * chest.air_depth(plate) * 0.72
    tissue = chest.vessels(plate) * lungs
    body = chest.body(plate) + chest.bones(plate) + chest.airways(plate)
    disease = np.random.default_rng([seed, 1])
    if opacity is not None:
        air *= 1 - np.float32(opacity) * _consolidation(Plate(ROWS, COLUMNS, disease), chest, zone)
    return expose(plate, body - air + tissue, "R", (0.012, 0.15 + plate.jitter(0.08)))


@dataclass(frozen=True)
class _Chest:
    """The proportions of one child."""

    middle: float  # x of the spine
    wide: float  # factor on the width of the thorax
    heart: float  # factor on the width of the heart
    top: float  # y of the apices
    right_dome: float  # y of the right diaphragm
    left_dome: float

    @classmethod
    def of(cls, plate: Plate) -> _Chest:
        right = 0.72 + plate.jitter(0.025)
        return cls(
            middle=0.5 + plate.jitter(0.015),
            wide=1 + plate.jitter(0.05),
            heart=0.79 + plate.jitter(0.05),
            top=0.185 + plate.jitter(0.015),
            right_dome=right,
            left_dome=right + 0.04 + plate.jitter(0.015),
        )

    def wall(self, y: ArrayLike) -> Points:
        """Return the half width of the thoracic cage at the heights `y`."""
        heights = np.array([0, 0.03, 0.09, 0.2, 0.35, 0.5, 0.65, 0.9]) + self.top
        halves = np.array([0.07, 0.13, 0.185, 0.26, 0.318, 0.342, 0.355, 0.355])
        return np.asarray(np.interp(np.asarray(y), heights, halves) * self.wide)

    def lungs(self, plate: Plate) -> FloatImage:
        """Return 1 where there is lung, with the heart's shadow kept half transparent."""
        fields = plate.fill(self._lung(-1), self._lung(+1), soft=2.5)
        return fields * (1 - 0.82 * self.mediastinum(plate))

    def _lung(self, side: int) -> Points:
        dome = self.right_dome if side < 0 else self.left_dome
        down = np.linspace(self.top, dome + 0.12, 60)
        outer = np.stack([self.wall(down) * 0.985, down], 1)
        u = np.linspace(1, 0.03, 40)
        floor = dome + 0.13 * np.clip(u - 0.42, 0, 1) ** 2 / 0.34 + 0.05 * np.clip(0.42 - u, 0, 1)
        base = np.stack([u * self.wall(dome + 0.12) * 0.985, floor], 1)
        inner = np.array([[0.035, self.top + 0.2], [0.055, self.top + 0.06], [0.08, self.top + 0.01]])
        half = np.concatenate([outer, base, inner])
        return np.asarray(half * (side, 1) + (self.middle, 0))

    def mediastinum(self, plate: Plate) -> FloatImage:
        """Return 1 inside the silhouette of heart, aortic arch, hila and upper vessels."""
        h = self.heart
        right = [(-0.05, 0.05), (-0.058, 0.3), (-0.072, 0.36), (-0.095 * h, 0.42), (-0.108 * h, 0.5)]
        right += [(-0.1 * h, 0.57), (-0.085, 0.63), (-0.05, 0.74)]
        left = [(0.13 * h, 0.74), (0.225 * h, 0.7), (0.235 * h, 0.6), (0.225 * h, 0.52)]
        left += [(0.175 * h, 0.41), (0.115, 0.31)]
        left += [(0.085, 0.26), (0.08, 0.2), (0.062, 0.15), (0.055, 0.05)]
        return plate.fill(smooth(np.array(right + left) + np.array([self.middle, 0.12])), soft=3.5)

    def air_depth(self, plate: Plate) -> FloatImage:
        """Return the depth of the thorax in front of each pixel, 1 at its deepest."""
        x, y = plate.grid()
        across = (x - self.middle) / self.wall(y[:, 0])[:, None]
        depth = np.sqrt(np.clip(1.12 - across**2, 0, 1))
        return np.asarray(depth * np.interp(y, [self.top, self.top + 0.2], [0.7, 1]), np.float32)

    def body(self, plate: Plate) -> FloatImage:
        """Return the attenuation of soft tissue: trunk, raised arms, head, heart and liver."""
        x, y = plate.grid()
        side = np.array([(0.42, 1.05), (0.43, 0.7), (0.41, 0.45), (0.385, 0.25), (0.4, 0.1), (0.45, -0.05)])
        side = side * (self.wide, 1)
        inner = np.array([(0.2, -0.05), (0.155, 0.05), (0.13, 0.07), (0.1, -0.05)])
        half = np.concatenate([smooth(side, closed=False), inner])
        outline = np.concatenate([half, (half * (-1, 1))[::-1]]) + np.array([self.middle, 0])
        trunk = plate.fill(outline, soft=16)
        across = np.sqrt(np.clip(1 - ((x - self.middle) / 0.46) ** 2, 0, 1))
        depth = across * np.interp(y, [0, 0.35], [0.85, 1])
        head = plate.fill(oval((self.middle, -0.13), (0.17, 0.2)), soft=4) * 0.5
        jaw = plate.fill(oval((self.middle, -0.17), (0.15, 0.2)), soft=4) * -0.2
        belly = np.interp(y, [self.right_dome - 0.1, 1], [0, 0.22])
        folds = plate.clouds(5, 5) * 0.022
        heart = self.mediastinum(plate) * np.interp(y, [self.right_dome, self.right_dome + 0.1], [0.16, 0])
        return np.asarray(trunk * (0.12 + 0.86 * depth + belly + folds + heart) + head + jaw, np.float32)

    def bones(self, plate: Plate) -> FloatImage:
        """Return the attenuation of ribs, spine, clavicles, shoulder blades and upper arms."""
        ribs = [_rib(self, number, side) for number in range(RIBS) for side in (-1, 1)]
        back, front = (plate.draw(_ribs(plate, ribs, part), 1.1) for part in ("back", "front"))
        return np.asarray(0.27 * back + 0.2 * front + self._spine(plate) + self._girdle(plate), np.float32)

    def _spine(self, plate: Plate) -> FloatImage:
        column = plate.fill(box((self.middle, 0.5), (0.043, 0.6)), soft=4) * 0.22
        heights = np.arange(0.04, 1.05, 0.062)
        bodies = [box((self.middle, h), (0.039 + 0.006 * h, 0.024)) for h in heights]
        sides = [(s, h) for h in heights for s in (-1, 1)]
        pedicles = [oval((self.middle + s * 0.028, h - 0.006), (0.007, 0.011)) for s, h in sides]
        processes = [box((self.middle + s * 0.058, h - 0.012), (0.018, 0.008)) for s, h in sides]
        column += plate.fill(*bodies, soft=2.5) * 0.1
        column += plate.fill(*pedicles, soft=2) * 0.07
        return np.asarray(column + plate.fill(*processes, soft=2.5) * 0.07, np.float32)

    def _girdle(self, plate: Plate) -> FloatImage:
        collar = band(smooth(_COLLAR_BONE, closed=False), 0.012, 0.014)
        arm = band(smooth(_UPPER_ARM, closed=False), 0.036, 0.02)
        shapes, blades = [], []
        for s in (-1, 1):
            aside = np.array([self.middle + plate.jitter(0.008), plate.jitter(0.012)])
            shapes += [bone * (s, 1) + aside for bone in (collar, arm, _HUMERAL_HEAD)]
            blades += [part * (s, 1) + aside for part in (smooth(_SHOULDER_BLADE), _BLADE_BORDER)]
        bones = plate.draw(corticated(plate, shapes, 140), 1.3) * 0.45
        return bones + plate.draw(corticated(plate, blades, 80, 200), 1.8) * 0.34

    def airways(self, plate: Plate) -> FloatImage:
        """Return the (negative) attenuation of air outside the lungs: trachea, main bronchi, stomach."""
        m = self.middle
        trachea = band(np.array([(m, -0.05), (m, 0.2), (m - 0.006, 0.36)]), 0.019, 0.017)
        right = band(np.array([(m - 0.004, 0.35), (m - 0.06, 0.43)]), 0.015, 0.011)
        left = band(np.array([(m - 0.006, 0.35), (m + 0.07, 0.42)]), 0.013, 0.009)
        bubble = oval((m + 0.19, self.left_dome + 0.1), (0.06, 0.035))
        return -0.2 * plate.fill(trachea, right, left, soft=4) - 0.12 * plate.fill(bubble, soft=7)

    def vessels(self, plate: Plate) -> FloatImage:
        """Return the attenuation of the branching vessels and of the lung's fine texture."""
        twigs: list[Twig] = []
        for s in (-1, 1):
            for angle in np.linspace(-1.2, 1.35, 11):
                start = np.array([self.middle + s * (0.075 + plate.jitter(0.015)), 0.45 + 0.06 * angle])
                heading = angle + plate.jitter(0.3)
                thick = 6.5 + plate.jitter(2.5)
                branch(twigs, plate.rng, start, heading if s > 0 else np.pi - heading, thick)
        texture = plate.clouds(40, 4) * 0.02
        return np.asarray(plate.draw(tree(plate, twigs), 1.4) * 0.2 + texture, np.float32)


@dataclass(frozen=True)
class _Rib:
    line: Points
    back: NDArray[np.bool_]
    glow: NDArray[np.float64]  # 0..1, how far the rays run along the rib instead of across it
    fade: NDArray[np.float64]  # 1 where bone, towards 0 where cartilage begins


def _rib(chest: _Chest, number: int, side: int) -> _Rib:
    """Return one rib: a tilted hoop seen from the front, behind the lung first, then before it."""
    share = number / (RIBS - 1)
    angle = np.linspace(0.02, np.pi * (0.86 - 0.16 * share), 60)
    start = chest.top + 0.005 + 0.062 * number
    drop = 0.15 + 0.27 * share**0.8
    reach = float(chest.wall(start + drop * 0.5)) * 0.995
    x = 0.055 + (reach - 0.055) * np.sin(angle)
    y = start + drop * 0.5 * (1 - np.cos(angle)) - 0.028 * np.sin(2 * np.clip(angle, 0, np.pi / 2))
    line = np.stack([chest.middle + side * x, y], 1)
    glow = np.exp(-(((angle - np.pi / 2) / 0.3) ** 2))
    fade = np.clip((angle[-1] - angle) / 0.35, 0.1, 1)
    return _Rib(line, angle < np.pi / 2, glow, fade)


def _ribs(plate: Plate, ribs: Sequence[_Rib], part: Literal["back", "front"]) -> Strokes:
    def strokes(pen: ImageDraw.ImageDraw) -> None:
        for rib in ribs:
            keep = rib.back if part == "back" else ~rib.back
            upper, lower = borders(rib.line, 0.011)
            for i in np.flatnonzero(keep[:-1]):
                grey = int((110 + 110 * rib.glow[i]) * rib.fade[i])
                quad = plate.pixels([upper[i], upper[i + 1], lower[i + 1], lower[i]])
                pen.polygon(quad, fill=grey)
                for edge in (upper, lower):
                    pen.line(plate.pixels(edge[i : i + 2]), fill=int(225 * rib.fade[i]), width=3)

    return strokes


def _consolidation(plate: Plate, chest: _Chest, zone: Zone) -> FloatImage:
    """Return the part of the air that an opacity replaces, 0..1, less along the bronchi that stay open."""
    sides = {"right": [-1], "left": [1], "both": [-1, 1]}[zone]
    x, y = plate.grid()
    patches = np.zeros((plate.rows, plate.columns), np.float32)
    twigs: list[Twig] = []
    for side in sides:
        x0, y0 = (0.19, chest.right_dome - 0.12) if side < 0 else (0.23, chest.left_dome - 0.12)
        reach = ((x - chest.middle - side * x0) / 0.155) ** 2 + ((y - y0) / 0.165) ** 2
        patches = np.maximum(patches, 1.6 - reach + 0.4 * plate.clouds(9, 4))
        for angle in (-0.3, 0.3, 0.9):
            hilum = np.array([chest.middle + side * 0.1, 0.5])
            branch(twigs, plate.rng, hilum, angle if side > 0 else np.pi - angle, 5)
    return np.asarray(np.clip(patches, 0, 1) * (1 - 0.3 * plate.draw(tree(plate, twigs), 2)), np.float32)
