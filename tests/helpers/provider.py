"""A small provider of log-ins by OpenID Connect, at work on this machine; it can be told to lie."""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from joserfc import jwt
from joserfc.jwk import RSAKey

from pacs_node.demo.peers import free_port

CLIENT, SECRET = "pacs-node", "a secret of client and provider"


@dataclass
class Provider:
    """What it says: of itself, and of the one who signs in."""

    issuer: str
    person: dict[str, Any] = field(
        default_factory=lambda: {"sub": "4711", "preferred_username": "ada", "groups": ["readers"]}
    )
    claims: dict[str, Any] = field(default_factory=dict)  # instead of the right ones
    header: dict[str, Any] = field(default_factory=lambda: {"alg": "RS256", "kid": "1"})
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "1"}))
    signed_by: Any = None  # instead of the key that it shows
    is_refusing: bool = False
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    asked: list[dict[str, str]] = field(default_factory=list)

    def application(self) -> FastAPI:
        app = FastAPI()
        app.get("/.well-known/openid-configuration")(self._about)
        app.get("/keys")(self._keys)
        app.get("/authorize")(self._authorize)
        app.post("/token")(self._token)
        return app

    async def _keys(self) -> dict[str, Any]:
        return {"keys": [self.key.as_dict(private=False)]}

    async def _about(self) -> dict[str, str]:
        paths = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
        return {"issuer": self.issuer, **{name: f"{self.issuer}/{path}" for name, path in paths.items()}}

    async def _authorize(self, request: Request) -> Any:
        """Show whom it would sign in, as a page with one link."""
        asked = dict(request.query_params)
        self.asked.append(asked)
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        code = secrets.token_urlsafe(16)
        self.codes[code] = asked
        answer = {"error": "access_denied"} if self.is_refusing else {"code": code}
        back = f"{asked['redirect_uri']}?{urlencode({**answer, 'state': asked['state']})}"
        if "text/html" not in request.headers.get("accept", ""):
            return RedirectResponse(back, 303)
        return HTMLResponse(f'<!doctype html><a href="{back.replace("&", "&amp;")}">I am Ada</a>')

    async def _token(self, request: Request) -> Any:
        form = await request.form()
        asked = self.codes.pop(str(form["code"]), None)
        digest = hashlib.sha256(str(form.get("code_verifier", "")).encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        basic = base64.b64encode(f"{CLIENT}:{SECRET.replace(' ', '+')}".encode()).decode()
        plain = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if request.headers.get("authorization") not in (f"Basic {basic}", f"Basic {plain}"):
            raise HTTPException(401)
        if (
            asked is None
            or challenge != asked["code_challenge"]
            or form["redirect_uri"] != asked["redirect_uri"]
        ):
            return JSONResponse({"error": "invalid_grant"}, 400)
        now = int(time.time())
        right = {"iss": self.issuer, "aud": CLIENT, "iat": now, "exp": now + 60, "nonce": asked["nonce"]}
        claims = {**right, **self.person, **self.claims}
        claims = {name: value for name, value in claims.items() if value is not None}
        token = jwt.encode(self.header, claims, self.signed_by or self.key)
        return {"access_token": secrets.token_urlsafe(16), "token_type": "Bearer", "id_token": token}


@contextmanager
def running_provider() -> Iterator[Provider]:
    """Run a provider."""
    port = free_port()
    provider = Provider(f"http://127.0.0.1:{port}")
    server = uvicorn.Server(uvicorn.Config(provider.application(), port=port, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield provider
    finally:
        server.should_exit = True
        thread.join()
