"""The network and its checkpoint: one safetensors file with the weights and, in its metadata, the card.

The card is JSON and holds what is needed to serve the weights and to judge them: preprocessing, threshold,
calibration, data, measurements, licence and limits of use. safetensors cannot execute code when it is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    ValidationError,
    field_validator,
)
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, relu
from torchvision.models import DenseNet

from classifier.errors import CheckpointError
from classifier.novelty import Novelty, split_tensors

FORMAT: Literal["pacs-node classifier"] = "pacs-node classifier"
FORMAT_VERSION: Literal[1] = 1
_CARD_KEY = "card"

Text = Annotated[str, Field(min_length=1)]
State = Mapping[str, torch.Tensor]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Metric(_Frozen):
    """One measurement: what, how much (with its 95 % interval), on how many images of which data, by whom."""

    name: Text
    value: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    images: Annotated[int, Field(gt=0)]
    patients: Annotated[int, Field(gt=0)] | None = None
    data: Text
    measured_by: Text


class ModelCard(_Frozen):
    """What travels with the weights.

    Attributes
    ----------
    name, version
        Identify the model in the database and in reports.
    architecture
        A key of `ARCHITECTURES`.
    preprocessing
        The tail of the transform chain; see `classifier.transforms`.
    recipe
        How it was trained, in one line.
    threshold, threshold_source
        Probability from which on the decision is positive, and how it was chosen.
    temperature, offset, temperature_source
        The probability is the sigmoid of ``(logit + offset) / temperature``, and how both were chosen.
    band
        Probabilities nearer to the threshold than this are undetermined; 0 for none.
    ages
        Youngest and oldest of the training population in completed years, or none where that is not known.
    novelty_limit, novelty_source
        Distance from the training images, as `classifier.novelty` measures it, beyond which the answer is
        undetermined; none for a model without the measure. And how the limit was chosen.
    data, population, licence, metrics, limits
        Training data, whom they stand for, terms of use, measurements, what the model must not be used for.
    sha256
        Hex digest of the checkpoint file; empty before the card has been in one.
    """

    format: Literal["pacs-node classifier"] = FORMAT
    format_version: Literal[1] = FORMAT_VERSION
    name: Text
    version: Text
    architecture: Text
    preprocessing: tuple[dict[str, JsonValue], ...]
    recipe: str = ""
    threshold: Annotated[FiniteFloat, Field(gt=0, lt=1)]
    threshold_source: Text
    temperature: Annotated[FiniteFloat, Field(gt=0)]
    offset: FiniteFloat = 0.0
    temperature_source: Text
    band: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.0
    ages: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] | None = None
    novelty_limit: Annotated[FiniteFloat, Field(gt=0)] | None = None
    novelty_source: str = ""
    data: Text
    population: Text
    licence: Text
    metrics: tuple[Metric, ...]
    limits: Annotated[tuple[Text, ...], Field(min_length=1)]
    sha256: Annotated[str, Field(exclude=True)] = ""

    @field_validator("ages")
    @classmethod
    def _order(cls, ages: tuple[int, int] | None) -> tuple[int, int] | None:
        if ages is not None and ages[0] > ages[1]:
            raise ValueError("the youngest comes first")
        return ages

    @property
    def preprocessing_text(self) -> str:
        """The preprocessing in one line, such as ``Resize(size=160), Normalise(mean=0.485, std=0.229)``."""
        return ", ".join(map(_step_text, self.preprocessing))


class Network(DenseNet):  # type: ignore[misc]  # torchvision has no types
    """DenseNet121 (Huang et al. 2017) with one logit, that also gives its penultimate features.

    The names of its weights are torchvision's, except for those of the head.
    """

    def __init__(self) -> None:
        super().__init__(growth_rate=32, block_config=(6, 12, 24, 16), num_init_features=64)
        self.classifier = nn.Sequential(nn.Dropout(0.3), nn.Linear(1024, 1))

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features that the head sees: (B, 3, H, W) to (B, 1024)."""
        maps = relu(self.features(images), inplace=True)
        return adaptive_avg_pool2d(maps, (1, 1)).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits: (B, 3, H, W) to (B, 1)."""
        logits: torch.Tensor = self.classifier(self.embed(x))
        return logits


class Checkpoint(NamedTuple):
    """What a model file holds: the network in evaluation mode, its card, and its novelty measure if any."""

    model: Network
    card: ModelCard
    novelty: Novelty | None


def build(architecture: str) -> Network:
    """Make a network with untrained weights.

    Parameters
    ----------
    architecture
        ``"densenet121"``: torchvision's DenseNet121 (Huang et al. 2017) with one logit.

    Raises
    ------
    CheckpointError
        When the architecture is not known.
    """
    try:
        return _ARCHITECTURES[architecture]()
    except KeyError:
        raise CheckpointError(
            f"The architecture {architecture!r} is not known; use one of {', '.join(_ARCHITECTURES)}."
        ) from None


def parse_card(text: str | bytes) -> ModelCard:
    """Read a card from its JSON.

    Raises
    ------
    CheckpointError
        When it is not a card, of another format version, incomplete, or holds values that make no sense.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError("The model card is not JSON; write it anew.") from error
    if not isinstance(content, dict) or content.get("format", FORMAT) != FORMAT:
        raise CheckpointError(
            f"The model card is not of the format {FORMAT!r}; take a model made for this program."
        )
    if content.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise CheckpointError(
            "The model card has another format version; update the program or pack it anew."
        )
    try:
        return ModelCard.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"Correct {where!r} in the model card: {first['msg']}.") from error


def load(path: Path) -> Checkpoint:
    """Load a checkpoint.

    Parameters
    ----------
    path
        A file that `save` wrote.

    Returns
    -------
    Checkpoint
        The network in evaluation mode, float32, on the CPU; the digest in the card is that of exactly the
        bytes that were loaded.

    Raises
    ------
    CheckpointError
        When the file is missing, damaged, without card, or does not fit its architecture.
    """
    content = _read(path)
    card = parse_card(_card_text(content, path))
    state, novelty = _split(_tensors(content, path), card, path)
    model = _assemble(card.architecture, state, path)
    return Checkpoint(model, _signed(card, content), novelty)


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], Novelty | None]:
    """Load the weights, and the novelty measure if any, of any safetensors file, with or without card."""
    return _split(_tensors(_read(path), path), None, path)


def save(path: Path, state: State, card: ModelCard, novelty: Novelty | None = None) -> ModelCard:
    """Write a checkpoint, whole or not at all.

    Parameters
    ----------
    path
        Where to write; an existing file is replaced in one step.
    state
        The state dict of `build(card.architecture)`.
    card
        What travels with it.
    novelty
        Fitted to this network's features; needed exactly where the card states a limit for it.

    Returns
    -------
    ModelCard
        The card with the digest of the file.

    Raises
    ------
    CheckpointError
        When the state does not fit the architecture, or the file cannot be written.
    """
    _require_match(novelty, card, path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    _assemble(card.architecture, tensors, path)
    if novelty is not None:
        tensors |= novelty.to("cpu").tensors()
    content = dump_tensors(tensors, {_CARD_KEY: card.model_dump_json()})
    try:
        _write_atomically(path, content)
    except OSError as error:
        raise CheckpointError(f"Cannot write {path}: {error.strerror}; choose another place.") from error
    return _signed(card, content)


_ARCHITECTURES: dict[str, Callable[[], Network]] = {"densenet121": Network}


def _signed(card: ModelCard, content: bytes) -> ModelCard:
    return card.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})


def _split(
    tensors: State, card: ModelCard | None, path: Path
) -> tuple[dict[str, torch.Tensor], Novelty | None]:
    try:
        state, novelty = split_tensors(tensors)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}; train or copy it again.") from error
    if card is not None:
        _require_match(novelty, card, path)
    return state, novelty


def _require_match(novelty: Novelty | None, card: ModelCard, path: Path) -> None:
    if (novelty is None) != (card.novelty_limit is None):
        raise CheckpointError(
            f"{path} needs both a novelty measure and a limit for it in the card, or neither; pack it anew."
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"Cannot read the model {path}: {error.strerror}; check the path.") from error


def _tensors(content: bytes, path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_tensors(content)
    except (SafetensorError, ValueError, KeyError) as error:  # KeyError: a type that torch does not have
        raise CheckpointError(f"{path} is damaged or no safetensors file; copy it again.") from error


def _card_text(content: bytes, path: Path) -> str:
    """Return the card from the safetensors header: its length in 8 bytes, then JSON."""
    length = int.from_bytes(content[:8], "little")
    try:
        text = json.loads(content[8 : 8 + length]).get("__metadata__", {}).get(_CARD_KEY)
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file; copy it again.") from error
    if not isinstance(text, str):
        raise CheckpointError(f"{path} holds no model card; make a model of it with `classifier pack`.")
    return text


def _assemble(architecture: str, tensors: State, path: Path) -> Network:
    floats = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in floats.values()):
        raise CheckpointError(f"{path} holds weights that are not finite; train or copy it again.")
    with torch.device("meta"):
        model = build(architecture)
    try:
        model.load_state_dict(floats, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights in {path} do not fit {architecture}; take the right file."
        ) from error
    model.eval()
    return model


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _step_text(step: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{key}={value}" for key, value in step.items() if key != "name")
    return f"{step.get('name')}({arguments})"
