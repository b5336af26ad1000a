"""From a model without a gate to one with it: training, limit, figures, card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from classifier.data import examples as data
from classifier.data.images import decode_all
from classifier.errors import DataError
from classifier.model.card import GateCard, Kind, Metric, ModelCard
from classifier.model.checkpoint import load, save
from classifier.model.gate import Gate
from classifier.training.gate import (
    TURNS,
    GateRecipe,
    Material,
    leave_one_out,
    strangeness_of,
    train_gate,
)
from classifier.training.strangers import Album, load_album

_DECIMALS = 4
_HELD_BACK = "held back by the gate"
MEASURED_BY = "classifier gate"
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class GateOptions:
    """What is needed beside the recipe.

    Attributes
    ----------
    strangers
        Folder or manifest by kind: ``"adult"``, ``"other"``.
    too
        Folder of pictures that shall pass as known.
    leave_out
        Columns of the adults' manifest; for each value a gate is trained without it, and measured on it.
    share
        Of the validation images that may be held back.
    val_share, seed
        Of the split by patient; those with which the model was trained.
    version
        Of the new model.
    """

    strangers: Mapping[Kind, Path]
    too: Path | None = None
    leave_out: tuple[str, ...] = ()
    share: float = 0.01
    val_share: float = 0.1
    seed: int = 0
    workers: int = 0
    version: str = ""


def add_gate(
    model: Path, source: Path, out: Path, recipe: GateRecipe, options: GateOptions, *, told: Told
) -> ModelCard:
    """Train a gate for a model and write the model with it.

    Parameters
    ----------
    model, out
        Checkpoints.
    source
        The data of the model, folder or manifest; see `classifier.data.examples.load`.
    told
        Called after each step with its number and how many there are.

    Raises
    ------
    DataError, CheckpointError
    """
    checkpoint = load(model)
    making = _Making(checkpoint.card, source, replace(recipe, balance=options.leave_out), options, told)
    gate = making.train(making.material)
    limit = making.limit(gate)
    described = GateCard(kinds=making.material.kinds, limit=limit, source=making.described())
    figures = (*making.figures(gate, limit), *making.left_out())
    card = checkpoint.card.model_copy(
        update={
            "version": options.version or checkpoint.card.version,
            "gate": described,
            "metrics": (*_without_gate(checkpoint.card), *figures),
        }
    )
    return save(out, checkpoint.model.state_dict(), card, checkpoint.novelty, gate)


class _Making:
    """The images that gates are made of and measured on, and how."""

    def __init__(
        self, card: ModelCard, source: Path, recipe: GateRecipe, options: GateOptions, told: Told
    ) -> None:
        self._spec, self._recipe, self._options = card.preprocessing, recipe, options
        self._gates, self._told = 1, told
        self._side = int(str(card.preprocessing[0]["size"]))
        examples = data.split(data.load(source), options.val_share, options.seed)
        train, val = ([e for e in examples if e.split == name] for name in ("train", "val"))
        known, self._held = (
            decode_all(some, self._side, workers=options.workers).images for some in (train, val)
        )
        self._patients = len({example.patient for example in val})
        strangers = {kind: self._album(path) for kind, path in options.strangers.items()}
        too = known[:0] if options.too is None else self._album(options.too).images
        self.material = Material(known, too, strangers)
        self._gates += sum(len(set(self._adults.groups([name]))) for name in options.leave_out)
        self._step = 0

    def _album(self, path: Path) -> Album:
        return load_album(path, self._side, self._options.workers)

    @property
    def _adults(self) -> Album:
        try:
            return self.material.strangers["adult"]
        except KeyError:
            raise DataError("--leave-out is about adults; name theirs with --strangers adult=PATH.") from None

    def train(self, material: Material) -> Gate:
        """Train a gate."""
        return train_gate(material, self._spec, self._recipe, self._count)

    def _count(self, _step: int, _loss: float) -> None:
        self._step += 1
        self._told(self._step, self._recipe.steps * self._gates)

    def limit(self, gate: Gate) -> float:
        """Return the log odds of a stranger beyond which no more validation images lie than are wanted."""
        odds = strangeness_of(gate, self._held, self._spec).double().numpy()
        chosen = float(np.quantile(odds, 1 - self._options.share, method="higher"))
        return float(np.ceil(chosen * 10**_DECIMALS) / 10**_DECIMALS)

    def figures(self, gate: Gate, limit: float) -> Iterator[Metric]:
        """Yield how many of the validation images are held back: as they are, turned, inverted."""
        turned = torch.cat([turn(self._held) for turn in TURNS])
        what = "the validation images"
        yield self._measured(
            gate, limit, self._held, self._patients, f"{what}, on which its limit was chosen"
        )
        yield self._measured(gate, limit, turned, self._patients, f"{what}, turned in five ways")
        yield self._measured(gate, limit, 255 - self._held, self._patients, f"{what}, inverted")

    def left_out(self) -> Iterator[Metric]:
        """Yield how many adults of each kind are held back by a gate that saw none of these patients."""
        for column in self._options.leave_out:
            for value, rest, inside in leave_one_out(self._adults, column):
                gate = self.train(
                    replace(self.material, strangers={**self.material.strangers, "adult": rest})
                )
                what = f"adults of {column} {value}, by a gate trained without them"
                people = len(set(inside.patients))
                yield self._measured(gate, self.limit(gate), inside.images, people, what)

    def _measured(self, gate: Gate, limit: float, images: Tensor, patients: int, what: str) -> Metric:
        count = int((strangeness_of(gate, images, self._spec) > limit).sum())
        interval = binomtest(count, len(images)).proportion_ci(method="wilson")
        figures = (count / len(images), float(interval.low), float(interval.high))
        value, low, high = (round(figure, _DECIMALS) for figure in figures)
        return Metric(
            name=_HELD_BACK,
            value=value,
            low=low,
            high=high,
            images=len(images),
            patients=patients,
            data=what,
            measured_by=MEASURED_BY,
        )

    def described(self) -> str:
        """Say how the gate was trained and how its limit was chosen."""
        names: dict[Kind, str] = {"adult": "adults", "other": "other things"}
        given = [f"{len(album)} images of {names[kind]}" for kind, album in self.material.strangers.items()]
        strangers = ", ".join([*given, "chests turned, inverted and under heat maps", "noise and drawings"])
        too = f"; {len(self.material.too)} pictures pass as known too" if len(self.material.too) else ""
        return (
            f"{self._recipe.steps} steps of {self._recipe.batch_size} images, seed {self._recipe.seed};"
            f" strangers: {strangers}{too}; the limit holds back {self._options.share:g} of"
            f" {len(self._held)} validation images of {self._patients} patients"
        )


def _without_gate(card: ModelCard) -> Iterator[Metric]:
    return (metric for metric in card.metrics if metric.measured_by != MEASURED_BY)
