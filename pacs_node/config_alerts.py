"""Settings that say who is told when a person should look."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pacs_node.config_types import Port, Section

_Address = Annotated[str, Field(pattern=r"^[^@\s,;<>]+@[^@\s,;<>]+$", max_length=254)]


class AlertSettings(Section):
    """Who is told, by e-mail or webhook, when `pacs-node status` would exit with 1."""

    email_to: tuple[_Address, ...] = ()
    email_from: _Address = "pacs-node@localhost"
    smtp_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    smtp_port: Port = 25
    smtp_security: Literal["none", "starttls", "tls"] = "none"
    smtp_user: str = ""
    smtp_password: str = ""
    webhook: Annotated[str, Field(pattern=r"^(|https?://\S+)$")] = ""
    after_minutes: Annotated[float, Field(gt=0, le=1440)] = 5

    @property
    def is_on(self) -> bool:
        """Whether anybody is told."""
        return bool(self.email_to or self.webhook)
