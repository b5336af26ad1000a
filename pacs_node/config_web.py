"""Settings of the reading list."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from pacs_node.config_types import Port, Section


class ProviderSettings(Section):
    """A provider of log-ins, by OpenID Connect."""

    issuer: Annotated[
        str, Field(pattern=r"^(|https://[^?#\s]+|http://(localhost|127\.0\.0\.1)(:\d+)?[^?#\s]*)$")
    ] = ""
    client_id: str = ""
    client_secret: str = ""
    name: Annotated[str, Field(min_length=1, max_length=32)] = "your hospital account"
    name_claim: Annotated[str, Field(min_length=1)] = "preferred_username"
    role_claim: Annotated[str, Field(min_length=1)] = "groups"
    readers: tuple[str, ...] = ()
    admins: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_complete(self) -> ProviderSettings:
        if self.issuer and not (self.client_id and (self.readers or self.admins)):
            raise ValueError("a provider needs issuer, client_id, and readers or admins")
        return self


class WebSettings(Section):
    """The reading list, for people."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Port = 8080
    address: Annotated[
        str, Field(pattern=r"^(|https://[^/?#@\s]+|http://(localhost|127\.0\.0\.1)(:\d+)?)$")
    ] = ""
    certificate: Path | None = None
    key: Path | None = None
    proxies: tuple[str, ...] = ()
    idle_minutes: Annotated[float, Field(gt=0, le=1440)] = 30
    session_hours: Annotated[float, Field(gt=0, le=168)] = 12
    viewer_url: str = ""
    provider: ProviderSettings = ProviderSettings()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False

    @field_validator("certificate", "key", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("proxies")
    @classmethod
    def _are_networks(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            try:
                ip_network(value)
            except ValueError:
                raise ValueError(
                    f'write addresses such as "127.0.0.1" or "10.0.0.0/24", not {value!r}'
                ) from None
        return values

    @model_validator(mode="after")
    def _has_both(self) -> WebSettings:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("HTTPS needs both, certificate and key")
        return self

    @field_validator("viewer_url")
    @classmethod
    def _opens_a_study(cls, value: str) -> str:
        if not value:
            return value
        unknown = set(re.findall(r"{(.*?)}", value)) - {"study", "patient", "accession"}
        if not re.match(r"(https?|weasis)://", value) or unknown:
            raise ValueError(
                "write an address that begins with http://, https:// or weasis://, and in it {study}, "
                "{patient} or {accession}"
            )
        return value


class VerdictSettings(Section):
    """What people are asked to judge."""

    blind_negatives: Annotated[float, Field(gt=0, le=1)] = 0.05
