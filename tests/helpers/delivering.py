"""PACS that take and answer what a test chooses, and what they were sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import

from pacs_node.config import Destination
from pacs_node.demo.peers import shut_down
from pacs_node.reporting.report import REPORT_CLASSES

BOTH = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


Answer = Callable[[evt.Event], int]


@pytest.fixture(autouse=True)
def whole_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sending in chunks is switched on for the whole process: give back what was, and receive in memory."""
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", False)
    monkeypatch.setattr(_config, "STORE_RECV_CHUNKED_DATASET", False)


def yes(_event: evt.Event) -> int:
    return 0x0000


def abort(event: evt.Event) -> int:
    event.assoc.abort()
    return 0x0000


class Peer:
    """A storage SCP that takes and answers what a test chooses.

    Attributes
    ----------
    received
        The files it was sent, whatever it answered.
    """

    def __init__(
        self,
        answer: Answer = yes,
        sop_classes: Sequence[str] = REPORT_CLASSES,
        syntaxes: Sequence[str] = BOTH,
        name: str = "PACS",
    ) -> None:
        self.answer = answer
        self.received: list[bytes] = []
        self._ae = AE(name)
        self._ae.require_called_aet = True
        for sop_class in sop_classes:
            self._ae.add_supported_context(sop_class, list(syntaxes))
        self._ae.add_supported_context(Verification)
        handlers: list[Any] = [(evt.EVT_C_STORE, self._on_c_store)]
        server = self._ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        assert server is not None
        self.destination = destination(int(server.server_address[1]), name)

    def _on_c_store(self, event: evt.Event) -> int:
        self.received.append(event.encoded_dataset())
        return self.answer(event)

    def read(self) -> list[Any]:
        """Return what it was sent, decoded."""
        return [dcmread(BytesIO(file)) for file in self.received]

    def classes(self) -> list[str]:
        return [read.SOPClassUID for read in self.read()]

    def studies(self) -> list[str]:
        """Return the Patient IDs of what it was sent, which name the studies."""
        return [read.PatientID for read in self.read()]

    def abort(self) -> None:
        """Break off all associations."""
        for association in self._ae.active_associations:
            association.abort()

    def close(self) -> None:
        shut_down(self._ae)


@contextmanager
def peer(*arguments: Any, **named: Any) -> Iterator[Peer]:
    made = Peer(*arguments, **named)
    try:
        yield made
    finally:
        made.close()


def destination(port: int, name: str = "PACS") -> Destination:
    return Destination(name=name, ae_title=name, host="127.0.0.1", port=port)


def data_set(content: bytes) -> bytes:
    """Return what follows the File Meta Information of a file."""
    return content[144 + int.from_bytes(content[140:144], "little") :]
