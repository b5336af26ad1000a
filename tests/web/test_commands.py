"""The commands that belong to the reading list: `verdict` and `open`."""

from __future__ import annotations

from pathlib import Path

import pytest

from db import verdicts
from db.models import Verdict
from tests.conftest import uid
from tests.helpers import rows
from tests.helpers.commands import command, configure
from tests.web.conftest import Site

STUDY = uid("1", "study")


@pytest.fixture
def config(site: Site, tmp_path: Path) -> Path:
    """Settings of the site, as a file for commands."""
    file = tmp_path / "config.toml"
    web = site.settings.web
    file.write_text(f'[database]\nurl = "{site.settings.database.url}"\n[web]\nport = {web.port}\n')
    return file


def _labels(site: Site) -> list[tuple[str, str, str, bool]]:
    return [
        (row.label, row.comment, row.person, row.score_was_visible)
        for row in rows.rows(site.database, Verdict)
    ]


def test_a_verdict_is_given_by_a_command(site: Site, config: Path) -> None:
    site.add()
    site.scored()
    said = ("--label", "agree", "--comment", "lower lobe", "--person", "Dr Moon")
    done = command("verdict", STUDY, *said, "--config", config)
    assert done.returncode == 0, done.stderr
    assert "1 verdict recorded." in done.stdout
    blind = command(
        "verdict", STUDY, "--image", uid("1", 1), "--label", "unreadable", "--blind", "--config", config
    )
    assert blind.returncode == 0, blind.stderr
    (first, second) = _labels(site)
    assert first == ("agree", "lower lobe", "Dr Moon", True)
    assert (second[0], second[3]) == ("unreadable", False)


def test_a_file_of_verdicts_is_recorded_whole(site: Site, config: Path, tmp_path: Path) -> None:
    site.add()
    site.add(number=2)
    site.scored()
    file = tmp_path / "verdicts.csv"
    lines = [
        "study_instance_uid,sop_instance_uid,label,comment,person,score_was_visible",
        f'{STUDY},{uid("1", 1)},pneumonia,"said ""sure"", twice",Dr Sun,0',
        f"{STUDY},{uid('1', 2)},no_pneumonia,,,1",
    ]
    file.write_text("\n".join(lines), encoding="utf-8-sig")
    done = command("verdict", "--csv", file, "--person", "Dr Moon", "--config", config)
    assert done.returncode == 0, done.stderr
    assert _labels(site) == [
        ("pneumonia", 'said "sure", twice', "Dr Sun", False),
        ("no_pneumonia", "", "Dr Moon", True),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1.2.3,,pneumonia", "line 3: There is no study 1.2.3"),
        (f"{STUDY},1.2.3,pneumonia", "line 3: Study"),
        (f"{STUDY},,perhaps", "'perhaps' is no verdict"),
        (f"{STUDY},,pneumonia,too,many", "too many columns"),
    ],
)
def test_a_file_with_one_wrong_line_records_nothing(
    site: Site, config: Path, tmp_path: Path, line: str, said: str
) -> None:
    site.add()
    file = tmp_path / "verdicts.csv"
    file.write_text(f"study_instance_uid,sop_instance_uid,label\n{STUDY},,pneumonia\n{line}\n")
    done = command("verdict", "--csv", file, "--config", config, COLUMNS="200")
    assert done.returncode == 2
    assert said in done.stderr
    assert _labels(site) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Say what is meant"),
        ((STUDY,), "Say what is meant"),
        ((STUDY, "--label", "pneumonia"), "has several images"),
        ((STUDY, "--image", uid("1", 1), "--label", "agree"), "agree only where"),
        (("--csv", "none.csv"), "Cannot read none.csv"),
    ],
)
def test_what_is_not_understood_is_said(
    site: Site, config: Path, arguments: tuple[str, ...], said: str
) -> None:
    site.add()
    site.add(number=2)
    done = command("verdict", *arguments, "--config", config, COLUMNS="200")
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert _labels(site) == []


def test_labels_of_the_command_are_those_of_the_database() -> None:
    text = command("verdict", "--help", COLUMNS="200").stdout
    assert all(label in text for label in verdicts.LABELS)


def test_open_prints_the_address_and_says_when_nobody_answers(
    site: Site, config: Path, tmp_path: Path
) -> None:
    done = command("open", "--print", "--config", config)
    assert (done.returncode, done.stdout.strip()) == (0, f"{site.address}/")
    configure(tmp_path, site.settings.database.url, 1)
    silent = command("open", "--config", tmp_path / "config.toml", PACS_NODE_WEB__PORT="1", DISPLAY="")
    assert silent.returncode == 1
    assert "http://127.0.0.1:1/" in silent.stdout
    assert "Nothing answers there" in silent.stderr
