"""Settings of the classifier, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameSingleBitSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

Unknown = Literal["refuse", "score"]
UnknownAge = Literal["undetermined", "decide"]

SHIPPED_MODEL = Path(__file__).parent / "weights" / "densenet121-kermany.safetensors"

OWN_EQUIPMENT = ("PACS Node", "PACS Node")
"""Manufacturer and Manufacturer's Model Name of what this program makes."""

SECONDARY_CAPTURES: frozenset[str] = frozenset(
    {
        SecondaryCaptureImageStorage,
        MultiFrameSingleBitSecondaryCaptureImageStorage,
        MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
        MultiFrameTrueColorSecondaryCaptureImageStorage,
    }
)
PROJECTION_RADIOGRAPHS: frozenset[str] = SECONDARY_CAPTURES | {
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
}
"""SOP Class UIDs that can hold a projection radiograph of the chest."""


@dataclass(frozen=True)
class Eligibility:
    """What to do with images whose tags leave a question open.

    Attributes
    ----------
    unknown_body_part, unknown_view
        ``"refuse"`` an image whose tags do not tell its body part or view, or ``"score"`` it all the same. A
        value that is there and not understood is refused in both cases.
    max_pixels
        Largest Rows x Columns x Samples per Pixel that is decoded.
    """

    unknown_body_part: Unknown = "refuse"
    unknown_view: Unknown = "refuse"
    max_pixels: int = 100_000_000


@dataclass(frozen=True)
class DecodeLimits:
    """What decoding one image may take before its process is ended.

    Attributes
    ----------
    seconds
        From when its file has been read.
    mebibytes
        Beyond what the process has already. Only Linux keeps to it.
    """

    seconds: float = 30.0
    mebibytes: int = 2048


class TrainSettings(BaseModel):
    """``[classifier.train]`` of config.toml; ``None`` leaves a setting to the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Literal["default", "published"] = "default"
    weights: Annotated[str, Field(min_length=1)] | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=2)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    patience: Annotated[int, Field(ge=0)] | None = None
    image_size: Annotated[int, Field(ge=32, le=1024)] | None = None
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    sensitivity: Annotated[float, Field(gt=0, le=1)] = 0.99
    band: Annotated[float, Field(ge=0, lt=1)] = 0.0
    unlike_share: Annotated[float, Field(ge=0, lt=1)] = 0.005
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    workers: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"
