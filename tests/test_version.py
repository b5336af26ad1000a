"""Both programs say which version they are."""

from __future__ import annotations

from importlib.metadata import version

import pytest

import classifier.cli
import pacs_node.cli
from tests.helpers.commands import in_this_process

MAINS = {"pacs-node": pacs_node.cli.main, "classifier": classifier.cli.main}


@pytest.mark.parametrize("program", MAINS)
def test_the_version_is_printed(program: str) -> None:
    done = in_this_process(MAINS[program], program, "--version")
    assert (done.returncode, done.stdout) == (0, f"{program} {version('pacs-node')}\n")
