"""What strangers wrote commands no terminal, forges no line of a log, and is no formula."""

from __future__ import annotations

import csv
import io
import json
import logging
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from classifier.terminal import console
from classifier.untrusted import cell, json_text, printable, unquoted
from pacs_node import log
from pacs_node.config import LogSettings
from pacs_node.terminal import tables

EVIL = [
    "\x1b[2J\x1b[31mFAKE",
    "\x9b31mFAKE",
    "\x1b]0;title\x07",
    "a\u202egnp.exe",
    "a\u2066b\u2069",
    "a\r\n2026 [info] instance stored",
    "a\u2028b",
    "a\x7fb\x00c\x08",
    "\ufeffa\u200b\xad",
    "tag\U000e0041",
]
ORDINARY = [
    "Doe^John",
    "Müller^Eva=王^小东",
    "قباني^لنزار",
    "שרון^דבורה",
    "نمی\u200cخواهم",
    "Hong=洪^吉洞",
    "C:\\x",
]
FORMULAS = [
    '=HYPERLINK("http://x.example/","open")',
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "=cmd|'/c calc'!A1",
    "＝1+1",
]
FORMULAS += [" =1+1", '"=1+1"', "DOE;=1+1", "DOE; +1"]


@pytest.mark.parametrize("text", EVIL)
def test_control_and_directional_characters_are_written_out(text: str) -> None:
    shown = printable(text)
    assert not any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in shown)
    assert not set(shown) & set("\u202e\u2066\u2069\ufeff\u200b\xad\U000e0041")
    assert "\\" in shown


@pytest.mark.parametrize("text", ORDINARY)
def test_an_ordinary_name_stays_as_it_is_everywhere(text: str) -> None:
    assert printable(text) == cell(text) == text


@given(st.text())
def test_what_is_printable_stays_so(text: str) -> None:
    assert printable(printable(text)) == printable(text)
    printable(text).encode()


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_a_text_in_csv(text: str) -> None:
    file = io.StringIO()
    tables.write_csv(
        [{"patient_name": text, "probability": -0.5, "age": None}],
        ["patient_name", "probability", "age"],
        file,
    )
    ((name, number, nothing),) = list(csv.reader(io.StringIO(file.getvalue())))[1:]
    assert all(part.lstrip()[:1] not in '=+-@＝"' for part in name.split(";") if part.strip())
    assert "'" in name
    assert (number, nothing) == ("-0.5", "")
    assert unquoted(name) == text


@given(st.text(alphabet="=+-@;'\" a\\", max_size=8))
def test_no_cell_begins_with_a_formula(text: str) -> None:
    written = cell(text)
    assert all(part.lstrip(" \"'")[:0] == "" for part in written.split(";"))
    assert not any(part.lstrip(" ")[:1] in tuple("=+-@") for part in written.split(";"))


@pytest.mark.parametrize("text", EVIL)
def test_json_says_the_same_without_such_characters(text: str) -> None:
    encoded = json_text(json.dumps({"name": text}, indent=2, ensure_ascii=False))
    assert json.loads(encoded) == {"name": text}
    assert printable(encoded.replace("\n", "")) == encoded.replace("\n", "")


@pytest.mark.parametrize("text", EVIL)
def test_no_terminal_is_commanded_by_a_table_a_text_or_an_error(text: str) -> None:
    file = io.StringIO()
    screen = console(file=file, force_terminal=True, color_system=None, width=100)
    table = Table("Name")
    table.add_row(text)
    screen.print(table)
    screen.print(text, markup=False)
    screen.print(f"[red]{text.replace('[', '(')}[/]")
    for line in file.getvalue().split("\n"):
        assert printable(line) == line


def test_colours_still_reach_a_terminal() -> None:
    file = io.StringIO()
    console(file=file, force_terminal=True, color_system="standard").print("[red]no[/]")
    assert "\x1b[31mno" in file.getvalue()


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("text", EVIL)
def test_nothing_that_a_peer_sent_reaches_a_log_unwritten(
    text: str, form: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    try:
        log.configure(LogSettings(format=form))
        log.get("test").warning(text, syntax=text, syntaxes=[text, (text,)], **{"k": {"inner": text}})
        logging.getLogger("library").error("said %s", text)
        try:
            raise ValueError(text)
        except ValueError:
            log.get("test").exception("failed")
    finally:
        logging.getLogger().handlers = handlers
        logging.getLogger().setLevel(level)
    lines = capsys.readouterr().err.split("\n")
    assert len(lines) > 3
    for line in lines:
        assert printable(line) == line
    assert sum("instance stored" in line for line in lines if line.startswith("2026 ")) == 0
