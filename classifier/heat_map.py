"""What each place of an image adds to the logit, in few cells; importable without torch.

DenseNet121 ends in a mean over the places of its last maps and one linear layer. The class activation map
(Zhou et al. 2016) is therefore exact: mean of its cells + bias = logit. The probability is the sigmoid of
(logit + offset) / temperature, both of the model card; so a cell of value v adds v / (cells * temperature)
to the calibrated logit. Grad-CAM and HiResCAM (Draelos and Carin 2020) give the same map up to a positive
factor.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_REACH = 5.0
_HEADER = struct.Struct("<BBf")  # rows, columns, bias
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class HeatMap:
    """One map.

    Attributes
    ----------
    cells
        (rows, columns) float32, in units of the logit, before calibration. It covers the image from edge to
        edge, as decoded.
    bias
        What the network adds for every image, in the same unit.
    """

    cells: NDArray[np.float32]
    bias: float

    @classmethod
    def of(cls, cells: NDArray[np.float32], bias: float) -> HeatMap:
        """Make a map as it will be stored, so that what is shown at once and later is the same."""
        finite = np.nan_to_num(cells, nan=0.0, posinf=_LARGEST, neginf=-_LARGEST)
        rounded = finite.clip(-_LARGEST, _LARGEST).astype(np.float16).astype(np.float32)
        return cls(rounded, float(np.float32(bias)))

    @property
    def reach(self) -> float:
        """The end of a picture's scale, in units of the logit: maps below `LEAST_REACH` look weak."""
        return max(LEAST_REACH, float(np.abs(self.cells).max()))

    @property
    def logit(self) -> float:
        """The logit as the map has it, before calibration."""
        return float(self.cells.mean()) + self.bias

    def to_bytes(self) -> bytes:
        """Return the cells as float16 and, before them, their numbers of rows and columns and the bias."""
        return _HEADER.pack(*self.cells.shape, self.bias) + self.cells.astype("<f2").tobytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> HeatMap:
        """Read what `to_bytes` wrote.

        Raises
        ------
        ValueError
            If it is something else.
        """
        if len(content) <= _HEADER.size:
            raise ValueError("a stored heat map is too short")
        rows, columns, bias = _HEADER.unpack_from(content)
        if len(content) != _HEADER.size + 2 * rows * columns or not rows * columns:
            raise ValueError("a stored heat map has another length than it says")
        cells = np.frombuffer(content, "<f2", offset=_HEADER.size).reshape(rows, columns)
        return cls(cells.astype(np.float32), bias)
