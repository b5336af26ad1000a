"""Settings that say who may talk to the node, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import field_validator, model_validator

from pacs_node.config_types import PortOrNone, Section


class TlsSettings(Section):
    """DICOM over TLS: from senders, and towards peers for which `tls` is set."""

    port: PortOrNone = 0
    certificate: Path | None = None
    key: Path | None = None
    authorities: Path | None = None
    client_certificates: Literal["required", "optional", "none"] = "required"

    @field_validator("certificate", "key", "authorities", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @model_validator(mode="after")
    def _is_complete(self) -> TlsSettings:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: name both files")
        if self.port and self.certificate is None:
            raise ValueError("port needs a certificate and its key")
        if self.port and self.authorities is None and self.client_certificates != "none":
            raise ValueError(
                "certificates of clients need authorities to check them with; name the file, or set "
                'client_certificates = "none"'
            )
        return self

    @property
    def files(self) -> dict[str, Path]:
        """The files that are named, by their keys."""
        named = {"certificate": self.certificate, "key": self.key, "authorities": self.authorities}
        return {key: path for key, path in named.items() if path is not None}

    def anchored(self, folder: Path) -> dict[str, object]:
        """Return the files with paths relative to a folder."""
        return {key: folder / path.expanduser() for key, path in self.files.items()}
