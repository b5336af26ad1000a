"""A PACS that answers queries as a test says, with what tests of reconciliation need beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from io import BytesIO
from typing import Any, TypeVar

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, _config, dimse_messages, evt
from pynetdicom.dimse_primitives import C_FIND

from pacs_node.demo.peers import shut_down
from pacs_node.network.peer import Peer
from tests.conftest import uid

on_sqlite = pytest.mark.parametrize("backend", ["sqlite"])
FIND, MOVE = (f"1.2.840.10008.5.1.4.1.2.2.{number}" for number in (1, 2))
DAYS = date(2025, 6, 1), date(2025, 6, 8)

_T = TypeVar("_T")


def no_bar(sequence: Iterable[_T], description: str, total: float) -> Iterable[_T]:
    return sequence


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give back what is switched for the whole process."""
    for name in ("STORE_SEND_CHUNKED_DATASET", "STORE_RECV_CHUNKED_DATASET", "LOG_REQUEST_IDENTIFIERS"):
        monkeypatch.setattr(_config, name, getattr(_config, name))
    monkeypatch.setattr(_config, "LOG_RESPONSE_IDENTIFIERS", _config.LOG_RESPONSE_IDENTIFIERS)
    monkeypatch.setattr(dimse_messages, "NamedTemporaryFile", tempfile.NamedTemporaryFile)


Answer = tuple[int | Dataset, Dataset | bytes | None]
Find = Callable[[Dataset, evt.Event], Iterator[Answer]]


def study(name: str = "s", **tags: Any) -> Dataset:
    """Return what a PACS answers at the STUDY level."""
    return identifier(StudyInstanceUID=uid(name), StudyDate="20250603", PatientID=name, **tags)


def series(name: str = "s", **tags: Any) -> Dataset:
    """Return what a PACS answers at the SERIES level."""
    return identifier(SeriesInstanceUID=uid(name, "series"), **{"Modality": "DX", **tags})


def image(number: int = 1, name: str = "s", **tags: Any) -> Dataset:
    """Return what a PACS answers at the IMAGE level."""
    return identifier(SOPInstanceUID=uid(name, number), **tags)


def identifier(**tags: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    return ds


def pending(*identifiers: Dataset | bytes, status: int = 0xFF00) -> Iterator[Answer]:
    for one in identifiers:
        yield status, one


def usual(
    *studies: Dataset | bytes, listed: Sequence[Dataset | bytes] = (), images: Sequence[Any] = ()
) -> Find:
    """Return what answers with these studies, each with these series, each with these images."""
    by_level = {
        "STUDY": studies or (study(),),
        "SERIES": listed or (series(),),
        "IMAGE": images or (image(),),
    }
    return lambda request, _: pending(*by_level[request.QueryRetrieveLevel])


class Scripted:
    """A PACS that answers as a test says.

    Attributes
    ----------
    asked
        The identifiers of all requests.
    """

    def __init__(self, find: Find, moved: int = 0x0000, offers: Sequence[str] = (FIND, MOVE)) -> None:
        self.asked: list[Dataset] = []
        self._find, self._moved = find, moved
        self._ae = AE("PACS")
        for sop_class in offers:
            self._ae.add_supported_context(sop_class, ExplicitVRLittleEndian)
        handlers: list[Any] = [(evt.EVT_C_FIND, self._on_find), (evt.EVT_C_MOVE, self._on_move)]
        server = self._ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        assert server is not None
        self.peer = Peer("PACS", "127.0.0.1", int(server.server_address[1]))

    def _on_find(self, event: evt.Event) -> Iterator[tuple[int | Dataset, Dataset | None]]:
        self.asked.append(event.identifier)
        for status, answer in self._find(event.identifier, event):
            if isinstance(answer, bytes):
                send_raw(event, answer)
            else:
                yield status, answer

    def _on_move(self, event: evt.Event) -> Iterator[Any]:
        self.asked.append(event.identifier)
        if self._moved == 0xA801:
            yield None, None
            return
        yield "127.0.0.1", 9
        yield 0
        if self._moved:
            yield self._moved, None

    def close(self) -> None:
        shut_down(self._ae)


def send_raw(event: evt.Event, content: bytes) -> None:
    """Answer C-FIND with bytes that no library would write."""
    answer, request = C_FIND(), event.request
    answer.MessageIDBeingRespondedTo = request.MessageID
    answer.AffectedSOPClassUID = FIND
    answer.Status = 0xFF00
    answer.Identifier = BytesIO(content) if content else None
    event.assoc.dimse.send_msg(answer, event.context.context_id)


@contextmanager
def scripted(find: Find | None = None, **named: Any) -> Iterator[Scripted]:
    made = Scripted(find or usual(), **named)
    try:
        yield made
    finally:
        made.close()
