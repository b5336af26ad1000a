"""A lateral chest, the patient facing left."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from PIL import ImageDraw

from pacs_node.demo.phantom.curves import Points, band, borders, smooth
from pacs_node.demo.phantom.frontal import RIBS
from pacs_node.demo.phantom.plate import COLUMNS, ROWS, FloatImage, Plate, Strokes, corticated, expose
from pacs_node.demo.phantom.vessels import Twig, branch, tree

# The chest from the left, facing left: each outline goes down its front and up its back, or the reverse.
_FRONT = [
    (0.31, -0.05),
    (0.36, 0.08),
    (0.34, 0.19),
    (0.27, 0.28),
    (0.2, 0.45),
    (0.17, 0.6),
    (0.16, 0.85),
]
_BACK = [
    (0.83, 1.1),
    (0.82, 0.85),
    (0.855, 0.65),
    (0.86, 0.42),
    (0.81, 0.25),
    (0.73, 0.1),
    (0.64, -0.05),
]
_TRUNK = np.array([*_FRONT, (0.2, 1.1), *_BACK])
_ARM = np.array([(0.3, -0.1), (0.31, 0.08), (0.4, 0.22), (0.55, 0.24), (0.66, 0.12), (0.68, -0.1)])
_LUNG_FRONT = [(0.5, 0.155), (0.41, 0.2), (0.31, 0.33), (0.245, 0.48), (0.24, 0.6), (0.27, 0.635)]
_LUNG_BACK = [(0.75, 0.83), (0.79, 0.8), (0.815, 0.6), (0.8, 0.4), (0.7, 0.22)]
_LUNG = np.array([*_LUNG_FRONT, (0.36, 0.6), (0.5, 0.61), (0.64, 0.68), *_LUNG_BACK])
_HEART = np.array(
    [(0.5, 0.34), (0.38, 0.4), (0.275, 0.52), (0.27, 0.64), (0.4, 0.68), (0.53, 0.66), (0.57, 0.5)]
)
_SPINE = np.array(
    [(0.6, -0.05), (0.63, 0.08), (0.69, 0.24), (0.735, 0.42), (0.735, 0.6), (0.69, 0.8), (0.66, 1.05)]
)
_STERNUM = np.array([(0.36, 0.235), (0.295, 0.34), (0.26, 0.42), (0.232, 0.5), (0.222, 0.58)])


def lateral_chest(seed: int) -> FloatImage:
    """Draw a left lateral chest radiograph, (960, 1120) float32 within 0..1; the patient faces left."""
    plate = Plate(ROWS, COLUMNS, np.random.default_rng([seed, 2]))
    x, y = plate.grid()
    trunk = plate.fill(smooth(_TRUNK), smooth(_ARM), soft=12)
    deep = np.sqrt(np.clip(1 - ((x - 0.52) / 0.47) ** 2, 0, 1))
    body = trunk * (0.3 + 0.75 * deep + np.interp(y, [0.55, 1], [0, 0.2]) + 0.02 * plate.clouds(5, 5))
    domes = [smooth(_LUNG + np.array([0, shift])) for shift in (0, 0.022)]
    heart = plate.fill(smooth(_HEART + plate.rng.normal(0, 0.006, 2)), soft=6)
    fields = (plate.fill(domes[0], soft=2.5) + plate.fill(domes[1], soft=2.5)) / 2
    air = fields * (1 - 0.62 * heart) * np.interp(y, [0.2, 0.45, 0.8], [0.5, 0.72, 0.8])
    windpipe = plate.fill(band(np.array([(0.52, -0.02), (0.53, 0.18), (0.555, 0.34)]), 0.018, 0.016), soft=4)
    image = body - air - 0.2 * windpipe + _side_bones(plate) + _side_vessels(plate) * fields
    return expose(plate, image, "L", (0.94, 0.1))


def _side_bones(plate: Plate) -> FloatImage:
    """Return the attenuation of spine, breast bone, ribs and shoulder blades seen from the left."""
    heights = np.linspace(-0.05, 1.05, 86)
    along = np.stack([_side_spine(heights), heights], 1)
    upper, lower = borders(along, 0.036)
    starts = range(0, 80, 5)
    bodies = [np.array([upper[i], upper[i + 4], lower[i + 4], lower[i]]) for i in starts]
    arches = [band(np.array([along[i] + (0.035, 0), along[i] + (0.095, 0.04)]), 0.012, 0.006) for i in starts]
    spine = plate.draw(corticated(plate, bodies, 150), 2.2) * 0.3 + plate.fill(*arches, soft=3) * 0.12
    plates = [band(_STERNUM[i : i + 2], 0.009, 0.009) for i in range(len(_STERNUM) - 1)]
    blade = [band(np.array([(0.62, 0.1), (0.7, 0.24), (0.745, 0.36)]), 0.03, 0.008)]
    sternum = plate.draw(corticated(plate, plates, 150), 1.5) * 0.3
    ribs = sum(
        plate.draw(_side_ribs(plate, shift), 1.3) * grey for shift, grey in ((0.0, 0.2), (0.022, 0.15))
    )
    return np.asarray(
        spine + sternum + ribs + plate.draw(corticated(plate, blade, 90), 2.5) * 0.15, np.float32
    )


def _side_spine(y: ArrayLike) -> Points:
    """Return the x of the spine seen from the left at the heights `y`."""
    curve = smooth(_SPINE, closed=False)
    return np.asarray(np.interp(np.asarray(y), curve[:, 1], curve[:, 0]))


def _side_ribs(plate: Plate, shift: float) -> Strokes:
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
            for edge in borders(line, 0.0095):
                pen.line(plate.pixels(edge), fill=235, width=3)
            pen.line(plate.pixels(line), fill=120, width=14, joint="curve")

    return strokes


def _side_vessels(plate: Plate) -> FloatImage:
    twigs: list[Twig] = []
    for heading in np.linspace(0, 2 * np.pi, 14, endpoint=False):
        branch(twigs, plate.rng, np.array([0.55, 0.4]), heading + plate.jitter(0.2), 6)
    return np.asarray(plate.draw(tree(plate, twigs), 1.6) * 0.17 + plate.clouds(40, 4) * 0.015, np.float32)
