"""Settings of the classifier, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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

SHIPPED_MODEL = Path(__file__).parent / "weights" / "densenet121-kermany.safetensors"

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
        ``"refuse"`` an image whose tags do not tell its body part or view, or ``"score"`` it all the same.
    max_pixels
        Largest Rows x Columns that is decoded.
    """

    unknown_body_part: Unknown = "refuse"
    unknown_view: Unknown = "refuse"
    max_pixels: int = 100_000_000
