"""Score images with a checkpoint: files in, one prediction each out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from classifier.config import SHIPPED_MODEL, Eligibility
from classifier.decode import read
from classifier.errors import CheckpointError, DeviceError, NotScorable, Reason
from classifier.model import ModelCard, load
from classifier.outcome import Decision, Prediction
from classifier.transforms import Chain, chain

__all__ = ["Decision", "Prediction", "Predictor", "choose_device"]

_DEFAULT_RULES = Eligibility()


class _Ready(NamedTuple):
    """One image on its way to the network."""

    tensor: torch.Tensor
    view: str | None


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
    """

    def __init__(
        self, model: nn.Module, card: ModelCard, device: torch.device, rules: Eligibility | None
    ) -> None:
        self.card = card
        self.device = str(device)
        self.chain: Chain = chain(card.preprocessing, rules)
        self.model = model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._rules = rules
        self._require_square_planes()

    @classmethod
    def load(
        cls, path: Path | None = None, device: str = "auto", rules: Eligibility | None = _DEFAULT_RULES
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

        Raises
        ------
        CheckpointError
            When the file is missing, damaged or not understood.
        DeviceError
            When the device does not exist.
        """
        chosen = choose_device(device)
        model, card = load(path or SHIPPED_MODEL)
        return cls(model, card, chosen, rules)

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
        prepared = [self._prepare(source) for source in sources]
        scores = iter(self._score([image.tensor for image in prepared if isinstance(image, _Ready)]))
        return [self._decide(next(scores), p.view) if isinstance(p, _Ready) else p for p in prepared]

    def _prepare(self, source: Path) -> _Ready | Prediction:
        try:
            radiograph = read(source, self._rules)
        except NotScorable as refused:
            return Prediction(None, Decision.NOT_SCORED, refused.reason, refused.detail, None)
        return _Ready(self.chain(radiograph.pixels, start=1), radiograph.view)

    def _score(self, tensors: Sequence[torch.Tensor]) -> Iterable[float]:
        """Return one calibrated probability per tensor, not finite where the network gives none."""
        if not tensors:
            return []
        batch = torch.stack(list(tensors))  # (B, 3, S, S) float32, normalised
        batch = batch.to(self.device, memory_format=torch.channels_last)
        logits = self._logits(batch, half=self.device.startswith("cuda"))  # (B,) float32
        if not bool(torch.isfinite(logits).all()):
            logits = self._logits(batch, half=False)  # float16 ends at 65504
        scores = torch.sigmoid(logits / self.card.temperature)
        scores[~torch.isfinite(logits)] = torch.nan  # the sigmoid of an overflow is 0 or 1
        found: list[float] = scores.tolist()
        return found

    @torch.inference_mode()
    def _logits(self, batch: torch.Tensor, *, half: bool) -> torch.Tensor:
        # float16 rather than bfloat16: eight times finer, which four decimals need.
        with torch.autocast(batch.device.type, dtype=torch.float16, enabled=half):
            logits: torch.Tensor = self.model(batch)  # (B, 1)
        return logits.float().flatten()

    def _decide(self, score: float, view: str | None) -> Prediction:
        if not np.isfinite(score):
            detail = "The network overflows on this image"
            return Prediction(None, Decision.NOT_SCORED, Reason.NO_FINITE_SCORE, detail, view)
        probability = round(score, 4)
        is_positive = probability >= self.card.threshold
        return Prediction(
            probability, Decision.POSITIVE if is_positive else Decision.NEGATIVE, None, "", view
        )

    def _require_square_planes(self) -> None:
        """Try the preprocessing on a blank image: what does not fit must fail at the start."""
        tensor = self.chain(np.zeros((1, 32, 48), np.float32), start=1)
        if tensor.ndim != 3 or tuple(tensor.shape) != (3, tensor.shape[1], tensor.shape[1]):
            raise CheckpointError(
                "The preprocessing of the model does not end in three square planes; pack it anew."
            )


def choose_device(name: str) -> torch.device:
    """Return the device that `name` means.

    Raises
    ------
    DeviceError
        When it is not a device name or the machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if name != "cpu" and not (kind == "cuda" and (number.isdecimal() or name == "cuda")):
        raise DeviceError(
            f'The device {name!r} is not known; set device to "auto", "cpu", "cuda" or "cuda:N".'
        )
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise DeviceError(f'This machine has no device {name!r}; set device to "cpu" or "auto".')
    return torch.device("cpu") if kind == "cpu" else torch.device(kind, int(number or 0))
