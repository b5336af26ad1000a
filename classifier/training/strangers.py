"""Images that a model must not answer for: those at hand, and those that can be made."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from classifier.data.examples import Example, patient_of
from classifier.data.files import PICTURES, candidates, is_dicom
from classifier.data.images import decode_all
from classifier.errors import DataError

_DRAWN = 320  # pixels, before a drawing is made smaller


@dataclass(frozen=True)
class Album:
    """Decoded images of one kind.

    Attributes
    ----------
    images
        (N, 1, S, S) uint8.
    patients
        Of each image.
    columns
        Further columns of its manifest, such as view or machine: by name, one text for each image.
    """

    images: Tensor
    patients: Sequence[str]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def those(self, wanted: Sequence[int]) -> Album:
        """Return an album of some of the images."""
        columns = {name: [texts[i] for i in wanted] for name, texts in self.columns.items()}
        return replace(
            self,
            images=self.images[list(wanted)],
            patients=[self.patients[i] for i in wanted],
            columns=columns,
        )

    def groups(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Return for each image what it has in some columns.

        Raises
        ------
        DataError
            When a column is missing.
        """
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise DataError(f"There is no column {missing[0]!r}; name one of {', '.join(self.columns)}.")
        return list(zip(*(self.columns[name] for name in names), strict=True)) or [()] * len(self)


def load_album(source: Path, side: int, workers: int = 0) -> Album:
    """Decode the images of a folder and all below, or of a CSV manifest with the column path.

    Raises
    ------
    DataError
        When there is no image, or one cannot be decoded.
    """
    rows = _rows(source) if source.is_file() else [{"path": str(path)} for path in _pictures(source)]
    if not rows:
        raise DataError(f"There is no JPEG, PNG or DICOM file in {source}; name another folder.")
    paths = [source.parent / row["path"] if source.is_file() else Path(row["path"]) for row in rows]
    patients = [row.get("patient") or patient_of(path) for row, path in zip(rows, paths, strict=True)]
    examples = [Example(path, 0, patient) for path, patient in zip(paths, patients, strict=True)]
    images = decode_all(examples, side, workers=workers).images
    return Album(images, patients, {name: [row[name] for row in rows] for name in rows[0]})


def _pictures(folder: Path) -> list[Path]:
    return [path for path in candidates(folder) if path.suffix.lower() in PICTURES or is_dicom(path)]


def _rows(manifest: Path) -> list[dict[str, str]]:
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{manifest} is no CSV in UTF-8; write it anew.") from error
    if rows and "path" not in rows[0]:
        raise DataError(f"{manifest} has no column 'path'; add one.")
    return rows


def made_up(count: int, side: int, rng: np.random.Generator) -> Tensor:
    """Make pictures that are no radiographs: noise of all grains, heat maps, drawings; (N, 1, S, S) uint8."""
    makers: tuple[Callable[[int, np.random.Generator], np.ndarray], ...] = (_noise, _heat_map, _drawing)
    planes = [makers[number % len(makers)](side, rng) for number in range(count)]
    return torch.from_numpy(np.stack(planes) * 255).round().to(torch.uint8)[:, None]


def heated(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Lay the heat map of another program over an image (1, S, S) float32 in 0..1, and make it grey again."""
    weight = rng.uniform(0.4, 0.7)
    over = torch.from_numpy(_heat_map(image.shape[-1], rng)).float()
    return (1 - weight) * image + weight * over


def _noise(side: int, rng: np.random.Generator, grain: float | None = None) -> np.ndarray:
    """Return noise whose amplitude falls with a power of the frequency: from white to one soft shade."""
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 1
    power = rng.uniform(0, 4) if grain is None else grain
    found = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) * frequency**-power, (side, side))
    return np.asarray((found - found.min()) / np.ptp(found))


def _heat_map(side: int, rng: np.random.Generator) -> np.ndarray:
    """Return soft spots in the colours from blue over green to red, as grey."""
    heat = _noise(side, rng, rng.uniform(2.5, 5))
    red, green, blue = (np.clip(1.5 - np.abs(4 * heat - peak), 0, 1) for peak in (3, 2, 1))
    return np.asarray(0.299 * red + 0.587 * green + 0.114 * blue)  # ITU-R BT.601


def _drawing(side: int, rng: np.random.Generator) -> np.ndarray:
    """Return overlapping shapes, lines and writing, sharp or soft."""
    sheet = Image.new("L", (_DRAWN, _DRAWN), int(rng.integers(256)))
    pen = ImageDraw.Draw(sheet)
    for _ in range(rng.integers(2, 25)):
        grey = int(rng.integers(256))
        (left, right), (top, bottom) = np.sort(rng.integers(0, _DRAWN, (2, 2)), axis=1).tolist()
        kind = rng.integers(4)
        if kind == 0:
            pen.ellipse((left, top, right, bottom), fill=grey)
        elif kind == 1:
            pen.rectangle((left, top, right, bottom), fill=grey)
        elif kind == 2:
            pen.line((left, bottom, right, top), fill=grey, width=int(rng.integers(1, 12)))
        else:
            pen.text((left, top), f"Figure {rng.integers(10**6)}", fill=grey)
    soft = sheet.filter(ImageFilter.GaussianBlur(float(rng.choice([0, rng.uniform(0, 5)]))))
    return np.asarray(soft.resize((side, side), Image.Resampling.BILINEAR), np.float64) / 255
