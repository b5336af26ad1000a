"""Where in an image the network saw something: the picture beside its activation map.

The map is as coarse as it is: 5 x 5 cells for an input of 160 pixels, drawn without edges that it does not
have. It shows what the network looked at, not where the disease is: such maps miss much of what radiologists
mark (Saporta et al. 2022, Arun et al. 2021).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from classifier.decoding.decode import decode
from classifier.errors import ClassifierError
from classifier.heat_map import HeatMap
from classifier.measuring.plots import save
from classifier.outcome import Decision, Prediction
from classifier.untrusted import printable

_MOST_OPAQUE = 0.65


def write_heat_maps(results: Iterable[tuple[Path, Prediction]], folder: Path) -> int:
    """Write a PNG for each positive or undetermined image that was scored; return how many.

    For negative ones there is none: a region that is shown draws the eye, also where there is nothing.

    Raises
    ------
    ClassifierError
        When the folder cannot be written.
    """
    number = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for at, (file, found) in enumerate(results, 1):
            if found.heat_map is None or found.decision not in (Decision.POSITIVE, Decision.UNDETERMINED):
                continue
            title = f"{printable(file.name)}: {found.probability:.4f} {found.decision}"
            write_heat_map(decode(file), found.heat_map, title, folder / f"{at:04d}-{file.stem}.png")
            number += 1
    except OSError as error:
        raise ClassifierError(
            f"Cannot write heat maps to {folder}: {error.strerror}; name another."
        ) from error
    return number


def write_heat_map(picture: NDArray[np.float32], heat_map: HeatMap, title: str, path: Path) -> None:
    """Write a PNG with the picture, and beside it the picture under its map.

    Parameters
    ----------
    picture
        (1, rows, columns), 0 black to 1 white.
    heat_map
        Of the same image.
    """
    rows, columns = picture.shape[1:]
    figure = Figure(figsize=(11, 0.6 + 4.6 * min(1.6, max(0.5, rows / columns))), layout="constrained")
    plain, covered = figure.subplots(1, 2)
    values = heat_map.cells.astype(float)
    reach = heat_map.reach
    for axes in (plain, covered):
        axes.imshow(picture[0], cmap="gray", vmin=0, vmax=1, extent=(0, columns, rows, 0))
        axes.set_axis_off()
    smooth = _smooth(values, (rows, columns))
    scale = Normalize(-reach, reach)
    colours = mpl.colormaps["RdBu_r"](scale(smooth))
    colours[..., 3] = _opacity(smooth / reach)
    covered.imshow(colours, extent=(0, columns, rows, 0))
    shown = ScalarMappable(scale, "RdBu_r")
    bar = figure.colorbar(shown, ax=[plain, covered], shrink=0.9, pad=0.02)
    bar.set_label("Against pneumonia  |  for pneumonia\nunits of the logit, of which the mean counts")
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def _smooth(values: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return the cells at the size of the picture, bilinear between their centres."""
    rows, columns = shape
    coarse = Image.fromarray(values.astype(np.float32))
    return np.asarray(coarse.resize((columns, rows), Image.Resampling.BILINEAR), np.float64)


def _opacity(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much of the picture each cell covers: nothing where it says nothing."""
    opaque: NDArray[np.float64] = _MOST_OPAQUE * np.abs(shares).clip(0, 1)
    return opaque
