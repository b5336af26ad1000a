"""What sections of the settings are made of."""

from __future__ import annotations

import re
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

Network = IPv4Network | IPv6Network

# PS3.5 6.2: AE has 1 to 16 characters without backslash and control characters; outer spaces mean nothing.
_AE_TITLE = r"[ -\[\]-~]+"
_LONGEST_AE_TITLE = 16
AETitle = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, min_length=1, max_length=_LONGEST_AE_TITLE, pattern=f"^{_AE_TITLE}$"
    ),
]
Port = Annotated[int, Field(ge=1, le=65535)]
PortOrNone = Annotated[int, Field(ge=0, le=65535)]


def caller(text: str) -> tuple[str, Network | None]:
    """Read ``CR1`` or ``CR1@10.0.0.0/24``: an AE title, and from where it counts, if that is said.

    An AE title may have an at sign of its own.
    """
    title, sign, where = text.rpartition("@")
    with suppress(ValueError):
        if sign:
            return title.strip(), ip_network(where.strip())
    return text.strip(), None


def _a_caller(text: str) -> str:
    title, _ = caller(text)
    if not re.fullmatch(_AE_TITLE, title) or len(title) > _LONGEST_AE_TITLE:
        raise PydanticCustomError("string_pattern_mismatch", "no AE title")
    return text


def _a_network(text: str) -> str:
    try:
        return str(ip_network(text))
    except ValueError:
        raise ValueError('write addresses or networks such as "10.0.0.7" or "10.0.0.0/24"') from None


Caller = Annotated[str, AfterValidator(_a_caller)]
NetworkText = Annotated[str, AfterValidator(_a_network)]


class Section(BaseModel):
    """A section, or one of several blocks of the same kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")
