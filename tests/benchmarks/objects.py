"""Radiographs for benchmarks: files whose UIDs are renewed in place, so that they are new to a receiver."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pacs_node.demo.phantom import frontal_chest
from tests.conftest import radiograph, save

_HEAD = 4096  # bytes in which all UIDs stand
_UID = re.compile(rb"2\.25\.1(\d)\d{12}(\d{9})")  # kind, run, file
_runs = itertools.count(1)


def radiographs(folder: Path, number: int, side: int, *, drawn: int = 0) -> list[Path]:
    """Write studies of one radiograph each, uncompressed, 16 bits allocated and 12 stored.

    Parameters
    ----------
    side
        Rows and columns; two bytes for each pixel.
    drawn
        How many different chests are drawn for them; without any, pixels are noise.
    """
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    images = [_stored(frontal_chest(seed), side) for seed in range(drawn)]
    images = images or [chance.integers(0, 4096, (side, side), np.uint16)]
    files = []
    for index in range(number):
        uids = [f"2.25.1{kind}{0:012d}{index:09d}" for kind in range(3)]
        ds = radiograph("DX", number=index + 1)
        ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = uids
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.Rows = ds.Columns = side
        ds.PixelData = images[index % len(images)].tobytes()
        files.append(save(ds, folder / f"{index:05d}.dcm"))
    return files


def renew(files: Sequence[Path]) -> None:
    """Give all files new UIDs, each study, series and instance its own, in place."""
    run = b"%012d" % next(_runs)
    for path in files:
        with path.open("r+b") as file:
            head, found = _UID.subn(rb"2.25.1\g<1>" + run + rb"\g<2>", file.read(_HEAD))
            assert found == 4, found  # the instance stands in the file meta information too
            file.seek(0)
            file.write(head)


def _stored(picture: NDArray[np.float32], side: int) -> NDArray[np.uint16]:
    rows, columns = (np.arange(side) * length // side for length in picture.shape)
    return np.asarray(picture[rows][:, columns] * 4095, np.uint16)
