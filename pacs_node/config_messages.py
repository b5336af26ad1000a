"""Mistakes in config.toml, said so that whoever wrote it knows what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_BLOCKS = ("destinations", "modalities")
_FORMS = {
    "ae_title": "an AE title has 1 to 16 characters, without backslash and accents",
    "calling_ae_titles": "an AE title has 1 to 16 characters, without backslash and accents",
    "station_name": "it has 1 to 64 ASCII characters, without backslash",
    "issuer": "write the address by which the provider names itself; it begins with https://",
    "name": "it has 1 to 32 ASCII characters",
    "address": 'write what browsers open, such as "https://reading.hospital.example", without a path',
    "email_to": 'write addresses such as "pacs@hospital.example"',
    "email_from": 'write an address such as "pacs-node@hospital.example"',
    "webhook": "it begins with http:// or https://",
    "device": 'write "auto", "cpu", "cuda" or "cuda:1"',
}
"""What a text must look like, by the key."""

Error = Mapping[str, Any]


def sentence(error: Error) -> str:
    """Return what is wrong with one value, and what to write; never with a value that may be a password.

    Parameters
    ----------
    error
        One of those of a pydantic ``ValidationError``.
    """
    where, form = place(error["loc"]), _form_of(error["loc"])
    if form and error["type"] in ("string_pattern_mismatch", "string_too_short", "string_too_long"):
        return f"{where} cannot be {error['input']!r}: {form}"
    if not where:  # of several sections at once
        return str(error.get("ctx", {}).get("error", error["msg"]))
    said = f"{where} {_said(error)}"
    is_secret = error["loc"][:1] == ("database",) or error["loc"][-1:] in (
        ("client_secret",),
        ("smtp_password",),
    )
    is_absent = error["type"] in ("missing", "value_error")
    return said if is_secret or is_absent else f"{said}, not {error['input']!r}"


def place(loc: tuple[Any, ...]) -> str:
    """Return where a value stands: ``node.port``, or ``[[destinations]] 2, port``."""
    if len(loc) > 1 and loc[0] in _BLOCKS:
        inside = ".".join(str(part) for part in loc[2:] if isinstance(part, str))
        return f"[[{loc[0]}]] {loc[1] + 1}" + (f", {inside}" if inside else "")
    return ".".join(str(part) for part in loc if isinstance(part, str))


def _said(error: Error) -> str:
    kind, loc = str(error["type"]), error["loc"]
    if kind in ("tuple_type", "list_type", "model_type", "model_attributes_type", "dict_type"):
        return _structure(loc, is_list=kind in ("tuple_type", "list_type"))
    for start, words in _WORDS.items():
        if kind.startswith(start):
            return words(error.get("ctx", {}))
    message = str(error["msg"])
    return f"cannot be used: {message[0].lower()}{message[1:]}"


def _form_of(loc: tuple[Any, ...]) -> str | None:
    return next((_FORMS[part] for part in reversed(loc) if part in _FORMS), None)


def _structure(loc: tuple[Any, ...], *, is_list: bool) -> str:
    if loc[0] in _BLOCKS and len(loc) <= 2:
        return f"needs a block of its own for each: begin it with a line [[{loc[0]}]]"
    if is_list:
        return 'is a list: write ["A", "B"]'
    return f"is a section: begin it with a line [{'.'.join(map(str, loc))}]"


_WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda _: "is missing",
    "value_error": lambda about: f"cannot be used: {about['error']}",
    "literal_error": lambda about: f"must be {about['expected']}".replace("'", '"'),
    "greater_than_equal": lambda about: f"must be at least {about['ge']:g}",
    "greater_than": lambda about: f"must be more than {about['gt']:g}",
    "less_than_equal": lambda about: f"must be at most {about['le']:g}",
    "less_than": lambda about: f"must be less than {about['lt']:g}",
    "int_": lambda _: "must be a whole number",
    "float_": lambda _: "must be a number",
    "finite_number": lambda _: "must be a number",
    "bool_": lambda _: "must be true or false",
    "string_type": lambda _: "must be text in quotes",
    "path_": lambda _: "must be a path in quotes",
    "string_too_short": lambda _: "must not be empty",
    "string_too_long": lambda about: f"must have at most {about['max_length']} characters",
}
