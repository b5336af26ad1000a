"""Tells open pages that something changed (server-sent events); they ask for it themselves."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from db import changes
from db.errors import DatabaseError
from db.session import Database

_LOOK_SECONDS = 1.0
_SIGN_SECONDS = 15.0  # between signs of life, for proxies and to notice who has gone
_LIFE_SECONDS = 300.0  # then the browser asks anew, and whether it may is decided anew
_LONGEST = 400  # characters of a mark


class Live:
    """One look at the database each second, for all open pages together."""

    def __init__(self, database: Database, stopped: threading.Event) -> None:
        self._database, self._stopped = database, stopped
        self._turn = threading.Lock()
        self._mark, self._looked_at = "", -_LOOK_SECONDS
        self.router = APIRouter(include_in_schema=False)
        self.router.add_api_route("/events", self.events, methods=["GET"])

    def events(self, request: Request) -> StreamingResponse:
        """Send an event after each change, and at once if something changed since the page was made."""
        since = request.headers.get("last-event-id") or request.query_params.get("since", "")
        headers = {"X-Accel-Buffering": "no"}  # nginx would wait for more
        return StreamingResponse(
            self._stream(since[:_LONGEST]), media_type="text/event-stream", headers=headers
        )

    async def _stream(self, known: str) -> AsyncIterator[str]:
        begun = said = time.monotonic()
        yield "retry: 2000\n\n"
        while not self._stopped.is_set() and time.monotonic() < begun + _LIFE_SECONDS:
            try:
                mark = await run_in_threadpool(self._look)
            except DatabaseError:
                return  # the browser tries again
            if mark != known:
                known, said = mark, time.monotonic()
                yield f"id: {mark}\nevent: change\ndata:\n\n"
            elif time.monotonic() > said + _SIGN_SECONDS:
                said = time.monotonic()
                yield ":\n\n"
            await asyncio.sleep(_LOOK_SECONDS)

    def _look(self) -> str:
        with self._turn:
            if time.monotonic() >= self._looked_at + _LOOK_SECONDS:
                with self._database.read() as session:
                    self._mark = changes.mark(session)
                self._looked_at = time.monotonic()
            return self._mark
