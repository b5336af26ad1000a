"""The application: who is answered, and what every answer carries.

Without users there is no log-in: the page answers this machine alone. It checks the Host header, so that a
page of another site cannot read it under a name of its own (DNS rebinding). It refuses what a proxy forwards.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from db.errors import DatabaseError
from db.session import Database
from pacs_node import log
from pacs_node.config import Settings
from pacs_node.storage.spool import Spool
from pacs_node.web.pages import Pages
from pacs_node.web.pictures import Pictures

_log = log.get(__name__)

_HERE = Path(__file__).parent
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "via")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with less, browsers send no Origin with a form
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_SAFE = {"GET", "HEAD"}

Next = Callable[[Request], Awaitable[Response]]


def make_app(settings: Settings, database: Database, spool: Spool) -> FastAPI:
    """Return the application."""
    app = FastAPI(title="PACS Node", docs_url=None, redoc_url=None, openapi_url=None)
    token = secrets.token_urlsafe(32)
    pages = Pages(settings, database, spool, Pictures(settings.classifier), token)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")

    @app.middleware("http")
    async def guard(request: Request, call_next: Next) -> Response:
        refusal = _refusal(request)
        response = await call_next(request) if refusal is None else Response(refusal, 403)
        for name, value in _HEADERS.items():
            response.headers[name] = value
        return response

    @app.exception_handler(DatabaseError)
    def no_database(request: Request, error: DatabaseError) -> Response:
        _log.error("database failed", role="web", cause=str(error))
        return pages.trouble(
            request, 503, "The database does not answer", "Nothing is lost. This page tries again by itself."
        )

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> Response:
        title = "There is no such page" if error.status_code == 404 else "This cannot be done"
        detail = "" if error.detail == "Not Found" else error.detail
        return pages.trouble(request, error.status_code, title, detail)

    return app


def _refusal(request: Request) -> str | None:
    """Return why a request is not answered."""
    if _host(request.headers.get("host", "")) not in _LOOPBACK:
        return "Without users, the reading list answers on this machine only: use http://127.0.0.1."
    if any(name in request.headers for name in _FORWARDED):
        return "Without users, the reading list does not answer through a proxy."
    if request.method not in _SAFE and not _is_own(request):
        return "This request came from another site."
    return None


def _host(value: str) -> str | None:
    try:
        return urlsplit(f"//{value}").hostname
    except ValueError:
        return None


def _is_own(request: Request) -> bool:
    """Tell whether a form was sent from a page of ours."""
    origin = urlsplit(request.headers.get("origin", ""))
    return origin.netloc == request.headers.get("host") and origin.scheme == request.url.scheme
