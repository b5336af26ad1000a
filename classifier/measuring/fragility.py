"""How many decisions change by what carries no meaning: a shift by a pixel, a wider window, an encoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from classifier.data.example import Example
from classifier.data.images import decode_all
from classifier.measuring.metrics import share_interval
from classifier.scoring.logits import calibrated, logits
from classifier.scoring.predict import Predictor

_FINER = 2  # times the side that the network sees, at which images are changed
_AT_ONCE = 256  # images in memory
_QUALITY = 90
Numbers = NDArray[np.float64]
Change = Callable[[Tensor], Tensor]


def fragility(
    predictor: Predictor,
    examples: Sequence[Example],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, dict[str, Any]]:
    """Return for each change how many decisions turn from positive to negative, or the other way round.

    Images are changed at twice the size that the network sees. What is, or becomes, nearer to the threshold
    than the band of the model does not count: it is no decision.

    Returns
    -------
    dict
        By change: ``n`` decisions, ``flipped``, their share with its interval by patient, and ``moved``, the
        mean change of the probability. What cannot be decoded is left out.
    """
    pairs: dict[str, list[tuple[Numbers, Numbers]]] = {name: [] for name in CHANGES}
    kept: list[Example] = []
    for at in range(0, len(examples), _AT_ONCE):
        side = _FINER * _side(predictor)
        decoded = decode_all(examples[at : at + _AT_ONCE], side, skip_bad=True)
        kept += decoded.examples
        planes = [image.float() / 255 for image in decoded.images]  # (1, S, S) each
        before = _probabilities(predictor, planes)
        for name, change in CHANGES.items():
            pairs[name].append((before, _probabilities(predictor, [change(plane) for plane in planes])))
        progress(min(at + _AT_ONCE, len(examples)), len(examples))
    return {
        name: _measured(predictor, kept, *map(np.concatenate, zip(*found, strict=True)))
        for name, found in pairs.items()
        if kept
    }


def _side(predictor: Predictor) -> int:
    return int(str(predictor.card.preprocessing[0]["size"]))


def _probabilities(predictor: Predictor, planes: Sequence[Tensor]) -> Numbers:
    prepared = (predictor.chain(plane, start=1) for plane in planes)
    return calibrated(predictor.card, logits(predictor.model, prepared, predictor.device))


def _measured(
    predictor: Predictor, examples: Sequence[Example], before: Numbers, after: Numbers
) -> dict[str, Any]:
    threshold, band = predictor.card.threshold, predictor.card.band
    decided = (np.abs(before - threshold) >= band) & (np.abs(after - threshold) >= band)
    flipped = decided & ((before >= threshold) != (after >= threshold))
    number = int(decided.sum())
    share = float(flipped.sum() / number) if number else None
    people = {e.patient for e, is_in in zip(examples, decided.tolist(), strict=True) if is_in}
    return {
        "n": number,
        "flipped": int(flipped.sum()),
        "share": share,
        "share_ci95": None if share is None else share_interval(share, len(people)),
        "moved": float(np.abs(after - before).mean()),
    }


def _shifted(plane: Tensor) -> Tensor:
    """Move the image right and down by one pixel of the network; the border is repeated."""
    padded = torch.nn.functional.pad(plane[None], (_FINER, 0, _FINER, 0), mode="replicate")[0]
    return padded[:, :-_FINER, :-_FINER]


def _enlarged(plane: Tensor) -> Tensor:
    side = plane.shape[-1]
    edge = max(1, round(side * 0.01))
    return _resized(plane[:, edge:-edge, edge:-edge], side, side)


def _encoded(plane: Tensor) -> Tensor:
    content = BytesIO()
    grey = (plane[0] * 255).round().to(torch.uint8).numpy()
    Image.fromarray(grey).save(content, "JPEG", quality=_QUALITY)
    return torch.from_numpy(np.asarray(Image.open(content), np.float32)[None] / 255)


def _resampled(plane: Tensor) -> Tensor:
    rows, columns = plane.shape[-2:]
    return _resized(_resized(plane, round(rows * 0.9), columns), rows, columns)


def _resized(plane: Tensor, rows: int, columns: int) -> Tensor:
    return interpolate(plane[None], (rows, columns), mode="bilinear", antialias=True)[0].clamp(0, 1)


CHANGES: Mapping[str, Change] = {
    "shifted by one pixel": _shifted,
    "enlarged by 2 %": _enlarged,
    "gamma 0.8": lambda plane: plane**0.8,
    "gamma 1.25": lambda plane: plane**1.25,
    "window 20 % wider": lambda plane: (plane - 0.5) / 1.2 + 0.5,
    "JPEG of quality 90": _encoded,
    "rows resampled": _resampled,
}
"""What carries no meaning: each takes and returns (1, rows, columns) in 0..1."""
