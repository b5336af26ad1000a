"""Names of users and tokens."""

from __future__ import annotations

import re
import unicodedata

from pacs_node.errors import UserError

_FORM = re.compile(r"[\w.@+-]{1,48}")
_TAKEN = {"local", "console"}  # what the audit calls those who need no name


def name_of(text: str) -> str:
    """Return the name under which somebody is kept: one for all ways to write its letters.

    Raises
    ------
    UserError
    """
    name = unicodedata.normalize("NFKC", text.strip().casefold())
    if not _FORM.fullmatch(name):
        raise UserError("A name has 1 to 48 letters, digits and . _ - @ +, without spaces.")
    if name in _TAKEN:
        raise UserError(f"The name {name!r} is used for those who are not signed in; choose another.")
    return name
