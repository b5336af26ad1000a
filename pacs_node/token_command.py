"""`pacs-node token`: which programs may read by the HTTP API."""

from __future__ import annotations

import secrets
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from classifier import terminal
from pacs_node.errors import UserError
from pacs_node.terminal.arguments import ConfigOption
from pacs_node.terminal.opening import configured, opened
from pacs_node.user_command import record

NameArgument = Annotated[str, typer.Argument(help="What the token is for, such as dashboard.")]

tokens = typer.Typer(help="Say which programs may read by the HTTP API (docs/api.md).", no_args_is_help=True)


@tokens.command(epilog="Example:\n\npacs-node token add dashboard > dashboard.token")
def add(name: NameArgument, config: ConfigOption = None) -> None:
    """Make a token and print it: only now, for the node keeps its hash alone."""
    from db import tokens as known  # noqa: PLC0415
    from pacs_node.web.names import name_of  # noqa: PLC0415
    from pacs_node.web.visitor import secret_hash  # noqa: PLC0415

    name, token = name_of(name), secrets.token_urlsafe(32)
    with opened(configured(config)).write() as session:
        if known.exists(session, name):
            raise UserError(f"There is, or was, a token {name}: the audit names it. Choose another name.")
        known.add(session, name, secret_hash(token), datetime.now(UTC))
        record(session, "token added", name)
    sys.stdout.write(f"{token}\n")


@tokens.command(epilog="Example:\n\npacs-node token revoke dashboard")
def revoke(name: NameArgument, config: ConfigOption = None) -> None:
    """Let a token be of no use from now on."""
    from db import tokens as known  # noqa: PLC0415
    from pacs_node.web.names import name_of  # noqa: PLC0415

    name = name_of(name)
    with opened(configured(config)).write() as session:
        if not known.revoke(session, name, datetime.now(UTC)):
            raise UserError(f"There is no token {name}; `pacs-node token list` lists them.")
        record(session, "token revoked", name)
    terminal.console().print(f"Token {name} is of no use any more.", highlight=False, markup=False)


@tokens.command(name="list", epilog="Example:\n\npacs-node token list")
def list_(config: ConfigOption = None) -> None:
    """List all tokens by name; what they are is known to their programs alone."""
    from db import tokens as known  # noqa: PLC0415
    from pacs_node.terminal import tables  # noqa: PLC0415

    with opened(configured(config)).read() as session:
        found = known.listed(session)
    tables.print_tokens(found, terminal.console())
