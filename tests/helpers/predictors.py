"""Predictors that need not choose among engines: that takes a second or two, and has tests of its own."""

from __future__ import annotations

import pytest
import torch

from classifier.config import Eligibility, UnknownAge
from classifier.model.checkpoint import Checkpoint
from classifier.model.network import Network
from classifier.scoring import predict
from classifier.scoring.backends import Plain
from classifier.scoring.engine import Engines
from classifier.scoring.predict import Predictor


def plain(network: Network, *_others: object) -> Engines:
    """Return the network itself as fast and as exact engine, in the place of `choose`."""
    engine = Plain(network)
    return Engines(engine, engine)


def ready(
    checkpoint: Checkpoint,
    rules: Eligibility | None,
    engines: Engines | None = None,
    *,
    cautious: bool = True,
    unknown_age: UnknownAge = "undetermined",
) -> Predictor:
    """Return a predictor on the processor that computes with `engines`, or with the plain network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "choose", plain if engines is None else lambda *_: engines)
        return Predictor(checkpoint, torch.device("cpu"), rules, cautious=cautious, unknown_age=unknown_age)
