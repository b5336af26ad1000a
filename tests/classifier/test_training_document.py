"""The commands of docs/training.md, as they stand there, on small images."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from classifier.cli import app
from tests.helpers.datasets import folder, picture

DOCUMENTED = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
SMALL = ["--epochs", "1", "--image-size", "32", "--batch-size", "16", "--workers", "1", "--device", "cpu"]


def lines() -> list[list[str]]:
    """Return the arguments of each command."""
    found = re.findall(r"```sh\n(.*?)```", DOCUMENTED, re.DOTALL)
    return [shlex.split(line)[1:] for line in "".join(found).splitlines()]


def test_each_command_works_after_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("radiographs", "test", "ours"):
        folder(tmp_path / name, patients=12, images=1)
    picture(tmp_path / "chest.png")
    monkeypatch.chdir(tmp_path)
    for command in lines():
        done = CliRunner().invoke(app, [*command, *(SMALL if command[0] == "train" else [])])
        assert done.exit_code == 0, (command, done.output, done.exception)
    for table in re.findall(r"\| In `run/` \|.*?\n\n", DOCUMENTED, re.DOTALL):
        for name in re.findall(r"`([\w.]+)`", table):
            assert (tmp_path / "run" / name).exists(), name
    assert json.loads((tmp_path / "result" / "metrics.json").read_text())["model"]["name"] == "ours"
    assert (tmp_path / "ours.onnx").exists()
