"""Signing in with a password, and out."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.orm import Session

from db import audit, sign_ins, users
from db.session import Database
from db.users import KnownUser, SessionLimits
from pacs_node import log
from pacs_node.errors import UserError
from pacs_node.web import cookies, passwords
from pacs_node.web.names import name_of
from pacs_node.web.show import Show
from pacs_node.web.visitor import address, form_token, record, secret_hash, source

_log = log.get(__name__)

_WRONG = "Name or password is wrong."
_WAIT = (
    "There were too many failures. Wait a quarter of an hour, use a browser in which you signed in before, "
    "or ask an administrator for a new password."
)


class SignIn:
    """The page to sign in, and what becomes of its form.

    Parameters
    ----------
    provider
        How people call the provider of log-ins, if there is one.
    """

    def __init__(self, database: Database, limits: SessionLimits, show: Show, provider: str = "") -> None:
        self._database, self._limits, self._show, self._provider = database, limits, show, provider
        self.router = APIRouter(include_in_schema=False)
        self.router.add_api_route("/sign-in", self.ask, methods=["GET"])
        self.router.add_api_route("/sign-in", self.check, methods=["POST"])
        self.router.add_api_route("/sign-out", self.leave, methods=["POST"])

    def ask(self, request: Request) -> Response:
        """Show the form."""
        if request.state.visitor is not None:
            return RedirectResponse("/", 303)
        return self._form(request, request.query_params.get("next", "/"))

    def check(
        self,
        request: Request,
        *,
        name: Annotated[str, Form()] = "",
        password: Annotated[str, Form()] = "",
        next_: Annotated[str, Form(alias="next")] = "/",
    ) -> Response:
        """Sign in, if the password is right and there were not too many failures."""
        typed, now = _typed(name), datetime.now(UTC)
        device = cookies.read(request, cookies.DEVICE)
        with self._database.write() as session:
            known = secret_hash(device) if device else None
            attempt = sign_ins.begin(session, typed, source(request), known, now)
            user = users.named(session, typed)
        if attempt is None:
            _log.warning("too many failures to sign in", address=address(request))
            return self._form(request, next_, typed, _WAIT, status=429)
        is_right = passwords.is_right(password, user.password_hash if user else None)
        if user is None or not is_right or user.is_disabled:
            self._note(request, "sign-in failed", typed, now)
            return self._form(request, next_, typed, _WRONG, status=403)
        device = device or secrets.token_urlsafe(32)
        with self._database.write() as session:
            sign_ins.succeed(session, attempt, secret_hash(device))
        response = RedirectResponse(within(next_), 303)
        cookies.write(request, response, cookies.DEVICE, device, int(sign_ins.DEVICE_LIFE.total_seconds()))
        self.begin(request, response, user, now)
        return response

    def begin(self, request: Request, response: Response, user: KnownUser, now: datetime) -> None:
        """Begin a session under a new token, so that nobody knows it from before (session fixation)."""
        token, old = secrets.token_urlsafe(32), cookies.read(request, cookies.SESSION)
        with self._database.write() as session:
            if old is not None:
                users.end_session(session, secret_hash(old))
            users.begin_session(session, user.id, secret_hash(token), now, self._limits)
            _write_down(session, request, "signed in", user.name, now)
        cookies.write(request, response, cookies.SESSION, token)
        cookies.remove(request, response, cookies.FORM)

    def leave(self, request: Request) -> Response:
        """End the session."""
        token = cookies.read(request, cookies.SESSION)
        response = RedirectResponse("/sign-in", 303)
        if token is not None:
            with self._database.write() as session:
                users.end_session(session, secret_hash(token))
                record(session, request, "signed out")
            cookies.remove(request, response, cookies.SESSION)
        return response

    def refuse(self, request: Request, problem: Exception, name: str) -> Response:
        """Say why the provider could not sign somebody in."""
        _log.warning("provider signs nobody in", problem=str(problem), cause=repr(problem.__cause__))
        self._note(request, "sign-in failed", name[:64], datetime.now(UTC))
        return self._form(request, "/", "", str(problem), status=403)

    def _note(self, request: Request, action: str, name: str, now: datetime) -> None:
        _log.warning(action, address=address(request))
        with self._database.write() as session:
            _write_down(session, request, action, name.replace("\0", ""), now)

    def _form(
        self, request: Request, next_: str, name: str = "", problem: str = "", *, status: int = 200
    ) -> Response:
        secret = cookies.read(request, cookies.FORM) or secrets.token_urlsafe(32)
        request.state.form_token = form_token(secret)
        shown = {"next": within(next_), "name": name, "problem": problem, "provider": self._provider}
        response = self._show(request, "sign_in.html", status=status, **shown)
        cookies.write(request, response, cookies.FORM, secret)
        if status == 429:
            response.headers["Retry-After"] = str(int(sign_ins.PAUSE.total_seconds()))
        return response


def _write_down(session: Session, request: Request, action: str, name: str, now: datetime) -> None:
    audit.record(session, action, person=name, address=address(request), at=now)


def _typed(name: str) -> str:
    """Return the name that somebody typed; what can be no name is kept too, to be counted."""
    try:
        return name_of(name)
    except UserError:
        return name.strip().replace("\0", "")[:64]


def within(path: str) -> str:
    """Return a path of ours, whatever a link to this page said."""
    try:
        parts = urlsplit(path)
    except ValueError:
        return "/"
    is_ours = not parts.scheme and not parts.netloc and path.startswith("/") and path.isprintable()
    return path if is_ours and not path.startswith("//") and "\\" not in path else "/"
