"""Drawn radiographs: phantoms of a child's chest and hand whose content is known because it was drawn.

Each image starts as a map of attenuation to which every structure adds its own, as X-rays sum what they
cross; a film curve then turns attenuation into grey values. Points are (x, y) in units of the image's width
and height, from the top left corner; the patient's right is on the left of a frontal image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter

FloatImage: TypeAlias = NDArray[np.float32]
Points: TypeAlias = NDArray[np.float64]
Strokes: TypeAlias = Callable[[ImageDraw.ImageDraw], None]
Zone: TypeAlias = Literal["right", "left", "both"]

ROWS, COLUMNS = 960, 1120
HAND_SIZE = 1024
RIBS = 10

# The chest from the left, facing left: each outline goes down its front and up its back, or the reverse.
_SIDE_FRONT = [
    (0.31, -0.05),
    (0.36, 0.08),
    (0.34, 0.19),
    (0.27, 0.28),
    (0.2, 0.45),
    (0.17, 0.6),
    (0.16, 0.85),
]
_SIDE_BACK = [
    (0.83, 1.1),
    (0.82, 0.85),
    (0.855, 0.65),
    (0.86, 0.42),
    (0.81, 0.25),
    (0.73, 0.1),
    (0.64, -0.05),
]
_SIDE_TRUNK = np.array([*_SIDE_FRONT, (0.2, 1.1), *_SIDE_BACK])
_SIDE_ARM = np.array([(0.3, -0.1), (0.31, 0.08), (0.4, 0.22), (0.55, 0.24), (0.66, 0.12), (0.68, -0.1)])
_SIDE_LUNG_FRONT = [(0.5, 0.155), (0.41, 0.2), (0.31, 0.33), (0.245, 0.48), (0.24, 0.6), (0.27, 0.635)]
_SIDE_LUNG_BACK = [(0.75, 0.83), (0.79, 0.8), (0.815, 0.6), (0.8, 0.4), (0.7, 0.22)]
_SIDE_LUNG = np.array([*_SIDE_LUNG_FRONT, (0.36, 0.6), (0.5, 0.61), (0.64, 0.68), *_SIDE_LUNG_BACK])
_SIDE_HEART = np.array(
    [(0.5, 0.34), (0.38, 0.4), (0.275, 0.52), (0.27, 0.64), (0.4, 0.68), (0.53, 0.66), (0.57, 0.5)]
)
_SIDE_SPINE = np.array(
    [(0.6, -0.05), (0.63, 0.08), (0.69, 0.24), (0.735, 0.42), (0.735, 0.6), (0.69, 0.8), (0.66, 1.05)]
)
_SIDE_STERNUM = np.array([(0.36, 0.235), (0.295, 0.34), (0.26, 0.42), (0.232, 0.5), (0.222, 0.58)])

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


@dataclass
class _Plate:
    """The detector: a size, a source of randomness, and the few ways of drawing on it."""

    rows: int
    columns: int
    rng: np.random.Generator

    def grid(self) -> tuple[FloatImage, FloatImage]:
        """Return x (1, columns) and y (rows, 1) of the pixel centres."""
        x = (np.arange(self.columns, dtype=np.float32) + np.float32(0.5)) / np.float32(self.columns)
        y = (np.arange(self.rows, dtype=np.float32) + np.float32(0.5)) / np.float32(self.rows)
        return x[None, :], y[:, None]

    def draw(self, strokes: Strokes, soft: float) -> FloatImage:
        """Return what `strokes` draws, 0..1, blurred by `soft` pixels."""
        film = Image.new("L", (self.columns, self.rows))
        strokes(ImageDraw.Draw(film))
        return np.asarray(film.filter(ImageFilter.GaussianBlur(soft)), np.float32) / np.float32(255)

    def fill(self, *outlines: ArrayLike, soft: float) -> FloatImage:
        """Return 1 inside any of the polygons and 0 outside, with borders `soft` pixels wide."""

        def strokes(pen: ImageDraw.ImageDraw) -> None:
            for outline in outlines:
                pen.polygon(self.pixels(outline), fill=255)

        return self.draw(strokes, soft)

    def pixels(self, points: ArrayLike) -> list[tuple[float, float]]:
        """Return points in pixels, as Pillow draws them."""
        scaled = np.asarray(points, np.float64) * (self.columns, self.rows)
        return [(float(x), float(y)) for x, y in scaled]

    def clouds(self, cells: int, octaves: int = 4) -> FloatImage:
        """Return fractal noise, mean 0 and standard deviation 1, whose largest blobs are 1 / `cells` wide."""
        total = np.zeros((self.rows, self.columns), np.float32)
        for octave in range(octaves):
            n = cells * 2**octave
            seedling = Image.fromarray(self.rng.standard_normal((n, n), dtype=np.float32))
            grown = seedling.resize((self.columns, self.rows), Image.Resampling.BICUBIC)
            total += np.asarray(grown) * 0.6**octave
        return np.asarray((total - total.mean()) / total.std(), np.float32)

    def jitter(self, spread: float) -> float:
        """Return a number within plus or minus `spread`."""
        return float(self.rng.uniform(-spread, spread))


def frontal_chest(seed: int, opacity: float | None = None, zone: Zone = "right") -> FloatImage:
    """Draw a frontal chest radiograph of a child, arms raised.

    Parameters
    ----------
    seed
        Chooses the child: proportions, vessels, noise. The same arguments give the same image, and the same
        seed the same child with and without an opacity.
    opacity
        Part of the air that a patchy consolidation replaces at its centre, 0..1; `None` for clear lungs.
    zone
        Which lower zone the consolidation is in, by the patient's side.

    Returns
    -------
    (960, 1120) float32 within 0..1: air dark, bone bright (MONOCHROME2).
    """
    plate = _Plate(ROWS, COLUMNS, np.random.default_rng(seed))
    chest = _Chest.of(plate)
    lungs = chest.lungs(plate)
    air = lungs * chest.air_depth(plate) * 0.72
    tissue = chest.vessels(plate) * lungs
    body = chest.body(plate) + chest.bones(plate) + chest.airways(plate)
    disease = np.random.default_rng([seed, 1])
    if opacity is not None:
        air *= 1 - np.float32(opacity) * _consolidation(_Plate(ROWS, COLUMNS, disease), chest, zone)
    return _expose(plate, body - air + tissue, "R", (0.012, 0.15 + plate.jitter(0.08)))


def lateral_chest(seed: int) -> FloatImage:
    """Draw a left lateral chest radiograph, (960, 1120) float32 within 0..1; the patient faces left."""
    plate = _Plate(ROWS, COLUMNS, np.random.default_rng([seed, 2]))
    x, y = plate.grid()
    trunk = plate.fill(_smooth(_SIDE_TRUNK), _smooth(_SIDE_ARM), soft=12)
    deep = np.sqrt(np.clip(1 - ((x - 0.52) / 0.47) ** 2, 0, 1))
    body = trunk * (0.3 + 0.75 * deep + np.interp(y, [0.55, 1], [0, 0.2]) + 0.02 * plate.clouds(5, 5))
    domes = [_smooth(_SIDE_LUNG + np.array([0, shift])) for shift in (0, 0.022)]
    heart = plate.fill(_smooth(_SIDE_HEART + plate.rng.normal(0, 0.006, 2)), soft=6)
    fields = (plate.fill(domes[0], soft=2.5) + plate.fill(domes[1], soft=2.5)) / 2
    air = fields * (1 - 0.62 * heart) * np.interp(y, [0.2, 0.45, 0.8], [0.5, 0.72, 0.8])
    windpipe = plate.fill(_band(np.array([(0.52, -0.02), (0.53, 0.18), (0.555, 0.34)]), 0.018, 0.016), soft=4)
    image = body - air - 0.2 * windpipe + _side_bones(plate) + _side_vessels(plate) * fields
    return _expose(plate, image, "L", (0.94, 0.1))


def hand(seed: int) -> FloatImage:
    """Draw the radiograph of a child's right hand, (1024, 1024) float32 within 0..1, fingers up."""
    plate = _Plate(HAND_SIZE, HAND_SIZE, np.random.default_rng([seed, 3]))
    rays = [ray + plate.rng.normal(0, 0.003, ray.shape) for ray in _RAYS]
    flesh = plate.draw(_flesh(plate, rays), 9)
    bones = [bone for ray in rays for bone in _ray_bones(ray)]
    bones += [_smooth(_oval(centre, radii)) for centre, radii in _WRIST]
    bones += [_long_bone(np.array(ends), 0.042) for ends in _FOREARM]
    marrow = plate.fill(*bones, soft=1.3)
    rims = plate.draw(_corticated(plate, bones, 0), 1.3)
    tissue = flesh * (0.42 + 0.02 * plate.clouds(6, 5))
    spongy = marrow * (0.42 + 0.035 * plate.clouds(60, 3))
    return _expose(plate, np.asarray(tissue + spongy + 0.3 * rims, np.float32), "R", (0.86, 0.08))


def _side_bones(plate: _Plate) -> FloatImage:
    """Return the attenuation of spine, breast bone, ribs and shoulder blades seen from the left."""
    heights = np.linspace(-0.05, 1.05, 86)
    along = np.stack([_side_spine(heights), heights], 1)
    upper, lower = _sides(along, 0.036)
    starts = range(0, 80, 5)
    bodies = [np.array([upper[i], upper[i + 4], lower[i + 4], lower[i]]) for i in starts]
    arches = [
        _band(np.array([along[i] + (0.035, 0), along[i] + (0.095, 0.04)]), 0.012, 0.006) for i in starts
    ]
    spine = plate.draw(_corticated(plate, bodies, 150), 2.2) * 0.3 + plate.fill(*arches, soft=3) * 0.12
    plates = [_band(_SIDE_STERNUM[i : i + 2], 0.009, 0.009) for i in range(len(_SIDE_STERNUM) - 1)]
    blade = [_band(np.array([(0.62, 0.1), (0.7, 0.24), (0.745, 0.36)]), 0.03, 0.008)]
    sternum = plate.draw(_corticated(plate, plates, 150), 1.5) * 0.3
    ribs = sum(
        plate.draw(_side_ribs(plate, shift), 1.3) * grey for shift, grey in ((0.0, 0.2), (0.022, 0.15))
    )
    return np.asarray(
        spine + sternum + ribs + plate.draw(_corticated(plate, blade, 90), 2.5) * 0.15, np.float32
    )


def _side_spine(y: ArrayLike) -> Points:
    """Return the x of the spine seen from the left at the heights `y`."""
    curve = _smooth(_SIDE_SPINE, closed=False)
    return np.asarray(np.interp(np.asarray(y), curve[:, 1], curve[:, 0]))


def _side_ribs(plate: _Plate, shift: float) -> Strokes:
    """Draw one side's ribs from spine to cartilage, `shift` lower than the other side's."""
    t = np.linspace(0, 1, 40)[:, None]

    def strokes(pen: ImageDraw.ImageDraw) -> None:
        for number, start in enumerate(np.linspace(0.15, 0.6, RIBS)):
            back = np.array([_side_spine(start) + 0.05, start + shift])
            front = np.array(
                [0.4 - 0.035 * number + 0.0065 * number**2, start + 0.15 + 0.028 * number + shift]
            )
            bulge = np.array([back[0] - 0.02, start + 0.2 + 0.012 * number + shift])
            line = (1 - t) ** 2 * back + 2 * t * (1 - t) * bulge + t**2 * front
            for edge in _sides(line, 0.0095):
                pen.line(plate.pixels(edge), fill=235, width=3)
            pen.line(plate.pixels(line), fill=120, width=14, joint="curve")

    return strokes


def _side_vessels(plate: _Plate) -> FloatImage:
    twigs: list[_Twig] = []
    for heading in np.linspace(0, 2 * np.pi, 14, endpoint=False):
        _branch(twigs, plate.rng, np.array([0.55, 0.4]), heading + plate.jitter(0.2), 6)
    return np.asarray(plate.draw(_tree(plate, twigs), 1.6) * 0.17 + plate.clouds(40, 4) * 0.015, np.float32)


def _flesh(plate: _Plate, rays: Sequence[Points]) -> Strokes:
    """Draw the soft tissue of a hand: fingers, palm, thumb's web and forearm."""
    palm = np.array([rays[0][1], rays[1][1], rays[2][1], rays[3][1], rays[4][1], (0.63, 0.78), (0.6, 0.86)])
    palm = np.concatenate([palm, [(0.62, 1.05), (0.37, 1.05), (0.39, 0.87), (0.35, 0.76)]])

    def strokes(pen: ImageDraw.ImageDraw) -> None:
        pen.polygon(plate.pixels(_smooth(palm)), fill=255)
        for ray in rays:
            curve = _smooth(ray, closed=False)
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
            bones.append(_band(np.array([growing - step * 0.005, growing + step * 0.005]), half, half))
        bones.append(_long_bone(np.array([near + step * 0.022, far - step * 0.006]), half))
    return bones


def _long_bone(ends: Points, half: float) -> Points:
    """Return the outline of a bone with a slender shaft and heads of half width `half`."""
    t = np.linspace(0, 1, 24)
    line = ends[0] + t[:, None] * (ends[1] - ends[0])
    waist = 0.58 + 0.42 * np.abs(2 * t - 1) ** 2.5
    rounded = np.sqrt(np.clip(np.minimum(t, 1 - t) / 0.06, 0.25, 1))
    upper, lower = _sides(line, half * waist * rounded)
    return np.concatenate([upper, lower[::-1]])


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
    def of(cls, plate: _Plate) -> _Chest:
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

    def lungs(self, plate: _Plate) -> FloatImage:
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

    def mediastinum(self, plate: _Plate) -> FloatImage:
        """Return 1 inside the silhouette of heart, aortic arch, hila and upper vessels."""
        h = self.heart
        right = [(-0.05, 0.05), (-0.058, 0.3), (-0.072, 0.36), (-0.095 * h, 0.42), (-0.108 * h, 0.5)]
        right += [(-0.1 * h, 0.57), (-0.085, 0.63), (-0.05, 0.74)]
        left = [(0.13 * h, 0.74), (0.225 * h, 0.7), (0.235 * h, 0.6), (0.225 * h, 0.52)]
        left += [(0.175 * h, 0.41), (0.115, 0.31)]
        left += [(0.085, 0.26), (0.08, 0.2), (0.062, 0.15), (0.055, 0.05)]
        return plate.fill(_smooth(np.array(right + left) + np.array([self.middle, 0.12])), soft=3.5)

    def air_depth(self, plate: _Plate) -> FloatImage:
        """Return the depth of the thorax in front of each pixel, 1 at its deepest."""
        x, y = plate.grid()
        across = (x - self.middle) / self.wall(y[:, 0])[:, None]
        depth = np.sqrt(np.clip(1.12 - across**2, 0, 1))
        return np.asarray(depth * np.interp(y, [self.top, self.top + 0.2], [0.7, 1]), np.float32)

    def body(self, plate: _Plate) -> FloatImage:
        """Return the attenuation of soft tissue: trunk, raised arms, head, heart and liver."""
        x, y = plate.grid()
        side = np.array([(0.42, 1.05), (0.43, 0.7), (0.41, 0.45), (0.385, 0.25), (0.4, 0.1), (0.45, -0.05)])
        side = side * (self.wide, 1)
        inner = np.array([(0.2, -0.05), (0.155, 0.05), (0.13, 0.07), (0.1, -0.05)])
        half = np.concatenate([_smooth(side, closed=False), inner])
        outline = np.concatenate([half, (half * (-1, 1))[::-1]]) + np.array([self.middle, 0])
        trunk = plate.fill(outline, soft=16)
        across = np.sqrt(np.clip(1 - ((x - self.middle) / 0.46) ** 2, 0, 1))
        depth = across * np.interp(y, [0, 0.35], [0.85, 1])
        head = plate.fill(_oval((self.middle, -0.13), (0.17, 0.2)), soft=4) * 0.5
        jaw = plate.fill(_oval((self.middle, -0.17), (0.15, 0.2)), soft=4) * -0.2
        belly = np.interp(y, [self.right_dome - 0.1, 1], [0, 0.22])
        folds = plate.clouds(5, 5) * 0.022
        heart = self.mediastinum(plate) * np.interp(y, [self.right_dome, self.right_dome + 0.1], [0.16, 0])
        return np.asarray(trunk * (0.12 + 0.86 * depth + belly + folds + heart) + head + jaw, np.float32)

    def bones(self, plate: _Plate) -> FloatImage:
        """Return the attenuation of ribs, spine, clavicles, shoulder blades and upper arms."""
        ribs = [_rib(self, number, side) for number in range(RIBS) for side in (-1, 1)]
        back, front = (plate.draw(_ribs(plate, ribs, part), 1.1) for part in ("back", "front"))
        return np.asarray(0.27 * back + 0.2 * front + self._spine(plate) + self._girdle(plate), np.float32)

    def _spine(self, plate: _Plate) -> FloatImage:
        column = plate.fill(_box((self.middle, 0.5), (0.043, 0.6)), soft=4) * 0.22
        heights = np.arange(0.04, 1.05, 0.062)
        bodies = [_box((self.middle, h), (0.039 + 0.006 * h, 0.024)) for h in heights]
        sides = [(s, h) for h in heights for s in (-1, 1)]
        pedicles = [_oval((self.middle + s * 0.028, h - 0.006), (0.007, 0.011)) for s, h in sides]
        processes = [_box((self.middle + s * 0.058, h - 0.012), (0.018, 0.008)) for s, h in sides]
        column += plate.fill(*bodies, soft=2.5) * 0.1
        column += plate.fill(*pedicles, soft=2) * 0.07
        return np.asarray(column + plate.fill(*processes, soft=2.5) * 0.07, np.float32)

    def _girdle(self, plate: _Plate) -> FloatImage:
        collar = _band(_smooth(_COLLAR_BONE, closed=False), 0.012, 0.014)
        arm = _band(_smooth(_UPPER_ARM, closed=False), 0.036, 0.02)
        shapes, blades = [], []
        for s in (-1, 1):
            aside = np.array([self.middle + plate.jitter(0.008), plate.jitter(0.012)])
            shapes += [bone * (s, 1) + aside for bone in (collar, arm, _HUMERAL_HEAD)]
            blades += [part * (s, 1) + aside for part in (_smooth(_SHOULDER_BLADE), _BLADE_BORDER)]
        bones = plate.draw(_corticated(plate, shapes, 140), 1.3) * 0.45
        return bones + plate.draw(_corticated(plate, blades, 80, 200), 1.8) * 0.34

    def airways(self, plate: _Plate) -> FloatImage:
        """Return the (negative) attenuation of air outside the lungs: trachea, main bronchi, stomach."""
        m = self.middle
        trachea = _band(np.array([(m, -0.05), (m, 0.2), (m - 0.006, 0.36)]), 0.019, 0.017)
        right = _band(np.array([(m - 0.004, 0.35), (m - 0.06, 0.43)]), 0.015, 0.011)
        left = _band(np.array([(m - 0.006, 0.35), (m + 0.07, 0.42)]), 0.013, 0.009)
        bubble = _oval((m + 0.19, self.left_dome + 0.1), (0.06, 0.035))
        return -0.2 * plate.fill(trachea, right, left, soft=4) - 0.12 * plate.fill(bubble, soft=7)

    def vessels(self, plate: _Plate) -> FloatImage:
        """Return the attenuation of the branching vessels and of the lung's fine texture."""
        twigs: list[_Twig] = []
        for s in (-1, 1):
            for angle in np.linspace(-1.2, 1.35, 11):
                start = np.array([self.middle + s * (0.075 + plate.jitter(0.015)), 0.45 + 0.06 * angle])
                heading = angle + plate.jitter(0.3)
                thick = 6.5 + plate.jitter(2.5)
                _branch(twigs, plate.rng, start, heading if s > 0 else np.pi - heading, thick)
        texture = plate.clouds(40, 4) * 0.02
        return np.asarray(plate.draw(_tree(plate, twigs), 1.4) * 0.2 + texture, np.float32)


@dataclass(frozen=True)
class _Twig:
    start: Points
    end: Points
    width: float  # pixels


def _branch(
    twigs: list[_Twig], rng: np.random.Generator, start: Points, heading: float, width: float
) -> None:
    """Grow a vessel from `start`: it narrows, bends and forks until it is too thin to see."""
    while width > 0.7:
        step = 0.012 + 0.004 * rng.random()
        end = start + step * np.array([np.cos(heading), 1.15 * np.sin(heading)])
        twigs.append(_Twig(start, end, width))
        if rng.random() < 0.38:
            turn = rng.choice([-1, 1]) * rng.uniform(0.4, 0.8)
            _branch(twigs, rng, end, heading + turn, width * 0.68)
        start, heading, width = end, heading + rng.normal(0, 0.22), width * 0.93


def _tree(plate: _Plate, twigs: Iterable[_Twig]) -> Strokes:
    """Draw the twigs, thick ones last and brightest."""

    def strokes(pen: ImageDraw.ImageDraw) -> None:
        for twig in sorted(twigs, key=lambda t: t.width):
            grey = int(min(255, 50 + 36 * twig.width))
            pen.line(plate.pixels([twig.start, twig.end]), fill=grey, width=max(1, round(twig.width)))

    return strokes


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


def _ribs(plate: _Plate, ribs: Sequence[_Rib], part: Literal["back", "front"]) -> Strokes:
    def strokes(pen: ImageDraw.ImageDraw) -> None:
        for rib in ribs:
            keep = rib.back if part == "back" else ~rib.back
            upper, lower = _sides(rib.line, 0.011)
            for i in np.flatnonzero(keep[:-1]):
                grey = int((110 + 110 * rib.glow[i]) * rib.fade[i])
                quad = plate.pixels([upper[i], upper[i + 1], lower[i + 1], lower[i]])
                pen.polygon(quad, fill=grey)
                for edge in (upper, lower):
                    pen.line(plate.pixels(edge[i : i + 2]), fill=int(225 * rib.fade[i]), width=3)

    return strokes


def _corticated(plate: _Plate, outlines: Iterable[ArrayLike], inside: int, rim: int = 255) -> Strokes:
    """Draw bones: spongy inside, dense at the rim."""

    def strokes(pen: ImageDraw.ImageDraw) -> None:
        for outline in outlines:
            pen.polygon(plate.pixels(outline), fill=inside, outline=rim, width=4)

    return strokes


def _consolidation(plate: _Plate, chest: _Chest, zone: Zone) -> FloatImage:
    """Return the part of the air that an opacity replaces, 0..1, less along the bronchi that stay open."""
    sides = {"right": [-1], "left": [1], "both": [-1, 1]}[zone]
    x, y = plate.grid()
    patches = np.zeros((plate.rows, plate.columns), np.float32)
    twigs: list[_Twig] = []
    for side in sides:
        x0, y0 = (0.19, chest.right_dome - 0.12) if side < 0 else (0.23, chest.left_dome - 0.12)
        reach = ((x - chest.middle - side * x0) / 0.155) ** 2 + ((y - y0) / 0.165) ** 2
        patches = np.maximum(patches, 1.6 - reach + 0.4 * plate.clouds(9, 4))
        for angle in (-0.3, 0.3, 0.9):
            hilum = np.array([chest.middle + side * 0.1, 0.5])
            _branch(twigs, plate.rng, hilum, angle if side > 0 else np.pi - angle, 5)
    return np.asarray(np.clip(patches, 0, 1) * (1 - 0.3 * plate.draw(_tree(plate, twigs), 2)), np.float32)


def _expose(plate: _Plate, attenuation: FloatImage, side: str, marker: tuple[float, float]) -> FloatImage:
    """Turn attenuation into grey: scatter, film curve, quantum noise, collimator and side marker."""
    grey = 1 - np.exp(-1.35 * np.clip(attenuation, 0, None))
    photons = plate.rng.standard_normal(grey.shape, dtype=np.float32)
    grey = grey * 0.98 + photons * (0.004 + 0.012 * (1 - grey) * grey)
    x, y = plate.grid()
    field = plate.fill(_box((0.5, 0.5), (0.494, 0.493)), soft=1.5)
    grey *= field * (1 + 0.05 * (0.5 - x) + 0.06 * (y - 0.5))
    return np.asarray(np.clip(np.maximum(grey, _letter(plate, side, marker)), 0, 1), np.float32)


def _letter(plate: _Plate, text: str, at: tuple[float, float]) -> FloatImage:
    def strokes(pen: ImageDraw.ImageDraw) -> None:
        pen.text(plate.pixels([at])[0], text, fill=250, font_size=52)

    return plate.draw(strokes, 0.8)


def _oval(centre: tuple[float, float], radii: tuple[float, float]) -> Points:
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.asarray(np.stack([np.cos(turn), np.sin(turn)], 1) * radii + centre)


def _box(centre: tuple[float, float], halves: tuple[float, float]) -> Points:
    return np.asarray(np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * halves + centre)


def _sides(line: Points, halves: ArrayLike) -> tuple[Points, Points]:
    """Return the two borders of a band along `line`, as many half widths as points, or one for all."""
    along = np.gradient(line, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    across = np.stack([along[:, 1], -along[:, 0]], 1) * np.broadcast_to(halves, len(line))[:, None]
    return line + across, line - across


def _band(line: Points, first: float, last: float) -> Points:
    """Return the outline of a band along `line` whose half width runs from `first` to `last`."""
    upper, lower = _sides(line, np.linspace(first, last, len(line)))
    return np.concatenate([upper, lower[::-1]])


def _smooth(points: Points, closed: bool = True) -> Points:
    """Return a Catmull-Rom curve through `points`, 12 points for each."""
    before, after = (points[-1:], points[:2]) if closed else (points[:1], points[-1:])
    p = np.concatenate([before, points, after])
    t = np.linspace(0, 1, 12, endpoint=False)[:, None]
    curves = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.concatenate(curves if closed else [*curves, points[-1:]])
