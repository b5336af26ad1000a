"""Train a network: epochs over augmented images, validation on patients it has not seen; the best epoch is
kept.

The run is written to one folder and can be killed at any point: `last.pt` has everything to continue after
the last complete epoch, `model.safetensors` the best model so far with its card, ready for the node. After
the last epoch, the novelty measure is fitted and everything in the card is measured again, at full precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from classifier.errors import TrainingError
from classifier.training.decoded_set import DecodedSet
from classifier.training.distributed import joined
from classifier.training.final_validation import measure
from classifier.training.options import Options, Source, Watcher
from classifier.training.recipes import Recipe
from classifier.training.run import Run
from classifier.training.run_folder import LAST_FILE, MODEL_FILE, write_settings

_NOBODY = Watcher()


def train(source: Source, out: Path, recipe: Recipe, options: Options, watcher: Watcher = _NOBODY) -> Path:
    """Train a model.

    Parameters
    ----------
    source
        Folder of classes, manifest, or images; see `classifier.data.examples.load`.
    out
        Folder of the run.
    recipe, options
        How to train.
    watcher
        Callbacks for the progress.

    Returns
    -------
    Path
        The best model.

    Raises
    ------
    DataError, TrainingError, CheckpointError, DeviceError
    """
    with joined(options.device) as group:
        if group.is_first:
            out.mkdir(parents=True, exist_ok=True)
        if not options.resume and (out / LAST_FILE).exists():
            raise TrainingError(
                f"{out} already has a run; add --resume to continue it, or choose another --out."
            )
        images = DecodedSet.decoded(source, recipe, options, watcher)
        watcher.split(images.examples, images.skipped)
        with _memory_of(recipe):
            run = Run(recipe, options, out, images, group)
            if options.resume:
                run.resume()
                watcher.finished(run.history, run.best_epoch)
            group.wait()  # until all have seen what the folder holds
            if group.is_first:
                write_settings(out, recipe, options, images.examples, images.skipped)
            for _ in run.epochs(watcher):
                watcher.finished(run.history, run.best_epoch)
    if group.is_first:  # after the others have left, because this takes longer than they may wait
        with _memory_of(recipe):
            measure(out, recipe, options, images, device=group.device, watcher=watcher)
    return out / MODEL_FILE


@contextmanager
def _memory_of(recipe: Recipe) -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        less = max(2, recipe.batch_size // 2)
        raise TrainingError(f"The GPU has too little memory; try --batch-size {less}.") from error
