"""What README.md and docs/ promise: commands exist, settings are read, queries run, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from sqlalchemy import text

import classifier.cli
import pacs_node.cli
from classifier.reasons import Reason
from db.results import LEDGER_COLUMNS, RESULT_COLUMNS, SCORE_COLUMNS, STUDY_COLUMNS
from db.session import Database
from pacs_node.config import load
from tests.helpers.commands import in_this_process

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


MAINS = {"pacs-node": pacs_node.cli.main, "classifier": classifier.cli.main}
GROUPS = {"user", "token"}  # whose commands have a second word


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Return the arguments of each call of a program in the shell blocks."""
    text = "\n".join(PAGES.values())
    lines = [line.split("#")[0].strip() for block in blocks("sh", text) for line in block.splitlines()]
    called = re.findall(rf"(?:^|/|`){program} ([^`\n]+)", "\n".join(lines) + text, re.MULTILINE)
    return [shlex.split(arguments.split("#")[0].split(";")[0]) for arguments in called]


@pytest.mark.parametrize("program", ["pacs-node", "classifier"])
def test_every_command_and_option_exists(program: str) -> None:
    asked: dict[tuple[str, ...], list[str]] = {}
    for name, *arguments in commands(program):
        whole = (name, *arguments[:1]) if name in GROUPS else (name,)
        asked.setdefault(whole, []).extend(word for word in arguments if word.startswith("--"))
    assert len(asked) >= 2
    for words, options in asked.items():
        done = in_this_process(MAINS[program], program, *words, "--help")
        assert done.returncode == 0, words
        assert all(option in done.stdout for option in options), (words, options)


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_settings_it_shows_are_read(tmp_path: Path) -> None:
    (block,) = blocks("toml")
    (tmp_path / "config.toml").write_text(block)
    assert load(tmp_path / "config.toml").destinations[0].port == 4242


def test_their_queries_run_on_both_databases(database: Database) -> None:
    queries = [
        query
        for page in PAGES.values()
        for block in blocks("sql", page)
        for query in block.split(";")
        if query.strip()
    ]
    assert len(queries) >= 8
    with database.read() as session:
        for query in queries:
            session.execute(text(query)).all()


def test_every_column_of_the_views_and_every_reason_is_explained() -> None:
    for name in (*RESULT_COLUMNS, *LEDGER_COLUMNS, *STUDY_COLUMNS, *SCORE_COLUMNS):
        assert f"`{name}`" in PAGES["results-database.md"]
    for reason in Reason:
        assert f"`{reason}`" in PAGES["reasons.md"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", PAGES[page]):
        assert (folder / target).exists(), target
