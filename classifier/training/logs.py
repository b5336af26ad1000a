"""Runs in the books of other tools: TensorBoard and MLflow, which are extras."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classifier.errors import TrainingError
from classifier.training.options import Epoch
from classifier.training.run_folder import MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from classifier.training.recipes import Recipe

_log = logging.getLogger(__name__)

Told = Callable[[Sequence[Epoch], int], None]
Write = Callable[[dict[str, float], int], None]
_EXPERIMENT = "classifier train"
_LONGEST = 250  # characters of a value in MLflow
_RUN_FILE = "mlflow_run.txt"  # the run that a resumed training goes on with


def require(tools: Sequence[str]) -> None:
    """Raise `TrainingError` if a tool is not known or not installed."""
    for tool in tools:
        if tool not in _TOOLS:
            raise TrainingError(f"--log {tool!r} is not known; write tensorboard or mlflow.")
        if find_spec(tool) is None:
            raise TrainingError(f"The package {tool} is missing; pip install 'pacs-node[{tool}]'.")


@contextmanager
def logged(tools: Sequence[str], out: Path, recipe: Recipe, name: str) -> Iterator[Told]:
    """Return what writes each epoch into the books of the tools; they are closed in the end."""
    with ExitStack() as stack:
        books = [stack.enter_context(_TOOLS[tool](out, recipe, name)) for tool in tools]

        def tell(history: Sequence[Epoch], _best: int) -> None:
            for book in books:
                book(_values(history[-1]), history[-1].epoch)

        yield tell


def _values(epoch: Epoch) -> dict[str, float]:
    return {name: float(value) for name, value in asdict(epoch).items() if name != "epoch"}


@contextmanager
def _tensorboard(out: Path, recipe: Recipe, _name: str) -> Iterator[Write]:
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra

    writer: Any = SummaryWriter(str(out / "tensorboard"))
    writer.add_text("recipe", recipe.text)

    def write(values: dict[str, float], epoch: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()

    try:
        yield write
    finally:
        writer.close()


@contextmanager
def _mlflow(out: Path, recipe: Recipe, name: str) -> Iterator[Write]:
    """Write to what MLFLOW_TRACKING_URI names, by default to mlflow.db in the folder of the run."""
    import mlflow  # noqa: PLC0415 - an extra

    _choose_place(mlflow, out)
    known = out / _RUN_FILE
    earlier = known.read_text(encoding="ascii").strip() if known.is_file() else None
    try:
        run = mlflow.start_run(run_id=earlier, run_name=None if earlier else name)
        if earlier is None:
            mlflow.log_params({key: str(value)[:_LONGEST] for key, value in asdict(recipe).items()})
    except mlflow.exceptions.MlflowException as error:
        raise TrainingError(
            f"MLflow cannot be written to: {error}. Correct MLFLOW_TRACKING_URI, or leave out --log mlflow."
        ) from error
    out.mkdir(parents=True, exist_ok=True)
    known.write_text(run.info.run_id + "\n", encoding="ascii")

    def write(values: dict[str, float], epoch: int) -> None:
        try:
            mlflow.log_metrics(values, step=epoch)
        except mlflow.exceptions.MlflowException as error:  # hours of training are worth more than a line
            _log.warning("MLflow did not take epoch %d: %s", epoch, error)

    with run:
        yield write
        if (out / MODEL_FILE).is_file():
            mlflow.log_artifact(str(out / MODEL_FILE))


def _choose_place(mlflow: Any, out: Path) -> None:
    if "MLFLOW_TRACKING_URI" in os.environ:
        return
    out.mkdir(parents=True, exist_ok=True)
    place = out.absolute()
    mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(_EXPERIMENT)
    files = (place / "mlflow").as_uri()
    mlflow.set_experiment(
        experiment_id=found.experiment_id if found else client.create_experiment(_EXPERIMENT, files)
    )


_TOOLS = {"tensorboard": _tensorboard, "mlflow": _mlflow}
