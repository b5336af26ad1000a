"""Training and prediction against the plain loop: the same network, image size, batch size and files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import harmonic_mean

import numpy as np
import torch
from PIL import Image

from classifier.config import SHIPPED_MODEL
from classifier.data.examples import load as load_data
from classifier.data.images import decode_all
from classifier.model.checkpoint import load
from classifier.scoring.predict import Predictor
from classifier.training.options import Epoch, Options, Watcher
from classifier.training.recipes import DEFAULT, PUBLISHED, Recipe, changed
from classifier.training.train import train
from tests.benchmarks.pair import Pair, rate
from tests.benchmarks.plain import PlainLoop

_BATCH = 16
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_WORKERS = os.cpu_count() or 1


def training(scratch: Path, images: int, rounds: int) -> Iterator[Pair]:
    """Yield images per second of training."""
    folder = _pictures(scratch / "set", images)
    files = sorted(folder.rglob("*.jpeg"))
    side = PUBLISHED.image_size
    same = changed(DEFAULT, image_size=side, growth=1, batch_size=_BATCH, epochs=2)
    whole = PlainLoop(_DEVICE, _BATCH, side, frozen=False)
    frozen = PlainLoop(_DEVICE, _BATCH, side, frozen=True)
    from_files = whole.batches(files, _WORKERS, to_train=True)
    in_memory = list(whole.batches(files, 0, to_train=True))
    for loop in (whole, frozen):
        loop.train(in_memory[:1])  # the first step allocates
    measured: dict[str, list[float]] = {name: [] for name in ("same", "own", "whole", "memory", "frozen")}
    for turn in range(rounds):
        measured["same"].append(_rate_of(same, folder))
        measured["whole"].append(whole.train(from_files))
        if not turn:  # one without a goal, and a whole run, if a short one; the others are a part of one
            measured["memory"].append(whole.train(in_memory))
            measured["own"].append(_rate_of(changed(DEFAULT, epochs=DEFAULT.epochs // 2), folder))
        measured["frozen"].append(frozen.train(from_files))
    yield Pair(
        what=f"Training, all layers, {side} pixels",
        other="plain fp32 loop with its data loader",
        unit="images/s",
        ours=measured["same"],
        theirs=measured["whole"],
        wanted=4,
    )
    yield Pair(
        what=f"Training, all layers, {side} pixels",
        other="the same, its images decoded and augmented before",
        unit="images/s",
        ours=measured["same"],
        theirs=measured["memory"],
    )
    yield Pair(
        what=f"Training, a whole run of the default recipe: {DEFAULT.image_size} pixels at last, all layers",
        other=f"published recipe, plain loop: {side} pixels, half of the layers frozen",
        unit="images/s",
        ours=measured["own"],
        theirs=measured["frozen"],
        wanted=4,
    )


def prediction(scratch: Path, images: int, rounds: int) -> Iterator[Pair]:
    """Yield images per second from file to probability, at the size of the model that ships."""
    files = sorted(_pictures(scratch / "set", images).rglob("*.jpeg"))
    side = int(str(load(SHIPPED_MODEL).card.preprocessing[0]["size"]))
    predictor, plain = Predictor.load(device=_DEVICE), PlainLoop(_DEVICE, _BATCH, side, frozen=False)
    batches = [files[at : at + _BATCH] for at in range(0, len(files), _BATCH)]
    # Many batches: the first few are decoded when the clock starts, which here is half of the work
    from_files = plain.batches(files * 4, _WORKERS, to_train=False)
    predictor.predict(batches[0])
    plain.predict(from_files)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(rate(lambda: [predictor.predict(batch) for batch in batches], len(files)))
        theirs.append(plain.predict(from_files))
    yield Pair(
        what=f"Prediction, {side} pixels, file to answer and novelty",
        other="plain fp32 loop with its data loader",
        unit="images/s",
        ours=ours,
        theirs=theirs,
    )


class _Enough(Exception):
    """The last epoch is measured."""


def _rate_of(recipe: Recipe, folder: Path) -> float:
    """Return the rate over all epochs but the first; of decoding, the share of one epoch of a run."""
    rates: list[float] = []

    def finished(history: Sequence[Epoch], _best: int) -> None:
        rates.append(history[-1].images_per_second)
        if len(rates) == recipe.epochs:
            raise _Enough

    with tempfile.TemporaryDirectory() as run:
        try:
            options = Options(val_share=0.25, device=_DEVICE)
            train(folder, Path(run) / "run", recipe, options, Watcher(finished=finished))
        except _Enough:
            pass
    examples = load_data(folder)
    decoding = rate(lambda: decode_all(examples, recipe.image_size, workers=1), len(examples))
    return 1 / (1 / harmonic_mean(rates[1:]) + 1 / (decoding * DEFAULT.epochs))


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
