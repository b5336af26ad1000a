"""The application: its pages, and what every answer carries."""

from __future__ import annotations

import threading
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from classifier.reasons import Reason
from db.errors import DatabaseError
from db.session import Database
from pacs_node import log
from pacs_node.config import Settings
from pacs_node.storage.spool import Spool
from pacs_node.web import maps
from pacs_node.web.api import PATH, Api
from pacs_node.web.guard import Guard, Next
from pacs_node.web.live import Live
from pacs_node.web.model_page import ModelPage
from pacs_node.web.node_page import Look, NodePage
from pacs_node.web.pages import LABELS, Pages
from pacs_node.web.pictures import Pictures
from pacs_node.web.show import Show
from pacs_node.web.sign_in import SignIn

_log = log.get(__name__)

_HERE = Path(__file__).parent
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with less, browsers send no Origin with a form
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_YEAR = 31_536_000  # seconds


def make_app(
    settings: Settings, database: Database, spool: Spool, look: Look, stopped: threading.Event
) -> FastAPI:
    """Return the application."""
    app = FastAPI(title="PACS Node", docs_url=None, redoc_url=None, openapi_url=None)
    show = Show(is_research=settings.node.purpose == "RESEARCH", labels=LABELS, reasons=[*Reason], maps=maps)
    guard = Guard(settings.web, database, show)
    for part in (
        Pages(settings, database, spool, Pictures(settings.classifier), show),
        NodePage(settings, database, look, show),
        ModelPage(settings, database, show),
        Live(database, stopped),
    ):
        app.include_router(part.router)
    provider = settings.web.provider
    sign_in = SignIn(database, guard.limits, show, provider.name if provider.issuer else "")
    app.include_router(sign_in.router)
    if provider.issuer:
        from pacs_node.web.provider_sign_in import ProviderSignIn  # noqa: PLC0415 - few sites have one

        app.include_router(ProviderSignIn(settings.web, database, sign_in).router)
    app.mount(PATH, Api(database).app)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")

    @app.middleware("http")
    async def guarded(request: Request, call_next: Next) -> Response:
        return _safe(request, await guard(request, call_next))

    @app.exception_handler(DatabaseError)
    def no_database(request: Request, error: DatabaseError) -> Response:
        _log.error("database failed", role="web", cause=str(error))
        return show.no_database(request)

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> Response:
        title = "There is no such page" if error.status_code == 404 else "This cannot be done"
        detail = "" if error.detail == "Not Found" else error.detail
        return show.trouble(request, error.status_code, title, detail)

    @app.exception_handler(Exception)
    def failed(request: Request, error: Exception) -> Response:
        log.crashed(type(error), error, error.__traceback__)
        return _safe(request, show.trouble(request, 500, "This page failed", "The log of the node says why."))

    return app


def _safe(request: Request, response: Response) -> Response:
    for name, value in _HEADERS.items():
        response.headers[name] = value
    if request.url.scheme == "https":
        response.headers["Strict-Transport-Security"] = f"max-age={_YEAR}"
    return response
