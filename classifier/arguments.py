"""Arguments that several commands have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from classifier.config import SHIPPED_MODEL

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help='Checkpoint file, or "default" for the model that ships.')
]
DataArgument = Annotated[
    Path, typer.Argument(metavar="DATA", help="Folder of the classes NORMAL and PNEUMONIA, or CSV manifest.")
]


class AgeRule(StrEnum):
    """What to do with an image whose age nothing tells."""

    UNDETERMINED = "undetermined"
    LOOK = "look"
    DECIDE = "decide"


ClassesOption = Annotated[
    str,
    typer.Option(
        metavar="NAMES", help="Names of the classes without and with pneumonia, such as healthy,sick."
    ),
]
ThreadsOption = Annotated[
    int, typer.Option(min=0, help="Threads that compute; 0 = one for each processor that is granted.")
]


def model_path(model: str) -> Path:
    """Return the checkpoint that the argument names."""
    return SHIPPED_MODEL if model == "default" else Path(model)
