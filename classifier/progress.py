"""Progress of long commands of the classifier: bars on a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from classifier import terminal
from classifier.data.examples import Example, told_apart
from classifier.measuring import plots
from classifier.training.options import Epoch, Watcher
from classifier.training.run_folder import SKIPPED_FILE

_LOG_SECONDS = 30.0  # between lines without a terminal
_MOST_NAMED = 10


class TrainingProgress:
    """Shows the progress of a training run, and draws its curves after each epoch.

    Parameters
    ----------
    progress, console
        Where to show it.
    epochs
        The largest number of epochs.
    curves
        File for the picture of the curves; ``None`` if another process draws it.
    log
        Called after each epoch with all so far and the number of the best.
    """

    def __init__(
        self,
        progress: Progress,
        console: Console,
        epochs: int,
        curves: Path | None,
        log: Callable[[Sequence[Epoch], int], None] = lambda *_: None,
    ) -> None:
        self._progress, self._console, self._epochs, self._curves = progress, console, epochs, curves
        self._log = log
        self._decoding = progress.add_task("Decoding")
        self._steps = progress.add_task("Training", visible=False)
        self._last_line = time.monotonic()

    def watcher(self) -> Watcher:
        """Return the callbacks for a run."""
        return Watcher(self._on_decoded, self._on_split, self._on_embedded, self._on_step, self._on_epoch)

    def _on_decoded(self, done: int, total: int) -> None:
        self._progress.update(self._decoding, completed=done, total=total, visible=done < total)

    def _on_split(self, examples: Sequence[Example], skipped: Mapping[Path, str]) -> None:
        self._console.print("\n".join(_described(examples, skipped)), markup=False, soft_wrap=True)

    def _on_embedded(self, done: int, total: int) -> None:
        self._progress.update(self._steps, description="Measuring", completed=done, total=total, visible=True)

    def _on_step(self, epoch: int, step: int, number: int, loss: float, rate: float) -> None:
        done, total = (epoch - 1) * number + step, self._epochs * number
        what = f"Epoch {epoch} of {self._epochs}, loss {loss:.3f}, {rate:.1f} images/s"
        self._progress.update(self._steps, description=what, completed=done, total=total, visible=True)
        if not self._console.is_terminal and time.monotonic() - self._last_line > _LOG_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(f"{what}, step {step} of {number}")

    def _on_epoch(self, history: Sequence[Epoch], best: int) -> None:
        epoch = history[-1]
        kept = ", kept" if epoch.epoch == best else ""
        self._console.print(
            f"Epoch {epoch.epoch}: loss {epoch.train_loss:.4f}, validation {epoch.val_loss:.4f},"
            f" AUROC {epoch.val_auroc:.4f}, accuracy {epoch.val_accuracy:.4f},"
            f" {epoch.images_per_second:.1f} images/s{kept}",
            soft_wrap=True,
        )
        self._log(history, best)
        if self._curves is not None:
            plots.save(plots.curves(history, best), self._curves)


def _described(examples: Sequence[Example], skipped: Mapping[Path, str]) -> Iterator[str]:
    """Say which data are used for training, and what to know about them."""
    for name, what in (("train", "training"), ("val", "validation")):
        images = [example for example in examples if example.split == name]
        yield f"{len(images)} images of {len({e.patient for e in images})} patients for {what}"
    yield f"Patients are told apart {told_apart(examples)}"
    if len({example.patient for example in examples}) == len(examples):
        yield "Each image counts as another patient's; if not so, name patients by folders or in a manifest."
    for path, why in list(skipped.items())[:_MOST_NAMED]:
        yield f"Left out: {path} ({why})"
    if len(skipped) > _MOST_NAMED:
        yield f"{len(skipped) - _MOST_NAMED} more were left out; {SKIPPED_FILE} names them."


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Return a function that shows how many items of all are done."""
    with bars(terminal.console(stderr=True)) as progress:
        task = progress.add_task(what)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def bars(console: Console) -> Progress:
    """Return progress bars; a log does not show them."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    is_log = not console.is_terminal  # in a log, even a removed bar would leave an empty line
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=is_log)
