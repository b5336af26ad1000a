"""C-STORE as SCP, from the fragments of a data set to its response (PS3.7 9.1.1 and 9.3.1)."""

from __future__ import annotations

from collections.abc import Callable

from pacs_node.dicom.part10 import file_meta
from pacs_node.network.dimse import StoreRequest, StoreResponse
from pacs_node.storage.arriving import Arriving
from pacs_node.storage.spool import Spool

UNABLE_TO_PROCESS = 0xC211  # what pynetdicom answers when a handler fails

_LOOK_AFTER = 2**26  # bytes of one object, between looks whether there is space for more

StoreHandler = Callable[[StoreRequest, Arriving], StoreResponse]
"""Keeps an object whose file is written but not flushed; no exception may come out of it."""


class StoreProvider:
    """Takes the C-STORE requests of one association, one after the other.

    Parameters
    ----------
    spool
        Where data sets arrive.
    answering
        What keeps them, and says what is answered.
    least_free
        Bytes that stay free on the disk of the spool: an object without end is not written until it is full.
    """

    def __init__(self, spool: Spool, answering: StoreHandler, least_free: int = 0) -> None:
        self._spool = spool
        self._answering = answering
        self._least_free = least_free
        self._coming: tuple[StoreRequest, Arriving] | None = None
        self._unseen = 0

    def begin(self, request: StoreRequest) -> None:
        """Begin with the data set of a request."""
        self.discard()
        arriving, syntax = self._spool.arriving(), request.transfer_syntax_uid
        self._coming, self._unseen = (request, arriving), 0
        arriving.begin(file_meta(request.sop_class_uid, request.sop_instance_uid, syntax), syntax)

    def write(self, content: memoryview) -> None:
        """Take a fragment of it."""
        assert self._coming is not None
        arriving = self._coming[1]
        arriving.write(content)
        self._unseen += len(content)
        if self._unseen > _LOOK_AFTER:
            self._unseen = 0
            arriving.require_space(self._spool, self._least_free)

    def finish(self) -> StoreResponse:
        """End with it, and say what is answered."""
        assert self._coming is not None
        (request, arriving), self._coming = self._coming, None
        try:
            arriving.close()
            return self._answering(request, arriving)
        finally:
            arriving.discard()

    def discard(self) -> None:
        """Remove what came of a data set that will not come to its end."""
        if self._coming is not None:
            self._coming[1].discard()
            self._coming = None
