"""The command `pacs-node open`."""

from __future__ import annotations

import os
import ssl
import sys
import urllib.error
import urllib.request
import webbrowser
from typing import Annotated

import typer

from classifier import terminal
from pacs_node.terminal.arguments import ConfigOption
from pacs_node.terminal.opening import configured

EXAMPLES = "Examples:\n\npacs-node open\n\npacs-node open --print    (does not start a browser)"

_PATIENCE = 5.0  # seconds for an answer


def open_page(
    *,
    only_print: Annotated[bool, typer.Option("--print", help="Only print the address.")] = False,
    config: ConfigOption = None,
) -> None:
    """Print the address of the reading list, and open it where there is a desktop. Exit code 1 if it does not
    answer.
    """
    from pacs_node.web.serving import address_of  # noqa: PLC0415

    address = address_of(configured(config).web)
    terminal.console().print(address, highlight=False, soft_wrap=True)
    if not _answers(address):
        said = "Nothing answers there: start `pacs-node serve --roles receive,score,deliver,web`."
        terminal.console(stderr=True).print(said, highlight=False, soft_wrap=True)
        sys.exit(1)
    if not only_print and has_desktop():
        webbrowser.open(address)


def has_desktop() -> bool:
    """Tell whether a browser with windows can be started."""
    if sys.platform.startswith(("win", "darwin")):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _answers(address: str) -> bool:
    """Tell whether the reading list is there; a refusal is an answer."""
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE  # nothing is sent, and nothing read
    handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=anybody)
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(address, timeout=_PATIENCE):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
