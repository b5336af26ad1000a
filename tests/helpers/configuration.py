"""docs/configuration.md, made from the settings and from the comments of config.toml.

``python -m tests.helpers.configuration`` writes it.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pacs_node.config import Destination, Modality, Settings

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "docs" / "configuration.md"

_HEAD = """# Configuration

Made from the settings and from the comments of [config.toml](../config.toml). An unknown key, or a value that
makes no sense, stops the program with a sentence that names it. The environment overrides the file:
`PACS_NODE_STUDY__QUIET_SECONDS=30` is `[study] quiet_seconds = 30`. Relative paths are relative to `[node]
state_folder`; that of the model, to the folder of the file.
"""
_TABLE = re.compile(r"#? ?\[\[?([a-z_.]+)\]\]?\s*(?:#\s*(.*))?")
_KEY = re.compile(r"(?:# )?([a-z_]+) = (.*?)\s*#\s(.*)|(?:# )?([a-z_]+) = (.*)")


def comments(text: str) -> dict[str, str]:
    """Return what config.toml says of each section and key."""
    found: dict[str, str] = {}
    section, last = "", ""
    for line in text.splitlines():
        if table := _TABLE.fullmatch(line.strip()):
            section = last = table[1]
            found.setdefault(section, (table[2] or "").strip())
        elif key := _KEY.fullmatch(line.strip()):
            last = f"{section}.{key[1] or key[4]}"
            found[last] = (key[3] or "").strip()
        elif last and re.match(r"\s{10,}# ", line):
            found[last] += f" {line.strip()[2:]}"
    return found


def page() -> str:
    """Return the whole page."""
    said = comments((ROOT / "config.toml").read_text(encoding="utf-8"))
    parts = [_HEAD, *_sections("", Settings, said)]
    for name, model in (("destinations", Destination), ("modalities", Modality)):
        parts.append(_table(f"[[{name}]]", name, model, said))
    return "\n".join(parts)


def _sections(prefix: str, model: type[BaseModel], said: dict[str, str]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            path = f"{prefix}{name}"
            yield _table(f"[{path}]", path, type(field.default), said)
            yield from _sections(f"{path}.", type(field.default), said)


def _table(heading: str, path: str, model: type[BaseModel], said: dict[str, str]) -> str:
    lines = [f"## `{heading}`", "", "| Key | Default | Values | |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        if not isinstance(field.default, BaseModel):
            cells = (f"`{name}`", _default(field), _values(field), said[f"{path}.{name}"])
            lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join([*lines, ""])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.default
    if value is None:
        return "none"
    return f"`{_toml(str(value) if isinstance(value, Path) else value)}`"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _values(field: FieldInfo) -> str:
    choices = list(_choices(field.annotation))
    if choices:
        return ", ".join(f"`{_toml(choice)}`" for choice in choices)
    limits = {name: getattr(one, name) for one in field.metadata for name in _SIGNS if hasattr(one, name)}
    return ", ".join(f"{_SIGNS[name]} {value}" for name, value in limits.items() if value is not None)


_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}


def _choices(annotation: Any) -> Iterator[object]:
    origin = get_origin(annotation)
    if annotation is bool:
        yield from (True, False)
    elif origin is Literal:
        yield from get_args(annotation)
    elif origin in (Union, types.UnionType, tuple):
        for inner in get_args(annotation):
            yield from _choices(inner)


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
