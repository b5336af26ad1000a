"""Cookies: of the session, of the browser, and of forms before somebody is signed in."""

from __future__ import annotations

from typing import Literal

from fastapi import Request, Response

SESSION, DEVICE, FORM, FLOW = "session", "device", "form", "flow"


def _name(request: Request, what: str) -> str:
    """Return the name; its prefix makes browsers take it over HTTPS from this host alone (RFC 6265bis)."""
    return f"__Host-pacs_node_{what}" if request.url.scheme == "https" else f"pacs_node_{what}"


def read(request: Request, what: str) -> str | None:
    """Return the value of a cookie."""
    return request.cookies.get(_name(request, what))


def write(
    request: Request,
    response: Response,
    what: str,
    value: str,
    seconds: int | None = None,
    *,
    samesite: Literal["strict", "lax"] = "strict",
) -> None:
    """Set a cookie that no script and no other site can use; without `seconds` it ends with the browser."""
    response.set_cookie(
        _name(request, what),
        value,
        max_age=seconds,
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite=samesite,
    )


def remove(request: Request, response: Response, what: str) -> None:
    """Remove a cookie."""
    write(request, response, what, "", 0)
