"""Training and prediction against the plain loop: the same network, image size, batch size and files."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.pair import Pair, rate
from benchmarks.plain import SIDE, PlainLoop
from classifier.predict import Predictor
from classifier.recipes import DEFAULT, changed
from classifier.train import HISTORY_FILE, Options, train

_BATCH = 16
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def training(scratch: Path, images: int, rounds: int) -> Iterator[Pair]:
    """Yield images per second of training, all layers and 224 pixels, and of each recipe as it is."""
    folder = _pictures(scratch / "set", images)
    files = sorted(folder.rglob("*.jpeg"))
    trained = len(files) - len(files) // 4
    recipe = changed(DEFAULT, image_size=SIDE, growth=1, batch_size=_BATCH, epochs=1 + rounds)
    whole, frozen = (PlainLoop(_DEVICE, _BATCH, frozen=f) for f in (False, True))
    workers = os.cpu_count() or 1
    whole.train(files[:_BATCH], 0)  # the first step compiles and allocates
    frozen.train(files[:_BATCH], 0)
    theirs = [rate(lambda: whole.train(files[:trained], workers), trained) for _ in range(rounds)]
    published = [rate(lambda: frozen.train(files[:trained], workers), trained) for _ in range(rounds)]
    options = Options(val_share=0.25, device=_DEVICE)
    ours = _rates(train(folder, scratch / "run", recipe, options).parent)
    yield Pair(
        what=f"Training, all layers, {SIDE} pixels",
        other="plain fp32 loop",
        unit="images/s",
        ours=ours,
        theirs=theirs,
        wanted=4,
    )
    # What somebody who retrains gets: the default recipe trains all layers, at its own size
    own = changed(DEFAULT, growth=1, epochs=1 + rounds)
    ours = _rates(train(folder, scratch / "own", own, options).parent)
    what = f"Training, the default recipe's {DEFAULT.image_size} pixels"
    yield Pair(
        what=what,
        other="published recipe: plain fp32 loop, early layers frozen",
        unit="images/s",
        ours=ours,
        theirs=published,
    )


def prediction(scratch: Path, images: int, rounds: int) -> Iterator[Pair]:
    """Yield images per second from file to probability."""
    files = sorted((_pictures(scratch / "set", images)).rglob("*.jpeg"))
    predictor, plain = Predictor.load(device=_DEVICE), PlainLoop(_DEVICE, _BATCH, frozen=False)
    batches = [files[at : at + _BATCH] for at in range(0, len(files), _BATCH)]
    predictor.predict(batches[0])
    plain.predict(batches[0], 0)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(rate(lambda: [predictor.predict(batch) for batch in batches], len(files)))
        theirs.append(rate(lambda: plain.predict(files, os.cpu_count() or 1), len(files)))
    yield Pair(
        what="Prediction, file to answer",
        other=f"plain fp32 loop, {SIDE} pixels",
        unit="images/s",
        ours=ours,
        theirs=theirs,
    )


def _rates(run: Path) -> list[float]:
    """Return the training rates of a run without its first epoch."""
    with (run / HISTORY_FILE).open(newline="", encoding="utf-8") as file:
        return [float(row["images_per_second"]) for row in csv.DictReader(file)][1:]


def _pictures(folder: Path, number: int) -> Path:
    """Write JPEG files of the size and content of radiographs into two class folders, once."""
    if not folder.exists():
        generator = np.random.default_rng(0)
        for index in range(number):
            place = folder / ("NORMAL", "PNEUMONIA")[index % 2]
            place.mkdir(parents=True, exist_ok=True)
            coarse = generator.integers(20, 235, (24, 30), np.uint8)
            image = Image.fromarray(coarse).resize((1400, 1100), Image.Resampling.BICUBIC)
            image.save(place / f"person{index}_{index}.jpeg", quality=90)
    return folder
