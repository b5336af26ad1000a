"""From a model without a gate to one with it: training, limit, figures, card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from classifier.data import examples as data
from classifier.data.images import decode_all
from classifier.errors import DataError
from classifier.model.card import GateCard, Kind, Metric, ModelCard
from classifier.model.checkpoint import Checkpoint, load, save
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
Told = Callable[[str, int, int, float], None]


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


@dataclass(frozen=True)
class _Held:
    """Validation images of the model, (N, 1, S, S) uint8, and how many patients they are of."""

    images: Tensor
    patients: int


def add_gate(
    model: Path, source: Path, out: Path, recipe: GateRecipe, options: GateOptions, told: Told
) -> ModelCard:
    """Train a gate for a model and write the model with it.

    Parameters
    ----------
    model, out
        Checkpoints.
    source
        The data of the model, folder or manifest; see `classifier.data.examples.load`.
    told
        Called after each step with what is trained, its number, how many there are, and the loss.

    Raises
    ------
    DataError, CheckpointError
    """
    checkpoint = load(model)
    material, held = _material(checkpoint, source, options)
    spec = checkpoint.card.preprocessing
    recipe = replace(recipe, balance=options.leave_out)
    train = partial(_train, spec=spec, recipe=recipe, told=told)
    gate = train("the gate", material)
    limit = _limit(gate, held, checkpoint.card, options.share)
    figures = list(_figures(gate, limit, held, checkpoint.card))
    for column in options.leave_out:
        figures += _left_out(column, material, held, checkpoint.card, options, train)
    made = checkpoint.card.model_copy(
        update={
            "version": options.version or checkpoint.card.version,
            "gate": GateCard(
                kinds=material.kinds, limit=limit, source=_source(material, held, recipe, options)
            ),
            "metrics": (*checkpoint.card.metrics, *figures),
        }
    )
    return save(out, checkpoint.model.state_dict(), made, checkpoint.novelty, gate)


def _train(
    what: str, material: Material, *, spec: Sequence[Mapping[str, object]], recipe: GateRecipe, told: Told
) -> Gate:
    return train_gate(material, spec, recipe, lambda step, loss: told(what, step, recipe.steps, loss))


def _material(checkpoint: Checkpoint, source: Path, options: GateOptions) -> tuple[Material, _Held]:
    side = int(str(checkpoint.card.preprocessing[0]["size"]))
    examples = data.split(data.load(source), options.val_share, options.seed)
    train, val = ([e for e in examples if e.split == name] for name in ("train", "val"))
    known, held = (decode_all(some, side, workers=options.workers).images for some in (train, val))
    strangers = {kind: load_album(path, side, options.workers) for kind, path in options.strangers.items()}
    for name in options.leave_out:
        if "adult" not in strangers:
            raise DataError(
                f"Only adults can be left out by {name!r}; name theirs with --strangers adult=PATH."
            )
        strangers["adult"].groups([name])
    too = known[:0] if options.too is None else load_album(options.too, side, options.workers).images
    return Material(known, too, strangers), _Held(held, len({e.patient for e in val}))


def _limit(gate: Gate, held: _Held, card: ModelCard, share: float) -> float:
    odds = strangeness_of(gate, held.images, card.preprocessing).double().numpy()
    chosen = float(np.quantile(odds, 1 - share, method="higher"))
    return float(np.ceil(chosen * 10**_DECIMALS) / 10**_DECIMALS)


def _figures(gate: Gate, limit: float, held: _Held, card: ModelCard) -> Iterator[Metric]:
    made = {
        "the validation images, on which the limit was chosen": held.images,
        "the validation images, turned by 90, 180 or 270 degrees, upside down or transposed": torch.cat(
            [turn(held.images) for turn in TURNS]
        ),
        "the validation images, inverted": 255 - held.images,
    }
    for what, images in made.items():
        odds = strangeness_of(gate, images, card.preprocessing)
        yield _share_held(odds, limit, held.patients, what)


def _left_out(
    column: str,
    material: Material,
    held: _Held,
    card: ModelCard,
    options: GateOptions,
    train: Callable[[str, Material], Gate],
) -> Iterator[Metric]:
    """Yield for each value of a column how many of its images a gate holds back that saw none of its patients."""
    for value, rest, inside in leave_one_out(material.strangers["adult"], column):
        what = f"{column} {value}"
        gate = train(f"without {what}", replace(material, strangers={**material.strangers, "adult": rest}))
        limit = _limit(gate, held, card, options.share)
        odds = strangeness_of(gate, inside.images, card.preprocessing)
        people = len(set(inside.patients))
        yield _share_held(odds, limit, people, f"adults of {what}, by a gate that was trained without them")


def _share_held(odds: Tensor, limit: float, patients: int, what: str) -> Metric:
    count = int((odds > limit).sum())
    interval = binomtest(count, len(odds)).proportion_ci(method="wilson")
    value, low, high = (round(float(x), _DECIMALS) for x in (count / len(odds), interval.low, interval.high))
    return Metric(
        name=_HELD_BACK,
        value=value,
        low=low,
        high=high,
        images=len(odds),
        patients=patients,
        data=what,
        measured_by="classifier gate",
    )


def _source(material: Material, held: _Held, recipe: GateRecipe, options: GateOptions) -> str:
    albums = [f"{len(album)} images of {kind}" for kind, album in _named(material.strangers)]
    strangers = ", ".join([*albums, "chests turned, inverted and under heat maps", "noise and drawings"])
    return (
        f"{recipe.steps} steps of {recipe.batch_size} images, seed {recipe.seed}; strangers: {strangers};"
        f" the limit holds back {options.share:g} of {len(held.images)} validation images"
        f" of {held.patients} patients"
    )


def _named(strangers: Mapping[Kind, Album]) -> Iterator[tuple[str, Album]]:
    names: dict[Kind, str] = {"adult": "adults", "other": "other things"}
    for kind, album in strangers.items():
        yield names.get(kind, kind), album
