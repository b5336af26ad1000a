"""From a DICOM file to what a network takes, beside pydicom and the transforms of the published pipeline."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from imagecodecs import jpeg8_encode
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from classifier.config import SHIPPED_MODEL, Eligibility
from classifier.model.checkpoint import load
from classifier.model.transforms import chain
from classifier.scoring.prepare import Preparation
from pacs_node.demo.phantom import frontal_chest
from tests.benchmarks.pair import Pair, rate
from tests.benchmarks.plain import loader
from tests.conftest import radiograph, save

_SIZES = {4: (1858, 2168), 10: (2940, 3430)}  # megapixels: rows, columns
_NOISE = 8.0  # of 4096 grey values: about what an exposure leaves
_SYNTAXES: dict[str, UID] = {
    "uncompressed": ExplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG Lossless": JPEGLosslessSV1,
    "JPEG-LS": JPEGLSLossless,  # each pixel waits for the one before it: no goal
    "JPEG 2000 lossless": JPEG2000Lossless,
    "JPEG 2000 lossy": JPEG2000,
}
_STREAMED = 4  # megapixels: with more, only one at a time
_BATCH = 4
_CORES = os.cpu_count() or 1
_NORMALISE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def decoding(scratch: Path, rounds: int) -> Iterator[Pair]:
    """Yield images per second, one at a time and as a stream on all cores; 12 bits stored in 16."""
    steps = load(SHIPPED_MODEL).card.preprocessing
    rules = Eligibility()
    ours = Preparation(chain(steps, rules), rules)
    plain = _Plain(int(str(steps[0]["size"])))
    scratch.mkdir(parents=True, exist_ok=True)
    for megapixels, shape in _SIZES.items():
        stored = _radiograph(*shape)
        for name, syntax in _SYNTAXES.items():
            path = _written(scratch / f"{megapixels} {name}.dcm", stored, syntax)
            wanted = None if syntax == JPEGLSLossless else 3
            what = f"Decoding and transforms, {megapixels} megapixels, {name}"
            other = "pydicom and the transforms of the published pipeline"
            yield _pair(f"{what}, one at a time", other, _alone(path, ours, plain, rounds), wanted)
            if megapixels == _STREAMED:
                other = "the same in a data loader with one process for each core"
                streamed = _stream(path, ours, plain, rounds)
                yield _pair(f"{what}, {_BATCH} on {_CORES} cores", other, streamed, wanted)
            path.unlink()


def _alone(path: Path, ours: Preparation, plain: _Plain, rounds: int) -> list[tuple[float, float]]:
    """Return our images per second and theirs, in each round."""
    ours([path])
    return [(rate(lambda: ours([path]), 1), rate(lambda: plain(path), 1)) for _ in range(rounds)]


def _stream(path: Path, ours: Preparation, plain: _Plain, rounds: int) -> list[tuple[float, float]]:
    several = [path] * _BATCH
    theirs = loader(_Files(several, plain), _BATCH // _CORES or 1, _CORES)
    ours(several)
    return [(rate(lambda: ours(several), _BATCH), rate(lambda: list(theirs), _BATCH)) for _ in range(rounds)]


def _pair(what: str, other: str, rates: Sequence[tuple[float, float]], wanted: float | None) -> Pair:
    ours, theirs = zip(*rates, strict=True)
    return Pair(what=what, other=other, unit="images/s", ours=ours, theirs=theirs, wanted=wanted)


class _Plain:
    """Decodes to 8 bits in colour, as the published pipeline has its pictures, and transforms as it does."""

    def __init__(self, side: int) -> None:
        self._change = transforms.Compose(
            [transforms.Resize((side, side)), transforms.ToTensor(), _NORMALISE]
        )

    def __call__(self, path: Path) -> Tensor:
        pixels = dcmread(path).pixel_array.astype(np.float32)
        low, high = pixels.min(), pixels.max()
        grey = ((pixels - low) / (high - low) * 255).astype(np.uint8)
        changed: Tensor = self._change(Image.fromarray(grey).convert("RGB"))
        return changed


class _Files(Dataset[Tensor]):
    def __init__(self, files: Sequence[Path], plain: _Plain) -> None:
        self._files = files
        self._plain = plain

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Tensor:
        return self._plain(self._files[index])


def _radiograph(rows: int, columns: int) -> NDArray[np.uint16]:
    """Draw a chest with the noise of an exposure, (rows, columns) of 12 bits."""
    drawn = Image.fromarray(frontal_chest(1)).resize((columns, rows), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).normal(0, _NOISE, (rows, columns))
    return np.clip(np.asarray(drawn) * 3900 + 50 + noise, 0, 4095).astype(np.uint16)


def _written(path: Path, stored: NDArray[np.uint16], syntax: UID) -> Path:
    ds = radiograph("DX", Rows=stored.shape[0], Columns=stored.shape[1], PixelData=stored.tobytes())
    if syntax == JPEGLosslessSV1:
        frame = jpeg8_encode(stored, lossless=True, predictor=1, bitspersample=12)
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = encapsulate([bytes(frame)])
        ds["PixelData"].VR = "OB"
    elif syntax.is_encapsulated:
        ds.compress(syntax, j2k_cr=[10] if syntax == JPEG2000 else None)
    return save(ds, path)
