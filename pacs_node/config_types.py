"""What sections of the settings are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

# PS3.5 6.2: AE has 1 to 16 characters without backslash and control characters; outer spaces mean nothing.
AETitle = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=16, pattern=r"^[ -\[\]-~]+$")
]
Port = Annotated[int, Field(ge=1, le=65535)]
PortOrNone = Annotated[int, Field(ge=0, le=65535)]


class Section(BaseModel):
    """A section, or one of several blocks of the same kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")
