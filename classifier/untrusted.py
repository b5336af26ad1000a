"""Text that strangers wrote, made harmless for those who read it: on terminals, in logs, in spreadsheets.

Names, IDs, comments and UIDs come from any sender. Nothing that they hold may command a terminal, turn the
order of what is read, forge a line of a log, or be run as a formula.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

# C0 and C1 control characters, DEL; soft hyphen and the invisible and directional marks, separators, tags
# and annotations of Unicode; lone surrogates. U+200C and U+200D stay: Persian and Indic names need them.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
# Where a cell begins, for programs that take commas or semicolons as separators
_FORMULA = re.compile(r"(^|;)(\s*[\"']?\s*)(?=[=+\-@＝＋－＠])")
_QUOTED_FORMULA = re.compile(r"(^|;)'(?=\s*[\"']?\s*[=+\-@＝＋－＠])")


def printable(text: str) -> str:
    r"""Return a text with its control and directional characters written out, as \x1b or \u202e.

    An ordinary text stays as it is, in every script.
    """
    return _UNSAFE.sub(_written_out, text)


def printable_lines(text: str) -> str:
    """Return what `printable` does of each line."""
    return "\n".join(map(printable, text.split("\n")))


def cell(value: Any) -> Any:
    """Return a value for CSV: a text that a spreadsheet would run gets an apostrophe before it (OWASP).

    Numbers and other values stay as they are; an exact copy of a text is what JSON is for.
    """
    return _FORMULA.sub(r"\1'\2", printable(value)) if isinstance(value, str) else value


def unquoted(text: str) -> str:
    """Return the text of which `cell` made `text`, control characters apart."""
    return _QUOTED_FORMULA.sub(r"\1", text)


def json_text(encoded: str) -> str:
    """Return JSON that says the same, with the characters escaped that a terminal would obey."""
    return "\n".join(_UNSAFE.sub(_escaped, line) for line in encoded.split("\n"))


def print_json(content: Any) -> None:
    """Print what `json.dumps` makes of something, made harmless."""
    sys.stdout.write(json_text(json.dumps(content, indent=2)) + "\n")


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return {9: r"\t", 10: r"\n", 13: r"\r"}.get(code) or (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
