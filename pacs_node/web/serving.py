"""The process that serves the reading list."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import uvicorn

from db.session import Database
from pacs_node import log
from pacs_node.config import Settings
from pacs_node.errors import PortInUse
from pacs_node.storage.spool import Spool
from pacs_node.web.app import make_app

_log = log.get(__name__)

_GRACE_SECONDS = 5


def serve(
    settings: Settings, database: Database, spool: Spool, stopped: threading.Event, ready: Callable[[], None]
) -> None:
    """Answer until `stopped`.

    Raises
    ------
    PortInUse
    """
    listening = _listen(settings.web.host, settings.web.port)
    config = uvicorn.Config(
        make_app(settings, database, spool),
        log_config=None,
        access_log=False,  # addresses of pages name patients' studies
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    _log.info("reading list", address=f"http://{settings.web.host}:{settings.web.port}/")
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
