"""Score images with a checkpoint: files in, one prediction each out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from classifier.config import SHIPPED_MODEL, DecodeLimits, Eligibility, UnknownAge
from classifier.decoding.copies import Fingerprint
from classifier.device import choose_device
from classifier.errors import CheckpointError, NotScorable
from classifier.heat_map import HeatMap
from classifier.model.card import Kind
from classifier.model.checkpoint import Checkpoint, load
from classifier.model.gate import judge
from classifier.model.transforms import Chain, chain
from classifier.outcome import Decision, Prediction, StillDecoding
from classifier.reasons import Reason
from classifier.scoring.doubt import Doubts
from classifier.scoring.engine import EngineName, choose
from classifier.scoring.prepare import Preparation, Ready

__all__ = ["Decision", "Prediction", "Predictor", "choose_device"]

_DEFAULT_RULES, _DEFAULT_LIMITS = Eligibility(), DecodeLimits()
_PATIENCE_SECONDS = 2.0  # in which no image gets decoded, before the rest is for later
_DECIMALS = 3  # of novelty and age
_LARGEST_ERROR = 0.01  # of a probability


class _Score(NamedTuple):
    """What the networks say of one image; a probability that is not finite is none.

    Attributes
    ----------
    looks_like
        The kind of stranger, where the gate says that it is one.
    heat_map
        What each place adds to the logit.
    """

    probability: float
    novelty: float | None
    heat_map: HeatMap
    looks_like: Kind | None = None


class Predictor:
    """A loaded model with its preprocessing, ready to score.

    Attributes
    ----------
    card
        The card of the model.
    device
        Where it runs: ``"cpu"`` or ``"cuda:0"``.
    chain
        The whole conversion from a file to the input of the network.
    model
        The network, in evaluation mode, channels last.
    engines
        What computes its features and logits.
    novelty
        Its measure of how unlike the training images an image is, if it has one.
    gate
        Its network that tells strangers, if it has one.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        rules: Eligibility | None,
        *,
        cautious: bool = True,
        engine: EngineName = "auto",
        unknown_age: UnknownAge = "undetermined",
        limits: DecodeLimits = _DEFAULT_LIMITS,
    ) -> None:
        model, self.card, novelty, gate = checkpoint
        self.device = str(device)
        self.chain: Chain = chain(self.card.preprocessing, rules)
        self.model = model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.novelty = None if novelty is None else novelty.to(device)
        self.gate = None if gate is None else gate.to(device)
        self._prepare = Preparation(self.chain, rules, limits)
        self._doubts = Doubts(self.card, cautious, unknown_age)
        self._require_square_planes()
        planes = 1 if self.card.preprocessing[-1].get("name") == "RepeatChannel" else 3
        self.engines = choose(self.model, planes, self._probe(), self._measure, engine)

    @classmethod
    def load(
        cls,
        path: Path | None = None,
        device: str = "auto",
        rules: Eligibility | None = _DEFAULT_RULES,
        *,
        cautious: bool = True,
        engine: EngineName = "auto",
        unknown_age: UnknownAge = "undetermined",
        limits: DecodeLimits = _DEFAULT_LIMITS,
    ) -> Predictor:
        """Load a checkpoint.

        Parameters
        ----------
        path
            The checkpoint; ``None`` means the model that ships with the program.
        device
            ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        rules
            Which DICOM objects are scored; ``None`` scores any that can be decoded.
        cautious
            Whether an image unlike the training images, or of a patient of another age than theirs, is
            undetermined. If not, both are measured all the same.
        engine
            What computes on a processor: ``"auto"`` (OpenVINO where it is installed), ``"openvino"``, or
            ``"torch"``, always in float32.
        unknown_age
            What becomes of an image whose tags do not tell the age, where the model is for some ages only and
            `cautious` is set.
        limits
            What decoding one image may take.

        Raises
        ------
        CheckpointError
            When the file is missing, damaged or not understood.
        DeviceError
            When the device does not exist, or the engine is not there or not for it.
        """
        chosen = choose_device(device)
        return cls(
            load(path or SHIPPED_MODEL),
            chosen,
            rules,
            cautious=cautious,
            engine=engine,
            unknown_age=unknown_age,
            limits=limits,
        )

    @property
    def engine(self) -> str:
        """What computes, and in which type: ``"OpenVINO f32"``."""
        return self.engines.fast.name

    def predict(self, sources: Sequence[Path]) -> list[Prediction]:
        """Score files in one batch.

        Parameters
        ----------
        sources
            DICOM, JPEG or PNG files.

        Returns
        -------
        list of Prediction
            In the order of `sources`; an image that is refused is `Decision.NOT_SCORED` with its reason.

        Raises
        ------
        OSError
            When a file cannot be opened or read: that says nothing about the image, and may pass.
        """
        found = self._answers(self._prepare(sources))
        for one in found:
            if isinstance(one, OSError):
                raise one
        return [one for one in found if isinstance(one, Prediction)]

    def attempt(self, sources: Sequence[Path]) -> list[Prediction | OSError | StillDecoding]:
        """Score files in one batch as `predict` does, but each alone: one that fails stops no other.

        Returns
        -------
        list of Prediction, OSError or StillDecoding
            In the order of `sources`; `StillDecoding` is to be asked for again.
        """
        return self._answers(self._prepare(sources, _PATIENCE_SECONDS))

    def fingerprints(
        self, sources: Sequence[Path]
    ) -> list[Fingerprint | NotScorable | OSError | StillDecoding]:
        """Return what tells the pixels of files from those of others, or why not, as `attempt` does."""
        return self._prepare.fingerprints(sources, _PATIENCE_SECONDS)

    def start(self) -> None:
        """Start the processes that decode, before there is work for them."""
        self._prepare.start()

    def _answers(
        self, prepared: Sequence[Ready | NotScorable | OSError | StillDecoding]
    ) -> list[Prediction | OSError | StillDecoding]:
        scores = iter(self._score([image.tensor for image in prepared if isinstance(image, Ready)]))
        return [
            self._decide(next(scores), one) if isinstance(one, Ready) else _other(one) for one in prepared
        ]

    @torch.inference_mode()
    def _score(self, tensors: Sequence[torch.Tensor]) -> list[_Score]:
        """Return one score per tensor; its probability is calibrated."""
        if not tensors:
            return []
        batch = torch.stack(list(tensors)).to(self.device)  # (B, 3, S, S) float32, normalised
        fast, exact = self.engines
        features, logits, maps = fast(batch)
        if fast is not exact and bool((again := self._doubtful(features, logits)).any()):
            features[again], logits[again], maps[again] = exact(batch[again])
        probabilities, novelties = self._measure(features, logits)
        probabilities[~torch.isfinite(logits)] = torch.nan  # the sigmoid of an overflow is 0 or 1
        known = [None] * len(batch) if novelties is None else novelties.tolist()
        bias = 0.0 if self.model.head.bias is None else float(self.model.head.bias)
        heat_maps = [HeatMap.of(cells, bias) for cells in maps.cpu().numpy()]
        scores = map(_Score, probabilities.tolist(), known, heat_maps)
        return [_stricter(score, *judged) for score, judged in zip(scores, self._judged(batch), strict=True)]

    def _judged(self, batch: torch.Tensor) -> list[tuple[float | None, Kind | None]]:
        """Return what the gate says of each image: novelty, and the kind of stranger it would be."""
        card = self.card.gate
        if self.gate is None or card is None:
            return [(None, None)] * len(batch)
        novelties, strangers = judge(self.gate(batch), card.limit)
        kinds = [card.kinds[stranger] for stranger in strangers.tolist()]
        return list(zip(novelties.tolist(), kinds, strict=True))

    def _measure(
        self, features: torch.Tensor, logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return calibrated probabilities and, if the model has the measure, novelties; (B,) each."""
        probabilities = torch.sigmoid((logits + self.card.offset) / self.card.temperature)
        if self.novelty is None or self.card.novelty_limit is None:
            return probabilities, None
        return probabilities, self.novelty(features) / self.card.novelty_limit

    def _doubtful(self, features: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return for which images, (B,) bool, the error of the fast engine could change what is answered."""
        error, card = self.engines.fast.error, self.card
        probabilities, novelties = self._measure(features, logits)
        found = ~torch.isfinite(logits)  # float16 ends at 65504
        for line in (card.threshold - card.band, card.threshold, card.threshold + card.band):
            found |= (probabilities - line).abs() <= error
        steepness = 4 * probabilities * (1 - probabilities)  # of the sigmoid, in relation to that at 0.5
        found |= steepness * error > _LARGEST_ERROR
        return found if novelties is None else found | ((novelties - 1).abs() <= error)

    def _decide(self, score: _Score, image: Ready) -> Prediction:
        if not np.isfinite(score.probability):
            detail = "The network overflows on this image"
            refused = Decision.NOT_SCORED, Reason.NO_FINITE_SCORE
            return Prediction(None, *refused, detail, image.view, None, _rounded(image.age.years))
        probability = round(score.probability, 4)
        novelty = _rounded(score.novelty)
        is_positive = probability >= self.card.threshold
        decision = Decision.POSITIVE if is_positive else Decision.NEGATIVE
        doubt = self._doubts(probability, novelty, score.looks_like, image.age)
        reason, detail = doubt or (None, "")
        if doubt is not None:
            decision = Decision.UNDETERMINED
        age = _rounded(image.age.years)
        return Prediction(probability, decision, reason, detail, image.view, novelty, age, score.heat_map)

    def _probe(self) -> torch.Tensor:
        """Return images to try engines on: (5, 3, S, S) float32, smooth noise from dark to bright."""
        coarse = torch.rand(5, 1, 9, 9, generator=torch.Generator().manual_seed(0))
        pictures = torch.nn.functional.interpolate(coarse, (256, 256), mode="bilinear")
        bright = torch.linspace(0.4, 1, 5)[:, None, None, None]
        return torch.stack([self.chain(picture, start=1) for picture in pictures * bright]).to(self.device)

    def _require_square_planes(self) -> None:
        """Try the preprocessing on a blank image: what does not fit must fail at the start."""
        tensor = self.chain(np.zeros((1, 32, 48), np.float32), start=1)
        if tensor.ndim != 3 or tuple(tensor.shape) != (3, tensor.shape[1], tensor.shape[1]):
            raise CheckpointError(
                "The preprocessing of the model does not end in three square planes; pack it again."
            )


def _other(found: NotScorable | OSError | StillDecoding) -> Prediction | OSError | StillDecoding:
    if isinstance(found, NotScorable):
        return _refused(found)
    return found


def _refused(why: NotScorable) -> Prediction:
    return Prediction(None, Decision.NOT_SCORED, why.reason, why.detail, None)


def _stricter(score: _Score, novelty: float | None, kind: Kind | None) -> _Score:
    """Return the score with the larger of both novelties, and with the kind where the gate says stranger."""
    if novelty is None:
        return score
    larger = novelty if score.novelty is None else max(score.novelty, novelty)
    return score._replace(novelty=larger, looks_like=kind if round(novelty, _DECIMALS) > 1 else None)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DECIMALS)
