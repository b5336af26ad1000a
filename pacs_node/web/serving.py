"""The process that serves the reading list."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import uvicorn

from db import users
from db.session import Database
from pacs_node import log
from pacs_node.config import Settings
from pacs_node.config_web import WebSettings
from pacs_node.errors import ConfigError, PortInUse
from pacs_node.storage.spool import Spool
from pacs_node.web.app import make_app
from pacs_node.web.node_page import Look

_log = log.get(__name__)

_GRACE_SECONDS = 5


def serve(
    settings: Settings,
    database: Database,
    spool: Spool,
    stopped: threading.Event,
    ready: Callable[[], None],
    *,
    look: Look,
) -> None:
    """Answer until `stopped`; `look` looks at the node for the page about it.

    Raises
    ------
    ConfigError, PortInUse
    """
    require_safe(settings.web, database)
    config = uvicorn.Config(
        make_app(settings, database, spool, look, stopped),
        log_config=None,
        access_log=False,  # addresses of pages name patients' studies
        server_header=False,
        proxy_headers=bool(settings.web.proxies),
        forwarded_allow_ips=[*settings.web.proxies],
        ssl_certfile=settings.web.certificate,
        ssl_keyfile=settings.web.key,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    _load(config)
    listening = _listen(settings.web.host, settings.web.port)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    _log.info("reading list", address=address_of(settings.web))
    ready()
    while not stopped.wait(0.2) and thread.is_alive():
        pass
    server.should_exit = True
    thread.join()
    listening.close()
    if not stopped.is_set():
        raise RuntimeError("the server of the reading list ended unexpectedly")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise PortInUse(
            f"The reading list cannot listen on {host}:{port}: {error.strerror}; change [web] port."
        ) from error


def require_safe(web: WebSettings, database: Database) -> None:
    """Refuse to show names of patients to other machines without users, or in clear text.

    Raises
    ------
    ConfigError
    """
    if web.is_loopback:
        return
    if web.certificate is None and not web.proxies:
        raise ConfigError(
            f"With [web] host {web.host!r}, names of patients would cross the network unencrypted: set [web] "
            "certificate and key, or proxies if a reverse proxy does HTTPS; or set host to 127.0.0.1."
        )
    with database.read() as session:
        has_users = users.any_exist(session)
    if not has_users and not web.provider.issuer:
        raise ConfigError(
            f"With [web] host {web.host!r}, people must sign in, but there are no users: add one by "
            "`pacs-node user add NAME`; or set host to 127.0.0.1."
        )


def address_of(web: WebSettings) -> str:
    """Return the address for browsers."""
    scheme = "http" if web.certificate is None else "https"
    host = f"[{web.host}]" if ":" in web.host else web.host
    return f"{web.address or f'{scheme}://{host}:{web.port}'}/"


def _load(config: uvicorn.Config) -> None:
    """Read the certificate, to notice what is wrong with it before anybody connects."""
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"HTTPS cannot be offered: [web] certificate or key cannot be used ({error.strerror or error})."
        ) from error
