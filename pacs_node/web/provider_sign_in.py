"""Signing in at a provider: there, and back."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from db import users
from db.session import Database
from db.users import KnownUser
from pacs_node.config_web import WebSettings
from pacs_node.errors import SignInFailed, UserError
from pacs_node.web import cookies
from pacs_node.web.names import name_of
from pacs_node.web.provider import Flow, Person, Provider
from pacs_node.web.sign_in import SignIn, within

_MINUTES = 10  # that signing in at the provider may take


class ProviderSignIn:
    """The way to the provider of log-ins and back; a user is added at the first time."""

    def __init__(self, web: WebSettings, database: Database, sign_in: SignIn) -> None:
        self._web, self._database, self._sign_in = web, database, sign_in
        self._provider = Provider(web.provider)
        self.router = APIRouter(include_in_schema=False)
        self.router.add_api_route("/sign-in/provider", self.go, methods=["GET"])
        self.router.add_api_route("/sign-in/provider/back", self.back, methods=["GET"])

    def go(self, request: Request) -> Response:
        """Send the browser to the provider."""
        flow = Flow.fresh()
        try:
            response = RedirectResponse(self._provider.begin(flow, self._address_of_back(request)), 303)
        except SignInFailed as error:
            return self._sign_in.refuse(request, error, name="")
        value = f"{flow.text()}.{within(request.query_params.get('next', '/')).encode().hex()}"
        # Lax: the browser comes back from another site, which strict cookies do not survive
        cookies.write(request, response, cookies.FLOW, value, 60 * _MINUTES, samesite="lax")
        return response

    def back(self, request: Request) -> Response:
        """Sign in whom the provider names."""
        kept, _, path = (cookies.read(request, cookies.FLOW) or "").rpartition(".")
        name = ""
        try:
            person = self._provider.finish(
                Flow.read(kept), self._address_of_back(request), request.query_params
            )
            name = person.name
            user = self._user(person)
        except (SignInFailed, UserError) as error:
            response = self._sign_in.refuse(request, error, name=name)
        else:
            response = _onward(path)
            self._sign_in.begin(request, response, user, datetime.now(UTC))
        cookies.remove(request, response, cookies.FLOW)
        return response

    def _user(self, person: Person) -> KnownUser:
        """Return the user of a person, with the role of now; new ones are added."""
        now = datetime.now(UTC)
        with self._database.write() as session:
            user = users.of_subject(session, person.subject)
            if user is None and person.role is not None:
                user = users.named(session, name_of(person.name))
                if user is not None:
                    raise SignInFailed(
                        f"The name {user.name} belongs to another user here: tell an administrator."
                    )
                users.add(session, name_of(person.name), person.role, now, subject=person.subject)
            elif user is not None and person.role is None:
                users.end_sessions(session, user.id)
            elif user is not None and person.role is not None:
                users.set_role(session, user.id, person.role)
            user = users.of_subject(session, person.subject)
        if user is None or person.role is None:
            raise SignInFailed(
                "You may not look at the reading list: ask an administrator of the log-ins for it."
            )
        if user.is_disabled:
            raise SignInFailed("An administrator of the node disabled your access.")
        return user

    def _address_of_back(self, request: Request) -> str:
        ours = self._web.address or f"{request.url.scheme}://{request.headers.get('host')}"
        return f"{ours}/sign-in/provider/back"


def _onward(path: str) -> Response:
    """Go on from a page of ours: after a redirect from another site, strict cookies would not be sent."""
    try:
        target = within(bytes.fromhex(path).decode())
    except ValueError:
        target = "/"
    return HTMLResponse(f'<!doctype html><meta http-equiv="refresh" content="0;url={escape(target)}">')
