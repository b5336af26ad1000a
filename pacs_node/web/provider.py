"""Signing in by a provider: OpenID Connect Core 1.0, authorization code flow with PKCE (RFC 7636).

Addresses and keys of the provider are asked for anew at each sign-in: it may change its keys at any time.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import requests
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.requests_client import OAuth2Session
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from pacs_node.config_web import ProviderSettings
from pacs_node.errors import SignInFailed

_SECONDS = 10.0  # for each answer of the provider
_LEEWAY = 60  # seconds that two clocks may differ
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")


@dataclass(frozen=True)
class Flow:
    """What one browser must bring back, and what nobody else knows."""

    state: str
    nonce: str
    verifier: str

    @classmethod
    def fresh(cls) -> Flow:
        """Return new random values."""
        return cls(*(secrets.token_urlsafe(32) for _ in range(3)))

    @classmethod
    def read(cls, text: str) -> Flow:
        """Return what `text` said.

        Raises
        ------
        SignInFailed
        """
        parts = text.split(".")
        if len(parts) != len(cls.__dataclass_fields__):
            raise SignInFailed("This took too long, or began in another browser: sign in again.")
        return cls(*parts)

    def text(self) -> str:
        """Return it for a cookie."""
        return ".".join(asdict(self).values())


@dataclass(frozen=True)
class Person:
    """Whom the provider knows.

    Attributes
    ----------
    subject
        Issuer and subject: the one name that never passes to somebody else (OpenID Connect Core 5.7).
    role
        ``None`` for those who may not look.
    """

    subject: str
    name: str
    role: str | None


class Provider:
    """The provider of [web.provider]."""

    def __init__(self, settings: ProviderSettings) -> None:
        self._settings = settings

    def begin(self, flow: Flow, back: str) -> str:
        """Return the address to which a browser goes to sign in.

        Raises
        ------
        SignInFailed
        """
        with self._session(back) as session:
            address = self._metadata(session)["authorization_endpoint"]
            url, _ = session.create_authorization_url(
                address, state=flow.state, nonce=flow.nonce, code_verifier=flow.verifier
            )
        return str(url)

    def finish(self, flow: Flow, back: str, given: Mapping[str, str]) -> Person:
        """Return who signed in.

        Parameters
        ----------
        given
            Parameters with which the browser came back.

        Raises
        ------
        SignInFailed
        """
        ours = self._settings.issuer
        if not secrets.compare_digest(given.get("state", "").encode(), flow.state.encode()):
            raise SignInFailed("This sign-in began elsewhere: sign in again.")
        if given.get("iss", ours) != ours:  # RFC 9207
            raise SignInFailed("Another provider answered than the one that was asked.")
        if "code" not in given:
            raise SignInFailed("The provider did not let you in.")
        with self._session(back) as session:
            claims = self._claims(session, flow, given["code"])
        return self._person(claims)

    def _claims(self, session: Any, flow: Flow, code: str) -> CodeIDToken:
        """Exchange the code for the ID token; check its signature and what it says (Core 3.1.3.7)."""
        about = self._metadata(session)
        try:
            answer = session.fetch_token(
                about["token_endpoint"],
                grant_type="authorization_code",
                code=code,
                code_verifier=flow.verifier,
            )
            keys = KeySet.import_key_set(_got(session, about["jwks_uri"]))
            token = jwt.decode(answer["id_token"], keys, algorithms=_ALGORITHMS)
            claims = CodeIDToken(token.claims, token.header, self._expected(), self._parameters(flow, answer))
            claims.validate(leeway=_LEEWAY)
        except requests.RequestException as error:
            raise SignInFailed("The provider of log-ins does not answer.") from error
        except (AuthlibBaseError, JoseError, KeyError, ValueError, TypeError) as error:
            raise SignInFailed(f"The answer of the provider is not valid: {type(error).__name__}.") from error
        return claims

    def _expected(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "iss": {"essential": True, "value": settings.issuer},
            "sub": {"essential": True},
            "aud": {"essential": True, "value": settings.client_id},
            "exp": {"essential": True},
        }

    def _parameters(self, flow: Flow, answer: Mapping[str, Any]) -> dict[str, Any]:
        token = answer.get("access_token")
        return {"nonce": flow.nonce, "client_id": self._settings.client_id, "access_token": token}

    def _person(self, claims: Mapping[str, Any]) -> Person:
        settings = self._settings
        name, subject = claims.get(settings.name_claim), claims["sub"]
        if not isinstance(name, str) or not isinstance(subject, str):
            raise SignInFailed(
                f"The provider says no name: see [web.provider] name_claim, {settings.name_claim!r}."
            )
        return Person(f"{settings.issuer} {subject}", name, self._role(claims))

    def _role(self, claims: Mapping[str, Any]) -> str | None:
        found = _values(claims, self._settings.role_claim)
        for role, values in (("admin", self._settings.admins), ("reader", self._settings.readers)):
            if found.intersection(values):
                return role
        return None

    def _metadata(self, session: Any) -> dict[str, Any]:
        """Return what the provider says of itself (OpenID Connect Discovery 1.0)."""
        issuer = self._settings.issuer
        try:
            about: dict[str, Any] = _got(session, f"{issuer.rstrip('/')}/.well-known/openid-configuration")
            known = {name: about[name] for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")}
            is_it = about["issuer"] == issuer
        except requests.RequestException as error:
            raise SignInFailed("The provider of log-ins does not answer.") from error
        except (KeyError, TypeError, ValueError) as error:
            raise SignInFailed("At [web.provider] issuer there is no provider of log-ins.") from error
        if not is_it:
            raise SignInFailed(
                f"The provider calls itself {about['issuer']!r}: correct [web.provider] issuer."
            )
        return known

    def _session(self, back: str) -> Any:
        settings = self._settings
        return OAuth2Session(
            settings.client_id,
            settings.client_secret or None,
            token_endpoint_auth_method="client_secret_basic" if settings.client_secret else "none",
            scope="openid profile email",
            redirect_uri=back,
            code_challenge_method="S256",
            default_timeout=_SECONDS,
        )


def _got(session: Any, address: str) -> Any:
    answer = session.request("GET", address, withhold_token=True, timeout=_SECONDS)
    answer.raise_for_status()
    return answer.json()


def _values(claims: Mapping[str, Any], path: str) -> set[str]:
    """Return the texts of a claim, such as ``groups``, or ``realm_access.roles`` inside another."""
    value: Any = claims.get(path)
    if value is None:
        value = claims
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return {one for one in values if isinstance(one, str)}
