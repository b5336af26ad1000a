"""Checkpoints: weights and their card in one safetensors file.

The card is JSON in the metadata of the file. It has what is needed to use the weights and to judge them:
preprocessing, threshold, calibration, data, measurements, licence and limits of use. Loading a safetensors
file cannot execute code.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors

from classifier.errors import CheckpointError
from classifier.model.card import ModelCard, parse_card
from classifier.model.gate import Gate, split_gate
from classifier.model.network import Network, build
from classifier.model.novelty import Novelty, split_tensors

_CARD_KEY = "card"


State = Mapping[str, torch.Tensor]


class Checkpoint(NamedTuple):
    """What a model file holds: the network in evaluation mode, its card, and what tells strangers, if any."""

    model: Network
    card: ModelCard
    novelty: Novelty | None
    gate: Gate | None = None


class Weights(NamedTuple):
    """The tensors of a model file, without the card."""

    state: dict[str, torch.Tensor]
    novelty: Novelty | None
    gate: Gate | None


def load(path: Path) -> Checkpoint:
    """Load a checkpoint.

    Parameters
    ----------
    path
        A file written by `save`.

    Returns
    -------
    Checkpoint
        The network in evaluation mode, float32, on the CPU; the digest in the card is that of the loaded
        bytes.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, has no card, or does not fit its architecture.
    """
    content = _read(path)
    card = parse_card(_card_text(content, path))
    weights = _split(_tensors(content, path), path)
    _require_match(weights.novelty, weights.gate, card, path)
    model = _assemble(card.architecture, weights.state, path)
    return Checkpoint(model, _signed(card, content), weights.novelty, weights.gate)


def load_weights(path: Path) -> Weights:
    """Load the tensors of any safetensors file, with or without card."""
    return _split(_tensors(_read(path), path), path)


def save(
    path: Path, state: State, card: ModelCard, novelty: Novelty | None = None, gate: Gate | None = None
) -> ModelCard:
    """Write a checkpoint, whole or not at all.

    Parameters
    ----------
    path
        Where to write; an existing file is replaced in one step.
    state
        The state dict of `build(card.architecture)`.
    card
        The card to store with the weights.
    novelty
        Fitted to this network's features; needed exactly where the card states a limit for it.
    gate
        Needed exactly where the card describes one.

    Returns
    -------
    ModelCard
        The card with the digest of the file.

    Raises
    ------
    CheckpointError
        If the state does not fit the architecture, or the file cannot be written.
    """
    _require_match(novelty, gate, card, path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    _assemble(card.architecture, tensors, path)
    if novelty is not None:
        tensors |= novelty.to("cpu").tensors()
    if gate is not None:
        tensors |= gate.tensors()
    content = dump_tensors(tensors, {_CARD_KEY: card.model_dump_json()})
    try:
        _write_atomically(path, content)
    except OSError as error:
        raise CheckpointError(f"Cannot write {path}: {error.strerror}; choose another place.") from error
    return _signed(card, content)


def _signed(card: ModelCard, content: bytes) -> ModelCard:
    return card.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})


def _split(tensors: State, path: Path) -> Weights:
    try:
        others, gate = split_gate(tensors)
        return Weights(*split_tensors(others), gate)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}; train or copy it again.") from error


def _require_match(novelty: Novelty | None, gate: Gate | None, card: ModelCard, path: Path) -> None:
    if (novelty is None) != (card.novelty_limit is None):
        raise CheckpointError(
            f"{path} needs both a novelty measure and its limit in the card, or neither; pack it again."
        )
    kinds = None if card.gate is None else len(card.gate.kinds)
    if kinds != (None if gate is None else gate.head.out_features):
        raise CheckpointError(
            f"{path} needs both a gate and its description in the card, or neither; pack it anew."
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
        raise CheckpointError(f"{path} is damaged or not a safetensors file; copy it again.") from error


def _card_text(content: bytes, path: Path) -> str:
    """Return the card from the safetensors header: its length in 8 bytes, then JSON."""
    length = int.from_bytes(content[:8], "little")
    try:
        text = json.loads(content[8 : 8 + length]).get("__metadata__", {}).get(_CARD_KEY)
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file; copy it again.") from error
    if not isinstance(text, str):
        raise CheckpointError(f"{path} has no model card; make a model of it with `classifier pack`.")
    return text


def _assemble(architecture: str, tensors: State, path: Path) -> Network:
    floats = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in floats.values()):
        raise CheckpointError(f"{path} has weights that are not finite; train or copy it again.")
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
