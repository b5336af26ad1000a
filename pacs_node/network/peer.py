"""A DICOM peer as it is written on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pacs_node.config_access import TlsSettings
from pacs_node.errors import UserError


@dataclass(frozen=True)
class Peer:
    """An application entity on the network; `tls` is with what to connect, if over TLS."""

    ae_title: str
    host: str
    port: int
    tls: TlsSettings | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str, tls: TlsSettings | None = None) -> Peer:
        """Read ``AE@HOST:PORT``.

        Raises
        ------
        UserError
            When it is something else.
        """
        match = re.fullmatch(r"([^@\\]{1,16})@(\[[0-9A-Fa-f:]+\]|[^:@]+):(\d{1,5})", text.strip())
        if match is None or not 0 < int(match[3]) < 65536:
            raise UserError(
                f"{text!r} is no peer; write it as AE@HOST:PORT, such as PACS_NODE@127.0.0.1:11112."
            )
        return cls(match[1].strip(), match[2].strip("[]"), int(match[3]), tls)

    def __str__(self) -> str:
        return f"{self.ae_title}@{self.host}:{self.port}"
