"""Rows for programs: written one by one, and the same as if they were written at once."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from pacs_node.terminal.tables import write_csv, write_json, write_json_rows


@pytest.mark.parametrize("rows", [[], [{"a": 1}], [{"a": "\u202eb", "c": [1]}, {"a": None, "c": []}]])
def test_json_rows_are_a_json_list(rows: list[dict[str, Any]]) -> None:
    at_once, one_by_one = io.StringIO(), io.StringIO()
    write_json(rows, at_once)
    write_json_rows(iter(rows), one_by_one)
    assert one_by_one.getvalue() == at_once.getvalue()
    assert json.loads(one_by_one.getvalue()) == rows


def test_csv_begins_with_a_mark_where_one_is_asked_for() -> None:
    for bom in (False, True):
        file = io.StringIO()
        write_csv([{"a": "Müller"}], ["a"], file, bom=bom)
        assert file.getvalue() == "\ufeff" * bom + "a\nMüller\n"
