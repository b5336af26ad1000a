"""Images for the page: decoded in processes of their own, sent as 16-bit grey at the size of a screen."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from classifier.config import DecodeLimits
from classifier.decoding.decode import Radiograph
from classifier.decoding.decoders import Decoders, Request
from classifier.errors import NotScorable
from pacs_node.config import ClassifierSettings

_LARGEST = 1600  # pixels of a side: more than the page shows
_PROCESSES = 1


class Pictures:
    """Decodes stored objects; hostile bytes end a process of its own, never that of the page."""

    def __init__(self, settings: ClassifierSettings) -> None:
        self._decoders = Decoders.shared(_PROCESSES)
        self._limits = DecodeLimits(settings.decode_seconds, settings.decode_mebibytes)

    def grey16(self, path: Path) -> bytes:
        """Return columns and rows, each uint16, and (rows, columns) uint16, 0 black; all little-endian.

        Raises
        ------
        NotScorable
            When the pixels cannot be decoded.
        OSError
            When the file cannot be read.
        """
        outcome = self._decoders.submit(Request(path, None, None, self._limits)).result()
        if isinstance(outcome, NotScorable | OSError):
            raise outcome
        if not isinstance(outcome, Radiograph):
            raise OSError("The process that decodes answered something else")
        grey = outcome.pixels[0]  # (rows, columns) float32, 0..1
        step = max(1, -(-max(grey.shape) // _LARGEST))
        values = np.round(np.clip(_averaged(grey, step), 0, 1) * 65535).astype("<u2")
        return struct.pack("<HH", values.shape[1], values.shape[0]) + values.tobytes()


def _averaged(
    grey: np.ndarray[tuple[int, ...], np.dtype[np.float32]], step: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return the means of squares of `step` pixels; what is left over at the edges is cut."""
    rows, columns = (side // step for side in grey.shape)
    if not rows or not columns:
        return grey
    cut = grey[: rows * step, : columns * step]
    means: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = cut.reshape(rows, step, columns, step).mean(
        axis=(1, 3), dtype=np.float32
    )
    return means
