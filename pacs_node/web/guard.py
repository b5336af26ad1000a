"""Who is answered: decided for each request, before anything else sees it.

Without users nobody signs in: the page answers this machine alone. It checks the Host header, so that a page
of another site cannot read it under a name of its own (DNS rebinding). It refuses what a proxy forwards.

As soon as there is a user, everybody signs in.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool

from db import users
from db.errors import DatabaseError
from db.session import Database
from db.users import SessionLimits
from pacs_node import log
from pacs_node.config_web import WebSettings
from pacs_node.web import cookies
from pacs_node.web.show import Show
from pacs_node.web.visitor import FOLLOWS, LOCAL, Visitor, form_token, secret_hash

_log = log.get(__name__)

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "via")
_SAFE = {"GET", "HEAD"}
_MOST_FORM = 65_536  # bytes
_FORM_TYPE = "application/x-www-form-urlencoded"
_API = "/api/"  # it asks for a token itself, takes no cookies and changes nothing
_OPEN = ("/sign-in", _API)

Next = Callable[[Request], Awaitable[Response]]


class Refusal(Exception):
    """A request is not answered; ``str()`` says why."""

    def __init__(self, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.status = status


class Guard:
    """Lets those through who may look."""

    def __init__(self, settings: WebSettings, database: Database, show: Show) -> None:
        self._settings, self._database, self._show = settings, database, show
        self._secret = secrets.token_urlsafe(32)  # of forms where there are no users
        self._has_users = not settings.is_loopback or bool(settings.proxies or settings.provider.issuer)
        self.limits = limits(settings)

    async def __call__(self, request: Request, call_next: Next) -> Response:
        """Answer, or refuse."""
        request.state.visitor, request.state.form_token = None, ""
        try:
            return await self._answer(request, call_next)
        except Refusal as refusal:
            return Response(str(refusal), refusal.status, media_type="text/plain")
        except DatabaseError as error:
            _log.error("database failed", role="web", cause=str(error))
            return self._show.no_database(request)

    async def _answer(self, request: Request, call_next: Next) -> Response:
        if request.url.path.startswith("/static/"):
            return await call_next(request)
        has_users = await run_in_threadpool(self.has_users)
        if has_users:
            self._check_way(request)
        else:
            _check_local(request)
        secret = await run_in_threadpool(self._identify, request) if has_users else self._as_local(request)
        request.state.form_token = form_token(secret) if secret else ""
        if request.method not in _SAFE and not request.url.path.startswith(_API):
            await self._check_form(request)
        if request.state.visitor is None and not request.url.path.startswith(_OPEN):
            return self._ask(request)
        return await call_next(request)

    def has_users(self) -> bool:
        """Tell whether everybody must sign in; once that is so, it stays."""
        if not self._has_users:
            with self._database.read() as session:
                self._has_users = users.any_exist(session)
        return self._has_users

    def _as_local(self, request: Request) -> str:
        request.state.visitor = LOCAL
        return self._secret

    def _identify(self, request: Request) -> str | None:
        """Find out who asks; return the secret that only this browser has."""
        token = cookies.read(request, cookies.SESSION)
        if token is None:
            return cookies.read(request, cookies.FORM)
        now, hashed = datetime.now(UTC), secret_hash(token)
        with self._database.read() as session:
            found = users.of_session(session, hashed, now, self.limits)
        if found is None:
            return cookies.read(request, cookies.FORM)
        user, is_due = found
        if is_due and not _is_by_itself(request):
            with self._database.write() as session:
                users.touch(session, hashed, now)
        request.state.visitor = Visitor(user.name, user.role)
        return token

    def _check_way(self, request: Request) -> None:
        """Refuse what came another way than configured."""
        web, host = self._settings, request.headers.get("host", "")
        if web.address and host != urlsplit(web.address).netloc:
            raise Refusal(f"This page is at {web.address}.", 421)
        if web.proxies:
            _check_proxied(request, web)
        elif web.certificate is None:
            if _hostname(host) not in _LOOPBACK:
                raise Refusal("The reading list answers on this machine only: use http://127.0.0.1.")
            if any(name in request.headers for name in _FORWARDED):
                raise Refusal("A proxy forwarded this request: set [web] proxies to its address.")

    async def _check_form(self, request: Request) -> None:
        """Refuse a form of another site, by Origin and by token."""
        if not _is_own(request, self._settings.address):
            raise Refusal("This request came from another site.")
        given = parse_qs(await _body(request)).get("token", [""])[0]
        expected = request.state.form_token
        if not expected or not hmac.compare_digest(given.encode(), expected.encode()):
            raise Refusal("This page is too old: go back, load it again, and repeat.")

    def _ask(self, request: Request) -> Response:
        """Ask to sign in; a link from another site is followed once more, for it came without cookie."""
        is_page = request.method in _SAFE and "text/html" in request.headers.get("accept", "")
        if not is_page:
            return self._show.trouble(
                request, 401, "You are not signed in", "Load the page again and sign in."
            )
        if request.headers.get("sec-fetch-site") == "cross-site":
            return HTMLResponse('<!doctype html><meta http-equiv="refresh" content="0">')
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/sign-in?next={quote(path, safe='')}", 303)


def _is_by_itself(request: Request) -> bool:
    """Tell whether a page asks, and nobody may be there: that keeps no session alive."""
    return FOLLOWS in request.headers or request.url.path == "/events"


def limits(settings: WebSettings) -> SessionLimits:
    """Return how long sessions last."""
    return SessionLimits(timedelta(minutes=settings.idle_minutes), timedelta(hours=settings.session_hours))


def _check_local(request: Request) -> None:
    if _hostname(request.headers.get("host", "")) not in _LOOPBACK:
        raise Refusal("Without users, the reading list answers on this machine only: use http://127.0.0.1.")
    if any(name in request.headers for name in _FORWARDED):
        raise Refusal("Without users, the reading list does not answer through a proxy.")


def _check_proxied(request: Request, web: WebSettings) -> None:
    """Refuse what did not come by HTTPS, and a proxy that does not say for whom it asks."""
    if request.url.scheme != "https":
        raise Refusal("Use HTTPS, through the proxy; it must set X-Forwarded-Proto and X-Forwarded-For.")
    if web.certificate is None and not request.headers.get("x-forwarded-for"):
        raise Refusal("The proxy must set X-Forwarded-For: see docs/reading-list.md.")


def _hostname(value: str) -> str | None:
    try:
        return urlsplit(f"//{value}").hostname
    except ValueError:
        return None


def _is_own(request: Request, address: str) -> bool:
    """Tell whether a form was sent from a page of ours."""
    ours = address or f"{request.url.scheme}://{request.headers.get('host')}"
    return request.headers.get("origin") == ours


async def _body(request: Request) -> str:
    """Return the body of a form; it stays there for those who come after."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != _FORM_TYPE:
        raise Refusal("This is not a form of the reading list.", 415)
    length = request.headers.get("content-length", "")
    if not length.isdigit() or int(length) > _MOST_FORM:
        raise Refusal("This form is too large.", 413)
    return (await request.body()).decode("utf-8", "replace")
