"""`pacs-node user`: who may look at the reading list."""

from __future__ import annotations

import getpass
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from classifier import terminal
from pacs_node.errors import UserError
from pacs_node.terminal.arguments import ConfigOption
from pacs_node.terminal.opening import configured, opened

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from db.users import KnownUser


class RoleOption(StrEnum):
    """What a user may do."""

    READER = "reader"
    ADMIN = "admin"


NameArgument = Annotated[
    str, typer.Argument(help="1 to 48 letters, digits and . _ - @ +; case does not count.")
]

users = typer.Typer(
    help="Say who may look at the reading list. Passwords are asked for, or read from standard input.",
    no_args_is_help=True,
)


@users.command(epilog="Examples:\n\npacs-node user add ada\n\npacs-node user add grace --role admin")
def add(
    name: NameArgument,
    *,
    role: Annotated[
        RoleOption, typer.Option(help="reader: looks and gives verdicts; admin: also retries work.")
    ] = RoleOption.READER,
    config: ConfigOption = None,
) -> None:
    """Add a user. From the first one on, everybody must sign in."""
    from db import users as known  # noqa: PLC0415
    from pacs_node.web.names import name_of  # noqa: PLC0415

    database, name = opened(configured(config)), name_of(name)
    with database.read() as session:
        if known.named(session, name) is not None:
            raise UserError(f"There is a user {name} already; `pacs-node user password` sets a new password.")
    hashed = _new_password()
    with database.write() as session:
        known.add(session, name, role, datetime.now(UTC), password_hash=hashed)
        record(session, "user added", f"{name}, {role}")
    _say(f"User {name} may sign in as {role}.")


@users.command(epilog="Example:\n\npacs-node user password ada")
def password(name: NameArgument, config: ConfigOption = None) -> None:
    """Set a new password, and sign the user out everywhere."""
    from db import sign_ins  # noqa: PLC0415
    from db import users as known  # noqa: PLC0415

    database = opened(configured(config))
    with database.read() as session:
        user = _required(session, name)
    if user.subject is not None:
        raise UserError(f"{user.name} signs in at the provider of log-ins; change the password there.")
    hashed = _new_password()
    with database.write() as session:
        known.set_password(session, user.id, hashed)
        sign_ins.forget_failures(session, user.name)
        record(session, "password set", user.name)
    _say(f"User {user.name} has a new password.")


@users.command(epilog="Example:\n\npacs-node user disable ada")
def disable(name: NameArgument, config: ConfigOption = None) -> None:
    """Let a user sign in no more, and sign them out everywhere at once."""
    from db import users as known  # noqa: PLC0415

    with opened(configured(config)).write() as session:
        user = _required(session, name)
        record(session, "user disabled", user.name)
        known.disable(session, user.id, datetime.now(UTC))
    _say(f"User {user.name} can no longer sign in.")


@users.command(epilog="Example:\n\npacs-node user enable ada")
def enable(name: NameArgument, config: ConfigOption = None) -> None:
    """Let a disabled user sign in again."""
    from db import users as known  # noqa: PLC0415

    with opened(configured(config)).write() as session:
        user = _required(session, name)
        record(session, "user enabled", user.name)
        known.enable(session, user.id)
    _say(f"User {user.name} may sign in again.")


@users.command(name="list", epilog="Example:\n\npacs-node user list")
def list_(config: ConfigOption = None) -> None:
    """List all users."""
    from db import users as known  # noqa: PLC0415
    from pacs_node.terminal import tables  # noqa: PLC0415

    with opened(configured(config)).read() as session:
        found = known.listed(session)
    tables.print_users(found, terminal.console())


def _required(session: Session, name: str) -> KnownUser:
    from db import users as known  # noqa: PLC0415
    from pacs_node.web.names import name_of  # noqa: PLC0415

    user = known.named(session, name_of(name))
    if user is None:
        raise UserError(f"There is no user {name_of(name)}; `pacs-node user list` lists them.")
    return user


def _new_password() -> str:
    """Ask twice at a terminal; else take one line of standard input."""
    from pacs_node.web import passwords  # noqa: PLC0415

    if not sys.stdin.isatty():
        return passwords.hashed(sys.stdin.readline().rstrip("\r\n"))
    typed = getpass.getpass("Password: ")
    hashed = passwords.hashed(typed)
    if getpass.getpass("Again: ") != typed:
        raise UserError("The two are not the same.")
    return hashed


def record(session: Session, action: str, detail: str) -> None:
    """Record in the audit what somebody did at the command line."""
    from db import audit  # noqa: PLC0415

    audit.record(session, action, person=_person(), address="console", at=datetime.now(UTC), detail=detail)


def _person() -> str:
    try:
        return getpass.getuser()[:64]
    except (KeyError, OSError):  # a user id without a name, as in some containers
        return "console"


def _say(sentence: str) -> None:
    terminal.console().print(sentence, highlight=False, markup=False)
