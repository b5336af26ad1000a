"""The model card: what a checkpoint says about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError, field_validator

from classifier.errors import CheckpointError

FORMAT: Literal["pacs-node classifier"] = "pacs-node classifier"


FORMAT_VERSION: Literal[1] = 1


Text = Annotated[str, Field(min_length=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Metric(_Frozen):
    """One measurement: name, value with its 95 % interval, number of images, data, and who measured it."""

    name: Text
    value: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    images: Annotated[int, Field(gt=0)]
    patients: Annotated[int, Field(gt=0)] | None = None
    data: Text
    measured_by: Text


Kind = Literal["known", "adult", "turned", "inverted", "other"]
"""What a gate tells apart: images like the training images, and four kinds of strangers."""


class GateCard(_Frozen):
    """What belongs to a gate; see `classifier.model.gate`.

    Attributes
    ----------
    kinds
        What its logits stand for; the first is ``"known"``.
    limit
        Log odds of a stranger from which on the answer is undetermined.
    source
        How it was trained and how the limit was chosen.
    """

    kinds: Annotated[tuple[Kind, ...], Field(min_length=2)]
    limit: FiniteFloat
    source: Text

    @field_validator("kinds")
    @classmethod
    def _known_first(cls, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
        if kinds[0] != "known" or len(set(kinds)) < len(kinds):
            raise ValueError("known comes first, and each kind once")
        return kinds


class ModelCard(_Frozen):
    """The description that is stored with the weights.

    Attributes
    ----------
    name, version
        Identify the model in the database and in reports.
    architecture
        A name that `classifier.model.network.build` knows.
    preprocessing
        The tail of the transform chain; see `classifier.model.transforms`.
    recipe
        How it was trained, in one line.
    threshold, threshold_source
        Smallest probability for the decision positive, and how it was chosen.
    temperature, offset, temperature_source
        The probability is the sigmoid of ``(logit + offset) / temperature``, and how both were chosen.
    band
        Probabilities nearer than this to the threshold are undetermined; 0 for none.
    ages
        Youngest and oldest age of the training population in completed years, or none if not known.
    novelty_limit, novelty_source
        Distance from the training images, as `novelty` measures it, beyond which the answer is undetermined;
        none for a model without the measure. And how the limit was chosen.
    gate
        Of the network that tells strangers; none for a model without one.
    data, population, licence, metrics, limits
        Training data, their population, terms of use, measurements, and what the model must not be used for.
    sha256
        Hex digest of the checkpoint file; empty until the card is stored in one.
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
    gate: GateCard | None = None
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


def parse_card(text: str | bytes) -> ModelCard:
    """Read a card from its JSON.

    Raises
    ------
    CheckpointError
        If it is not a card, has another format version, is incomplete, or has invalid values.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError("The model card is not JSON; write it again.") from error
    if not isinstance(content, dict) or content.get("format", FORMAT) != FORMAT:
        raise CheckpointError(
            f"The model card is not of the format {FORMAT!r}; take a model made for this program."
        )
    if content.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise CheckpointError(
            "The model card has another format version; update the program or pack it again."
        )
    try:
        return ModelCard.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"Correct {where!r} in the model card: {first['msg']}.") from error


def _step_text(step: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{key}={value}" for key, value in step.items() if key != "name")
    return f"{step.get('name')}({arguments})"
